//! A root of the machine's own static busybox: two megabytes, for trying things out and for tests.

use std::path::Path;
use std::process::Command;

use super::root::Root;
use crate::{ImageError, Result};

const BUSYBOX: &str = "/bin/busybox";

/// Directories of the root, with their modes.
const DIRECTORIES: &[(&str, u32)] = &[
    ("/bin", 0o755),
    ("/dev", 0o755),
    ("/etc", 0o755),
    ("/home", 0o755),
    ("/mnt", 0o755),
    ("/proc", 0o555),
    ("/root", 0o700),
    ("/run", 0o755),
    ("/sbin", 0o755),
    ("/sys", 0o555),
    ("/tmp", 0o1777),
    ("/usr/bin", 0o755),
    ("/usr/sbin", 0o755),
    ("/var/log", 0o755),
    ("/var/tmp", 0o1777),
];

/// Makes the root in an existing, empty directory.
pub(super) fn make(root: &Path) -> Result<()> {
    let missing = || ImageError::MissingProgram { program: "a static busybox", package: "busybox-static" };
    let program = std::fs::read(BUSYBOX).map_err(|_| missing())?;
    if !is_static(&program) {
        return Err(missing());
    }
    let list = Command::new(BUSYBOX).arg("--list-full").output().map_err(|e| ImageError::file("run", BUSYBOX, e))?;
    let root = Root::open(root)?;
    for (path, mode) in DIRECTORIES {
        root.directory(path, *mode)?;
    }
    root.write("/bin/busybox", &program, 0o755)?;
    for applet in String::from_utf8_lossy(&list.stdout).lines().filter(|a| is_plain(a)) {
        let path = format!("/{applet}");
        if !root.exists(&path) {
            root.link(&path, "/bin/busybox")?;
        }
    }
    // Debian's busybox has it as "linuxrc" and "sbin/init", others only as the former.
    if !root.exists("/sbin/init") {
        root.link("/sbin/init", "/bin/busybox")?;
    }
    Ok(())
}

fn is_plain(applet: &str) -> bool {
    !applet.is_empty()
        && applet.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_-[.".contains(&b))
        && !applet.contains("..")
}

/// Whether a 64-bit ELF program needs no interpreter (elf(5): no program header of type `PT_INTERP`).
fn is_static(program: &[u8]) -> bool {
    const INTERPRETER: u32 = 3;
    let number = |at: usize, size: usize| -> Option<u64> {
        Some(program.get(at..at + size)?.iter().rev().fold(0, |n, b| (n << 8) | u64::from(*b)))
    };
    let headers = || -> Option<bool> {
        if !program.starts_with(b"\x7fELF\x02\x01") {
            return None;
        }
        let (start, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        for index in 0..count {
            let at = usize::try_from(start + index * size).ok()?;
            if number(at, 4)? == u64::from(INTERPRETER) {
                return Some(false);
            }
        }
        Some(true)
    };
    headers().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn static_or_not() {
        assert!(is_static(&std::fs::read(BUSYBOX).unwrap()));
        assert!(!is_static(&std::fs::read("/bin/bash").unwrap()));
        assert!(!is_static(b"#!/bin/sh\n"));
        assert!(!is_static(b"\x7fELF\x02\x01"));
    }

    #[test]
    fn a_root_that_runs() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path()).unwrap();
        let output = Command::new("chroot")
            .arg(dir.path())
            .args(["/bin/sh", "-c", "ls -l /sbin/init && echo works"])
            .output()
            .unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).ends_with("works\n"), "{output:?}");
    }
}
