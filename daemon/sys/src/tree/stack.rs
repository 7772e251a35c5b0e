//! The way from a tree's root down to where a walk is.

use std::ffi::{CStr, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, RawDir, Stat, fstat, openat};
use rustix::io::Errno;

use super::TreeError;

/// Levels from the root whose descriptors stay open; below, only the deepest directory's does.
const OPEN_LEVELS: usize = 32;

/// More levels than this are refused: on ext4 such a chain of directories alone takes 256 MiB.
pub(super) const MAX_DEPTH: usize = 65_536;

/// Bytes of paths shown in errors.
const SHOWN_PATH: usize = 512;

const OPEN_DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The directories from the root to the current one.
#[derive(Debug)]
pub(super) struct DirStack {
    levels: Vec<Level>,
    /// The current directory relative to the root, each component followed by a slash.
    path: Vec<u8>,
}

#[derive(Debug)]
struct Level {
    /// None while below the open levels and not the current one.
    fd: Option<OwnedFd>,
    dev: u64,
    ino: u64,
    path_len: usize,
}

/// Whether the way up was still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// The parent is the current directory.
    Parent,
    /// The directory was moved meanwhile: the current one is now the deepest ancestor that was kept open.
    Ancestor,
}

impl DirStack {
    /// Starts at a directory, with a descriptor (and a reading position) of its own.
    pub(super) fn new(root: BorrowedFd<'_>) -> Result<(Self, Stat), TreeError> {
        let mut stack = Self { levels: Vec::new(), path: Vec::new() };
        let fd = openat(root, c".", OPEN_DIRECTORY, Mode::empty()).map_err(|e| stack.error("open it", e))?;
        let stat = fstat(&fd).map_err(|e| stack.error("read its attributes", e))?;
        stack.levels.push(Level { fd: Some(fd), dev: stat.st_dev, ino: stat.st_ino, path_len: 0 });
        Ok((stack, stat))
    }

    /// The current directory.
    pub(super) fn top(&self) -> BorrowedFd<'_> {
        let top = self.levels.last().expect("the root is never left");
        top.fd.as_ref().expect("the current directory is open").as_fd()
    }

    /// How many directories there are, the root among them.
    pub(super) fn depth(&self) -> usize {
        self.levels.len()
    }

    /// Makes a subdirectory the current one. None when it vanished or is no directory (any more).
    pub(super) fn enter(&mut self, name: &CStr) -> Result<Option<Stat>, TreeError> {
        if self.levels.len() >= MAX_DEPTH {
            return Err(TreeError::TooDeep { path: self.shown(None), limit: MAX_DEPTH });
        }
        let fd = match openat(self.top(), name, OPEN_DIRECTORY, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(e) => return Err(self.error_at("open directory", name, e)),
        };
        let stat = fstat(&fd).map_err(|e| self.error_at("read attributes of directory", name, e))?;
        if self.levels.len() > OPEN_LEVELS
            && let Some(parent) = self.levels.last_mut()
        {
            parent.fd = None;
        }
        self.path.extend_from_slice(name.to_bytes());
        self.path.push(b'/');
        let path_len = self.path.len();
        self.levels.push(Level { fd: Some(fd), dev: stat.st_dev, ino: stat.st_ino, path_len });
        Ok(Some(stat))
    }

    /// Makes the parent the current directory. Not to be called at the root.
    pub(super) fn leave(&mut self) -> Result<Left, TreeError> {
        let child = self.levels.pop().expect("the root is never left");
        let parent = self.levels.last_mut().expect("the root is never left");
        self.path.truncate(parent.path_len);
        if parent.fd.is_some() {
            return Ok(Left::Parent);
        }
        let below = child.fd.expect("the current directory is open");
        let found =
            openat(&below, c"..", OPEN_DIRECTORY, Mode::empty()).and_then(|fd| fstat(&fd).map(|stat| (fd, stat)));
        match found {
            Ok((fd, stat)) if (stat.st_dev, stat.st_ino) == (parent.dev, parent.ino) => {
                parent.fd = Some(fd);
                Ok(Left::Parent)
            }
            // A directory removed meanwhile has no parent any more.
            Ok(_) | Err(Errno::NOENT) => {
                self.levels.truncate(OPEN_LEVELS);
                self.path.truncate(self.levels[OPEN_LEVELS - 1].path_len);
                Ok(Left::Ancestor)
            }
            Err(e) => Err(self.error("return to it", e)),
        }
    }

    /// A failure concerning the current directory.
    pub(super) fn error(&self, action: &'static str, source: Errno) -> TreeError {
        TreeError::Io { action, path: self.shown(None), source }
    }

    /// A failure concerning an entry of the current directory.
    pub(super) fn error_at(&self, action: &'static str, name: &CStr, source: Errno) -> TreeError {
        TreeError::Io { action, path: self.shown(Some(name)), source }
    }

    /// The current directory (or an entry of it) for an error, cut when absurdly long.
    pub(super) fn shown(&self, name: Option<&CStr>) -> PathBuf {
        let directory = OsStr::from_bytes(&self.path[..self.path.len().min(SHOWN_PATH)]);
        match name {
            Some(name) => Path::new(directory).join(OsStr::from_bytes(name.to_bytes())),
            None if directory.is_empty() => PathBuf::from("."),
            None => PathBuf::from(directory),
        }
    }
}

/// Names, in little memory, taken last first.
#[derive(Debug, Default)]
pub(super) struct Names(Vec<u8>);

impl Names {
    pub(super) fn push(&mut self, name: &CStr) {
        self.0.extend_from_slice(name.to_bytes_with_nul());
    }

    pub(super) fn pop(&mut self) -> Option<std::ffi::CString> {
        let end = self.0.len().checked_sub(1)?;
        let start = self.0[..end].iter().rposition(|&b| b == 0).map_or(0, |nul| nul + 1);
        let name = CStr::from_bytes_with_nul(&self.0[start..]).expect("each name ends with its only NUL").to_owned();
        self.0.truncate(start);
        Some(name)
    }
}

/// Room for one reading of directory entries, used again for each directory.
#[derive(Debug)]
pub(super) struct ListBuffer(Vec<u8>);

impl ListBuffer {
    pub(super) fn new() -> Self {
        Self(Vec::with_capacity(64 * 1024))
    }

    /// Calls `visit` for each entry of a directory. `FileType::Unknown` is passed on as it is.
    pub(super) fn for_each<E>(
        &mut self,
        dir: BorrowedFd<'_>,
        mut visit: impl FnMut(&CStr, FileType) -> Result<(), E>,
    ) -> Result<Result<(), E>, Errno> {
        let room: &mut [MaybeUninit<u8>] = self.0.spare_capacity_mut();
        let mut entries = RawDir::new(dir, room);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // The directory was removed meanwhile: it has no entries.
                Err(Errno::NOENT) => break,
                Err(e) => return Err(e),
            };
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if let Err(e) = visit(name, entry.file_type()) {
                return Ok(Err(e));
            }
        }
        Ok(Ok(()))
    }
}
