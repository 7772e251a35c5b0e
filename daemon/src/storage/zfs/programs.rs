//! The two programs of ZFS and what they say.
//!
//! They are asked with `-H -p`: one line for each thing, fields between tabs, sizes in bytes (zfs-list(8), zfs-get(8)).
//! Each change that they make is committed to disk when they end.

use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::super::{Error, Result};
use crate::program::{Program, complaint};

pub(in super::super) const ZFS: Program = Program { name: "zfs", package: "zfsutils-linux" };
pub(in super::super) const ZPOOL: Program = Program { name: "zpool", package: "zfsutils-linux" };
const MODPROBE: Program = Program { name: "modprobe", package: "kmod" };

/// The version of the module in the kernel (Linux, Documentation/ABI/stable/sysfs-module).
const MODULE_VERSION: &str = "/sys/module/zfs/version";
/// The first version with idmapped mounts (OpenZFS 2.2.0, release notes: "Linux container support").
const IDMAPPED: (u32, u32) = (2, 2);
/// How long something that is no longer used may look busy. Mount namespaces of what has ended go in the background.
const BUSY: Duration = Duration::from_secs(20);
const BUSY_POLL: Duration = Duration::from_millis(100);

/// Runs zfs(8) and gives what it printed.
pub(super) fn zfs(args: &[&str]) -> Result<String> {
    run(ZFS, args)
}

/// Runs zpool(8) and gives what it printed.
pub(super) fn zpool(args: &[&str]) -> Result<String> {
    run(ZPOOL, args)
}

fn run(program: Program, args: &[&str]) -> Result<String> {
    let args: Vec<&std::ffi::OsStr> = args.iter().map(AsRef::as_ref).collect();
    let output = program.run_blocking(&args).map_err(|error| Error::Backing(error.to_string()))?;
    if output.status.success() {
        return String::from_utf8(output.stdout).map_err(|_| unreadable(program.name, "no text"));
    }
    Err(Error::Zfs { program: program.name, said: complaint(&output) })
}

/// Does something again while ZFS says that what it concerns is busy.
pub(super) fn unless_busy<T>(mut work: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + BUSY;
    loop {
        match work() {
            Err(Error::Zfs { said, .. }) if is_busy(&said) && Instant::now() < deadline => {
                std::thread::sleep(BUSY_POLL);
            }
            done => return done,
        }
    }
}

fn is_busy(said: &str) -> bool {
    said.contains("dataset is busy") || said.contains("pool is busy")
}

/// Whether an error says that the dataset, snapshot or pool is not there.
pub(super) fn is_absent(error: &Error) -> bool {
    let absent = |said: &str| {
        ["does not exist", "no such pool", "could not find any snapshots"].iter().any(|words| said.contains(words))
    };
    matches!(error, Error::Zfs { said, .. } if absent(said))
}

/// Whether an error says that there is such a dataset, snapshot or pool already.
pub(super) fn is_present(error: &Error) -> bool {
    matches!(error, Error::Zfs { said, .. } if said.contains("already exists"))
}

/// Properties of one dataset or snapshot; none where there is no such.
pub(super) fn properties<const N: usize>(names: [&str; N], of: &str) -> Result<Option<[String; N]>> {
    match zfs(&["get", "-H", "-p", "-o", "value", &names.join(","), of]) {
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
        Ok(text) => {
            let values: Vec<String> = text.lines().map(str::to_owned).collect();
            values.try_into().map(Some).map_err(|_| unreadable("zfs get", &text))
        }
    }
}

/// The fields of each line.
pub(super) fn table<const N: usize>(text: &str) -> Result<Vec<[&str; N]>> {
    let row = |line| <[&str; N]>::try_from(fields(line)).map_err(|_| unreadable("zfs list", line));
    text.lines().map(row).collect()
}

fn fields(line: &str) -> Vec<&str> {
    line.split('\t').collect()
}

/// A number of bytes.
pub(super) fn bytes(field: &str) -> Result<u64> {
    match field {
        // A limit that is not set (zfsprops(7)).
        "none" | "-" => Ok(0),
        digits => digits.parse().map_err(|_| unreadable("zfs", digits)),
    }
}

fn unreadable(program: &str, text: &str) -> Error {
    Error::Backing(format!("{program} said {text:?}, which is not what was expected"))
}

/// Loads the module unless the kernel has it, and checks whether it can do what Duet needs.
pub(super) fn require_module() -> Result<()> {
    if !Path::new(MODULE_VERSION).exists() {
        let loaded = MODPROBE.run_blocking(&["zfs".as_ref()]).map_err(|error| Error::Backing(error.to_string()))?;
        if !loaded.status.success() {
            return Err(Error::Backing(format!(
                "the kernel's zfs module cannot be loaded ({}): install zfs-dkms for this kernel",
                complaint(&loaded)
            )));
        }
    }
    too_old().map_or(Ok(()), |why| Err(Error::Backing(why.to_owned())))
}

/// Why the module that is loaded does not do, if so. Containers see their ids shifted by idmapped mounts.
pub(in super::super) fn too_old() -> Option<&'static str> {
    const WHY: &str =
        "this ZFS has no idmapped mounts: ZFS 2.2 or later is needed (Debian 12 has it in bookworm-backports)";
    let version = std::fs::read_to_string(MODULE_VERSION).ok()?;
    parse_version(&version).is_some_and(|version| version < IDMAPPED).then_some(WHY)
}

/// The module's version, for people; known once it is loaded.
pub(in super::super) fn version() -> Option<&'static str> {
    static VERSION: OnceLock<String> = OnceLock::new();
    if VERSION.get().is_none() {
        let _ = VERSION.set(std::fs::read_to_string(MODULE_VERSION).ok()?.trim().to_owned());
    }
    VERSION.get().map(String::as_str)
}

/// The first two numbers of `2.3.9-0+deb13u1`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim().split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_zfs_prints_is_read() {
        let rows = table::<2>("tank/images/a\t0\ntank/layers/b\t1024\n").unwrap();
        assert_eq!(rows, [["tank/images/a", "0"], ["tank/layers/b", "1024"]]);
        assert_eq!(table::<2>("").unwrap(), Vec::<[&str; 2]>::new());
        // A clone list can be empty.
        assert_eq!(table::<2>("tank/layers/b@c\t\n").unwrap(), [["tank/layers/b@c", ""]]);
        assert!(table::<2>("tank\n").is_err() && table::<2>("a\tb\tc\n").is_err());
        assert_eq!((bytes("4096").unwrap(), bytes("none").unwrap(), bytes("-").unwrap()), (4096, 0, 0));
        assert!(bytes("4K").is_err() && bytes("").is_err() && bytes("-1").is_err());
    }

    #[test]
    fn what_zfs_complains_of_is_told_apart() {
        let error = |said: &str| Error::Zfs { program: "zfs", said: said.into() };
        assert!(is_absent(&error("cannot open 'tank/x': dataset does not exist")));
        assert!(is_absent(&error("could not find any snapshots to destroy; check snapshot names.")));
        assert!(is_present(&error("cannot create 'tank/x': dataset already exists")));
        assert!(is_busy("cannot destroy 'tank/x': dataset is busy") && !is_busy("out of space"));
        assert!(!is_absent(&error("permission denied")) && !is_present(&error("permission denied")));
        let full = error("cannot create 'tank/x': out of space").in_pool(Path::new("/p"));
        assert!(matches!(full, Error::NoSpace { .. }), "{full}");
    }

    #[test]
    fn versions_of_the_module() {
        assert_eq!(parse_version("2.3.9-0+deb13u1\n"), Some((2, 3)));
        assert_eq!(parse_version("2.1.11-1+deb12u1"), Some((2, 1)));
        assert_eq!(parse_version("git"), None);
        assert!((2, 1) < IDMAPPED && (2, 2) >= IDMAPPED && (3, 0) >= IDMAPPED);
    }
}
