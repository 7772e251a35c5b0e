//! What the host tells one boot of a guest.
//!
//! The initramfs of a kernel serves every guest and every boot. What differs is a second archive behind it
//! ([`crate::initramfs::append_setup`]), whose one file is a [`Setup`]. [`crate::init`] applies it within the root,
//! before the image's own init runs; what cannot be applied is a sentence on the console and never the end of the boot.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The file of the initramfs that holds it, as JSON.
pub(crate) const SETUP: &str = "/setup.json";

/// All that one boot is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Setup {
    /// The host name; `None` leaves it to the image.
    pub hostname: Option<String>,
    /// Files to write before anything of the image runs, in this order.
    pub files: Vec<File>,
    /// The names of network interfaces. One that is not named here keeps the kernel's, unless another gets that.
    pub nics: Vec<Nic>,
}

/// A file in the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its absolute path; links on it are followed, within the root. What is missing on the way is made.
    pub path: PathBuf,
    /// Its content. One that is there is replaced as a whole or not at all, and keeps its owner and mode; a new one is
    /// root's and 0644.
    pub content: String,
    /// Whether one that is there already is left as it is.
    #[serde(default)]
    pub create_only: bool,
}

/// The name of a network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// The interface: its hardware address.
    pub mac: [u8; 6],
    /// Its name from now on, at most 15 bytes. udev keeps a name that somebody gave (`NamePolicy=keep`,
    /// systemd.link(5)).
    pub name: String,
}
