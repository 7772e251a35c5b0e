//! The monitor's side of the start's conversation with the daemon.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use duet_sys::socket;

use super::receive_packet;
use crate::handshake::{HandshakeEvent, HandshakeRequest};
use crate::protocol;
use crate::step::{Step, StepError};

/// The socket whose other end the daemon holds. Its end of the stream means that the start is given up.
pub(super) struct Handshake {
    socket: OwnedFd,
}

impl Handshake {
    pub fn new(socket: OwnedFd) -> Result<Self, StepError> {
        socket::set_nonblocking(&socket, true).step("set up the handshake socket")?;
        Ok(Self { socket })
    }

    pub fn send(&self, event: &HandshakeEvent, fds: &[BorrowedFd<'_>]) -> Result<(), StepError> {
        socket::send(&self.socket, &protocol::encode(event), fds).step("talk to the daemon")
    }

    /// Waits for the daemon's next request.
    pub fn receive(&self, timeout: Duration, step: &str) -> Result<(HandshakeRequest, Vec<OwnedFd>), StepError> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(message) = self.try_receive(step)? {
                return Ok(message);
            }
            if !socket::wait_readable(&self.socket, deadline).step(step)? {
                return Err(StepError::new(step, format_args!("nothing came within {} s", timeout.as_secs())));
            }
        }
    }

    /// Takes the daemon's next request, if it has come.
    pub fn try_receive(&self, step: &str) -> Result<Option<(HandshakeRequest, Vec<OwnedFd>)>, StepError> {
        let (packet, fds) = match receive_packet(&self.socket) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error).step(step),
        };
        if packet.is_empty() {
            return Err(StepError::new(step, "the daemon gave the start up"));
        }
        let request = protocol::parse("handshake request", &packet).map_err(|error| StepError::new(step, error))?;
        Ok(Some((request, fds)))
    }
}

impl AsFd for Handshake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
