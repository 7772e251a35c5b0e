//! Failures with the name of the step that failed, as they travel from the container to the daemon.

pub(crate) use duet_control::step::{Step, StepError};
