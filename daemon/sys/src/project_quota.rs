//! Project quotas: how much the files of one project may occupy (quotactl(2), `linux/quota.h`, `linux/fs.h`), the same
//! way on every filesystem that has them (ext4, xfs, f2fs).
//!
//! A directory hands its project on to what is made in it; a file cannot be moved or linked from elsewhere into a
//! directory that does.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::ioctl::{self, READ, WRITE};

const FS_XFLAG_PROJINHERIT: u32 = 0x200;

const Q_GETQUOTA: u32 = 0x80_0007;
const Q_SETQUOTA: u32 = 0x80_0008;
/// `XQM_CMD(5)` of `linux/dqblk_xfs.h`.
const Q_XGETQSTAT: u32 = 0x5805;
const PRJQUOTA: u32 = 2;
const QIF_BLIMITS: u32 = 1;
/// `FS_QUOTA_PDQ_ENFD`: limits of projects are enforced.
const PROJECTS_ENFORCED: u16 = 1 << 5;

/// `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    pad: [u8; 8],
}

/// `struct if_dqblk`; limits are in KiB.
#[repr(C)]
#[derive(Default)]
struct Block {
    hard_limit: u64,
    soft_limit: u64,
    used: u64,
    inodes_hard_limit: u64,
    inodes_soft_limit: u64,
    inodes: u64,
    time: u64,
    inodes_time: u64,
    valid: u32,
}

const GET_ATTRIBUTES: u32 = ioctl::request(READ, b'X', 31, size_of::<Attributes>());
const SET_ATTRIBUTES: u32 = ioctl::request(WRITE, b'X', 32, size_of::<Attributes>());

/// What is counted of a project.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Bytes that its files occupy.
    pub bytes: u64,
    /// How many files it has.
    pub files: u64,
    /// How many bytes they may occupy; none without a limit.
    pub limit: Option<u64>,
}

/// quotactl_fd(2).
///
/// # Safety
/// `command` reads or fills no more than a `T`.
unsafe fn quotactl<T>(fd: impl AsFd, command: u32, id: u32, argument: &mut T) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the caller says that the argument is large enough.
    let result = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            fd.as_fd().as_raw_fd(),
            command << 8 | PRJQUOTA,
            id,
            std::ptr::from_mut(argument),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether limits of projects are enforced on the filesystem of a file. Anything that keeps this from being known, an
/// old kernel among it, counts as no.
pub fn is_enforced(fd: impl AsFd) -> bool {
    // A fs_quota_stat of 80 bytes, whose flags come after its version.
    let mut state = [0_u64; 16];
    // SAFETY: the command fills a fs_quota_stat, which is smaller.
    let known = unsafe { quotactl(fd, Q_XGETQSTAT, 0, &mut state) };
    let bytes = state[0].to_ne_bytes();
    known.is_ok() && u16::from_ne_bytes([bytes[2], bytes[3]]) & PROJECTS_ENFORCED != 0
}

/// The project of a file or directory; 0 for none.
///
/// # Errors
/// `ENOTTY` where the filesystem has no projects.
pub fn project(fd: impl AsFd) -> io::Result<u32> {
    let mut attributes = Attributes::default();
    // SAFETY: the request fills a fsxattr.
    unsafe { ioctl::with(fd, GET_ATTRIBUTES, &mut attributes) }?;
    Ok(attributes.project)
}

/// Moves a file or directory into a project, which a directory hands on to what is made in it.
///
/// # Errors
/// `EDQUOT` where the project is full.
pub fn set_project(fd: impl AsFd, project: u32, is_directory: bool) -> io::Result<()> {
    let mut attributes = Attributes::default();
    // SAFETY: both requests take a fsxattr.
    unsafe { ioctl::with(&fd, GET_ATTRIBUTES, &mut attributes) }?;
    attributes.project = project;
    if is_directory {
        attributes.flags |= FS_XFLAG_PROJINHERIT;
    }
    // SAFETY: as above.
    unsafe { ioctl::with(fd, SET_ATTRIBUTES, &mut attributes) }.map(drop)
}

/// What a project has and may have.
///
/// # Errors
/// `ESRCH` where projects are not counted on the filesystem.
pub fn counted(fd: impl AsFd, project: u32) -> io::Result<Counted> {
    let mut block = Block::default();
    // SAFETY: the command fills an if_dqblk.
    match unsafe { quotactl(fd, Q_GETQUOTA, project, &mut block) } {
        // xfs has no record of a project that never had anything.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Counted::default()),
        Err(error) => Err(error),
        Ok(()) => Ok(Counted {
            bytes: block.used,
            files: block.inodes,
            limit: (block.hard_limit > 0).then(|| block.hard_limit.saturating_mul(1024)),
        }),
    }
}

/// Limits how many bytes a project may have; none for no limit.
///
/// # Errors
/// `ESRCH` where projects are not counted on the filesystem.
pub fn set_limit(fd: impl AsFd, project: u32, bytes: Option<u64>) -> io::Result<()> {
    // A limit of 0 is none.
    let limit = bytes.map_or(0, |bytes| (bytes / 1024).max(1));
    let mut block = Block { hard_limit: limit, soft_limit: 0, valid: QIF_BLIMITS, ..Block::default() };
    // SAFETY: the command reads an if_dqblk.
    unsafe { quotactl(fd, Q_SETQUOTA, project, &mut block) }
}
