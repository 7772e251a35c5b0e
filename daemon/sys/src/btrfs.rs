//! Subvolumes, snapshots and quota groups of btrfs (`linux/btrfs.h`, `linux/btrfs_tree.h`).
//!
//! A subvolume is known by its number, by which its quota group is called too (`0/<number>`), and its root directory
//! always has the inode number 256. Everything here is relative to descriptors.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::fstat;

use crate::ioctl::{self, READ, WRITE};

const MAGIC: u8 = 0x94;
const NAME_V1: usize = 4088;
const NAME_V2: usize = 4040;

/// The inode number of a subvolume's root (`BTRFS_FIRST_FREE_OBJECTID`).
pub const ROOT_INODE: u64 = 256;
/// The magic number of the filesystem in statfs(2).
pub const SUPER_MAGIC: u32 = 0x9123_683e;

const SUBVOL_RDONLY: u64 = 2;
const ROOT_TREE: u64 = 1;
const ROOT_REF_KEY: u32 = 156;
const QUOTA_ENABLE: u64 = 1;
const LIMIT_MAX_REFERENCED: u64 = 1;
/// Takes a limit away (`BTRFS_QGROUP_LIMIT`'s clear value in the kernel).
const NO_LIMIT: u64 = u64::MAX;

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct VolArgs {
    fd: i64,
    name: [u8; NAME_V1],
}

/// `struct btrfs_ioctl_vol_args_v2`.
#[repr(C)]
struct VolArgs2 {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; NAME_V2],
}

/// `struct btrfs_ioctl_search_args`: the key, then what was found.
#[repr(C)]
struct SearchArgs {
    tree: u64,
    min_object: u64,
    max_object: u64,
    min_offset: u64,
    max_offset: u64,
    min_transid: u64,
    max_transid: u64,
    min_type: u32,
    max_type: u32,
    items: u32,
    unused: u32,
    unused_more: [u64; 4],
    found: [u8; 3992],
}

/// `struct btrfs_ioctl_ino_lookup_args`.
#[repr(C)]
struct LookupArgs {
    tree: u64,
    object: u64,
    name: [u8; 4080],
}

/// `struct btrfs_ioctl_fs_info_args`: only its identity is looked at.
#[repr(C)]
struct InfoArgs {
    max_id: u64,
    devices: u64,
    fsid: [u8; 16],
    rest: [u8; 992],
}

/// `struct btrfs_ioctl_quota_ctl_args`.
#[repr(C)]
struct QuotaArgs {
    command: u64,
    status: u64,
}

/// `struct btrfs_ioctl_quota_rescan_args`.
#[repr(C)]
#[derive(Default)]
struct RescanArgs {
    flags: u64,
    progress: u64,
    reserved: [u64; 6],
}

/// `struct btrfs_ioctl_qgroup_create_args`.
#[repr(C)]
struct GroupArgs {
    create: u64,
    id: u64,
}

/// `struct btrfs_ioctl_qgroup_limit_args`.
#[repr(C)]
struct LimitArgs {
    id: u64,
    flags: u64,
    max_referenced: u64,
    max_exclusive: u64,
    reserved_referenced: u64,
    reserved_exclusive: u64,
}

/// `struct file_handle` with btrfs' `struct btrfs_fid` for one without a parent.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    object: [u32; 2],
    root: [u32; 2],
    generation: u32,
}

const RESIZE: u32 = ioctl::request(WRITE, MAGIC, 3, size_of::<VolArgs>());
const SNAP_DESTROY: u32 = ioctl::request(WRITE, MAGIC, 15, size_of::<VolArgs>());
const TREE_SEARCH: u32 = ioctl::request(READ | WRITE, MAGIC, 17, size_of::<SearchArgs>());
const INO_LOOKUP: u32 = ioctl::request(READ | WRITE, MAGIC, 18, size_of::<LookupArgs>());
const SNAP_CREATE_V2: u32 = ioctl::request(WRITE, MAGIC, 23, size_of::<VolArgs2>());
const SUBVOL_CREATE_V2: u32 = ioctl::request(WRITE, MAGIC, 24, size_of::<VolArgs2>());
const SUBVOL_GETFLAGS: u32 = ioctl::request(READ, MAGIC, 25, size_of::<u64>());
const SUBVOL_SETFLAGS: u32 = ioctl::request(WRITE, MAGIC, 26, size_of::<u64>());
const FS_INFO: u32 = ioctl::request(READ, MAGIC, 31, size_of::<InfoArgs>());
const QUOTA_CTL: u32 = ioctl::request(READ | WRITE, MAGIC, 40, size_of::<QuotaArgs>());
const QGROUP_CREATE: u32 = ioctl::request(WRITE, MAGIC, 42, size_of::<GroupArgs>());
const QGROUP_LIMIT: u32 = ioctl::request(READ, MAGIC, 43, size_of::<LimitArgs>());
const QUOTA_RESCAN: u32 = ioctl::request(WRITE, MAGIC, 44, size_of::<RescanArgs>());
const QUOTA_RESCAN_WAIT: u32 = ioctl::request(0, MAGIC, 46, 0);

const _: () = assert!(size_of::<VolArgs>() == 4096 && size_of::<VolArgs2>() == 4096);
const _: () = assert!(size_of::<SearchArgs>() == 4096 && size_of::<LookupArgs>() == 4096);
const _: () = assert!(size_of::<InfoArgs>() == 1024 && size_of::<LimitArgs>() == 48);

/// What a snapshot may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It is written to.
    Writable,
    /// It never changes.
    ReadOnly,
}

/// A subvolume that lies in another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nested {
    /// Its number.
    pub id: u64,
    /// The inode of the directory that it lies in.
    pub directory: u64,
    /// Its name there.
    pub name: Vec<u8>,
}

fn put_name<const N: usize>(name: &CStr) -> io::Result<[u8; N]> {
    let mut field = [0; N];
    let bytes = name.to_bytes();
    // One byte stays zero.
    match field.get_mut(..bytes.len()).filter(|_| bytes.len() < N) {
        Some(place) => place.copy_from_slice(bytes),
        None => return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG)),
    }
    Ok(field)
}

fn args2(fd: i64, flags: u64, name: &CStr) -> io::Result<VolArgs2> {
    Ok(VolArgs2 { fd, transid: 0, flags, unused: [0; 4], name: put_name(name)? })
}

/// Makes an empty subvolume in a directory.
///
/// # Errors
/// As mkdir(2); `ENOTTY` where the filesystem is not btrfs.
pub fn create_subvolume(directory: impl AsFd, name: &CStr) -> io::Result<()> {
    let mut args = args2(0, 0, name)?;
    // SAFETY: the request takes a btrfs_ioctl_vol_args_v2.
    unsafe { ioctl::with(directory, SUBVOL_CREATE_V2, &mut args) }.map(drop)
}

/// Makes a snapshot of a subvolume, given by any descriptor in it, in a directory of the same filesystem. Subvolumes
/// within it become empty directories.
///
/// # Errors
/// As mkdir(2); `EINVAL` where `source` is in no subvolume.
pub fn snapshot(source: impl AsFd, directory: impl AsFd, name: &CStr, access: Access) -> io::Result<()> {
    let flags = if access == Access::ReadOnly { SUBVOL_RDONLY } else { 0 };
    let mut args = args2(source.as_fd().as_raw_fd().into(), flags, name)?;
    // SAFETY: the request takes a btrfs_ioctl_vol_args_v2, whose descriptor is open.
    unsafe { ioctl::with(directory, SNAP_CREATE_V2, &mut args) }.map(drop)
}

/// Makes a subvolume, given by its root, read-only or writable.
///
/// # Errors
/// `EINVAL` where it is not a subvolume's root.
pub fn set_access(root: impl AsFd, access: Access) -> io::Result<()> {
    let mut flags: u64 = 0;
    // SAFETY: both requests take a u64.
    unsafe { ioctl::with(&root, SUBVOL_GETFLAGS, &mut flags) }?;
    let wanted = if access == Access::ReadOnly { flags | SUBVOL_RDONLY } else { flags & !SUBVOL_RDONLY };
    if wanted == flags {
        return Ok(());
    }
    flags = wanted;
    // SAFETY: as above.
    unsafe { ioctl::with(&root, SUBVOL_SETFLAGS, &mut flags) }.map(drop)
}

/// Removes a subvolume by its name in a directory. Its blocks are freed in the background.
///
/// # Errors
/// `ENOTEMPTY` where other subvolumes lie in it, `EROFS` where the directory is read-only.
pub fn remove_subvolume(directory: impl AsFd, name: &CStr) -> io::Result<()> {
    let mut args = VolArgs { fd: 0, name: put_name(name)? };
    // SAFETY: the request takes a btrfs_ioctl_vol_args.
    unsafe { ioctl::with(directory, SNAP_DESTROY, &mut args) }.map(drop)
}

/// Whether a descriptor is the root of a subvolume; the filesystem is known to be btrfs.
///
/// # Errors
/// As fstat(2).
pub fn is_subvolume(fd: impl AsFd) -> io::Result<bool> {
    Ok(fstat(fd)?.st_ino == ROOT_INODE)
}

/// The number of the subvolume that a file lies in.
///
/// # Errors
/// `ENOTTY` where the filesystem is not btrfs.
pub fn subvolume_id(fd: impl AsFd) -> io::Result<u64> {
    let mut args = LookupArgs { tree: 0, object: ROOT_INODE, name: [0; 4080] };
    // SAFETY: the request takes a btrfs_ioctl_ino_lookup_args.
    unsafe { ioctl::with(fd, INO_LOOKUP, &mut args) }?;
    Ok(args.tree)
}

/// One of the subvolumes that lie directly in the one of this number, `None` where there is none.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN.
pub fn first_nested(filesystem: impl AsFd, id: u64) -> io::Result<Option<Nested>> {
    let mut args = SearchArgs {
        tree: ROOT_TREE,
        min_object: id,
        max_object: id,
        min_offset: 0,
        max_offset: u64::MAX,
        min_transid: 0,
        max_transid: u64::MAX,
        min_type: ROOT_REF_KEY,
        max_type: ROOT_REF_KEY,
        items: 1,
        unused: 0,
        unused_more: [0; 4],
        found: [0; 3992],
    };
    // SAFETY: the request takes a btrfs_ioctl_search_args.
    unsafe { ioctl::with(filesystem, TREE_SEARCH, &mut args) }?;
    if args.items == 0 {
        return Ok(None);
    }
    // A btrfs_ioctl_search_header of 32 bytes, whose offset is the subvolume's number, and a btrfs_root_ref.
    let found = &args.found;
    let number = |at: usize| u64::from_le_bytes(found[at..at + 8].try_into().unwrap_or_default());
    let native = |at: usize| u64::from_ne_bytes(found[at..at + 8].try_into().unwrap_or_default());
    let length = usize::from(u16::from_le_bytes([found[48], found[49]]));
    let name = found.get(50..50 + length).ok_or(io::ErrorKind::InvalidData)?.to_vec();
    Ok(Some(Nested { id: native(16), directory: number(32), name }))
}

/// Opens a directory by its inode number and the number of its subvolume, wherever on the filesystem it is.
///
/// # Errors
/// `ESTALE` where there is none, `EPERM` without CAP_DAC_READ_SEARCH.
pub fn open_directory(filesystem: BorrowedFd<'_>, subvolume: u64, inode: u64) -> io::Result<OwnedFd> {
    let halves = |value: u64| {
        let bytes = value.to_ne_bytes();
        let half = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        [half(0), half(4)]
    };
    // FILEID_BTRFS_WITHOUT_PARENT of linux/exportfs.h. A generation of zero stands for any.
    let mut handle = Handle { bytes: 20, kind: 0x4d, object: halves(inode), root: halves(subvolume), generation: 0 };
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the handle is a file_handle with as many bytes behind its head as it says; the descriptor is open.
    let result = unsafe {
        libc::syscall(libc::SYS_open_by_handle_at, filesystem.as_raw_fd(), std::ptr::from_mut(&mut handle), flags)
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The identity of a filesystem: 16 bytes.
///
/// # Errors
/// `ENOTTY` where it is not btrfs.
pub fn filesystem_id(fd: impl AsFd) -> io::Result<[u8; 16]> {
    let mut args = InfoArgs { max_id: 0, devices: 0, fsid: [0; 16], rest: [0; 992] };
    // SAFETY: the request fills a btrfs_ioctl_fs_info_args.
    unsafe { ioctl::with(fd, FS_INFO, &mut args) }?;
    Ok(args.fsid)
}

/// Has the filesystem on a single device take all of it.
///
/// # Errors
/// The kernel's.
pub fn grow(fd: impl AsFd) -> io::Result<()> {
    let mut args = VolArgs { fd: 0, name: put_name(c"max")? };
    // SAFETY: the request takes a btrfs_ioctl_vol_args.
    unsafe { ioctl::with(fd, RESIZE, &mut args) }.map(drop)
}

/// Turns quota groups on for the whole filesystem, and waits until what is there is counted. Does nothing where they
/// are on.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN.
pub fn enable_quotas(fd: impl AsFd) -> io::Result<()> {
    let mut args = QuotaArgs { command: QUOTA_ENABLE, status: 0 };
    // SAFETY: the request takes a btrfs_ioctl_quota_ctl_args.
    unsafe { ioctl::with(&fd, QUOTA_CTL, &mut args) }?;
    // SAFETY: this request takes no argument.
    unsafe { ioctl::with_number(fd, QUOTA_RESCAN_WAIT, 0) }.map(drop)
}

/// Has the kernel count anew, in the background, what it has lost count of.
///
/// # Errors
/// `EINPROGRESS` where it does already, `ENOTCONN` where quota groups are off.
pub fn recount(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: the request takes a btrfs_ioctl_quota_rescan_args.
    unsafe { ioctl::with(fd, QUOTA_RESCAN, &mut RescanArgs::default()) }.map(drop)
}

/// Limits how many bytes a subvolume may refer to, those that it shares with others included; `None` for no limit. A
/// subvolume without a quota group is given one.
///
/// # Errors
/// `ENOTCONN` where quota groups are off.
pub fn set_limit(fd: impl AsFd, subvolume: u64, bytes: Option<u64>) -> io::Result<()> {
    let mut args = LimitArgs {
        id: subvolume,
        flags: LIMIT_MAX_REFERENCED,
        max_referenced: bytes.unwrap_or(NO_LIMIT),
        max_exclusive: 0,
        reserved_referenced: 0,
        reserved_exclusive: 0,
    };
    // SAFETY: the request takes a btrfs_ioctl_qgroup_limit_args.
    match unsafe { ioctl::with(&fd, QGROUP_LIMIT, &mut args) } {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        done => return done.map(drop),
    }
    let mut group = GroupArgs { create: 1, id: subvolume };
    // SAFETY: the request takes a btrfs_ioctl_qgroup_create_args.
    unsafe { ioctl::with(&fd, QGROUP_CREATE, &mut group) }?;
    // SAFETY: as above.
    unsafe { ioctl::with(&fd, QGROUP_LIMIT, &mut args) }.map(drop)
}

/// Removes the quota group of a subvolume that is gone.
///
/// # Errors
/// `EBUSY` while the subvolume is being freed, `ENOENT` where there is none, `ENOTCONN` where quota groups are off.
pub fn remove_group(fd: impl AsFd, subvolume: u64) -> io::Result<()> {
    let mut group = GroupArgs { create: 0, id: subvolume };
    // SAFETY: the request takes a btrfs_ioctl_qgroup_create_args.
    unsafe { ioctl::with(fd, QGROUP_CREATE, &mut group) }.map(drop)
}
