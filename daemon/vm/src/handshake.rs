//! The conversation of a start, on a socket pair of which the monitor's end is its standard input.
//!
//! The daemon sends [`HandshakeRequest::Start`] with the descriptors that the specification counts; the monitor answers
//! [`HandshakeEvent::Started`] with the machine's pidfd, or [`HandshakeEvent::Failed`]. If the daemon closes its end
//! before that, everything made so far is undone. The packets are those of [`duet_control::protocol`].

use serde::{Deserialize, Serialize};

use crate::spec::VmSpec;

/// What the daemon says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum HandshakeRequest {
    /// Run the machine.
    Start {
        /// The machine.
        spec: Box<VmSpec>,
    },
}

/// What the monitor says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum HandshakeEvent {
    /// The machine's process runs. Its pidfd comes along.
    Started {
        /// Its process id on the host.
        pid: u32,
    },
    /// The start ended here and nothing is left of it.
    Failed {
        /// What was being done.
        step: String,
        /// What went wrong, without the step.
        error: String,
    },
}
