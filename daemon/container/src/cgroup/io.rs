//! Reading and writing cgroup files: one open, one transfer, one close each, with the path in the error.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::{CgroupError, Result};

/// More than any of the small files that are read whole here holds.
const SMALL: usize = 4096;

/// Writes `value` in one write, as the kernel requires.
pub(super) fn write(path: &Path, value: &str) -> Result<()> {
    let refused = |errno| CgroupError::Write { path: path.to_owned(), value: value.to_owned(), errno };
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).map_err(refused)?;
    rustix::io::retry_on_intr(|| rustix::io::write(&file, value.as_bytes())).map_err(refused)?;
    Ok(())
}

/// Like [`write`], but a missing file is `Ok(false)`.
pub(super) fn write_if_present(path: &Path, value: &str) -> Result<bool> {
    match write(path, value) {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads a small file whole.
pub(super) fn read(path: &Path) -> Result<String> {
    let failed = |errno| CgroupError::io("read", path, errno);
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let mut buffer = [0_u8; SMALL];
    let length = rustix::io::retry_on_intr(|| rustix::io::pread(&file, &mut buffer[..], 0)).map_err(failed)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Makes a directory. False when it exists.
pub(super) fn make_dir(path: &Path) -> Result<bool> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(errno) => Err(CgroupError::io("create", path, errno)),
    }
}

/// A handle on a directory that is good for `CLONE_INTO_CGROUP`, `openat` and BPF.
pub(super) fn open_dir(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| CgroupError::io("open", path, errno))
}

pub(super) fn chown(path: &Path, (uid, gid): (u32, u32)) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| CgroupError::io("change the owner of", path, errno))
}

/// The names of the groups directly below `dir`; none when it doesn't exist.
pub(super) fn subdirectories(dir: &Path) -> Result<Vec<String>> {
    let failed =
        |error: std::io::Error| CgroupError::io("list", dir, Errno::from_io_error(&error).unwrap_or(Errno::IO));
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}
