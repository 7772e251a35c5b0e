//! Paths within a container's root, however its links are arranged.
//!
//! Every lookup is confined to the root by the kernel (openat2(2), `RESOLVE_IN_ROOT`): absolute links and `..` stay
//! within. Magic links (`/proc/<pid>/fd/...`) are refused, since they lead anywhere.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};

const CONFINED: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Opens a path below `root`, without permission to read or write (`O_PATH`). A final link is followed, within the root.
pub(crate) fn open(root: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    open_with(root, path, OFlags::PATH, Mode::empty())
}

/// Opens a path below `root` with these flags, by which it may be made. A final link is followed, within the root.
pub(crate) fn open_with(root: impl AsFd, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, mode, CONFINED)?)
}

/// Reads a short file below `root`, at most 4 KiB of it.
pub(crate) fn read(root: impl AsFd, path: &Path) -> io::Result<Vec<u8>> {
    let file = open_with(root, path, OFlags::RDONLY, Mode::empty())?;
    let mut bytes = vec![0; 4096];
    let len = rustix::io::read(file, &mut bytes)?;
    bytes.truncate(len);
    Ok(bytes)
}

/// What a mount needs as its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

/// The kind of target that an open file needs: a directory for a directory, a file for anything else.
pub(crate) fn kind_of(fd: impl AsFd) -> io::Result<Kind> {
    let stat = rustix::fs::fstat(fd)?;
    let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    Ok(if directory { Kind::Directory } else { Kind::File })
}

/// Opens a target below `root`, making what is missing of it: directories on the way, and a directory or an empty file
/// at the end.
pub(crate) fn open_or_make(root: impl AsFd, path: &Path, kind: Kind) -> io::Result<OwnedFd> {
    let root = root.as_fd();
    match open(root, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => return result,
    }
    let (parent, name) = split(path)?;
    let parent = open_or_make(root, parent, Kind::Directory)?;
    let made = match kind {
        Kind::Directory => rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)),
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    };
    match made {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(rustix::fs::openat(&parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens the directory that holds a path's last part, and names that part.
pub(crate) fn open_parent(root: impl AsFd, path: &Path) -> io::Result<(OwnedFd, &OsStr)> {
    let (parent, name) = split(path)?;
    Ok((open(root, parent)?, name))
}

/// Undoes the topmost mount at a path below `root`. Changes the working directory: for a child that ends soon.
pub(crate) fn unmount(root: impl AsFd, path: &Path) -> io::Result<()> {
    // By way of the parent, because a path through /proc/self/fd would trust the container's /proc.
    let (parent, name) = open_parent(root, path)?;
    let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        return Err(io::Error::from_raw_os_error(libc::ELOOP));
    }
    rustix::process::fchdir(&parent)?;
    let name = CString::new(name.as_bytes())?;
    use rustix::mount::UnmountFlags;
    Ok(rustix::mount::unmount(&name, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}

fn split(path: &Path) -> io::Result<(&Path, &OsStr)> {
    let name = path.file_name().ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    Ok((path.parent().unwrap_or(Path::new("")), name))
}
