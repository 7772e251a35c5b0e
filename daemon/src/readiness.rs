//! Waiting, without a thread, until a descriptor is ready.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use duet_container::cgroup::OomWatch;
use duet_control::client::MonitorClient;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What owns one descriptor for as long as it lives and always names the same one.
pub trait OwnsDescriptor: AsRawFd {}

impl OwnsDescriptor for OwnedFd {}
impl OwnsDescriptor for MonitorClient {}
impl OwnsDescriptor for OomWatch {}

/// Registers a descriptor with the runtime; needs one.
///
/// # Errors
/// What the kernel said (epoll_ctl(2)).
pub fn register<T: OwnsDescriptor>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: `OwnsDescriptor` is implemented for types only that own an open descriptor and never replace it, so it
    // stays open and the same until the `AsyncFd`, which owns `owner`, is dropped.
    unsafe { AsyncFd::register(owner) }.map_err(|error| error.into_parts().1)
}

/// As [`register`], for what announces itself with `POLLPRI`.
///
/// # Errors
/// What the kernel said (epoll_ctl(2)).
pub fn register_priority<T: OwnsDescriptor>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: as in `register`.
    unsafe { AsyncFd::register_with_interest(owner, Interest::PRIORITY) }.map_err(|error| error.into_parts().1)
}
