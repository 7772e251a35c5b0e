//! What a session's caller can meet.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;

use super::protocol::FailureKind;

/// The result of an operation on a container's files.
pub type Result<T, E = FileError> = std::result::Result<T, E>;

/// Why an operation on a container's files failed. Paths are as the caller gave them, within the container.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are the path in question, and the messages say the rest")]
pub enum FileError {
    #[error("{path:?} does not exist")]
    NotFound { path: PathBuf },
    #[error("{path:?} can't be accessed: permission denied")]
    PermissionDenied { path: PathBuf },
    #[error("{path:?} already exists")]
    Exists { path: PathBuf },
    #[error("{path:?} is not a directory, or one that it lies in isn't")]
    NotADirectory { path: PathBuf },
    #[error("{path:?} is a directory")]
    IsADirectory { path: PathBuf },
    #[error("the directory {path:?} is not empty")]
    NotEmpty { path: PathBuf },
    /// Also what links into processes (`/proc/1/root`) end in, which lead out of the filesystem and are never followed.
    #[error("{path:?} leads through too many symbolic links, or through one out of the filesystem")]
    LinkLoop { path: PathBuf },
    #[error("{path:?} is not a usable path")]
    BadPath { path: PathBuf },
    #[error("a name in {path:?} is too long")]
    NameTooLong { path: PathBuf },
    #[error("{path:?} is a device, pipe or socket; only files and directories can be read and written")]
    SpecialFile { path: PathBuf },
    #[error("{path:?} is on a read-only filesystem")]
    ReadOnly { path: PathBuf },
    #[error("no space is left on the filesystem of {path:?}")]
    NoSpace { path: PathBuf },
    #[error("{path:?} is in use, or something is mounted on it or below it")]
    Busy { path: PathBuf },
    #[error("{path:?} is on another filesystem")]
    CrossesFilesystems { path: PathBuf },
    #[error("{path:?} can't belong to that user or group: the container has no such id")]
    BadId { path: PathBuf },
    #[error("{path:?} was moved by the container in the middle of the operation; it can be tried again")]
    Changed { path: PathBuf },
    #[error("there is no such open file or directory")]
    BadHandle,
    #[error("too many files and directories are open in this session")]
    TooManyHandles,
    /// The container's init has exited, and with it the session ended.
    #[error("the container stopped")]
    ContainerStopped,
    /// The service ended for another reason.
    #[error("the file service ended unexpectedly")]
    SessionLost,
    /// The session is of no more use: an answer may still be on its way.
    #[error("the container's filesystem did not answer within {0:?}")]
    TimedOut(Duration),
    /// The service could not get to where the container's files are.
    #[error("the container's filesystem can't be entered: {detail} ({errno})")]
    Setup { detail: String, errno: Errno },
    /// The service did not say what it should.
    #[error("the file service answered with {0}")]
    Protocol(String),
    /// The program of the service could not be run.
    #[error("cannot start the file service {program:?}")]
    Start { program: PathBuf, source: io::Error },
    /// Reading from, or writing to, what the caller handed over failed.
    #[error("the transfer was interrupted")]
    Transfer(#[source] io::Error),
    /// Another answer of the kernel.
    #[error("{path:?}: {errno}")]
    Other { path: PathBuf, errno: Errno },
}

impl FileError {
    /// Translates a failure that the service reports.
    pub(super) fn from_wire(kind: FailureKind, errno: i32, detail: String, path: PathBuf) -> Self {
        // Whatever is said on the wire has to become a number that can be one (errno(3) ends at 4095).
        let errno = if (1..4096).contains(&errno) { Errno::from_raw_os_error(errno) } else { Errno::IO };
        match kind {
            FailureKind::System => Self::from_errno(errno, path),
            FailureKind::SpecialFile => Self::SpecialFile { path },
            FailureKind::BadHandle => Self::BadHandle,
            FailureKind::TooManyHandles => Self::TooManyHandles,
            FailureKind::BadId => Self::BadId { path },
            FailureKind::MountPoint => Self::Busy { path },
            FailureKind::Changed => Self::Changed { path },
            FailureKind::BadPath => Self::BadPath { path },
            FailureKind::Setup => Self::Setup { detail, errno },
            FailureKind::Unsupported => Self::Protocol(format!("a refusal: {detail}")),
        }
    }

    /// The same, about `path`, for operations on handles, which know of none.
    pub(super) fn about(self, to: &std::path::Path) -> Self {
        let to = || to.to_owned();
        match self {
            Self::PermissionDenied { .. } => Self::PermissionDenied { path: to() },
            Self::BadId { .. } => Self::BadId { path: to() },
            Self::ReadOnly { .. } => Self::ReadOnly { path: to() },
            Self::NoSpace { .. } => Self::NoSpace { path: to() },
            Self::NotFound { .. } => Self::NotFound { path: to() },
            Self::Other { errno, .. } => Self::Other { path: to(), errno },
            other => other,
        }
    }

    fn from_errno(errno: Errno, path: PathBuf) -> Self {
        match errno {
            Errno::NOENT => Self::NotFound { path },
            Errno::ACCESS | Errno::PERM => Self::PermissionDenied { path },
            Errno::EXIST => Self::Exists { path },
            Errno::NOTDIR => Self::NotADirectory { path },
            Errno::ISDIR => Self::IsADirectory { path },
            Errno::NOTEMPTY => Self::NotEmpty { path },
            Errno::LOOP => Self::LinkLoop { path },
            Errno::NAMETOOLONG => Self::NameTooLong { path },
            Errno::ROFS => Self::ReadOnly { path },
            Errno::NOSPC | Errno::DQUOT => Self::NoSpace { path },
            Errno::BUSY | Errno::TXTBSY | Errno::AGAIN => Self::Busy { path },
            Errno::XDEV => Self::CrossesFilesystems { path },
            errno => Self::Other { path, errno },
        }
    }
}
