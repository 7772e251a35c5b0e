//! Virtual machines as the daemon runs them: one monitor for each, which runs the machine and asks its guest.

pub mod spec;
