//! What can go wrong with control groups.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

use super::Controller;

/// The result of an operation on control groups.
pub type Result<T, E = CgroupError> = std::result::Result<T, E>;

/// Why an operation on control groups failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// There is no cgroup2 tree to work in.
    #[error("no cgroup2 filesystem is mounted; mount one with `mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified`")]
    NoUnified,
    /// A name that can't be one of ours.
    #[error("{name:?} is not a control group name; it has to be like \"duet/c1\"")]
    BadName {
        /// The name as given.
        name: String,
    },
    /// Processes live in a group that should be new.
    #[error("the control group {name} already exists and holds running processes")]
    InUse {
        /// The group's name.
        name: String,
    },
    /// A limit needs a controller that the host doesn't offer.
    #[error("this host has no `{controller}` cgroup controller, which that limit needs")]
    NoController {
        /// The missing controller.
        controller: Controller,
    },
    /// A limit that this host's cgroups can't express.
    #[error("{why}")]
    Unsupported {
        /// One sentence that says what and why.
        why: &'static str,
    },
    /// The container holds more memory than the new limit, and the kernel could not get it back.
    #[error(
        "the container {name} uses more memory than the new limit of {bytes} bytes, and the kernel could not free enough"
    )]
    MemoryInUse {
        /// The group's name.
        name: String,
        /// The limit that was refused.
        bytes: u64,
    },
    /// A file held something that isn't what the kernel documents.
    #[error("{path} holds {content:?}, which is not {expected}")]
    Content {
        /// The file.
        path: PathBuf,
        /// The beginning of what it held.
        content: String,
        /// What was expected.
        expected: &'static str,
    },
    /// A value that isn't one of the documented forms.
    #[error("{value:?} is not {expected}")]
    BadValue {
        /// The value as given.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// Waiting took longer than allowed.
    #[error("the control group {path} did not become {state} in time ({waited:?})")]
    Timeout {
        /// The group's directory.
        path: PathBuf,
        /// The state that was waited for.
        state: &'static str,
        /// For how long.
        waited: Duration,
    },
    /// The kernel said no.
    #[error("cannot {action} {path}: {errno}")]
    Io {
        /// The verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        errno: Errno,
    },
    /// The kernel refused a value.
    #[error("cannot write {value:?} to {path}: {errno}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// What the kernel said.
        errno: Errno,
    },
    /// A failure, and the failure to clean up after it.
    #[error("{cause}; and afterwards: {cleanup}")]
    Cleanup {
        /// The first failure.
        #[source]
        cause: Box<CgroupError>,
        /// The failure of the cleanup.
        cleanup: Box<CgroupError>,
    },
}

impl CgroupError {
    pub(super) fn io(action: &'static str, path: &Path, errno: Errno) -> Self {
        Self::Io { action, path: path.to_owned(), errno }
    }

    /// The kernel's error number, where the kernel was the one to refuse.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Io { errno, .. } | Self::Write { errno, .. } => Some(*errno),
            Self::Cleanup { cause, .. } => cause.errno(),
            Self::NoUnified
            | Self::BadName { .. }
            | Self::InUse { .. }
            | Self::NoController { .. }
            | Self::Unsupported { .. }
            | Self::MemoryInUse { .. }
            | Self::Content { .. }
            | Self::BadValue { .. }
            | Self::Timeout { .. } => None,
        }
    }
}
