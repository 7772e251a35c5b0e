//! What overlayfs finds in a run of layers.
//!
//! The names follow fs/overlayfs/namei.c, where the same steps are `ovl_lookup()`, `ovl_lookup_layer()`,
//! `ovl_lookup_single()` and `ovl_check_redirect()`. Layers count from the top.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use duet_sys::tree;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, openat2, statat};
use rustix::io::Errno;

use crate::storage::{Error, LayerId, Result};

/// Bytes of a path that are shown.
const SHOWN_PATH: usize = 512;

/// The frozen layers, top-most first.
pub(super) struct Lookup<'a> {
    pub(super) layers: &'a [(LayerId, BorrowedFd<'a>)],
}

/// A directory in one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) layer: usize,
    /// Relative to the layer's root, which is the empty path.
    pub(super) path: Vec<u8>,
}

/// What a name in a merged directory is.
pub(super) enum Found {
    /// Not a directory; it is in this part of the merged directory.
    File { part: usize },
    /// A directory made of these parts, and where the search goes on.
    Directory { parts: Vec<Part>, next: Next },
    /// Nothing. `stopped`: and overlayfs would not look further down.
    Nothing { stopped: bool },
}

/// Where a search goes on below the run.
pub(super) enum Next {
    /// Nowhere.
    Stopped,
    /// By this name in what is below the parent.
    Name(Vec<u8>),
    /// At this path from the root.
    Path(Vec<u8>),
}

impl Next {
    /// The path below the run, given the parent's.
    pub(super) fn below(self, parent: Option<&[u8]>) -> Option<Vec<u8>> {
        match self {
            Self::Stopped => None,
            Self::Name(name) => parent.map(|parent| join(parent, &name)),
            Self::Path(path) => Some(path),
        }
    }
}

/// A search in progress (`struct ovl_lookup_data`).
struct Search {
    next: Next,
    is_dir: bool,
}

/// What one layer has at one name.
enum Single {
    Absent,
    File,
    Directory,
}

impl Lookup<'_> {
    /// Looks up a name in the merged directory of these parts, opened in the same order.
    pub(super) fn find(&self, parents: &[Part], opened: &[OwnedFd], name: &CStr) -> Result<Found> {
        let mut search = Search { next: Next::Name(name.to_bytes().to_vec()), is_dir: false };
        let mut parts = Vec::new();
        let mut layer = 0;
        for (index, parent) in parents.iter().enumerate() {
            let Next::Name(name) = &search.next else {
                break;
            };
            let name = name.clone();
            layer = parent.layer + 1;
            match self.single(parent, opened[index].as_fd(), &name, &[], &mut search)? {
                Single::Absent => {}
                Single::File => return Ok(Found::File { part: index }),
                Single::Directory => parts.push(Part { layer: parent.layer, path: join(&parent.path, &name) }),
            }
        }
        // An absolute redirect leaves the parent: from here on, every further layer is searched from its root.
        while let Next::Path(path) = &search.next
            && layer < self.layers.len()
        {
            let path = path.clone();
            parts.extend(self.walk(layer, &path, &mut search)?);
            layer += 1;
        }
        if !parts.is_empty() {
            return Ok(Found::Directory { parts, next: search.next });
        }
        Ok(Found::Nothing { stopped: matches!(search.next, Next::Stopped) })
    }

    /// Opens a directory of a layer.
    pub(super) fn open(&self, part: &Part) -> Result<OwnedFd> {
        let (layer, root) = self.layers[part.layer];
        open_path(root, &part.path).map_err(|source| match source {
            Errno::NAMETOOLONG => self.unfoldable(part.layer, &part.path, "a path longer than the kernel takes"),
            source => Error::io("open", PathBuf::from(format!("layer {layer}")).join(path_of(&part.path)))(source),
        })
    }

    /// Walks an absolute path in one layer. Redirects on the way change the rest of the search, not of this walk.
    fn walk(&self, layer: usize, path: &[u8], search: &mut Search) -> Result<Option<Part>> {
        let mut at = Part { layer, path: Vec::new() };
        let mut directory = self.open(&at)?;
        // What the search is for in the layers below: rewritten as the walk meets redirects.
        let components: Vec<&[u8]> = path.split(|&b| b == b'/').collect();
        for (index, component) in components.iter().enumerate() {
            let rest = &components[index + 1..];
            match self.single(&at, directory.as_fd(), component, rest, search)? {
                Single::Directory => {
                    at.path = join(&at.path, component);
                    directory = self.open(&at)?;
                }
                Single::Absent | Single::File => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// Looks at one component in one layer. `rest` are the components that follow it in an absolute path.
    fn single(
        &self,
        parent: &Part,
        directory: BorrowedFd<'_>,
        name: &[u8],
        rest: &[&[u8]],
        search: &mut Search,
    ) -> Result<Single> {
        let last = rest.is_empty();
        let failed = |e| Error::io("look up", self.shown(parent.layer, &join(&parent.path, name)))(e);
        let stat = match statat(directory, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::NAMETOOLONG) => return Ok(Single::Absent),
            Err(e) => return Err(failed(e)),
        };
        let file_type = FileType::from_raw_mode(stat.st_mode);
        if file_type == FileType::CharacterDevice && stat.st_rdev == 0 {
            search.next = Next::Stopped;
            return Ok(Single::Absent);
        }
        if file_type != FileType::Directory {
            search.next = Next::Stopped;
            return Ok(if search.is_dir || !last { Single::Absent } else { Single::File });
        }
        search.is_dir |= last;
        let path = join(&parent.path, name);
        let fd = open_path(directory, name).map_err(failed)?;
        match tree::get_xattr(&fd, c"trusted.overlay.opaque").map_err(failed)?.as_deref() {
            Some(b"y") => {
                search.next = Next::Stopped;
                return Ok(Single::Directory);
            }
            Some(b"x") => {
                return Err(self.unfoldable(parent.layer, &path, "whiteouts in the form of attributes"));
            }
            _ => {}
        }
        if let Some(redirect) = tree::get_xattr(&fd, c"trusted.overlay.redirect").map_err(failed)? {
            let invalid = || self.unfoldable(parent.layer, &path, "an invalid redirect");
            search.redirect(&redirect, rest).ok_or_else(invalid)?;
        }
        Ok(Single::Directory)
    }

    pub(super) fn unfoldable(&self, layer: usize, path: &[u8], reason: &'static str) -> Error {
        Error::Unfoldable { layer: self.layers[layer].0, path: path_of(path), reason }
    }

    fn shown(&self, layer: usize, path: &[u8]) -> PathBuf {
        PathBuf::from(format!("layer {}", self.layers[layer].0)).join(path_of(path))
    }
}

impl Search {
    /// Applies a redirect met at a component that `rest` follows. None when it is none that overlayfs would take.
    fn redirect(&mut self, redirect: &[u8], rest: &[&[u8]]) -> Option<()> {
        let absolute = redirect.strip_prefix(b"/");
        let components = absolute.unwrap_or(redirect).split(|&b| b == b'/');
        if components.clone().any(|c| c.is_empty() || c == b"." || c == b"..") {
            return None;
        }
        let mut path = match (absolute, &self.next) {
            (Some(path), _) => path.to_vec(),
            (None, _) if redirect.contains(&b'/') => return None,
            // Opaque above: whatever it is called below is not searched for.
            (None, Next::Stopped) => return Some(()),
            (None, Next::Name(_)) => {
                self.next = Next::Name(redirect.to_vec());
                return Some(());
            }
            (None, Next::Path(path)) => {
                let mut prefix: Vec<&[u8]> = path.split(|&b| b == b'/').collect();
                prefix.truncate(prefix.len().checked_sub(rest.len() + 1)?);
                prefix.push(redirect);
                prefix.join(&b'/')
            }
        };
        for component in rest {
            path = join(&path, component);
        }
        if !matches!(self.next, Next::Stopped) {
            self.next = Next::Path(path);
        }
        Some(())
    }
}

/// A path and a name below it; the empty path is the root.
pub(super) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

/// For messages: a path, cut when absurdly long.
pub(super) fn path_of(path: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(&path[..path.len().min(SHOWN_PATH)]))
}

/// Opens a directory below another; no component of the path is a link.
pub(super) fn open_path(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    openat2(root, OsStr::from_bytes(path), flags, Mode::empty(), resolve)
}
