//! What is attached to a running container, and to one that is being made: mounts and device nodes.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use duet_sys::mount::{self, NODEV, NOSUID};
use rustix::fs::CWD;
use serde::{Deserialize, Serialize};

/// A filesystem, or a part of one, that the container sees besides its root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// What is mounted.
    pub source: MountSource,
    /// The absolute path in the container. What is missing of it is made: directories, and a file if the source is one.
    pub target: PathBuf,
    /// Mounted read-only, in a way that the container's root cannot undo (if the container is unprivileged).
    #[serde(default)]
    pub read_only: bool,
    /// Whether the mounts beneath the source come along.
    #[serde(default)]
    pub recursive: bool,
    /// Whether ids are shifted by the container's map, so that its root sees the files of the host's root as its own.
    #[serde(default)]
    pub shift: bool,
    /// Whether the container starts all the same if the source does not exist.
    #[serde(default)]
    pub optional: bool,
}

/// Where a mount comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountSource {
    /// A file or directory of the host.
    Path(PathBuf),
    /// A detached mount (open_tree(2) with `OPEN_TREE_CLONE`, or fsmount(2)): the index into the descriptors that were
    /// passed along with the message.
    Fd(usize),
    /// A new tmpfs of at most this many bytes.
    Tmpfs {
        /// Bytes.
        size: u64,
    },
}

/// A device node in the container. The monitor makes it, with the owner shifted by the container's map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// The absolute path in the container.
    pub target: PathBuf,
    /// Character or block device.
    pub kind: DeviceKind,
    /// The major number.
    pub major: u32,
    /// The minor number.
    pub minor: u32,
    /// Permission bits, as in chmod(2).
    #[serde(default = "default_device_mode")]
    pub mode: u32,
    /// The owner as the container sees it.
    #[serde(default)]
    pub uid: u32,
    /// The group as the container sees it.
    #[serde(default)]
    pub gid: u32,
}

fn default_device_mode() -> u32 {
    0o660
}

/// The two kinds of device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// A character device.
    Char,
    /// A block device.
    Block,
}

/// Makes a detached mount of a source, in the mount namespace that the caller lives in.
///
/// # Errors
/// `NotFound` if it does not exist. A descriptor is no source that could be opened.
pub fn open_source(source: &MountSource, recursive: bool) -> io::Result<OwnedFd> {
    match source {
        MountSource::Path(path) => mount::clone_tree(CWD, &path.canonicalize()?, recursive),
        MountSource::Tmpfs { size } => {
            let size = size.to_string();
            mount::new_filesystem("tmpfs", &[("size", Some(&size)), ("mode", Some("1777"))], NOSUID | NODEV)
        }
        MountSource::Fd(_) => Err(io::Error::from_raw_os_error(libc::EBADF)),
    }
}
