//! The filesystem that holds pools: whether overlays with shifted ids work on it, and how much room there is.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use duet_container::rootfs::{RootSource, open_detached};
use rustix::fs::{Mode, OFlags, StatVfs};

use super::{Check, Options, ids, said};

const FILESYSTEMS: &str = "put DUET_DIR on ext4, xfs or btrfs";

/// The directory, or the nearest one above it that exists: the one in whose filesystem it will be made.
fn existing(dir: &Path) -> &Path {
    dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"))
}

pub(super) fn checks(options: &Options) -> Vec<Check> {
    const SHIFTED: &str = "idmapped mounts";
    const OVERLAY: &str = "overlay";
    let dir = existing(&options.dir);
    let place = format!("{} ({})", dir.display(), kind(dir));
    let scratch = match Scratch::new(dir) {
        Ok(scratch) => scratch,
        Err(error) => {
            return vec![Check::fail(
                OVERLAY,
                format!("nothing could be tried in {place}: {}", said(error)),
                "make it writable, or name another directory with DUET_DIR",
            )];
        }
    };
    if let Err(problem) = scratch.try_shifted() {
        return vec![Check::fail(SHIFTED, format!("are not possible in {place}: {problem}"), FILESYSTEMS)];
    }
    let shifted = Check::ok(SHIFTED, format!("ids were shifted in {place}"));
    let overlay = match scratch.try_overlay() {
        Ok(()) => Check::ok(OVERLAY, format!("layers with shifted ids were stacked and written to in {place}")),
        Err(problem) => Check::fail(
            OVERLAY,
            format!("layers could not be stacked in {place}: {problem}"),
            format!("{FILESYSTEMS}, with a kernel of 5.19 or later that has overlayfs (modprobe overlay)"),
        ),
    };
    vec![shifted, overlay]
}

/// A directory for trying, with a lower layer of one file, and a user namespace to shift ids by. It is removed when
/// this is dropped.
struct Scratch {
    dir: tempfile::TempDir,
    userns: ids::UserNamespace,
}

impl Scratch {
    fn new(dir: &Path) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix(".duet-doctor-").tempdir_in(dir)?;
        for name in ["lower", "upper", "work"] {
            fs::create_dir(dir.path().join(name))?;
        }
        fs::write(dir.path().join("lower/file"), "lower")?;
        Ok(Self { dir, userns: ids::UserNamespace::new()? })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Shifts the ids of a directory and looks whether its file belongs to the container's root.
    fn try_shifted(&self) -> Result<(), String> {
        let root = self.open(&RootSource::Directory { path: self.at("lower") })?;
        let file = rustix::fs::openat(&root, "file", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(said)?;
        let owner = fs::File::from(file).metadata().map_err(said)?.uid();
        match owner == ids::base() {
            true => Ok(()),
            false => Err(format!("a file of root's belongs to {owner} instead of {}", ids::base())),
        }
    }

    /// Does what starting a container does: stacks a layer under an empty one, both shifted, and writes to the file
    /// of the lower one, so that it is copied up.
    fn try_overlay(&self) -> Result<(), String> {
        let (upper, work) = (self.at("upper"), self.at("work"));
        let root =
            self.open(&RootSource::Overlay { lower: vec![self.at("lower")], upper: Some(upper), work: Some(work) })?;
        let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&root, "file", flags, Mode::empty()).map_err(said)?;
        fs::File::from(file).write_all(b"upper").map_err(said)?;
        drop(root);
        match fs::read_to_string(self.at("upper/file")) {
            Ok(text) if text == "upper" => Ok(()),
            _ => Err("what was written did not arrive in the upper layer".to_owned()),
        }
    }

    fn open(&self, source: &RootSource) -> Result<OwnedFd, String> {
        open_detached(source, Some(self.userns.as_fd()), false, false).map_err(said)
    }
}

/// What the filesystem is called, from the mount that holds the directory.
fn kind(dir: &Path) -> String {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    mounted_kind(&table, &dir).unwrap_or_else(|| "an unknown filesystem".to_owned())
}

/// The type of the deepest mount above a path, the last one where several lie on top of each other (proc(5)).
fn mounted_kind(table: &str, path: &Path) -> Option<String> {
    let mount = |line: &str| {
        let (place, source) = line.split_once(" - ")?;
        let point = PathBuf::from(place.split(' ').nth(4)?);
        path.starts_with(&point)
            .then(|| (point.as_os_str().len(), source.split(' ').next().unwrap_or_default().to_owned()))
    };
    // max_by_key takes the last of equals.
    table.lines().filter_map(mount).max_by_key(|(depth, _)| *depth).map(|(_, kind)| kind)
}

/// Room for instances and images. Looked at without root, too.
pub(super) fn space(options: &Options) -> Vec<Check> {
    const NAME: &str = "disk space";
    const GIB: u64 = 1 << 30;
    let dir = existing(&options.dir);
    let stat = match rustix::fs::statvfs(dir) {
        Ok(stat) => stat,
        Err(error) => {
            let mend = "name another directory with DUET_DIR";
            return vec![Check::fail(NAME, format!("{} cannot be looked at: {}", dir.display(), said(error)), mend)];
        }
    };
    let free = free_bytes(&stat);
    let message = format!("{:.1} GiB free in {}", free as f64 / GIB as f64, dir.display());
    let mend = "free some, or put DUET_DIR on a larger filesystem; an image takes about 0.5 GiB";
    // A filesystem without a fixed number of inodes (btrfs) says 0 of 0.
    let inodes_short = stat.f_files > 0 && stat.f_favail < 20_000;
    vec![match free {
        _ if inodes_short => Check::warn(NAME, format!("{message}, but only {} inodes", stat.f_favail), mend),
        0..GIB => Check::fail(NAME, message, mend),
        GIB..5_368_709_120 => Check::warn(NAME, message, mend),
        _ => Check::ok(NAME, message),
    }]
}

fn free_bytes(stat: &StatVfs) -> u64 {
    stat.f_bavail.saturating_mul(stat.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_decides() {
        let table = "1 0 254:0 / / rw - ext4 /dev/vda rw\n\
                     2 1 0:30 / /var rw shared:1 - xfs /dev/vdb rw\n\
                     3 1 0:31 / /variant rw - tmpfs none rw\n\
                     4 2 0:32 / /var rw - btrfs /dev/vdc rw\n";
        assert_eq!(mounted_kind(table, Path::new("/var/lib")).as_deref(), Some("btrfs"));
        assert_eq!(mounted_kind(table, Path::new("/srv")).as_deref(), Some("ext4"));
        assert_eq!(mounted_kind("", Path::new("/srv")), None);
    }

    #[test]
    fn a_directory_that_is_to_be_made_is_judged_by_its_parent() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(existing(&dir.path().join("a/b/c")), dir.path());
    }
}
