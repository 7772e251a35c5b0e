//! Freezing, and waiting for a group to be frozen or empty: by `poll` on `cgroup.events`, which the kernel wakes when one
//! of its lines changes. Never by sleeping.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{Cgroup, CgroupError, Result, io};

impl Cgroup {
    /// Stops every process of the container where it is, and waits until all are.
    ///
    /// # Errors
    /// [`CgroupError::Timeout`] when some weren't by `deadline` (one may be in an uninterruptible wait); they stay asked to
    /// freeze, and [`Self::thaw`] takes it back.
    pub fn freeze(&self, deadline: Instant) -> Result<()> {
        io::write(&self.unified().join("cgroup.freeze"), "1")?;
        self.wait_event("frozen", true, "frozen", deadline)
    }

    /// Lets a frozen container go on, and waits until it does.
    ///
    /// # Errors
    /// [`CgroupError::Timeout`] when the kernel did not report it by `deadline`.
    pub fn thaw(&self, deadline: Instant) -> Result<()> {
        io::write(&self.unified().join("cgroup.freeze"), "0")?;
        self.wait_event("frozen", false, "thawed", deadline)
    }

    /// Whether all its processes are frozen now.
    ///
    /// # Errors
    /// What reading failed with.
    pub fn is_frozen(&self) -> Result<bool> {
        Events::open(&self.unified())?.value("frozen")
    }

    /// Whether any process lives in it or below.
    ///
    /// # Errors
    /// What reading failed with; a group that doesn't exist is empty.
    pub fn is_populated(&self) -> Result<bool> {
        match Events::open(&self.unified()) {
            Err(error) if error.errno() == Some(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
            Ok(events) => events.value("populated"),
        }
    }

    /// Waits until no process lives in it or below.
    ///
    /// # Errors
    /// [`CgroupError::Timeout`] when some did at `deadline`.
    pub fn wait_empty(&self, deadline: Instant) -> Result<()> {
        wait_empty(&self.unified(), deadline)
    }

    fn wait_event(&self, key: &'static str, wanted: bool, state: &'static str, deadline: Instant) -> Result<()> {
        wait_event(&self.unified(), key, wanted, state, deadline)
    }
}

/// Waits until no process lives in the group at `dir` or below; one that is not there is empty.
pub(super) fn wait_empty(dir: &Path, deadline: Instant) -> Result<()> {
    match wait_event(dir, "populated", false, "empty", deadline) {
        Err(error) if matches!(error.errno(), Some(Errno::NOENT | Errno::NODEV)) => Ok(()),
        other => other,
    }
}

fn wait_event(dir: &Path, key: &'static str, wanted: bool, state: &'static str, deadline: Instant) -> Result<()> {
    let started = Instant::now();
    let events = Events::open(dir)?;
    // The value is read after the file was opened and before each poll, so no change can fall between.
    while events.value(key)? != wanted {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(CgroupError::Timeout { path: dir.to_owned(), state, waited: started.elapsed() });
        }
        events.wait(left)?;
    }
    Ok(())
}

/// An open `cgroup.events`.
struct Events {
    path: PathBuf,
    file: OwnedFd,
}

impl Events {
    fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("cgroup.events");
        let file = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| CgroupError::io("open", &path, errno))?;
        Ok(Self { path, file })
    }

    /// The value of the line `<key> 0|1`.
    fn value(&self, key: &str) -> Result<bool> {
        let mut buffer = [0_u8; 256];
        let length = rustix::io::retry_on_intr(|| rustix::io::pread(&self.file, &mut buffer[..], 0))
            .map_err(|errno| CgroupError::io("read", &self.path, errno))?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        text.lines()
            .filter_map(|line| line.split_once(' '))
            .find_map(|(name, value)| (name == key).then_some(value == "1"))
            .ok_or_else(|| CgroupError::Content {
                path: self.path.clone(),
                content: text.clone().into_owned(),
                expected: "a list of cgroup events",
            })
    }

    fn wait(&self, left: Duration) -> Result<()> {
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&self.file, PollFlags::PRI)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(CgroupError::io("wait for", &self.path, errno)),
        }
    }
}
