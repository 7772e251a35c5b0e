//! Applying what the host told this boot.
//!
//! Nothing of the image runs yet, so nothing changes between a look and an act. What is in the image may be arranged to
//! mislead all the same: paths are resolved within the root by the kernel, and only regular files are replaced.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2};

use super::{nics, warn};
use crate::setup::{File, SETUP, Setup};

/// Where a file's content is written before it takes the file's name.
const TEMPORARY: &str = ".duet-setup";

/// Takes what there is in the initramfs; without it, or without sense in it, there is nothing to do.
pub(super) fn take() -> Setup {
    match fs::read(SETUP) {
        Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
            warn(&format!("what the host told this boot is not to be understood: {error}"));
            Setup::default()
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Setup::default(),
        Err(error) => {
            warn(&format!("what the host told this boot cannot be read: {error}"));
            Setup::default()
        }
    }
}

/// Applies it, in the root.
pub(super) fn apply(setup: &Setup) {
    if let Some(name) = &setup.hostname
        && let Err(error) = rustix::system::sethostname(name.as_bytes())
    {
        warn(&format!("the host name {name:?} cannot be set: {error}"));
    }
    nics::name(&setup.nics);
    if setup.files.is_empty() {
        return;
    }
    match rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(root) => {
            for file in &setup.files {
                if let Err(error) = write(root.as_fd(), file) {
                    warn(&format!("{} cannot be written: {error}", file.path.display()));
                }
            }
        }
        Err(error) => warn(&format!("no file can be written: {error}")),
    }
}

fn write(root: BorrowedFd<'_>, file: &File) -> io::Result<()> {
    let found = match open(root, &file.path, OFlags::PATH, Mode::empty()) {
        Ok(_) if file.create_only => return Ok(()),
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (parent, name) = split(&file.path)?;
            let parent = open_or_make(root, parent)?;
            if rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).is_err() {
                return replace(&parent, name, None, file.content.as_bytes());
            }
            // A link to what is not there: that is made where the link leads.
            open(root, &file.path, OFlags::WRONLY | OFlags::CREATE | OFlags::NOCTTY, Mode::from_raw_mode(0o644))?
        }
        Err(error) => return Err(error),
    };
    let stat = fstat(&found)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("the image has something there that is no regular file"));
    }
    // Where it really is, once all links are followed (proc_pid_fd(5)).
    let itself = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    if holds(&itself, &stat, file.content.as_bytes())? {
        return Ok(());
    }
    let real = fs::read_link(itself)?;
    let (parent, name) = split(&real)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    replace(&rustix::fs::open(parent, flags, Mode::empty())?, name, Some(&stat), file.content.as_bytes())
}

/// Whether it has this content already, as after any boot but the first.
fn holds(path: &Path, stat: &Stat, content: &[u8]) -> io::Result<bool> {
    if u64::try_from(stat.st_size).ok() != Some(content.len() as u64) {
        return Ok(false);
    }
    let mut there = Vec::new();
    fs::File::open(path)?.take(content.len() as u64).read_to_end(&mut there)?;
    Ok(there == content)
}

/// Gives a name to new content, which keeps the owner and the mode of what had it.
fn replace(parent: &OwnedFd, name: &OsStr, old: Option<&Stat>, content: &[u8]) -> io::Result<()> {
    // It may be left from a boot that was cut short.
    match rustix::fs::unlinkat(parent, TEMPORARY, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut new = fs::File::from(openat(parent, TEMPORARY, flags, Mode::from_raw_mode(0o600))?);
    let written = new.write_all(content).and_then(|()| {
        if let Some(old) = old {
            let (owner, group) = (rustix::fs::Uid::from_raw(old.st_uid), rustix::fs::Gid::from_raw(old.st_gid));
            rustix::fs::fchown(&new, Some(owner), Some(group))?;
        }
        rustix::fs::fchmod(&new, Mode::from_raw_mode(old.map_or(0o644, |old| old.st_mode & 0o7777)))?;
        // The name must not lead to less than all of it, whenever the power goes.
        new.sync_all()?;
        Ok(rustix::fs::renameat(parent, TEMPORARY, parent, name)?)
    });
    if written.is_err() {
        // There is the first error to tell.
        let _ = rustix::fs::unlinkat(parent, TEMPORARY, AtFlags::empty());
    }
    written
}

fn open(root: BorrowedFd<'_>, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(root, path, flags | OFlags::CLOEXEC, mode, resolve)?)
}

/// Opens a directory, and makes what is missing on the way.
fn open_or_make(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    match open(root, path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => return result,
    }
    let (parent, name) = split(path)?;
    match rustix::fs::mkdirat(open_or_make(root, parent)?, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    open(root, path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
}

fn split(path: &Path) -> io::Result<(&Path, &OsStr)> {
    let parts = path.is_absolute().then(|| path.parent().zip(path.file_name())).flatten();
    parts.ok_or_else(|| io::Error::other("it is no absolute path of a file"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn try_write(root: &tempfile::TempDir, path: &str, content: &str, create_only: bool) -> io::Result<()> {
        let dir = fs::File::open(root.path()).unwrap();
        write(dir.as_fd(), &File { path: path.into(), content: content.into(), create_only })
    }

    #[test]
    fn files_are_made_replaced_or_left() {
        let root = tempfile::tempdir().unwrap();
        let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
        let mode = |path: &str| fs::metadata(root.path().join(path)).unwrap().permissions().mode() & 0o7777;
        try_write(&root, "/etc/cloud/new", "1\n", true).unwrap();
        assert_eq!((read("etc/cloud/new"), mode("etc/cloud/new"), mode("etc/cloud")), ("1\n".into(), 0o644, 0o755));
        try_write(&root, "/etc/cloud/new", "2\n", true).unwrap();
        assert_eq!(read("etc/cloud/new"), "1\n");
        let new = root.path().join("etc/cloud/new");
        fs::set_permissions(&new, PermissionsExt::from_mode(0o600)).unwrap();
        let inode = fs::metadata(&new).unwrap().ino();
        try_write(&root, "/etc/cloud/new", "1\n", false).unwrap();
        assert_eq!(fs::metadata(&new).unwrap().ino(), inode, "the same content is left alone");
        try_write(&root, "/etc/cloud/new", "2\n", false).unwrap();
        assert_eq!((read("etc/cloud/new"), mode("etc/cloud/new")), ("2\n".into(), 0o600));
        assert_ne!(fs::metadata(&new).unwrap().ino(), inode, "it is replaced, not written over");
        // What a boot that was cut short left behind is in nobody's way, and nothing is left now.
        fs::write(root.path().join("etc/cloud/.duet-setup"), "half").unwrap();
        try_write(&root, "/etc/cloud/new", "3\n", false).unwrap();
        assert_eq!(fs::read_dir(root.path().join("etc/cloud")).unwrap().count(), 1);
    }

    #[test]
    fn links_lead_to_what_is_within_the_root() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |path: &str| root.path().join(path);
        fs::create_dir_all(at("run")).unwrap();
        symlink("/run/there", at("dangling")).unwrap();
        try_write(&root, "/dangling", "a", false).unwrap();
        assert_eq!(fs::read_to_string(at("run/there")).unwrap(), "a");
        try_write(&root, "/dangling", "b", false).unwrap();
        assert_eq!(fs::read_to_string(at("run/there")).unwrap(), "b");
        assert!(fs::symlink_metadata(at("dangling")).unwrap().is_symlink());
        symlink(outside.path(), at("out")).unwrap();
        try_write(&root, "/out/file", "c", false).unwrap_err();
        try_write(&root, "/../../up", "d", false).unwrap();
        assert_eq!(fs::read_to_string(at("up")).unwrap(), "d");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_regular_file_is_not_touched() {
        let root = tempfile::tempdir().unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, root.path().join("fifo"), FileType::Fifo, 0o644.into(), 0).unwrap();
        fs::create_dir(root.path().join("dir")).unwrap();
        for path in ["/fifo", "/dir", "/", "relative", "/dir/.."] {
            try_write(&root, path, "x", false).unwrap_err();
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
    }
}
