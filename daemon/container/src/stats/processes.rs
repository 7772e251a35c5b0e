//! Counting processes on a host without the `pids` controller: by the members of every group in the container's tree.

use std::path::Path;

use rustix::fs::{Dir, FileType, Mode, OFlags, openat};
use rustix::io::Errno;

use crate::cgroup::{CgroupError, Result};

/// How many groups are looked at. A container that makes more only makes its own count wrong.
const MAX_GROUPS: usize = 4096;

/// How deep it looks; every level holds a descriptor.
const MAX_DEPTH: usize = 32;

pub(super) fn count(dir: &Path) -> Result<u64> {
    let failed = |errno| CgroupError::Io { action: "count the processes in", path: dir.to_owned(), errno };
    let root = rustix::fs::open(dir, FLAGS | OFlags::DIRECTORY, Mode::empty()).map_err(failed)?;
    let mut groups = 0;
    let mut total = 0;
    let mut open = vec![Dir::new(root).map_err(failed)?];
    loop {
        let depth = open.len();
        let Some(here) = open.last_mut() else {
            return Ok(total);
        };
        let entry = match here.read() {
            Some(entry) => entry.map_err(failed)?,
            None => {
                open.pop();
                continue;
            }
        };
        let name = entry.file_name();
        let fd = here.fd().map_err(failed)?;
        if name.to_bytes() == b"cgroup.procs" {
            total += lines(fd).or_else(gone).map_err(failed)?;
        } else if entry.file_type() == FileType::Directory && !matches!(name.to_bytes(), b"." | b"..") {
            groups += 1;
            if groups > MAX_GROUPS || depth >= MAX_DEPTH {
                continue;
            }
            match openat(fd, name, FLAGS | OFlags::DIRECTORY, Mode::empty()).and_then(Dir::new) {
                Ok(below) => open.push(below),
                Err(errno) => {
                    gone(errno).map_err(failed)?;
                }
            }
        }
    }
}

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// A group that was removed in between, or is threaded and lists no processes, has none.
fn gone(errno: Errno) -> rustix::io::Result<u64> {
    match errno {
        Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP => Ok(0),
        errno => Err(errno),
    }
}

fn lines(group: impl std::os::fd::AsFd) -> rustix::io::Result<u64> {
    let file = openat(group, "cgroup.procs", FLAGS, Mode::empty())?;
    let mut buffer = [0_u8; 4096];
    let mut count = 0;
    loop {
        let length = rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut buffer[..]))?;
        if length == 0 {
            return Ok(count);
        }
        count += buffer[..length].iter().filter(|byte| **byte == b'\n').count() as u64;
    }
}
