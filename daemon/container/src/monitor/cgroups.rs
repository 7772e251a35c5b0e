//! The control groups that the container's processes join. They are made, limited and removed by others; the monitor
//! keeps their directories open, since it does not see the host's mounts once the container runs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use duet_sys::process::{self, Fork, Namespaces};
use rustix::fs::{Mode, OFlags};

use crate::spec::{CgroupDir, CgroupKind};
use crate::step::{Step, StepError};

/// Where programs go that are started later, if the container's init has made the payload group an inner node
/// (`Documentation/admin-guide/cgroup-v2.rst`, "No Internal Process Constraint").
const EXEC_GROUP: &str = "exec";

/// The open payload directories.
pub(super) struct Cgroups {
    v1: Vec<OwnedFd>,
    v2: Option<OwnedFd>,
}

impl Cgroups {
    pub fn open(dirs: &[CgroupDir]) -> Result<Self, StepError> {
        let mut all = Self { v1: Vec::new(), v2: None };
        for dir in dirs {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let fd = rustix::fs::open(&dir.path, flags, Mode::empty()).step_at("open the control group", &dir.path)?;
            match dir.kind {
                CgroupKind::V1 => all.v1.push(fd),
                CgroupKind::V2 => all.v2 = Some(fd),
            }
        }
        Ok(all)
    }

    /// Opens the `tasks` files, for a child that moves itself.
    pub fn open_tasks(&self) -> Result<Vec<OwnedFd>, StepError> {
        self.v1
            .iter()
            .map(|dir| {
                rustix::fs::openat(dir, c"tasks", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                    .step("open a control group's tasks")
            })
            .collect()
    }

    /// Forks into the payload group of the v2 tree, or into its group for started programs.
    ///
    /// # Safety
    /// As [`process::fork_into`].
    pub unsafe fn fork(&self, namespaces: Namespaces) -> io::Result<Fork> {
        // SAFETY: the caller keeps fork_into's promise.
        let result = unsafe { process::fork_into(namespaces, self.v2.as_ref().map(AsFd::as_fd)) };
        match (result, &self.v2) {
            (Err(error), Some(payload)) if error.raw_os_error() == Some(libc::EBUSY) => {
                let group = exec_group(payload.as_fd())?;
                // SAFETY: as above.
                unsafe { process::fork_into(namespaces, Some(group.as_fd())) }
            }
            (result, _) => result,
        }
    }
}

fn exec_group(payload: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(payload, EXEC_GROUP, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(payload, EXEC_GROUP, flags, Mode::empty())?)
}
