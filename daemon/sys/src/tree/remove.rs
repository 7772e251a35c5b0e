//! Removing a tree.
//!
//! Nobody else changes the tree any more, or at most a process that is about to end. A directory nested too deeply is
//! not descended into but moved up to the root of the tree and removed from there, so that neither descriptors nor
//! memory depend on the depth.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, IFlags, Mode, OFlags, RenameFlags, ioctl_getflags, ioctl_setflags, openat, renameat_with,
    unlinkat,
};
use rustix::io::Errno;

use super::TreeError;
use super::stack::{ListBuffer, Names};

/// Directories below this level are moved up.
const MAX_OPEN: usize = 64;

/// How often a directory is emptied again when entries keep appearing in it.
const ATTEMPTS: usize = 16;

/// Removes an entry of a directory, and all below it if it is a directory. Fine when it does not exist.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), TreeError> {
    let fail = |action, source| TreeError::Io { action, path: crate::tree::lossless(name), source };
    for _ in 0..ATTEMPTS {
        match unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // unlink(2): EISDIR is Linux', EPERM is POSIX' answer for directories.
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(e) => return Err(fail("remove", e)),
        }
        let root = match open_dir(parent, name) {
            Ok(root) => root,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(fail("open", e)),
        };
        remove_contents(root.as_fd())?;
        match unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(e) => return Err(fail("remove directory", e)),
        }
    }
    Err(fail("empty", Errno::NOTEMPTY))
}

/// Removes everything in a directory.
pub fn remove_contents(root: BorrowedFd<'_>) -> Result<(), TreeError> {
    let own = open_dir(root, c".").map_err(|source| TreeError::Io { action: "open it", path: ".".into(), source })?;
    let mut job = Job { levels: Vec::new(), list: ListBuffer::new(), moved_up: 0 };
    job.enter(own, CString::default())?;
    while let Some(level) = job.levels.last_mut() {
        match level.subdirectories.pop() {
            Some(name) => job.remove_directory(&name)?,
            None => job.leave()?,
        }
    }
    Ok(())
}

struct Job {
    levels: Vec<Level>,
    list: ListBuffer,
    /// How many directories were moved up: the next one's name.
    moved_up: u64,
}

struct Level {
    fd: OwnedFd,
    name: CString,
    subdirectories: Names,
    attempts: usize,
}

impl Job {
    fn enter(&mut self, fd: OwnedFd, name: CString) -> Result<(), TreeError> {
        self.levels.push(Level { fd, name, subdirectories: Names::default(), attempts: 0 });
        self.empty_current()
    }

    /// Removes all of the current directory but its subdirectories, whose names are gathered.
    fn empty_current(&mut self) -> Result<(), TreeError> {
        let Self { levels, list, .. } = self;
        let level = levels.last_mut().expect("called with a level");
        let (fd, subdirectories) = (level.fd.as_fd(), &mut level.subdirectories);
        let visited = list.for_each(fd, |name, hint| {
            if hint == FileType::Directory {
                subdirectories.push(name);
                return Ok(());
            }
            match unlink(fd, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(Errno::ISDIR) => {
                    subdirectories.push(name);
                    Ok(())
                }
                Err(e) => Err(("remove", name.to_owned(), e)),
            }
        });
        match visited {
            Ok(Ok(())) => Ok(()),
            Ok(Err((action, name, e))) => Err(self.error(action, &name, e)),
            Err(e) => Err(self.error("list", c".", e)),
        }
    }

    /// Removes a subdirectory of the current directory: at once if it is empty, by descending otherwise.
    fn remove_directory(&mut self, name: &CStr) -> Result<(), TreeError> {
        let current = &self.levels.last().expect("called with a level").fd;
        match unlink(current.as_fd(), name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(e) => return Err(self.error("remove directory", name, e)),
        }
        if self.levels.len() >= MAX_OPEN {
            return self.move_up(name);
        }
        match open_dir(current.as_fd(), name) {
            Ok(fd) => self.enter(fd, name.to_owned()),
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(self.error("open", name, e)),
        }
    }

    fn move_up(&mut self, name: &CStr) -> Result<(), TreeError> {
        loop {
            let target = CString::new(format!("{}", self.moved_up)).expect("digits");
            self.moved_up += 1;
            let (root, current) = (&self.levels[0].fd, &self.levels[self.levels.len() - 1].fd);
            let mut renamed = renameat_with(current, name, root, &target, RenameFlags::NOREPLACE);
            if renamed == Err(Errno::PERM) && clear_flags(current.as_fd(), name) {
                renamed = renameat_with(current, name, root, &target, RenameFlags::NOREPLACE);
            }
            match renamed {
                Ok(()) => {
                    self.levels[0].subdirectories.push(&target);
                    return Ok(());
                }
                Err(Errno::EXIST) => {}
                Err(e) => return Err(self.error("move up", name, e)),
            }
        }
    }

    /// The current directory should be empty now: removes it from its parent.
    fn leave(&mut self) -> Result<(), TreeError> {
        let level = self.levels.pop().expect("called with a level");
        let Some(parent) = self.levels.last() else {
            return Ok(());
        };
        match unlink(parent.fd.as_fd(), &level.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            // readdir may miss what others add, or what the filesystem moves, while entries are being removed.
            Err(Errno::NOTEMPTY | Errno::EXIST) if level.attempts < ATTEMPTS => {
                let again = open_dir(parent.fd.as_fd(), &level.name);
                let fd = again.map_err(|e| self.error("open", &level.name, e))?;
                let attempts = level.attempts + 1;
                self.levels.push(Level { fd, attempts, ..level });
                self.empty_current()
            }
            Err(e) => Err(self.error("remove directory", &level.name, e)),
        }
    }

    fn error(&self, action: &'static str, name: &CStr, source: Errno) -> TreeError {
        let levels = self.levels.iter().skip(1).map(|level| crate::tree::lossless(&level.name));
        TreeError::Io { action, path: levels.chain([crate::tree::lossless(name)]).collect(), source }
    }
}

fn open_dir(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// unlinkat(2), also of what is marked immutable or append-only (chattr(1)), or lies in a directory that is.
fn unlink(parent: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> Result<(), Errno> {
    match unlinkat(parent, name, flags) {
        Err(Errno::PERM) if clear_flags(parent, name) => unlinkat(parent, name, flags),
        result => result,
    }
}

/// Takes the flags that forbid removal from a directory and from an entry of it. Only files and directories have any;
/// false when there were none.
fn clear_flags(parent: BorrowedFd<'_>, name: &CStr) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let entry = openat(parent, name, flags, Mode::empty()).is_ok_and(|fd| clear_flags_of(fd.as_fd()));
    clear_flags_of(parent) || entry
}

fn clear_flags_of(fd: BorrowedFd<'_>) -> bool {
    let forbidding = IFlags::IMMUTABLE | IFlags::APPEND;
    match ioctl_getflags(fd) {
        Ok(flags) if flags.intersects(forbidding) => ioctl_setflags(fd, flags - forbidding).is_ok(),
        _ => false,
    }
}
