//! Directories of pools, and what their filesystems are called.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Dir, Mode, OFlags, fstatfs};
use rustix::io::Errno;

use super::{Error, Result};

/// How a directory is opened that must be one itself, not a link to one.
pub(super) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens a directory.
pub(super) fn open(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, DIRECTORY, Mode::empty()).map_err(Error::io("open", path))
}

/// What is in a directory.
pub(super) fn names(directory: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// The number of a failed call.
pub(super) fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

/// The magic number of the filesystem that a file is on (linux/magic.h).
pub(super) fn magic(fd: impl AsFd) -> Result<u32, Errno> {
    Ok(fstatfs(fd)?.f_type as u32)
}

/// The filesystem's name, for sentences only.
pub(super) fn filesystem(fd: BorrowedFd<'_>) -> String {
    let Ok(magic) = magic(fd) else {
        return "unknown".into();
    };
    let name = match magic {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x2fc1_2fc1 => "zfs",
        0x794c_7630 => "overlay",
        0x6969 => "nfs",
        0x6573_5546 => "fuse",
        0x0102_1997 => "9p",
        0xff53_4d42 | 0xfe53_4d42 => "smb",
        0x00c3_6400 => "ceph",
        0x4d44 => "vfat",
        0x7371_7368 => "squashfs",
        _ => return format!("of type {magic:#x}"),
    };
    name.into()
}
