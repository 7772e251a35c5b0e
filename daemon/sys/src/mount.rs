//! Detached mounts: the calls of the mount API of Linux 5.2 and later that are awkward or missing elsewhere.
//!
//! A detached mount is a descriptor: it can be changed, passed to another process and attached anywhere, and the kernel
//! dissolves it if it is closed unattached. So nothing here ever shows in a mount table.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

/// A change of mount attributes (mount_setattr(2)).
#[derive(Debug, Clone, Copy, Default)]
pub struct Change<'fd> {
    /// Attributes to set, `MOUNT_ATTR_*`.
    pub set: u64,
    /// Attributes to clear.
    pub clear: u64,
    /// A propagation type (`MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`), or zero to keep it.
    pub propagation: u64,
    /// The user namespace whose map shifts the ids of the mount.
    pub idmap: Option<BorrowedFd<'fd>>,
    /// Whether all mounts beneath change as well.
    pub recursive: bool,
}

/// The mount is read-only.
pub const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
/// Set-user-id bits and file capabilities have no effect.
pub const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
/// Device nodes cannot be opened.
pub const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
/// Nothing can be executed.
pub const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;

/// The kernel's `struct mount_attr` (`MOUNT_ATTR_SIZE_VER0`, mount_setattr(2)).
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Changes the attributes of the mount that `mount` is the root of.
///
/// # Errors
/// As mount_setattr(2); `EINVAL` for an id map means that the filesystem does not allow one.
pub fn change(mount: impl AsFd, change: Change<'_>) -> io::Result<()> {
    change_at(mount, c"", change)
}

/// Changes the attributes of the mount at a path, which must be the root of a mount.
///
/// # Errors
/// As mount_setattr(2).
pub fn change_at(dir: impl AsFd, path: &CStr, change: Change<'_>) -> io::Result<()> {
    let mut attr =
        MountAttr { attr_set: change.set, attr_clr: change.clear, propagation: change.propagation, userns_fd: 0 };
    if let Some(userns) = change.idmap {
        attr.attr_set |= libc::MOUNT_ATTR_IDMAP;
        attr.userns_fd = u64::try_from(userns.as_raw_fd()).map_err(io::Error::other)?;
    }
    let mut flags = libc::AT_SYMLINK_NOFOLLOW;
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH;
    }
    if change.recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a terminated string, `attr` is a live mount_attr of the size that is passed, and both
    // descriptors are open for the duration of the call. The kernel only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_fd().as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Clones what is mounted at a path into a detached mount, without following a final symbolic link.
///
/// # Errors
/// As open_tree(2).
pub fn clone_tree(dir: impl AsFd, path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_NO_AUTOMOUNT
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    if path.as_os_str().is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(open_tree(dir, path, flags)?)
}

/// Attaches a detached mount on the file or directory `target` refers to.
///
/// # Errors
/// As move_mount(2).
pub fn attach(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
    attach_at(mount, target, c"")
}

/// Attaches a detached mount at a path below `dir`. A final symbolic link is not followed; those before it are, so the
/// path must be one that nobody else can change.
///
/// # Errors
/// As move_mount(2).
pub fn attach_at(mount: impl AsFd, dir: impl AsFd, path: &CStr) -> io::Result<()> {
    let mut flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    if path.is_empty() {
        flags |= MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    }
    Ok(move_mount(mount, c"", dir, path, flags)?)
}

/// Makes a new instance of a filesystem without a device, as a detached mount.
///
/// `options` are keys with a value, or flags without; `attributes` are `MOUNT_ATTR_*` of [`RDONLY`] and so on.
///
/// # Errors
/// As fsopen(2), fsconfig(2) and fsmount(2).
pub fn new_filesystem(kind: &str, options: &[(&str, Option<&str>)], attributes: u64) -> io::Result<OwnedFd> {
    // What mount tables show in the place of a device.
    filesystem(kind, Path::new(kind), options, attributes)
}

/// Mounts what is on a block device, or what else the filesystem takes as a source (a dataset of zfs), as a detached
/// mount.
///
/// # Errors
/// As fsopen(2), fsconfig(2) and fsmount(2).
pub fn block_filesystem(kind: &str, device: &Path, options: &[(&str, Option<&str>)]) -> io::Result<OwnedFd> {
    filesystem(kind, device, options, 0)
}

fn filesystem(kind: &str, source: &Path, options: &[(&str, Option<&str>)], attributes: u64) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", source)?;
    for (key, value) in options {
        match value {
            Some(value) => fsconfig_set_string(&context, *key, *value)?,
            None => fsconfig_set_flag(&context, *key)?,
        }
    }
    fsconfig_create(&context)?;
    finish(&context, attributes)
}

/// Turns a created filesystem context into a detached mount.
///
/// # Errors
/// As fsmount(2).
pub fn finish(context: impl AsFd, attributes: u64) -> io::Result<OwnedFd> {
    let attributes = MountAttrFlags::from_bits_retain(u32::try_from(attributes).map_err(io::Error::other)?);
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}
