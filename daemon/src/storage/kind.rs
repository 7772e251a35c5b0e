//! The kinds of pool.

use std::str::FromStr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use super::backing::MKFS_BTRFS;
use super::zfs;

/// A storage driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Layers of overlayfs in a directory.
    Overlay,
    /// Subvolumes.
    Btrfs,
    /// Datasets.
    Zfs,
}

impl Kind {
    /// Every driver, the default first.
    pub const ALL: [Self; 3] = [Self::Overlay, Self::Btrfs, Self::Zfs];

    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Btrfs => "btrfs",
            Self::Zfs => "zfs",
        }
    }

    /// Whether a pool of this kind can be made on this host; else why not, as a sentence.
    ///
    /// # Errors
    /// What is missing.
    pub fn available(self) -> Result<(), &'static str> {
        match self {
            Self::Overlay => Ok(()),
            Self::Btrfs if !kernel_has(&BTRFS) => Err("this kernel has no btrfs"),
            Self::Btrfs if MKFS_BTRFS.find().is_err() => {
                Err("mkfs.btrfs is not installed: install btrfs-progs (Debian, Ubuntu, Fedora)")
            }
            Self::Btrfs => Ok(()),
            Self::Zfs if zfs::ZFS.find().is_err() || zfs::ZPOOL.find().is_err() => {
                Err("zfs and zpool are not installed: install zfsutils-linux and, unless the kernel has ZFS, zfs-dkms")
            }
            Self::Zfs if !kernel_has(&ZFS) => {
                Err("this kernel has no zfs module: install zfs-dkms (Debian) or a kernel with ZFS (Ubuntu)")
            }
            Self::Zfs => zfs::too_old().map_or(Ok(()), Err),
        }
    }

    /// The version of what serves it, for people.
    pub fn version(self) -> &'static str {
        match self {
            Self::Overlay | Self::Btrfs => "1",
            Self::Zfs => zfs::version().unwrap_or("unknown"),
        }
    }
}

impl FromStr for Kind {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or(())
    }
}

/// A filesystem of the kernel, and whether it was seen to have it: each client's first request wants to know.
struct Filesystem {
    name: &'static str,
    seen: AtomicBool,
}

static BTRFS: Filesystem = Filesystem { name: "btrfs", seen: AtomicBool::new(false) };
static ZFS: Filesystem = Filesystem { name: "zfs", seen: AtomicBool::new(false) };

/// Whether the running kernel has a filesystem, built in or as a module (proc_filesystems(5), modules.dep(5)).
fn kernel_has(filesystem: &Filesystem) -> bool {
    if !filesystem.seen.load(Relaxed) && look_for(filesystem.name) {
        filesystem.seen.store(true, Relaxed);
    }
    filesystem.seen.load(Relaxed)
}

fn look_for(filesystem: &str) -> bool {
    let loaded = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if loaded.lines().any(|line| line.split_whitespace().last() == Some(filesystem)) {
        return true;
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let modules = std::fs::read_to_string(format!("/lib/modules/{release}/modules.dep")).unwrap_or_default();
    let file = format!("/{filesystem}.ko");
    modules.lines().any(|line| line.split(':').next().is_some_and(|path| path.contains(&file)))
}
