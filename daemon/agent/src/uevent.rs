//! The kernel's own word that a device came or went.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

/// The group to which the kernel itself tells (Linux' lib/kobject_uevent.c); udev's is another.
const KERNEL: u32 = 1;

/// A listener. What the events say is not read: whoever waits looks for himself.
#[derive(Debug)]
pub(crate) struct Uevents(OwnedFd);

impl Uevents {
    pub fn listen() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
        Ok(Self(socket))
    }

    /// Takes what has come.
    pub fn take(&self) {
        let mut event = [0; 64];
        // ENOBUFS says that some were lost, after which there are others.
        while matches!(recv(&self.0, &mut event, RecvFlags::DONTWAIT), Ok(_) | Err(rustix::io::Errno::NOBUFS)) {}
    }
}

impl AsFd for Uevents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
