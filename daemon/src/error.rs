//! The daemon's own error: what went wrong in terms of instances, images and networks, knowing nothing of HTTP.
//!
//! `api::response` is the one place that maps a [`Kind`] to an HTTP status.

use std::fmt;
use std::path::Path;

/// The longest sentence that clients get, in bytes.
const LONGEST: usize = 900;

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

    /// There is no room for something that belongs in `place`.
    pub fn full_disk(place: &Path) -> Self {
        Self::internal(format!(
            "no space left on the filesystem of {}: free some or delete instances, snapshots or images",
            place.display()
        ))
    }

    /// The message as clients get it: on one line and of bounded length, whatever the request held that it quotes.
    pub fn sentence(&self) -> String {
        let mut line = String::with_capacity(self.message.len().min(LONGEST));
        for c in self.message.chars() {
            if line.len() >= LONGEST {
                line.push_str(" ...");
                break;
            }
            if c.is_control() {
                line.extend(c.escape_default());
            } else {
                line.push(c);
            }
        }
        line
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

/// Runs `work`, which blocks for as long as a client likes, on a thread of its own. There are only so many workers for
/// [`blocking`], and clients that read or send slowly would leave none to the others.
///
/// # Errors
/// What `work` returned, or that it panicked.
pub async fn at_leisure<T, F>(work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    let (done, outcome) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("transfer".to_owned())
        .spawn(move || {
            // Whoever asked may be gone.
            let _ = done.send(work());
        })
        .doing("cannot start a thread")?;
    outcome.await.map_err(|_| Error::internal("a transfer ended early"))?
}

#[cfg(test)]
mod tests {
    use super::{Error, LONGEST};

    #[test]
    fn a_sentence_is_one_line() {
        assert_eq!(Error::invalid("no \"a\nb\0\"").sentence(), "no \"a\\nb\\u{0}\"");
        assert_eq!(Error::invalid("é".repeat(LONGEST)).sentence().len(), LONGEST + " ...".len());
    }
}
