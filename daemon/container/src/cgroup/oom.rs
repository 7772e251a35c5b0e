//! Hearing of processes that the kernel killed because the container's memory was used up.
//!
//! Only in the cgroup2 tree: `memory.events` counts them, for the group with all below it, and wakes whoever polls it
//! (cgroup-v2.rst). Version 1 announces that memory has run out, but not that something was killed.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};

use super::{Cgroup, CgroupError, Controller, Place, Result};

/// An open `memory.events`. It becomes ready with `POLLPRI` when a count in it has changed since it was last read.
#[derive(Debug)]
pub struct OomWatch {
    path: PathBuf,
    file: OwnedFd,
}

impl Cgroup {
    /// Watches for such kills; `None` where the kernel does not announce them.
    ///
    /// # Errors
    /// What opening the file failed with.
    pub fn watch_oom(&self) -> Result<Option<OomWatch>> {
        let Ok(Place::V2(dir)) = self.dir_of(Controller::Memory) else { return Ok(None) };
        let path = dir.join("memory.events");
        let file = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| CgroupError::io("open", &path, errno))?;
        Ok(Some(OomWatch { path, file }))
    }
}

impl OomWatch {
    /// How many processes were killed since the container was started.
    ///
    /// # Errors
    /// What reading failed with; `ENODEV` when the container's group is gone.
    pub fn kills(&self) -> Result<u64> {
        let mut buffer = [0_u8; 512];
        let length = rustix::io::retry_on_intr(|| rustix::io::pread(&self.file, &mut buffer[..], 0))
            .map_err(|errno| CgroupError::io("read", &self.path, errno))?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
        count.ok_or_else(|| CgroupError::Content {
            path: self.path.clone(),
            content: text.clone().into_owned(),
            expected: "a list of memory events",
        })
    }
}

impl AsRawFd for OomWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
