//! What can go wrong with an image, each as one sentence that names the thing and, where there is one, the mend.

use std::io;
use std::path::PathBuf;

/// The result of every fallible call of this crate.
pub type Result<T> = std::result::Result<T, ImageError>;

/// Why an image could not be read, written or built.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file of the host (an image file, the target folder) could not be used.
    #[error("cannot {action} {path:?}: {source}")]
    File {
        /// What was tried, as a verb: "open", "create".
        action: &'static str,
        /// The path on the host.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The image's bytes could not be read or decompressed; `source` says how far.
    #[error("cannot read the image: {0}")]
    Read(#[source] io::Error),
    /// The image ends before it should.
    #[error("the image is truncated: it ends inside {within}")]
    Truncated {
        /// The part that is incomplete: an entry's name or a table.
        within: String,
    },
    /// The file is of a kind that is not a system container's image.
    #[error("{path:?} {problem}")]
    WrongFormat {
        /// The image file.
        path: PathBuf,
        /// What it is and what is wanted instead.
        problem: String,
    },
    /// The archive's structure breaks its format's rules.
    #[error("the image is damaged: {0}")]
    Damaged(String),
    /// An entry that is refused whatever its content, because it could reach out of the image or collide.
    #[error("refused the entry {entry:?}: {reason}")]
    Refused {
        /// The entry's name as the archive spells it.
        entry: String,
        /// Why it is refused.
        reason: String,
    },
    /// One of the limits on what an image may cost was passed.
    #[error("the image is refused: {what} is more than the limit of {limit}")]
    Limit {
        /// What was counted, with its value.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// An entry could not be created on the host's file system.
    #[error("cannot {action} {entry:?} of the image: {source}")]
    Entry {
        /// What was tried, as a verb.
        action: &'static str,
        /// The entry's name.
        entry: String,
        /// The system's reason.
        source: io::Error,
    },
    /// `metadata.yaml` is missing, unreadable or says something impossible.
    #[error("metadata.yaml {0}")]
    Metadata(String),
    /// The image's content does not have the fingerprint it was announced with.
    #[error("the image has the fingerprint {actual}, not {expected} as announced")]
    FingerprintMismatch {
        /// The fingerprint that was asked for.
        expected: String,
        /// The fingerprint of the bytes.
        actual: String,
    },
    /// A template of the image could not be rendered.
    #[error("cannot render the image's template {template:?}: {reason}")]
    Template {
        /// The template's file name under `templates/`.
        template: String,
        /// What the template engine says.
        reason: String,
    },
    /// The packed image could not be written to where it should go.
    #[error("cannot write the image: {0}")]
    Write(#[source] io::Error),
    /// No recipe has this name.
    #[error("there is no recipe {name:?}; there are: {known}")]
    UnknownRecipe {
        /// The name that was asked for.
        name: String,
        /// The names that exist, comma separated.
        known: String,
    },
    /// A recipe file says something impossible.
    #[error("the recipe {name:?} {problem}")]
    Recipe {
        /// The recipe's name or file.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A program that the build needs is not installed.
    #[error("{program} is not installed; install it with: apt install {package}")]
    MissingProgram {
        /// The program.
        program: &'static str,
        /// The Debian package that brings it.
        package: &'static str,
    },
    /// A step of building an image failed.
    #[error("cannot build {recipe}: {step}: {detail}")]
    Build {
        /// The recipe's name.
        recipe: String,
        /// The step that failed.
        step: String,
        /// The last words of the program that failed, or the reason.
        detail: String,
    },
    /// The package mirror could not be reached or does not carry the release.
    #[error("cannot build {recipe}: the package mirror {mirror} {problem}")]
    Mirror {
        /// The recipe's name.
        recipe: String,
        /// The mirror's address (without credentials).
        mirror: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A root filesystem does not fit the disk that is to be made of it.
    #[error("the image does not fit a root disk of {size} bytes; a larger size of the root device is needed")]
    DiskTooSmall {
        /// The disk's size in bytes.
        size: u64,
    },
    /// No disk could be made of a root filesystem.
    #[error("cannot make a root disk: {0}")]
    Disk(String),
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// The work failed and so did part of its undoing.
    #[error("{failure}; and cleaning up failed as well: {cleanup}")]
    Cleanup {
        /// The first failure.
        failure: Box<ImageError>,
        /// What was left behind and why.
        cleanup: String,
    },
}

impl ImageError {
    pub(crate) fn refused(entry: impl Into<String>, reason: impl Into<String>) -> Self {
        ImageError::Refused { entry: entry.into(), reason: reason.into() }
    }

    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        ImageError::File { action, path: path.into(), source: source.into() }
    }

    pub(crate) fn entry(action: &'static str, entry: impl Into<String>, source: impl Into<io::Error>) -> Self {
        ImageError::Entry { action, entry: entry.into(), source: source.into() }
    }

    /// Sorts a failed read of image bytes: an early end is told apart from everything else.
    pub(crate) fn read(source: io::Error, within: impl Into<String>) -> Self {
        if source.kind() == io::ErrorKind::UnexpectedEof {
            ImageError::Truncated { within: within.into() }
        } else {
            ImageError::Read(source)
        }
    }

    /// Whether a filesystem of the host had no room for what was to be written.
    pub fn is_full_disk(&self) -> bool {
        match self {
            ImageError::File { source, .. }
            | ImageError::Entry { source, .. }
            | ImageError::Read(source)
            | ImageError::Write(source) => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            ImageError::Cleanup { failure, .. } => failure.is_full_disk(),
            _ => false,
        }
    }

    /// Whether the image itself is at fault (as opposed to the host or the caller).
    pub fn is_bad_image(&self) -> bool {
        match self {
            ImageError::Read(_)
            | ImageError::Truncated { .. }
            | ImageError::WrongFormat { .. }
            | ImageError::Damaged(_)
            | ImageError::Refused { .. }
            | ImageError::Limit { .. }
            | ImageError::Metadata(_)
            | ImageError::FingerprintMismatch { .. }
            | ImageError::Template { .. } => true,
            ImageError::Cleanup { failure, .. } => failure.is_bad_image(),
            ImageError::File { .. }
            | ImageError::Entry { .. }
            | ImageError::Write(_)
            | ImageError::UnknownRecipe { .. }
            | ImageError::Recipe { .. }
            | ImageError::MissingProgram { .. }
            | ImageError::Build { .. }
            | ImageError::Mirror { .. }
            | ImageError::DiskTooSmall { .. }
            | ImageError::Disk(_)
            | ImageError::Cancelled => false,
        }
    }
}
