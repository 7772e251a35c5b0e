//! The monitor's private line to a child: packets with descriptors over a socketpair whose ends close on exec, so that
//! the end of the stream tells the monitor that the child's program runs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use duet_sys::socket;
use serde::{Deserialize, Serialize};

use crate::protocol;
use crate::step::StepError;

/// What the monitor tells init.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    /// The maps of the user namespace are written.
    Mapped,
    /// Everything is on the stage: build the root and leave the stage.
    Staged,
    /// Execute the program.
    Go,
}

/// What a child tells the monitor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// Init is ready to execute its program. Along come the console's two ends and the root of the devpts instance.
    Ready,
    /// A program has its pseudoterminal. Along comes the master.
    Terminal,
    /// A hot plug helper is done.
    Done,
    /// The child ends because of this.
    Failed(StepError),
    /// There is no such program.
    NotFound(String),
    /// The program cannot be executed.
    NotExecutable(String),
}

/// One end of the line.
#[derive(Debug)]
pub(crate) struct Link {
    socket: OwnedFd,
}

impl Link {
    /// Both ends.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = socket::packet_pair()?;
        Ok((Self { socket: one }, Self { socket: other }))
    }

    /// Sends a message.
    pub fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        socket::send(&self.socket, &protocol::encode(message), fds)
    }

    /// Takes the next message; `None` at the end of the stream. Blocks, unless the end is non-blocking.
    pub fn receive<T: for<'de> Deserialize<'de>>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut buffer = [0; 8192];
        let packet = socket::receive(&self.socket, &mut buffer)?;
        if packet.len == 0 {
            return Ok(None);
        }
        let message = protocol::parse("message", &buffer[..packet.len]).map_err(io::Error::other)?;
        Ok(Some((message, packet.fds)))
    }

    /// Makes [`Self::receive`] answer `WouldBlock` instead of waiting.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        socket::set_nonblocking(&self.socket, true)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
