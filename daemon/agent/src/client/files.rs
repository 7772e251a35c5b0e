//! The guest's files.

use std::os::fd::OwnedFd;
use std::time::Duration;

use duet_sys::socket;
use rustix::event::{EventfdFlags, eventfd};

use super::worker::{Command, Purpose};
use super::{Client, ClientError};
use crate::protocol::message::{Reply, Request};
use crate::protocol::{STDIN, STDOUT};

impl Client {
    /// Starts a service for the guest's files. What comes back is the stream to it, for [`duet_files::FileSession::over`]; it can
    /// be handed to another process. The service ends when it is closed.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn files(&self, timeout: Duration) -> Result<OwnedFd, ClientError> {
        let (ours, theirs) = socket::stream_pair().map_err(ClientError::System)?;
        let copy = theirs.try_clone().map_err(ClientError::System)?;
        // Nobody waits for the service's end: the stream shows it.
        let signal = eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| ClientError::System(error.into()))?;
        let (exited, _) = std::sync::mpsc::sync_channel(1);
        let purpose = Purpose::Program { exited: Some(exited), signal };
        let (ticket, answers) = self.open(&Request::Files, vec![(STDIN, copy), (STDOUT, theirs)], purpose)?;
        match self.answer(ticket, &answers, timeout)? {
            Reply::Started { .. } => Ok(ours),
            _ => {
                // What it is instead does not matter; nothing is left of it.
                let _ = self.shared.command(Command::Close { ticket });
                Err(ClientError::WrongAnswer)
            }
        }
    }
}
