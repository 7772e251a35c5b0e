//! From a path to a descriptor, by the kernel and within the root.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::{Failure, Outcome};
use crate::path::WirePath;
use crate::protocol::FailureKind;

/// How often a lookup is repeated that the kernel broke off because something was renamed while it went through `..`
/// (openat2(2), EAGAIN). A container that renames without pause can make it fail, for itself only.
const ATTEMPTS: usize = 1000;

/// A directory of the container, below which all paths are resolved.
pub(super) struct Root(pub OwnedFd);

/// Whether a link as the last component is followed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Last {
    /// It is.
    Follow,
    /// The link itself is meant.
    Itself,
}

/// A name and the directory that it is, or would be, in.
pub(super) struct Place {
    pub parent: OwnedFd,
    pub name: CString,
}

impl Root {
    /// Holds what `path` leads to, by `O_PATH`: without opening it.
    pub fn hold(&self, path: &WirePath, last: Last) -> Outcome<OwnedFd> {
        let mut flags = OFlags::PATH;
        if last == Last::Itself {
            flags |= OFlags::NOFOLLOW;
        }
        self.open(path, flags, Mode::empty())
    }

    /// Opens `path` with openat2(2) below the root.
    pub fn open(&self, path: &WirePath, flags: OFlags, mode: Mode) -> Outcome<OwnedFd> {
        let path = c_path(path)?;
        Ok(open_with(&self.0, &path, flags, mode, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)?)
    }

    /// The directory and the name for an operation on the name itself. Trailing slashes are dropped; the root, `.` and
    /// `..` have no name that could be made, removed or renamed.
    pub fn place(&self, path: &WirePath) -> Outcome<Place> {
        let bytes = path.as_bytes();
        let end = bytes.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
        let start = bytes[..end].iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
        let name = &bytes[start..end];
        if matches!(name, b"" | b"." | b"..") {
            return Err(Failure::of(FailureKind::BadPath));
        }
        let name = CString::new(name).map_err(|_| Failure::of(FailureKind::BadPath))?;
        let parent = WirePath::from(bytes[..start].to_vec());
        let parent = self.open(&parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        Ok(Place { parent, name })
    }
}

/// Opens a single name in a directory: no link, nothing mounted (`EXDEV`).
///
/// Without `RESOLVE_BENEATH`, which a single name needs not, and which answers `EXDEV` as well when what it found is moved
/// elsewhere in the same moment.
pub(super) fn open_child(dir: impl AsFd, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    open_with(dir, name, flags | OFlags::NOFOLLOW, Mode::empty(), resolve)
}

fn open_with(dir: impl AsFd, path: &CStr, flags: OFlags, mode: Mode, how: ResolveFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    let mut attempts = ATTEMPTS;
    loop {
        match openat2(&dir, path, flags, mode, how) {
            Err(Errno::AGAIN | Errno::INTR) if attempts > 0 => attempts -= 1,
            other => return other,
        }
    }
}

fn c_path(path: &WirePath) -> Outcome<CString> {
    match path.as_bytes() {
        b"" => Ok(c".".to_owned()),
        _ => path.to_c_string().ok_or_else(|| Failure::of(FailureKind::BadPath)),
    }
}
