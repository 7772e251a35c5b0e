//! The way into a guest of Duet's own monitor: a unix socket that connects to any port of the guest.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::ClientError;
use crate::protocol::VSOCK_PORT;

/// The longest answer, in bytes: `OK`, a port and a newline.
const MAX_ANSWER: usize = 32;

/// Asks at the monitor's socket for a connection to the agent's port: `CONNECT <port>`, answered by `OK <port>` (the
/// protocol of Firecracker, docs/vsock.md there).
///
/// # Errors
/// [`ClientError::Lost`] if nobody listens on the port, [`ClientError::TimedOut`].
pub fn connect(mut socket: UnixStream, timeout: Duration) -> Result<OwnedFd, ClientError> {
    let deadline = Instant::now() + timeout;
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            ClientError::TimedOut { what: "a connection", after: timeout }
        }
        _ => ClientError::System(error),
    };
    socket.set_write_timeout(Some(timeout)).map_err(failed)?;
    socket.write_all(format!("CONNECT {VSOCK_PORT}\n").as_bytes()).map_err(failed)?;
    let mut answer = Vec::new();
    // One by one: what follows the line is the agent's.
    while answer.last() != Some(&b'\n') {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(failed(io::ErrorKind::TimedOut.into()));
        }
        socket.set_read_timeout(Some(left)).map_err(failed)?;
        let mut byte = [0];
        if socket.read(&mut byte).map_err(failed)? == 0 || answer.len() >= MAX_ANSWER {
            return Err(ClientError::Lost("nobody listens on the agent's port".to_owned()));
        }
        answer.push(byte[0]);
    }
    if !answer.starts_with(b"OK ") {
        return Err(ClientError::Lost("the agent's port was refused".to_owned()));
    }
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(answer: &'static [u8]) -> Result<OwnedFd, ClientError> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(answer).unwrap();
        let result = connect(ours, Duration::from_millis(50));
        let mut request = [0; 64];
        let length = theirs.read(&mut request).unwrap();
        assert_eq!(&request[..length], b"CONNECT 1146438996\n");
        result
    }

    #[test]
    fn the_line_is_read_and_not_a_byte_more() {
        let mut left = [0; 8];
        let stream = UnixStream::from(answered(b"OK 1073741824\nmore").unwrap()).read(&mut left).unwrap();
        assert_eq!(&left[..stream], b"more");
        assert!(matches!(answered(b"NO\n"), Err(ClientError::Lost(_))));
        assert!(matches!(answered(&[b'x'; 100]), Err(ClientError::Lost(_))));
        assert!(matches!(answered(b"OK 1"), Err(ClientError::TimedOut { .. })));
    }
}
