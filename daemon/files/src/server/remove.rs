//! Removing a tree, while its owner may do to it whatever he likes.
//!
//! The walk goes down by descriptors, one name at a time, never through a link and never into something mounted, and comes
//! back by the descriptors that it held on the way. What the container moves away in the meantime isn't removed; nothing
//! outside of the tree ever is. Where the tree is deeper than descriptors reach, those of the upper part are let go, the
//! lower part is removed on its own, and the next slice begins at the top again. Rejected: going back by `..`. It leads
//! elsewhere after a move, and in a mount of a subdirectory the kernel walks all the way up to check each (`path_connected`
//! in fs/namei.c), which makes a deep tree cost the square of its depth.
//!
//! Work is cut into slices, each of which removes something, so that the client can give up in between and no answer takes
//! long. A slice remembers nothing: what it removed is gone.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, OFlags, unlinkat};
use rustix::io::Errno;

use super::resolve::{Place, open_child};
use super::{Failure, Outcome};
use crate::protocol::FailureKind;

/// After this a slice ends, if it has removed anything.
const SLICE: Duration = Duration::from_millis(500);

/// A slice lasts at least this many times as long as it took to come to the first thing to remove. Else, in a tree so deep
/// that the way down takes a slice, each would remove a single name.
const WORTHWHILE: u32 = 3;

/// How many directories are held open. Each costs a descriptor and a buffer.
const MAX_HELD: usize = 1024;

/// How often a directory is read again because it wasn't empty after all was removed from it.
const PASSES: u32 = 16;

/// What a slice has done.
pub(super) struct Removed {
    pub count: u64,
    pub done: bool,
}

/// Removes what `place` names, with all below if it is a directory.
pub(super) fn remove_tree(place: &Place) -> Outcome<Removed> {
    let mut walk = Walk { frames: Vec::new(), count: 0, started: Instant::now(), least: SLICE, cut: false };
    match unlinkat(&place.parent, &place.name, AtFlags::empty()) {
        Ok(()) => return Ok(Removed { count: 1, done: true }),
        // POSIX says EPERM for a directory, Linux EISDIR; a read-only or immutable one answers the same below.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    match open_dir(&place.parent, &place.name) {
        Ok(dir) => walk.push(dir, place.name.clone())?,
        Err(Errno::NOENT) => return Ok(Removed { count: 0, done: true }),
        Err(Errno::XDEV) => return Err(Failure::of(FailureKind::MountPoint)),
        Err(errno) => return Err(errno.into()),
    }
    if !walk.run()? {
        return Ok(Removed { count: walk.count, done: false });
    }
    match unlinkat(&place.parent, &place.name, AtFlags::REMOVEDIR) {
        Ok(()) => Ok(Removed { count: walk.count + 1, done: true }),
        Err(Errno::NOENT) => Ok(Removed { count: walk.count, done: true }),
        // Filled again since.
        Err(Errno::NOTEMPTY | Errno::EXIST) if walk.count > 0 => Ok(Removed { count: walk.count, done: false }),
        Err(errno) => Err(errno.into()),
    }
}

fn open_dir(parent: impl std::os::fd::AsFd, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    open_child(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK)
}

/// A directory on the way down.
struct Frame {
    /// Its name in the directory before it.
    name: CString,
    /// Its entries.
    dir: Dir,
    passes: u32,
}

struct Walk {
    frames: Vec<Frame>,
    count: u64,
    started: Instant,
    /// How long the slice lasts.
    least: Duration,
    /// The frames begin somewhere within the tree, because it is too deep for one slice.
    cut: bool,
}

impl Walk {
    /// Empties the first frame's directory. False when the slice is over before that.
    fn run(&mut self) -> Outcome<bool> {
        loop {
            if self.count > 0 && self.started.elapsed() >= self.least {
                return Ok(false);
            }
            let Some(frame) = self.frames.last_mut() else { return Ok(!self.cut) };
            match frame.dir.read() {
                Some(entry) => {
                    let entry = entry?;
                    let name = entry.file_name();
                    if matches!(name.to_bytes(), b"." | b"..") {
                        continue;
                    }
                    let name = name.to_owned();
                    self.remove_entry(name, entry.file_type() == FileType::Directory)?;
                }
                None => self.leave()?,
            }
        }
    }

    fn removed(&mut self) {
        if self.count == 0 {
            self.least = SLICE.max(self.started.elapsed() * WORTHWHILE);
        }
        self.count += 1;
    }

    /// Removes a name from the last directory, or goes down into it.
    fn remove_entry(&mut self, name: CString, looks_like_directory: bool) -> Outcome<()> {
        let Some(frame) = self.frames.last() else { return Ok(()) };
        let here = frame.dir.fd()?;
        if !looks_like_directory {
            match unlinkat(here, &name, AtFlags::empty()) {
                Ok(()) => {
                    self.removed();
                    return Ok(());
                }
                Err(Errno::NOENT) => return Ok(()),
                Err(Errno::ISDIR | Errno::PERM) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        match open_dir(here, &name) {
            Ok(below) => self.push(below, name),
            // The process was given few descriptors.
            Err(Errno::MFILE) if self.frames.len() > 1 => {
                self.let_go();
                self.remove_entry(name, true)
            }
            Err(Errno::NOENT) => Ok(()),
            Err(Errno::XDEV) => Err(Failure::of(FailureKind::MountPoint)),
            // It was a directory when it was read and is something else now.
            Err(Errno::NOTDIR | Errno::LOOP) => match unlinkat(here, &name, AtFlags::empty()) {
                Ok(()) => {
                    self.removed();
                    Ok(())
                }
                Err(Errno::NOENT) => Ok(()),
                Err(errno) => Err(errno.into()),
            },
            Err(errno) => Err(errno.into()),
        }
    }

    fn push(&mut self, dir: OwnedFd, name: CString) -> Outcome<()> {
        if self.frames.len() >= MAX_HELD {
            self.let_go();
        }
        self.frames.push(Frame { name, dir: Dir::new(dir)?, passes: 0 });
        Ok(())
    }

    /// Forgets the way down to the last directory, which itself stays, so that at least what is below it goes.
    fn let_go(&mut self) {
        self.frames.drain(..self.frames.len().saturating_sub(1));
        self.cut = true;
    }

    /// Goes up from a directory that has been read to its end, and removes it.
    fn leave(&mut self) -> Outcome<()> {
        let Some(left) = self.frames.pop() else { return Ok(()) };
        let Some(above) = self.frames.last() else { return Ok(()) };
        let parent = above.dir.fd()?;
        match unlinkat(parent, &left.name, AtFlags::REMOVEDIR) {
            Ok(()) => {
                self.removed();
                Ok(())
            }
            // It was moved away, or replaced by what the next reading finds.
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            // A filesystem may skip entries while others are being removed; and the container may add some.
            Err(Errno::NOTEMPTY | Errno::EXIST) if left.passes < PASSES => {
                let mut again = left;
                again.passes += 1;
                again.dir.rewind();
                self.frames.push(again);
                Ok(())
            }
            Err(errno) => Err(errno.into()),
        }
    }
}
