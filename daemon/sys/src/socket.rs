//! Packets with descriptors over `AF_UNIX` `SOCK_SEQPACKET` sockets.

use std::ffi::OsStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg, sockopt,
};

/// The most descriptors that one packet carries here; the kernel's bound is 253 (`SCM_MAX_FD`, unix(7)).
pub const MAX_FDS: usize = 128;

/// What one packet brought.
#[derive(Debug)]
pub struct Packet {
    /// How many bytes were written to the buffer; zero without descriptors is the end of the stream.
    pub len: usize,
    /// The descriptors, close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// Whether the packet, or its descriptors, did not fit.
    pub truncated: bool,
}

/// A connected pair of packet sockets, close-on-exec.
///
/// # Errors
/// As socketpair(2).
pub fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// A connected pair of stream sockets, close-on-exec.
///
/// # Errors
/// As socketpair(2).
pub fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// Sends one packet. A closed peer is `EPIPE`, never a signal; a full buffer of a non-blocking socket is `WouldBlock`.
///
/// # Errors
/// As sendmsg(2); `EMSGSIZE` for a packet beyond the send buffer.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "more descriptors than one packet carries"));
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives one packet. `WouldBlock` if the socket is non-blocking and none has come.
///
/// A peer that closed its end before it had read everything is told as `ECONNRESET`, ahead of what it had sent before
/// (`unix_release_sock`, net/unix/af_unix.c); that is passed over here, so its last words are heard, and then the end.
///
/// # Errors
/// As recvmsg(2).
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Packet> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => break message,
            // The error is reported once.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
            Err(error) => return Err(error.into()),
        }
    };
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    let truncated = message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    Ok(Packet { len: message.bytes, fds, truncated })
}

/// Makes room for packets of this many bytes in the send buffer, as far as the system allows.
///
/// # Errors
/// As setsockopt(2) `SO_SNDBUF`.
pub fn reserve_send_buffer(socket: impl AsFd, bytes: usize) -> io::Result<()> {
    if sockopt::socket_send_buffer_size(&socket)? < bytes * 2 {
        // The forced form passes the system's bound (net.core.wmem_max) and needs CAP_NET_ADMIN.
        if sockopt::set_socket_send_buffer_size_force(&socket, bytes).is_err() {
            sockopt::set_socket_send_buffer_size(&socket, bytes)?;
        }
    }
    Ok(())
}

/// Binds a listening packet socket at `name` in the directory `dir`, replacing a stale one. The path goes through
/// `/proc/self/fd`, so that the directory's own path can be longer than the 107 bytes of a socket address.
///
/// # Errors
/// As bind(2) and listen(2).
pub fn listen_in(dir: impl AsFd, name: &OsStr, backlog: i32) -> io::Result<OwnedFd> {
    let socket = new_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    match rustix::fs::unlinkat(&dir, name, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    rustix::net::bind(&socket, &address_in(dir.as_fd(), name)?)?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}

/// Connects to the packet socket `name` in the directory `dir`.
///
/// # Errors
/// As connect(2): `ConnectionRefused` or `NotFound` if nobody listens.
pub fn connect_in(dir: &Path, name: &OsStr) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    let dir = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let socket = new_socket(SocketFlags::CLOEXEC)?;
    rustix::net::connect(&socket, &address_in(dir.as_fd(), name)?)?;
    Ok(socket)
}

/// Accepts one connection, close-on-exec and non-blocking. `None` if none waits.
///
/// # Errors
/// As accept4(2).
pub fn accept(listener: impl AsFd) -> io::Result<Option<OwnedFd>> {
    match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok(socket) => Ok(Some(socket)),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes a descriptor non-blocking, or blocking.
///
/// # Errors
/// As fcntl(2).
pub fn set_nonblocking(fd: impl AsFd, nonblocking: bool) -> io::Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(&fd)?;
    flags.set(rustix::fs::OFlags::NONBLOCK, nonblocking);
    Ok(rustix::fs::fcntl_setfl(&fd, flags)?)
}

/// Waits until a descriptor can be read (or its peer has gone). `false` if the deadline passed first.
///
/// # Errors
/// As poll(2).
pub fn wait_readable(fd: impl AsFd, deadline: std::time::Instant) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

fn new_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

fn address_in(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<SocketAddrUnix> {
    let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    Ok(SocketAddrUnix::new(path)?)
}

/// The length in bytes of the packet that would be received next, without taking it. Zero at the end of the stream.
/// Blocks, unless the socket is non-blocking (`WouldBlock`).
///
/// # Errors
/// As recv(2) with `MSG_PEEK | MSG_TRUNC`.
pub fn next_len(socket: impl AsFd) -> io::Result<usize> {
    loop {
        match rustix::net::recv(&socket, &mut [0u8; 1], RecvFlags::PEEK | RecvFlags::TRUNC) {
            Ok((_, len)) => return Ok(len),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
