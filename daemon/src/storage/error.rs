//! What can go wrong with a pool, in sentences a user can act on.

use std::path::{Path, PathBuf};

use duet_sys::tree::TreeError;
use rustix::io::Errno;

use super::value::{Fingerprint, LayerId};

/// An error of a storage pool.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filesystem under the pool is full (ENOSPC or EDQUOT).
    #[error(
        "no space left on the filesystem of storage pool {pool}: free some or delete instances, snapshots or images"
    )]
    NoSpace {
        /// The pool's directory.
        pool: PathBuf,
    },
    /// A system call failed on one path.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb: "create", "rename"...
        action: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// The errno.
        source: Errno,
    },
    /// Copying, measuring or removing a tree failed.
    #[error("cannot {action} {path}: {source}")]
    Tree {
        /// What was tried, as a verb.
        action: &'static str,
        /// The root of the tree.
        path: PathBuf,
        /// Where in it, and why.
        source: TreeError,
    },
    /// The pool's directory cannot hold overlay layers.
    #[error(
        "storage pool {path} cannot be used: {reason}; place it on a local ext4, xfs or btrfs filesystem (DUET_DIR or `duetd --dir`)"
    )]
    Unsuitable {
        /// The pool's directory.
        path: PathBuf,
        /// What was tried and how it failed.
        reason: String,
    },
    /// A btrfs pool cannot be in this directory.
    #[error(
        "{path} is on {filesystem}, not on btrfs: name a directory on btrfs or a block device as source, or leave source out for a file of Duet's own"
    )]
    NotBtrfs {
        /// The directory.
        path: PathBuf,
        /// What the filesystem there is called.
        filesystem: String,
    },
    /// A new pool's directory holds something else.
    #[error("{path} is not empty: a new storage pool needs an empty directory")]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// What a pool is to be made of, or its file or device, cannot be used.
    #[error("{0}")]
    Backing(String),
    /// A program of ZFS failed.
    #[error("{program}: {said}")]
    Zfs {
        /// Its name.
        program: &'static str,
        /// What it said.
        said: String,
    },
    /// Sizes are not enforced in this pool.
    #[error("the size of a root disk cannot be limited in storage pool {pool}: {reason}")]
    NoQuota {
        /// The pool's directory.
        pool: PathBuf,
        /// Why not, and what helps.
        reason: &'static str,
    },
    /// A size is smaller than what is there.
    #[error("a size of {} is too small: {} are in use", bytes(*.asked), bytes(*.used))]
    TooSmall {
        /// The size, in bytes.
        asked: u64,
        /// What counts against it, in bytes.
        used: u64,
    },
    /// The directory holds no pool.
    #[error("there is no storage pool in {path}")]
    NoPool {
        /// The directory.
        path: PathBuf,
    },
    /// A value names a layer that is not on disk.
    #[error("storage pool {pool} has no layer {layer}: it was removed meanwhile or lost with the filesystem")]
    MissingLayer {
        /// The pool's directory.
        pool: PathBuf,
        /// The layer.
        layer: LayerId,
    },
    /// A value names an image that is not on disk.
    #[error("storage pool {pool} does not hold image {image}")]
    MissingImage {
        /// The pool's directory.
        pool: PathBuf,
        /// The image.
        image: Fingerprint,
    },
    /// A chain can be neither lengthened nor folded.
    #[error("the volume stands on {depth} layers, the most that are possible, and they cannot be folded: {source}")]
    ChainTooLong {
        /// How many layers the chain would have had.
        depth: usize,
        /// Why folding failed.
        source: Box<Error>,
    },
    /// A layer holds something that folding does not understand.
    #[error("layer {layer} cannot be folded: {reason} at {path}")]
    Unfoldable {
        /// The layer.
        layer: LayerId,
        /// Where in the layer.
        path: PathBuf,
        /// What was found.
        reason: &'static str,
    },
    /// Not a lower-case hexadecimal SHA-256.
    #[error("{0:?} is not an image fingerprint: 64 lower-case hexadecimal digits are expected")]
    BadFingerprint(String),
}

impl Error {
    /// Context for a failed system call: "cannot `action` `path`".
    pub(super) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(Errno) -> Self {
        move |source| Self::Io { action, path: path.as_ref().to_owned(), source }
    }

    /// Context for a failed operation on a tree.
    pub(super) fn tree(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(TreeError) -> Self {
        move |source| Self::Tree { action, path: path.as_ref().to_owned(), source }
    }

    /// The errno at the bottom, if a system call was the cause.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Io { source, .. } => Some(*source),
            Self::Tree { source, .. } => source.errno(),
            Self::ChainTooLong { source, .. } => source.errno(),
            Self::NoSpace { .. } => Some(Errno::NOSPC),
            Self::Zfs { said, .. } if said.contains("out of space") => Some(Errno::NOSPC),
            Self::Unsuitable { .. }
            | Self::NotBtrfs { .. }
            | Self::NotEmpty { .. }
            | Self::Backing(_)
            | Self::Zfs { .. }
            | Self::NoQuota { .. }
            | Self::TooSmall { .. }
            | Self::NoPool { .. }
            | Self::MissingLayer { .. }
            | Self::MissingImage { .. }
            | Self::Unfoldable { .. }
            | Self::BadFingerprint(_) => None,
        }
    }

    /// A full filesystem is one sentence for the user, wherever it was met.
    pub(super) fn in_pool(self, pool: &Path) -> Self {
        match self.errno() {
            Some(Errno::NOSPC | Errno::DQUOT) => Self::NoSpace { pool: pool.to_owned() },
            _ => self,
        }
    }
}

/// Bytes for people: `1.5 GiB`, never rounded up.
fn bytes(value: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let unit = UNITS.iter().zip(1..).take_while(|(_, power)| value >> (10 * power) > 0).last();
    let Some((name, power)) = unit else { return format!("{value} bytes") };
    let tenths = (u128::from(value) * 10) >> (10 * power);
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}
