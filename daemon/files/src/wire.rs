//! The socket between the two sides: packets, or a stream in which each is preceded by its length.
//!
//! Beside the service of a container there is a socket that keeps packets apart. A virtual machine's is reached through a
//! channel of its agent, which is a stream; there a packet is `u32` little-endian length and as many bytes.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use duet_sys::socket;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, SocketType, recv, sendmsg, sockopt};

use super::protocol::MAX_PACKET;

/// One side's socket.
#[derive(Debug)]
pub(crate) struct Wire {
    socket: OwnedFd,
    stream: bool,
}

impl Wire {
    /// The kind of socket says how packets are kept apart.
    pub fn new(socket: OwnedFd) -> Result<Self, Errno> {
        let stream = sockopt::socket_type(&socket)? == SocketType::STREAM;
        Ok(Self { socket, stream })
    }

    /// Sends one packet: the head's length, the head, the data. `TIMEDOUT` when only a part went by the deadline; what waits
    /// for the other side to take anything at all is bounded by the socket's own timeout.
    pub fn send(&self, head: &[u8], data: &[u8], deadline: Option<Instant>) -> Result<(), Errno> {
        let head_length = u32::try_from(head.len()).map_err(|_| Errno::MSGSIZE)?;
        let length = 4 + head.len() + data.len();
        if self.stream && length > MAX_PACKET {
            return Err(Errno::MSGSIZE);
        }
        let prefix = u32::try_from(length).map_err(|_| Errno::MSGSIZE)?.to_le_bytes();
        let prefix: &[u8] = if self.stream { &prefix } else { &[] };
        let head_length = head_length.to_le_bytes();
        let mut parts = [IoSlice::new(prefix), IoSlice::new(&head_length), IoSlice::new(head), IoSlice::new(data)];
        let mut left = &mut parts[..];
        let mut remaining = prefix.len() + length;
        loop {
            match sendmsg(&self.socket, left, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL) {
                // A stream may take a part of it; a packet is taken as a whole.
                Ok(sent) if sent < remaining => {
                    if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                        return Err(Errno::TIMEDOUT);
                    }
                    remaining -= sent;
                    IoSlice::advance_slices(&mut left, sent);
                }
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Receives one packet and answers its length, zero at the end of the stream. `MSGSIZE` for one that is too long,
    /// `TIMEDOUT` when the deadline passed first.
    pub fn receive(&self, buffer: &mut [u8], deadline: Option<Instant>) -> Result<usize, Errno> {
        if !self.stream {
            self.wait(deadline)?;
            let packet = socket::receive(&self.socket, buffer)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            return if packet.truncated { Err(Errno::MSGSIZE) } else { Ok(packet.len) };
        }
        let mut prefix = [0; 4];
        match self.fill(&mut prefix, deadline)? {
            4 => {}
            0 => return Ok(0),
            _ => return Err(Errno::PROTO),
        }
        let length = u32::from_le_bytes(prefix) as usize;
        let room = buffer.get_mut(..length).ok_or(Errno::MSGSIZE)?;
        if self.fill(room, deadline)? < length || length == 0 { Err(Errno::PROTO) } else { Ok(length) }
    }

    /// Reads until the buffer is full or the stream has ended.
    fn fill(&self, buffer: &mut [u8], deadline: Option<Instant>) -> Result<usize, Errno> {
        let mut filled = 0;
        while filled < buffer.len() {
            self.wait(deadline)?;
            match recv(&self.socket, &mut buffer[filled..], RecvFlags::empty()) {
                Ok((0, _)) => break,
                Ok((count, _)) => filled += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(filled)
    }

    fn wait(&self, deadline: Option<Instant>) -> Result<(), Errno> {
        let Some(deadline) = deadline else { return Ok(()) };
        match socket::wait_readable(&self.socket, deadline) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Errno::TIMEDOUT),
            Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn packets_stay_apart_on_either_kind() {
        let pairs = [duet_sys::socket::packet_pair().unwrap(), duet_sys::socket::stream_pair().unwrap()];
        for (one, other) in pairs {
            let (one, other) = (Wire::new(one).unwrap(), Wire::new(other).unwrap());
            one.send(b"head", b"data", None).unwrap();
            one.send(b"2", b"", None).unwrap();
            drop(one);
            let mut buffer = [0; 64];
            let deadline = Some(Instant::now() + Duration::from_secs(5));
            assert_eq!(other.receive(&mut buffer, deadline), Ok(12));
            assert_eq!(&buffer[..12], b"\x04\0\0\0headdata");
            assert_eq!(other.receive(&mut buffer, deadline), Ok(5));
            assert_eq!(other.receive(&mut buffer, deadline), Ok(0));
        }
    }

    #[test]
    fn a_hostile_stream_is_refused_and_not_waited_for() {
        let received = |bytes: &[u8]| {
            let (mut theirs, ours) = UnixStream::pair().unwrap();
            theirs.write_all(bytes).unwrap();
            let wire = Wire::new(ours.into()).unwrap();
            wire.receive(&mut [0; 16], Some(Instant::now() + Duration::from_millis(20)))
        };
        assert_eq!(received(&[0xff; 4]), Err(Errno::MSGSIZE));
        assert_eq!(received(&[17, 0, 0, 0]), Err(Errno::MSGSIZE));
        assert_eq!(received(&[0; 4]), Err(Errno::PROTO));
        assert_eq!(received(&[4, 0, 0, 0, 1]), Err(Errno::TIMEDOUT));
        assert_eq!(received(&[4, 0]), Err(Errno::TIMEDOUT));
    }
}
