//! Small files below a root, read as text, number or link; what is not there is none.

use std::fs;
use std::path::{Path, PathBuf};

/// The root. `/` on a host.
pub(super) struct Tree {
    root: PathBuf,
}

impl Tree {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// A path below it.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// A file's text.
    pub fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        text(&self.at(path))
    }

    /// What a directory holds: paths, sorted by number where the names end in one, so that cpu2 comes before cpu10.
    pub fn list(&self, path: impl AsRef<Path>) -> Vec<PathBuf> {
        list(&self.at(path))
    }
}

/// See [`Tree::list`].
pub(super) fn list(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort_by_cached_key(|path| {
        let name = name(path);
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
        (name[stem.len()..].parse().unwrap_or(0_u64), stem)
    });
    paths
}

/// The last part of a path.
pub(super) fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A file's text, without the white space around it; none if that leaves nothing.
pub(super) fn text(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// A number in a file; -1 and other words for "none" are none.
pub(super) fn number(path: &Path) -> Option<u64> {
    text(path)?.parse().ok()
}

/// The last part of what a link leads to.
pub(super) fn link_name(path: &Path) -> Option<String> {
    Some(name(&fs::read_link(path).ok()?))
}

/// The PCI device that something in /sys/devices belongs to: its directory, and its address.
pub(super) fn pci_device(path: &Path) -> Option<(PathBuf, String)> {
    let real = path.canonicalize().ok()?;
    let device = real.ancestors().find(|dir| is_pci_address(&name(dir)))?;
    Some((device.to_owned(), name(device)))
}

/// `0000:00:03.0`: domain, bus, device and function in hexadecimal digits.
fn is_pci_address(name: &str) -> bool {
    let parts: Vec<&str> = name.split([':', '.']).collect();
    let is_hex = |part: &&str| !part.is_empty() && part.chars().all(|c| c.is_ascii_hexdigit());
    parts.len() == 4 && parts.iter().all(is_hex) && name.contains('.')
}
