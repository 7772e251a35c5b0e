//! The daemon's own error: what went wrong in terms of instances, images and networks, knowing nothing of HTTP.
//!
//! `api::response` is the one place that maps a [`Kind`] to an HTTP status.

use std::fmt;

/// What sort of failure it is; each means one thing to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request itself is wrong.
    Invalid,
    /// What it names is not there.
    NotFound,
    /// What it would make is there already, or something else stands in the way.
    Conflict,
    /// The caller may not do this.
    Forbidden,
    /// The object changed since the caller read it (`If-Match`).
    Changed,
    /// A deadline passed.
    Timeout,
    /// Something that works elsewhere is not served here.
    Unsupported,
    /// The body is larger than what is read.
    TooLarge,
    /// The daemon is going down.
    Closing,
    /// The host failed us.
    Internal,
}

/// A failure with one sentence for the user.
#[derive(Clone, Debug)]
pub struct Error {
    /// See [`Kind`].
    pub kind: Kind,
    /// One sentence that names what is wrong and, where there is one, the mend.
    pub message: String,
}

/// The result of most things here.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failure of `kind`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The request itself is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// What it names is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// Something stands in the way.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(Kind::Conflict, message)
    }

    /// The host failed us.
    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(Kind::Internal, message.to_string())
    }

    /// The same failure with what was being done in front.
    #[must_use]
    pub fn context(self, doing: impl fmt::Display) -> Self {
        Self { kind: self.kind, message: format!("{doing}: {}", self.message) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<crate::inventory::Error> for Error {
    fn from(error: crate::inventory::Error) -> Self {
        let kind = match error {
            crate::inventory::Error::Exists | crate::inventory::Error::InUse => Kind::Conflict,
            _ => Kind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::internal(error)
    }
}

impl From<tokio::task::JoinError> for Error {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::internal(format!("a worker ended early: {error}"))
    }
}

/// Adds what was being done to any failure of the host.
pub trait Context<T> {
    /// Turns the failure into an internal one that begins with `doing`.
    ///
    /// # Errors
    /// The same failure, in words.
    fn doing(self, doing: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn doing(self, doing: impl fmt::Display) -> Result<T> {
        self.map_err(|e| Error::internal(format!("{doing}: {e}")))
    }
}

/// Runs `work`, which may block, on a worker thread.
///
/// # Errors
/// What `work` returned, or that it panicked.
pub async fn blocking<T, E, F>(work: F) -> Result<T>
where
    T: Send + 'static,
    E: Into<Error> + Send + 'static,
    F: FnOnce() -> std::result::Result<T, E> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await?.map_err(Into::into)
}
