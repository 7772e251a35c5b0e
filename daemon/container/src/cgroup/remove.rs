//! Removing a group with everything that the container made below it.
//!
//! A hostile container can nest groups deeper than any stack of handles or recursion would bear. So this walks with a
//! single handle, down by name and up by `..`: sound because groups can neither be linked nor moved to another parent.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, poll};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use super::{CgroupError, Result};

/// Between attempts to remove a group that the kernel still holds on to. Nothing announces that moment in version 1; in
/// version 2 the processes are known to be gone, and what lingers is microseconds of their exit.
const RETRY: Duration = Duration::from_millis(1);

/// Removes the group at `path` and all below; nothing to do when it doesn't exist.
pub(super) fn remove_tree(path: &Path, deadline: Instant) -> Result<()> {
    let started = Instant::now();
    loop {
        match unlinkat(CWD, path, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // Children, or members.
            Err(Errno::BUSY | Errno::NOTEMPTY) => {}
            Err(errno) => return Err(CgroupError::io("remove", path, errno)),
        }
        let removed = remove_children(path).map_err(|errno| CgroupError::io("remove the groups below", path, errno))?;
        if removed {
            continue;
        }
        if Instant::now() >= deadline {
            return Err(CgroupError::Timeout { path: path.to_owned(), state: "removable", waited: started.elapsed() });
        }
        pause(RETRY);
    }
}

/// Removes what can be removed below `path`, deepest first. False when nothing could be.
fn remove_children(path: &Path) -> rustix::io::Result<bool> {
    let mut here = match openat(CWD, path, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(false),
        opened => opened?,
    };
    let mut depth = 0_usize;
    let mut removed = false;
    // Groups with members, which have to be passed over: how many, in each directory on the way down.
    let mut stuck = vec![0_usize];
    loop {
        match first_child(&here, stuck[depth])? {
            Some(child) => match unlinkat(&here, &child, AtFlags::REMOVEDIR) {
                Ok(()) => removed = true,
                Err(Errno::NOENT) => {}
                Err(Errno::BUSY | Errno::NOTEMPTY) => match openat(&here, &child, DIRECTORY, Mode::empty()) {
                    Ok(below) if first_child(&below, 0)?.is_some() => {
                        here = below;
                        depth += 1;
                        stuck.push(0);
                    }
                    Ok(_) => stuck[depth] += 1,
                    Err(Errno::NOENT) => {}
                    Err(errno) => return Err(errno),
                },
                Err(errno) => return Err(errno),
            },
            None if depth == 0 => return Ok(removed),
            None => {
                let remains = stuck.pop().is_some_and(|count| count > 0);
                depth -= 1;
                here = openat(&here, "..", DIRECTORY, Mode::empty())?;
                if remains {
                    stuck[depth] += 1;
                }
            }
        }
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// The subdirectory after the first `skip` ones.
fn first_child(dir: &OwnedFd, skip: usize) -> rustix::io::Result<Option<std::ffi::CString>> {
    let mut skip = skip;
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type() != FileType::Directory || matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if skip == 0 {
            return Ok(Some(name.to_owned()));
        }
        skip -= 1;
    }
    Ok(None)
}

fn pause(time: Duration) {
    let timeout = Timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() };
    // Being woken early by a signal only means another attempt.
    let _ = poll(&mut [], Some(&timeout));
}
