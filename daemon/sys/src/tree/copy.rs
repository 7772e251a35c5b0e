//! Copying a tree.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Mode, Stat, mkdirat};

use super::TreeError;
use super::entry::{EntryCopier, EntryOutcome};
use super::meta::{Attributes, Carrier};
use super::stack::{DirStack, Left, ListBuffer, Names};

/// What a copy did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    /// Entries in the copy, its root not among them.
    pub entries: u64,
    /// Whether the filesystem shares the data of both trees (reflink).
    pub reflinked: bool,
}

/// Copies the contents and the attributes of the directory `from` into and onto the empty directory `to`, on the same
/// filesystem: owners, modes, times (not ctime), extended attributes of every name space (so ACLs, file capabilities
/// and overlayfs' own), links, hard links within the tree, holes, devices (so overlayfs' whiteouts), FIFOs and sockets.
///
/// `links` is an empty directory on the filesystem of `to`, see [`EntryCopier`]. `root_xattr` says which extended
/// attributes of the root itself are wanted; below it all are.
///
/// `from` may be written to meanwhile: what vanishes is left out, what changes is copied as of some moment. Directories
/// that are moved deep within it are the exception: they end in [`TreeError::Moved`]. After an error, `to` holds part of the tree.
/// Needs the rights to make all that (CAP_CHOWN, CAP_MKNOD, CAP_SYS_ADMIN for `trusted.*`) and a mounted /proc.
pub fn copy_tree(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    links: BorrowedFd<'_>,
    root_xattr: impl Fn(&[u8]) -> bool,
) -> Result<Copied, TreeError> {
    let (source, stat) = DirStack::new(from)?;
    let (copy, _) = DirStack::new(to)?;
    let mut job = Job {
        source,
        copy,
        frames: Vec::new(),
        entries: EntryCopier::new(links),
        list: ListBuffer::new(),
        copied: Copied::default(),
    };
    job.begin(&stat)?;
    while let Some(frame) = job.frames.last_mut() {
        match frame.subdirectories.pop() {
            Some(name) => job.descend(&name)?,
            None => job.finish(&root_xattr)?,
        }
    }
    job.copied.reflinked = job.entries.reflinks();
    Ok(job.copied)
}

struct Job<'a> {
    source: DirStack,
    copy: DirStack,
    /// One for each directory of either stack.
    frames: Vec<Frame>,
    entries: EntryCopier<'a>,
    list: ListBuffer,
    copied: Copied,
}

struct Frame {
    attributes: Attributes,
    subdirectories: Names,
}

impl Job<'_> {
    fn descend(&mut self, name: &CStr) -> Result<(), TreeError> {
        let Some(stat) = self.source.enter(name)? else {
            return Ok(());
        };
        // Its own mode comes last, when nothing is created in it any more: a set-group-ID bit or a default ACL would be
        // inherited by its entries.
        mkdirat(self.copy.top(), name, Mode::RWXU).map_err(|e| self.source.error("create its copy", e))?;
        if self.copy.enter(name)?.is_none() {
            return Err(self.source.error("open its copy", rustix::io::Errno::NOENT));
        }
        self.copied.entries += 1;
        self.begin(&stat)
    }

    /// Copies all of the current directory but its subdirectories.
    fn begin(&mut self, stat: &Stat) -> Result<(), TreeError> {
        let Self { source, copy, entries, list, copied, .. } = self;
        let mut subdirectories = Names::default();
        let visited = list.for_each(source.top(), |name, hint| {
            let outcome = match hint {
                FileType::Directory => EntryOutcome::Directory,
                hint => {
                    entries.copy(source.top(), name, hint, copy.top()).map_err(|(a, e)| source.error_at(a, name, e))?
                }
            };
            match outcome {
                EntryOutcome::Copied => copied.entries += 1,
                EntryOutcome::Directory => subdirectories.push(name),
                EntryOutcome::Vanished => {}
            }
            Ok(())
        });
        visited.map_err(|e| source.error("list it", e))??;
        self.frames.push(Frame { attributes: Attributes::of(stat), subdirectories });
        Ok(())
    }

    /// Sets the attributes of the current directory and returns to its parent.
    fn finish(&mut self, root_xattr: &impl Fn(&[u8]) -> bool) -> Result<(), TreeError> {
        let frame = self.frames.pop().expect("called with a frame");
        let is_root = self.frames.is_empty();
        let (old, new) = (self.source.top(), self.copy.top());
        frame.attributes.set_owner_and_mode(new).map_err(|e| self.source.error("set owner and mode of its copy", e))?;
        Carrier::Open(old)
            .copy_to(&Carrier::Open(new), |name| !is_root || root_xattr(name))
            .map_err(|e| self.source.error("copy its extended attributes", e))?;
        frame.attributes.set_times(new).map_err(|e| self.source.error("set times of its copy", e))?;
        if is_root {
            return Ok(());
        }
        let was = self.source.shown(None);
        if self.source.leave()? == Left::Ancestor || self.copy.leave()? == Left::Ancestor {
            return Err(TreeError::Moved { path: was });
        }
        Ok(())
    }
}
