//! The control groups that the machine's process joins. They are made, limited and removed by others.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use duet_control::step::{Step, StepError};
use duet_sys::process::{self, Fork, Namespaces};
use rustix::fs::{Mode, OFlags};

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2: u64 = 0x6367_7270;

/// The open payload directories.
pub(super) struct Cgroups {
    /// The `tasks` files of the v1 trees, into which a child writes itself.
    tasks: Vec<OwnedFd>,
    v2: Option<OwnedFd>,
}

impl Cgroups {
    pub fn open(dirs: &[PathBuf]) -> Result<Self, StepError> {
        let mut all = Self { tasks: Vec::new(), v2: None };
        for path in dirs {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = rustix::fs::open(path, flags, Mode::empty()).step_at("open the control group", path)?;
            let kind = rustix::fs::fstatfs(&dir).step_at("look at the control group", path)?.f_type;
            if u64::try_from(kind).ok() == Some(CGROUP2) {
                all.v2 = Some(dir);
                continue;
            }
            let tasks = rustix::fs::openat(&dir, c"tasks", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
            all.tasks.push(tasks.step_at("open the tasks of the control group", path)?);
        }
        Ok(all)
    }

    /// Forks into the group of the v2 tree. The child still has to [`Self::join`] the others.
    ///
    /// # Safety
    /// As [`process::fork_into`].
    pub unsafe fn fork(&self, namespaces: Namespaces) -> io::Result<Fork> {
        // SAFETY: the caller keeps fork_into's promise.
        unsafe { process::fork_into(namespaces, self.v2.as_ref().map(AsFd::as_fd)) }
    }

    /// Moves the calling process into the groups of the v1 trees.
    pub fn join(&self) -> Result<(), StepError> {
        // Zero is the process that writes.
        self.tasks.iter().try_for_each(|tasks| rustix::io::write(tasks, b"0").step("join a control group").map(drop))
    }
}
