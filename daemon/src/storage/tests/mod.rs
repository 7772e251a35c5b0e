//! The pool on a real kernel: real overlay mounts, all of them detached, so the mount namespace never sees one, and
//! real btrfs on loop devices, in mount namespaces of the tests' own. Needs root.
//!
//! What every driver must do is a function of the driver's kind, and [`for_each_driver`] makes the tests of it.

mod costs;
mod fold;
mod hostile;
mod lifecycle;
mod model;
mod space;
mod subvolumes;
mod tree;

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use duet_container::rootfs::open_detached;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use super::backing::{self, Backing, Places};
use super::overlay::Overlay;
use super::{Fingerprint, Kind, Made, Pool, References, Result, RootSource, Snapshot, Volume};

/// Makes a test of each function for every driver: `overlay::name`, `btrfs::name`.
macro_rules! for_each_driver {
    ($($name:ident),+ $(,)?) => {
        mod overlay {
            $(#[test]
            fn $name() {
                super::$name($crate::storage::Kind::Overlay);
            })+
        }
        mod btrfs {
            $(#[test]
            fn $name() {
                super::$name($crate::storage::Kind::Btrfs);
            })+
        }
    };
}
use for_each_driver;

/// The size of a file for a pool.
const FILE: u64 = 1 << 30;

/// A pool of its own: in a directory, or on a loop device that is mounted for the test's thread (and what that spawns)
/// alone.
struct Fixture {
    pool: Pool,
    /// Ends after the pool.
    _backing: backing::New,
    _dir: TempDir,
}

impl Fixture {
    fn new(kind: Kind) -> Self {
        let dir = TempDir::new().unwrap();
        if kind == Kind::Btrfs {
            own_mounts();
        }
        let places =
            Places { directory: dir.path().join("pool"), file: dir.path().join("file"), zpool: "unused".into() };
        let backing = Backing::plan(kind, None, &places).unwrap().make(FILE, false).unwrap();
        let pool = Pool::create(kind, backing.backing()).unwrap();
        Self { pool, _backing: backing, _dir: dir }
    }

    /// A pool whose chains, if it has any, are folded above this length.
    fn folding_above(kind: Kind, fold_above: usize) -> Self {
        let mut fixture = Self::new(kind);
        if kind == Kind::Overlay {
            let overlay = Overlay::create(fixture.directory()).unwrap().folding_above(fold_above);
            fixture.pool = Pool::over(Box::new(overlay));
        }
        fixture
    }

    fn directory(&self) -> &Path {
        self.pool.directory()
    }

    /// An image with a file or two of each kind that matters.
    fn image(&self) -> Fingerprint {
        let image = fingerprint('a');
        let added = self.pool.image_add(&image, |dir| {
            let root = dir.join("rootfs");
            fs::create_dir_all(root.join("a/b"))?;
            fs::create_dir_all(root.join("a/b/a/c"))?;
            fs::create_dir_all(root.join("b/a"))?;
            fs::write(root.join("a/b/a/c/deep"), "abac")?;
            fs::create_dir_all(root.join("etc"))?;
            fs::write(root.join("etc/hostname"), "image")?;
            fs::write(root.join("a/b/c"), "abc")?;
            fs::write(root.join("b/a/c"), "bac")?;
            fs::write(root.join("a/c"), "ac")?;
            fs::write(root.join("c"), "c")?;
            Ok::<_, TestError>(())
        });
        added.unwrap().keep().unwrap();
        image
    }

    fn layers_on_disk(&self) -> Vec<String> {
        list(&self.directory().join("layers"))
    }

    fn temporary(&self) -> Vec<String> {
        list(&self.directory().join("tmp"))
    }

    fn mount(&self, volume: &Volume) -> Mounted {
        Mounted::new(&self.pool.volume_root(volume, None).unwrap())
    }

    fn mount_snapshot(&self, snapshot: &Snapshot) -> Mounted {
        Mounted::new(&self.pool.snapshot_root(snapshot).unwrap())
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct TestError(String);

impl From<super::Error> for TestError {
    fn from(error: super::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<std::io::Error> for TestError {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

/// Gives the calling thread a mount namespace of its own.
fn own_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
}

/// A detached mount; gone when dropped.
struct Mounted(OwnedFd);

impl Mounted {
    fn new(root: &RootSource) -> Self {
        Self(open_detached(root, None, false, false).unwrap())
    }

    /// A path into the mount, for this process alone.
    fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd())).join(path)
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok()
    }
}

/// How many cases a property is tried with; `PROPTEST_CASES` asks for more.
fn cases(usual: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

fn fingerprint(digit: char) -> Fingerprint {
    digit.to_string().repeat(64).parse().unwrap()
}

fn list(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn keep<T>(made: Result<Made<T>>) -> T {
    made.unwrap().keep()
}

fn references(volumes: &[&Volume], snapshots: &[&Snapshot], images: &[&Fingerprint]) -> References {
    let mut references = References::new();
    volumes.iter().for_each(|volume| references.add_volume(volume));
    snapshots.iter().for_each(|snapshot| references.add_snapshot(snapshot));
    images.iter().for_each(|image| references.add_image(image));
    references
}
