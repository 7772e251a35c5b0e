//! Numbers of ioctl(2) requests, and the call itself.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The argument is written to by the kernel.
pub const READ: u32 = 2;
/// The argument is read by the kernel.
pub const WRITE: u32 = 1;

/// A request's number as `_IOC` of `asm-generic/ioctl.h` makes it: direction, kind, number, size of the argument.
#[must_use]
pub const fn request(direction: u32, kind: u8, number: u8, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | (kind as u32) << 8 | number as u32
}

/// ioctl(2) with a structure as its argument.
///
/// # Errors
/// As the request.
///
/// # Safety
/// `request` takes a structure of exactly the layout of `T`, in which no pointer or descriptor stands that is not valid.
pub unsafe fn with<T>(fd: impl AsFd, request: u32, argument: &mut T) -> io::Result<i32> {
    // SAFETY: the descriptor is open, and the caller says that the argument is what the request takes.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request as _, std::ptr::from_mut(argument)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// ioctl(2) with a number, or none, as its argument.
///
/// # Errors
/// As the request.
///
/// # Safety
/// `request` takes a number and no address.
pub unsafe fn with_number(fd: impl AsFd, request: u32, argument: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: the descriptor is open, and the caller says that the argument is not an address.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request as _, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
