//! Growing a mounted ext4 (Linux' fs/ext4/ioctl.c).

use std::io;
use std::os::fd::AsFd;

use crate::ioctl::{self, WRITE};

const RESIZE_FS: u32 = ioctl::request(WRITE, b'f', 16, size_of::<u64>());

/// Grows the filesystem to this many of its own blocks (`EXT4_IOC_RESIZE_FS`). `mount` is any file or directory in it.
/// The kernel leaves out a last group that would be too short to hold what a group needs.
///
/// # Errors
/// `EPERM` without `CAP_SYS_RESOURCE`, `EROFS` when it is mounted read-only, `EINVAL` when the device has not as many
/// blocks, `EOPNOTSUPP` when it was made without room to grow, `ENOTTY` for another filesystem.
pub fn resize(mount: impl AsFd, blocks: u64) -> io::Result<()> {
    let mut blocks = blocks;
    // SAFETY: the request reads one 64-bit number.
    unsafe { ioctl::with(mount, RESIZE_FS, &mut blocks) }.map(drop)
}
