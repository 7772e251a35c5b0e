//! How long work tells about itself and is told to stop.
//!
//! Everything here is synchronous; a caller that lives in an async world runs it on a blocking thread, passes a closure
//! that forwards the progress, and one that looks at its cancel flag. The closure is called often (per megabyte or per
//! few hundred entries), so it should be cheap; throttling what a user sees is the caller's business.

use crate::{ImageError, Result};

/// What kind of work is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The file's SHA-256 is being computed. Counts bytes.
    Hashing,
    /// The image is being unpacked. Counts bytes of the image file(s).
    Unpacking,
    /// The image is being packed. Counts bytes of file content; the total is unknown.
    Packing,
    /// A disk is being made of a root filesystem. Counts nothing.
    Disk,
    /// Package lists and packages are being fetched. Counts percent.
    Downloading,
    /// Packages are being installed. Counts percent.
    Installing,
    /// The fresh root file system gets its configuration. Counts percent.
    Configuring,
}

impl Phase {
    /// A word for users: "Unpacking".
    pub fn label(self) -> &'static str {
        match self {
            Phase::Hashing => "Hashing",
            Phase::Unpacking => "Unpacking",
            Phase::Packing => "Packing",
            Phase::Disk => "Making a disk",
            Phase::Downloading => "Downloading",
            Phase::Installing => "Installing",
            Phase::Configuring => "Configuring",
        }
    }
}

/// One report of how far the work is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The work that this is about.
    pub phase: Phase,
    /// How much is done, in the phase's unit.
    pub done: u64,
    /// Of how much, where that is known.
    pub total: Option<u64>,
    /// What is at hand, for people: a package, a file. May be empty.
    pub detail: String,
}

impl Progress {
    /// Whole percent, where the total is known and not zero; never above 100.
    pub fn percent(&self) -> Option<u8> {
        let total = self.total.filter(|t| *t > 0)?;
        Some((u128::from(self.done) * 100 / u128::from(total)).min(100) as u8)
    }
}

/// The caller's ear: progress out, cancellation in.
#[derive(Default)]
pub struct Observer<'a> {
    progress: Option<&'a mut dyn FnMut(Progress)>,
    cancelled: Option<&'a dyn Fn() -> bool>,
}

impl<'a> Observer<'a> {
    /// Reports to `progress`, and stops with [`ImageError::Cancelled`] soon after `cancelled` returns true.
    pub fn new(progress: &'a mut dyn FnMut(Progress), cancelled: &'a dyn Fn() -> bool) -> Self {
        Observer { progress: Some(progress), cancelled: Some(cancelled) }
    }

    /// Reports to nobody and cannot be cancelled.
    pub fn none() -> Self {
        Observer { progress: None, cancelled: None }
    }

    pub(crate) fn report(&mut self, phase: Phase, done: u64, total: Option<u64>, detail: impl Into<String>) {
        if let Some(progress) = self.progress.as_mut() {
            progress(Progress { phase, done, total, detail: detail.into() });
        }
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.is_some_and(|f| f())
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(ImageError::Cancelled) } else { Ok(()) }
    }
}

impl std::fmt::Debug for Observer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observer").field("progress", &self.progress.is_some()).finish_non_exhaustive()
    }
}
