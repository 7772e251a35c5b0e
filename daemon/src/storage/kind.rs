//! The kinds of pool.

use std::str::FromStr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use super::backing::MKFS_BTRFS;

/// A storage driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Layers of overlayfs in a directory.
    Overlay,
    /// Subvolumes.
    Btrfs,
}

impl Kind {
    /// Every driver, the default first.
    pub const ALL: [Self; 2] = [Self::Overlay, Self::Btrfs];

    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Btrfs => "btrfs",
        }
    }

    /// Whether a pool of this kind can be made on this host; else why not, as a sentence.
    ///
    /// # Errors
    /// What is missing.
    pub fn available(self) -> Result<(), &'static str> {
        match self {
            Self::Overlay => Ok(()),
            Self::Btrfs if !kernel_has_btrfs() => Err("this kernel has no btrfs"),
            Self::Btrfs if MKFS_BTRFS.find().is_err() => {
                Err("mkfs.btrfs is not installed: install btrfs-progs (Debian, Ubuntu, Fedora)")
            }
            Self::Btrfs => Ok(()),
        }
    }

    /// The version of what serves it, for people.
    pub fn version(self) -> &'static str {
        "1"
    }
}

impl FromStr for Kind {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or(())
    }
}

/// Whether the running kernel has btrfs. That it has is asked once: each client's first request wants to know.
fn kernel_has_btrfs() -> bool {
    static HAS: AtomicBool = AtomicBool::new(false);
    if !HAS.load(Relaxed) && kernel_has("btrfs") {
        HAS.store(true, Relaxed);
    }
    HAS.load(Relaxed)
}

/// Whether the running kernel has a filesystem, built in or as a module (proc_filesystems(5), modules.dep(5)).
fn kernel_has(filesystem: &str) -> bool {
    let loaded = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if loaded.lines().any(|line| line.split_whitespace().last() == Some(filesystem)) {
        return true;
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let modules = std::fs::read_to_string(format!("/lib/modules/{release}/modules.dep")).unwrap_or_default();
    let file = format!("/{filesystem}.ko");
    modules.lines().any(|line| line.split(':').next().is_some_and(|path| path.contains(&file)))
}
