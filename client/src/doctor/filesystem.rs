//! The filesystem that holds pools: whether overlays with shifted ids work on it, and how much room there is.

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use duet_container::rootfs::{RootError, RootSource, open_detached};
use rustix::fs::{Mode, OFlags, StatVfs};
use rustix::thread::{CapabilitiesSecureBits, set_capabilities_secure_bits};

use super::{Check, Options, ids};

const FILESYSTEMS: &str = "put DUET_DIR on ext4, xfs or btrfs";

/// The directory, or the nearest one above it that exists: the one in whose filesystem it will be made.
fn existing(dir: &Path) -> &Path {
    dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"))
}

pub(super) fn checks(options: &Options) -> Vec<Check> {
    const NAME: &str = "overlay";
    let dir = existing(&options.dir);
    let kind = kind(dir);
    match try_overlay(dir) {
        Ok(()) => vec![Check::ok(NAME, format!("layers with shifted ids were stacked on {} ({kind})", dir.display()))],
        Err(Trouble::Prepare(error)) => vec![Check::fail(
            NAME,
            format!("nothing can be written to {}: {error}", dir.display()),
            "make it writable, or name another directory with DUET_DIR",
        )],
        Err(Trouble::Namespace(error)) => {
            vec![Check::fail(NAME, format!("not tried, as a user namespace could not be made: {error}"), "see above")]
        }
        Err(Trouble::Stack(RootError::Shift { source, .. })) => vec![Check::fail(
            NAME,
            format!("{kind} on {} takes no idmapped mounts: {source}", dir.display()),
            FILESYSTEMS,
        )],
        Err(Trouble::Stack(error)) => vec![Check::fail(
            NAME,
            format!("stacking layers on {} ({kind}) failed: {error}", dir.display()),
            format!("{FILESYSTEMS}, with a kernel of 5.19 or later that has overlayfs (modprobe overlay)"),
        )],
        Err(Trouble::Wrong(what)) => {
            vec![Check::fail(NAME, format!("{kind} on {}: {what}", dir.display()), FILESYSTEMS)]
        }
    }
}

enum Trouble {
    Prepare(io::Error),
    Namespace(io::Error),
    Stack(RootError),
    Wrong(String),
}

/// Does what starting a container does: stacks a layer with one file under an empty one, both shifted, looks at the
/// file's owner and writes to it, so that it is copied up.
fn try_overlay(dir: &Path) -> Result<(), Trouble> {
    let scratch = tempfile::Builder::new().prefix(".duet-doctor-").tempdir_in(dir).map_err(Trouble::Prepare)?;
    let at = |name: &str| scratch.path().join(name);
    for name in ["lower", "upper", "work"] {
        fs::create_dir(at(name)).map_err(Trouble::Prepare)?;
    }
    fs::write(at("lower/file"), "lower").map_err(Trouble::Prepare)?;
    let userns = ids::UserNamespace::new().map_err(Trouble::Namespace)?;
    let source = RootSource::Overlay { lower: vec![at("lower")], upper: Some(at("upper")), work: Some(at("work")) };
    let root =
        as_container_root(|| open_detached(&source, Some(userns.as_fd()), false, false)).map_err(Trouble::Stack)?;

    let open = rustix::fs::openat(&root, "file", OFlags::RDWR | OFlags::TRUNC | OFlags::CLOEXEC, Mode::empty());
    let mut file = fs::File::from(open.map_err(|e| Trouble::Wrong(format!("a file could not be copied up: {e}")))?);
    let owner = file.metadata().map_err(Trouble::Prepare)?.uid();
    if owner != ids::base() {
        return Err(Trouble::Wrong(format!("a file of root's belongs to {owner} instead of {}", ids::base())));
    }
    file.write_all(b"upper").map_err(Trouble::Prepare)?;
    drop((file, root));
    match fs::read_to_string(at("upper/file")) {
        Ok(text) if text == "upper" => scratch.close().map_err(Trouble::Prepare),
        _ => Err(Trouble::Wrong("what was written did not arrive in the upper layer".to_owned())),
    }
}

/// Runs something on a thread that makes files as the container's root and keeps its capabilities (capabilities(7),
/// credentials(7)). overlayfs goes on using the identity of whoever created it, and the id map of a layer has no
/// place for the host's root: its work directory could not be made, and the overlay would be read-only.
fn as_container_root<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let thread = || {
        // Where it is not allowed, the overlay turns out to be read-only, and that is reported.
        let _ = set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP);
        nix::unistd::setfsuid(ids::base().into());
        nix::unistd::setfsgid(ids::base().into());
        work()
    };
    std::thread::scope(|scope| scope.spawn(thread).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
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
            return vec![Check::fail(NAME, format!("{} cannot be looked at: {error}", dir.display()), mend)];
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
