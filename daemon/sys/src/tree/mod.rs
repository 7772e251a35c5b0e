//! Whole trees of files: copied, measured, removed.
//!
//! The trees are the root filesystems of containers, so their contents are hostile: names of any bytes, directories
//! nested deeper than any path can name or any descriptor table can hold, millions of entries, links to anywhere, and
//! on a running container all of it changing meanwhile. Hence these rules, everywhere here:
//!
//! - Every step is relative to a descriptor of a directory and names one component, without following a link.
//! - Depth costs memory of a few hundred bytes per level, never stack or descriptors: beyond the first levels,
//!   ancestors are closed and found again through `..`, and must then be the same inode.
//! - Non-directories are handled while a directory is read; only names of subdirectories are gathered.
//! - What vanished between being listed and being opened, or became something else, counts as absent.

mod copy;
mod data;
mod entry;
mod meta;
mod project;
mod remove;
mod size;
mod stack;
#[cfg(test)]
mod tests;
mod walk;

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::io::Errno;

pub use copy::{Copied, copy_tree};
pub use entry::{EntryCopier, EntryOutcome, StepError};
pub use meta::{copy_xattrs, get_xattr, list_xattrs, timestamps};
pub use project::set_project;
pub use remove::{remove_contents, remove_tree};
pub use size::{TreeSize, tree_size};

/// A failed operation on a tree.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A system call failed.
    #[error("{path:?}: cannot {action}: {source}")]
    Io {
        /// What was tried, as a verb with its object.
        action: &'static str,
        /// Where, relative to the root of the tree.
        path: PathBuf,
        /// The errno.
        source: Errno,
    },
    /// A directory lies deeper than anything reasonable.
    #[error("{path:?}...: directories are nested more than {limit} deep")]
    TooDeep {
        /// The beginning of where.
        path: PathBuf,
        /// How deep is accepted.
        limit: usize,
    },
    /// A directory was moved elsewhere while it was being copied.
    #[error("{path:?}: moved while it was being copied")]
    Moved {
        /// Where it was.
        path: PathBuf,
    },
}

impl TreeError {
    /// The errno, if a system call was the cause.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Io { source, .. } => Some(*source),
            Self::TooDeep { .. } | Self::Moved { .. } => None,
        }
    }
}

/// A name as a path, whatever its bytes are.
fn lossless(name: &CStr) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(name.to_bytes()))
}
