//! Folding a run of adjacent layers into one that shows the same over anything.
//!
//! The fold asks, for each name in each merged directory of the run, what overlayfs would find in these layers
//! ([`lookup`], which follows `ovl_lookup()` of fs/overlayfs/namei.c step by step), and writes down the answer:
//!
//! - **a file**: copied, with all it has;
//! - **nothing, and the search ended there**: a whiteout, unless the search would not go on below anyway;
//! - **a directory**: a directory with the attributes of the top-most one found. Where the search for the rest of it
//!   would go on below the run, at which path, decides its mark: nowhere → opaque; at the path that its parent's
//!   search implies → none; elsewhere → an absolute redirect to there.
//!
//! The layers are frozen, so nothing changes meanwhile. The work list is on the heap, so depth costs no stack; but a
//! directory is opened by its path, so one deeper than PATH_MAX makes the run unfoldable, as does what overlayfs itself
//! would refuse. A property test compares folded with unfolded runs through real mounts.

mod lookup;

use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use duet_sys::tree::{self, EntryCopier};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Uid, XattrFlags, fchmod, fchown, fsetxattr, fstat, futimens, linkat, mkdirat, mknodat,
};
use rustix::io::Errno;

use self::lookup::{Found, Lookup, Part, join, open_path, path_of};
use crate::storage::driver::Files;
use crate::storage::{Error, LayerId, Result};

/// What overlayfs notes on a directory about where it stood, not about what it shows.
const PLACE_XATTRS: [&[u8]; 7] = [
    b"trusted.overlay.opaque",
    b"trusted.overlay.redirect",
    b"trusted.overlay.origin",
    b"trusted.overlay.impure",
    b"trusted.overlay.nlink",
    b"trusted.overlay.upper",
    b"trusted.overlay.uuid",
];

/// A directory of the folded layer.
struct Directory {
    /// Its path, relative to the root, which is the empty path.
    path: Vec<u8>,
    /// The directories that overlayfs would merge into it, top-most first; at least one.
    parts: Vec<Part>,
    /// The path at which overlayfs would go on below the run; none if it would not.
    below: Option<Vec<u8>>,
    mark: Mark,
}

/// What tells overlayfs where to go on below a directory.
enum Mark {
    None,
    Opaque,
    Redirect(Vec<u8>),
}

/// Folds layers, given bottom first, into an empty directory. `links` as in [`EntryCopier::new`].
pub(super) fn fold(
    layers: &[(LayerId, OwnedFd)],
    files: Files,
    out: BorrowedFd<'_>,
    links: BorrowedFd<'_>,
) -> Result<()> {
    let layers: Vec<(LayerId, BorrowedFd<'_>)> = layers.iter().rev().map(|(id, fd)| (*id, fd.as_fd())).collect();
    let mut job = Job { lookup: Lookup { layers: &layers }, files, out, entries: EntryCopier::new(links) };
    let root = Directory {
        path: Vec::new(),
        parts: (0..layers.len()).map(|layer| Part { layer, path: Vec::new() }).collect(),
        below: Some(Vec::new()),
        mark: Mark::None,
    };
    let mut directories = vec![root];
    let mut next = 0;
    while next < directories.len() {
        let inner = job.fill(&directories[next])?;
        directories.extend(inner);
        next += 1;
    }
    // Last, because a set-group-ID bit or a default ACL would be inherited by what is created below it.
    directories.iter().try_for_each(|directory| job.set_attributes(directory))
}

struct Job<'a> {
    lookup: Lookup<'a>,
    files: Files,
    out: BorrowedFd<'a>,
    entries: EntryCopier<'a>,
}

impl Job<'_> {
    /// Makes everything in a directory that was already made; returns the directories among that.
    fn fill(&mut self, directory: &Directory) -> Result<Vec<Directory>> {
        let out = open_path(self.out, &directory.path).map_err(|e| self.failed(directory, "open", e))?;
        let mut opened = Vec::with_capacity(directory.parts.len());
        for part in &directory.parts {
            opened.push(self.lookup.open(part)?);
        }
        let mut inner = Vec::new();
        let mut seen = HashSet::new();
        for fd in &opened {
            for name in super::names(fd.as_fd()).map_err(|e| self.failed(directory, "list", e))? {
                if !seen.insert(name.clone()) {
                    continue;
                }
                match self.lookup.find(&directory.parts, &opened, &name)? {
                    Found::File { part } => self.copy(directory, opened[part].as_fd(), &name, out.as_fd())?,
                    Found::Nothing { stopped } if stopped && directory.below.is_some() => {
                        mknodat(&out, &name, FileType::CharacterDevice, Mode::empty(), 0)
                            .map_err(|e| self.failed(directory, "create a whiteout in", e))?;
                    }
                    Found::Nothing { .. } => {}
                    Found::Directory { parts, next } => {
                        mkdirat(&out, &name, Mode::RWXU)
                            .map_err(|e| self.failed(directory, "create a directory in", e))?;
                        let natural = directory.below.as_ref().map(|below| join(below, name.to_bytes()));
                        let below = next.below(directory.below.as_deref());
                        let mark = match &below {
                            None if natural.is_none() => Mark::None,
                            None => Mark::Opaque,
                            Some(_) if below == natural => Mark::None,
                            Some(elsewhere) => Mark::Redirect([b"/", elsewhere.as_slice()].concat()),
                        };
                        let path = join(&directory.path, name.to_bytes());
                        inner.push(Directory { path, parts, below, mark });
                    }
                }
            }
        }
        Ok(inner)
    }

    fn copy(&mut self, directory: &Directory, from: BorrowedFd<'_>, name: &CStr, to: BorrowedFd<'_>) -> Result<()> {
        if self.files == Files::Link {
            match linkat(from, name, to, name, AtFlags::empty()) {
                Ok(()) => return Ok(()),
                // As many links as the filesystem allows.
                Err(Errno::MLINK) => {}
                Err(e) => return Err(self.failed(directory, "link a file of", e)),
            }
        }
        match self.entries.copy(from, name, FileType::Unknown, to) {
            Ok(_) => Ok(()),
            Err((action, source)) => {
                let path = self.shown(directory).join(path_of(name.to_bytes()));
                Err(Error::io(action, path)(source))
            }
        }
    }

    fn set_attributes(&self, directory: &Directory) -> Result<()> {
        let from = self.lookup.open(&directory.parts[0])?;
        let set = || {
            let to = open_path(self.out, &directory.path)?;
            let stat = fstat(&from)?;
            fchown(&to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
            fchmod(&to, Mode::from_raw_mode(stat.st_mode))?;
            tree::copy_xattrs(&from, &to, |name| !PLACE_XATTRS.contains(&name))?;
            match &directory.mark {
                Mark::None => {}
                Mark::Opaque => fsetxattr(&to, c"trusted.overlay.opaque", b"y", XattrFlags::empty())?,
                Mark::Redirect(path) => fsetxattr(&to, c"trusted.overlay.redirect", path, XattrFlags::empty())?,
            }
            futimens(&to, &tree::timestamps(&stat))
        };
        set().map_err(|e| self.failed(directory, "set attributes of", e))
    }

    fn failed(&self, directory: &Directory, action: &'static str, source: Errno) -> Error {
        let Part { layer, path } = &directory.parts[0];
        match source {
            Errno::NAMETOOLONG => self.lookup.unfoldable(*layer, path, "a path longer than the kernel takes"),
            source => Error::io(action, self.shown(directory))(source),
        }
    }

    fn shown(&self, directory: &Directory) -> PathBuf {
        let (layer, _) = self.lookup.layers[directory.parts[0].layer];
        PathBuf::from(format!("layer {layer}")).join(path_of(&directory.path))
    }
}
