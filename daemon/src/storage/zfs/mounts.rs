//! Datasets on directories. Only images, and what is unpacked to become one, are mounted on any; layers are mounted by
//! those who use them, where nobody sees it.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use duet_sys::mount::{self, Change};
use rustix::fs::{CWD, Mode, openat};
use rustix::mount::{UnmountFlags, unmount};

use super::super::directory::{DIRECTORY, errno};
use super::super::{Error, Result};

/// What datasets are mounted as.
pub(super) const FILESYSTEM: &str = "zfs";

/// Whether changes go through a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    ReadOnly,
    Writable,
}

/// Mounts a dataset on a directory, which is made, unless something is mounted there.
pub(super) fn mount_on(dataset: &str, path: &Path, access: Access) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Error::io("create", path)(errno(&error))),
        _ => Ok(()),
    }?;
    if is_mount_point(path) {
        return Ok(());
    }
    let attach = || {
        let mounted = mount::block_filesystem(FILESYSTEM, Path::new(dataset), &[])?;
        if access == Access::ReadOnly {
            mount::change(&mounted, Change { set: mount::RDONLY, ..Change::default() })?;
        }
        mount::attach_at(&mounted, CWD, &CString::new(path.as_os_str().as_bytes())?)
    };
    attach().map_err(|error| Error::io("mount a dataset on", path)(errno(&error)))
}

/// Whether a directory shows another filesystem than the one that it lies in.
fn is_mount_point(path: &Path) -> bool {
    let device = |path: &Path| fs::symlink_metadata(path).map(|meta| meta.dev()).ok();
    path.parent().is_some_and(|parent| device(path) != device(parent))
}

/// Unmounts what is on a directory and removes that. Neither need be there.
pub(super) fn unmount_from(path: &Path) -> Result<()> {
    while is_mount_point(path) {
        // Whoever still has a file open there keeps the filesystem, not the name.
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            unmounted => unmounted.map_err(Error::io("unmount", path))?,
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(errno(&error))),
        _ => Ok(()),
    }
}

/// Unmounts whatever is mounted two levels below a pool's directory, and removes what is empty then.
pub(in super::super) fn unmount_all(folder: &Path) {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    for kind in entries(folder) {
        for path in entries(&kind) {
            if !is_mount_point(&path) {
                // What was unmounted by a process that was killed then is empty.
                let _ = fs::remove_dir(&path);
            } else if let Err(error) = unmount_from(&path) {
                tracing::warn!(%error, "something of a storage pool stays mounted");
            }
        }
        let _ = fs::remove_dir(kind);
    }
}

/// Mounts a dataset and opens its top directory, which keeps it mounted where nobody sees it.
pub(super) fn open(dataset: &str) -> io::Result<OwnedFd> {
    let mounted = mount::block_filesystem(FILESYSTEM, Path::new(dataset), &[])?;
    Ok(openat(&mounted, ".", DIRECTORY, Mode::empty())?)
}
