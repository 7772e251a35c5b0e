//! Failures with the name of the step that failed, as they travel from a monitor to the daemon.

use std::fmt::Display;
use std::io;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What was being done, and what went wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Error)]
#[error("{step}: {error}")]
pub struct StepError {
    /// What was being done.
    pub step: String,
    /// What went wrong, without the step.
    pub error: String,
}

impl StepError {
    /// Of a step and what went wrong with it.
    pub fn new(step: impl Display, error: impl Display) -> Self {
        Self { step: step.to_string(), error: error.to_string() }
    }
}

/// Names the step of a fallible call.
pub trait Step<T> {
    /// With a fixed name.
    ///
    /// # Errors
    /// The failure, with it.
    fn step(self, step: &str) -> Result<T, StepError>;
    /// With a name that says what the step was applied to.
    ///
    /// # Errors
    /// The failure, with it.
    fn step_at(self, step: &str, what: &dyn std::fmt::Debug) -> Result<T, StepError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &str) -> Result<T, StepError> {
        self.map_err(|error| StepError::new(step, error.into()))
    }

    fn step_at(self, step: &str, what: &dyn std::fmt::Debug) -> Result<T, StepError> {
        self.map_err(|error| StepError::new(format_args!("{step} {what:?}"), error.into()))
    }
}
