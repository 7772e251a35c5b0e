//! The receiving end of sd_notify(3).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, bind, recv, socket_with};

/// A datagram socket with an abstract name (unix(7)): known in the current network namespace only, and in no directory.
///
/// # Errors
/// As socket(2) and bind(2).
pub fn listen(name: &[u8]) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    bind(&socket, &SocketAddrUnix::new_abstract_name(name)?)?;
    Ok(socket)
}

/// Takes what has arrived, and says whether any of it was `READY=1`.
pub fn heard_ready(socket: impl AsFd) -> bool {
    let mut buffer = [0; 4096];
    let mut ready = false;
    // A sender that never pauses must not hold the caller: what is left is taken the next time.
    for _ in 0..32 {
        match recv(&socket, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((_, length)) => {
                let message = &buffer[..length.min(buffer.len())];
                ready |= message.split(|byte| *byte == b'\n').any(|line| line == b"READY=1");
            }
            Err(_) => break,
        }
    }
    ready
}
