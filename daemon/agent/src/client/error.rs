//! What a client's caller can meet.

use std::io;
use std::time::Duration;

use super::FULL;
use crate::mux::Lost;
use crate::protocol::message::ErrorReply;

/// Why a guest did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The agent says that it did not, and why.
    #[error(transparent)]
    Refused(ErrorReply),
    /// It did not answer in time.
    #[error("the virtual machine's agent gave no sign of {what} within {after:?}")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        after: Duration,
    },
    /// The connection is gone.
    #[error("the connection to the virtual machine's agent is lost: {0}")]
    Lost(String),
    /// The agent answered something else than was asked.
    #[error("the virtual machine's agent answered something else than what it was asked")]
    WrongAnswer,
    /// The request does not fit into a message.
    #[error("the command with its environment is too long")]
    TooLarge,
    /// Too much is under way.
    #[error("more than {FULL} programs and requests at once are too many for one virtual machine")]
    Busy,
    /// The host's kernel refused something.
    #[error("the virtual machine's agent cannot be spoken with: {0}")]
    System(#[source] io::Error),
}

impl ClientError {
    pub(super) fn lost(lost: Lost) -> Self {
        Self::Lost(lost.to_string())
    }
}
