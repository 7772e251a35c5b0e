//! Programs that run in the guest.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use duet_sys::socket;
use rustix::event::{EventfdFlags, eventfd};

use super::worker::{Command, Purpose};
use super::{Client, ClientError};
use crate::protocol::message::{self, Control, ExecRequest, ExecStatus, PtySize, Reply, Request};
use crate::protocol::{STDERR, STDIN, STDOUT};

/// What a program's standard descriptors are on the host's side.
///
/// They become non-blocking, with all who share their open file descriptions: hand over an end of a pipe or of a socket pair,
/// not a terminal that others use.
#[derive(Debug)]
pub struct Stdio {
    /// What is read from it goes to the program's standard input.
    pub stdin: OwnedFd,
    /// What the program writes to its standard output is written to it, and it is closed at the end of that.
    pub stdout: OwnedFd,
    /// Likewise its standard error.
    pub stderr: OwnedFd,
}

/// A program that runs in the guest. Dropped before it has ended, it loses its descriptors, and with a terminal it is killed.
/// Dropped after, it leaves what was written still to be carried over.
#[derive(Debug)]
pub struct Exec {
    client: Client,
    ticket: u64,
    pid: u32,
    exited: Receiver<ExecStatus>,
    /// Readable when there is something in `exited`, or never will be.
    signal: OwnedFd,
    status: Option<ExecStatus>,
}

impl Client {
    /// Runs a program with three descriptors. Returns when it is executed.
    ///
    /// # Errors
    /// [`ClientError::Refused`] tells by its kind a program that does not exist from one that cannot be executed.
    pub fn exec(&self, request: ExecRequest, stdio: Stdio, timeout: Duration) -> Result<Exec, ClientError> {
        let request = ExecRequest { pty: None, ..request };
        let streams = vec![(STDIN, stdio.stdin), (STDOUT, stdio.stdout), (STDERR, stdio.stderr)];
        self.start(&Request::Exec(request), streams, timeout)
    }

    /// Runs a program in a terminal. The socket that comes along carries what is typed and what is shown.
    ///
    /// # Errors
    /// As [`Self::exec`].
    pub fn exec_pty(
        &self,
        request: ExecRequest,
        size: PtySize,
        timeout: Duration,
    ) -> Result<(Exec, OwnedFd), ClientError> {
        let (ours, theirs) = socket::stream_pair().map_err(ClientError::System)?;
        let typed = theirs.try_clone().map_err(ClientError::System)?;
        let request = ExecRequest { pty: Some(size), ..request };
        Ok((self.start(&Request::Exec(request), vec![(STDIN, typed), (STDOUT, theirs)], timeout)?, ours))
    }

    /// Packs the guest's root filesystem, and nothing that is mounted below it, as a tar archive each of whose names begins
    /// with `rootfs/`. It is written to `archive`, and to `errors` one sentence should that fail; as with [`Stdio`] these are
    /// the ends of pipes, and each is closed at its end.
    ///
    /// What comes back is the program that does so: the archive is whole if it ended with [`ExecStatus::Code`] 0, and only
    /// then has it an end mark. What the archive says is the guest's word: it is to be read as a stranger's.
    ///
    /// # Errors
    /// [`ClientError`]; of an agent that is older, [`ClientError::Refused`].
    pub fn archive(&self, archive: OwnedFd, errors: OwnedFd, timeout: Duration) -> Result<Exec, ClientError> {
        self.start(&Request::Archive, vec![(STDOUT, archive), (STDERR, errors)], timeout)
    }

    fn start(&self, request: &Request, streams: Vec<(u8, OwnedFd)>, timeout: Duration) -> Result<Exec, ClientError> {
        let signal =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| ClientError::System(e.into()))?;
        let (sender, exited) = std::sync::mpsc::sync_channel(1);
        let purpose =
            Purpose::Program { exited: Some(sender), signal: signal.try_clone().map_err(ClientError::System)? };
        let (ticket, answers) = self.open(request, streams, purpose)?;
        match self.answer(ticket, &answers, timeout)? {
            Reply::Started { pid } => Ok(Exec { client: self.clone(), ticket, pid, exited, signal, status: None }),
            _ => {
                // What it is instead does not matter; nothing is left of it.
                let _ = self.shared.command(Command::Close { ticket });
                Err(ClientError::WrongAnswer)
            }
        }
    }
}

impl Exec {
    /// Its process id in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until the program has ended; `None` if it has not within `timeout`.
    ///
    /// # Errors
    /// [`ClientError::Lost`].
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<ExecStatus>, ClientError> {
        if self.status.is_none() {
            match self.exited.recv_timeout(timeout) {
                Ok(status) => self.status = Some(status),
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => return Err(self.client.shared.why_lost()),
            }
        }
        Ok(self.status)
    }

    /// Sends a signal to the program and its process group.
    ///
    /// # Errors
    /// [`ClientError::Lost`]. A program that has ended hears nothing, and that is no error.
    pub fn signal(&self, signal: i32) -> Result<(), ClientError> {
        self.control(Control::Signal { signal })
    }

    /// Sets the size of its terminal's window.
    ///
    /// # Errors
    /// As [`Self::signal`].
    pub fn resize(&self, size: PtySize) -> Result<(), ClientError> {
        self.control(Control::Resize(size))
    }

    /// Gives up what the program, or others that hold its output open, would still write.
    pub fn close(self) {
        // A lost connection is as closed as can be.
        let _ = self.client.shared.command(Command::Close { ticket: self.ticket });
    }

    fn control(&self, control: Control) -> Result<(), ClientError> {
        self.client.shared.command(Command::Say { ticket: self.ticket, message: message::encode(&control) })
    }
}

/// Readable once the program has ended or the connection is lost, for those who poll.
impl AsFd for Exec {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signal.as_fd()
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        if self.status.is_none() && self.exited.try_recv().is_err() {
            // As in `close`.
            let _ = self.client.shared.command(Command::Close { ticket: self.ticket });
        }
    }
}
