//! Code that runs in the container's own processes: in init until it executes its program, in the programs that are
//! started later, and in the short-lived helpers of hot plug. All of it runs in forked children of the monitor.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::{Pid, Resource};
use rustix::thread::{CapabilitySet, Gid, Uid};

use crate::confine::seccomp::Subvolumes;
use crate::confine::{capabilities, seccomp};
use crate::spec::{ContainerSpec, Rlimit};
use crate::step::{Step, StepError};

pub(crate) mod exec;
pub(crate) mod files;
pub(crate) mod hotplug;
pub(crate) mod init;
pub(crate) mod link;
pub(crate) mod mounts;
pub(crate) mod paths;

/// The abstract name, in the container's network namespace, under which its init can say that the system is up.
pub const NOTIFY_NAME: &str = "duet/notify";

/// The environment's default `PATH`, as the peers set it.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Moves the calling process into a v1 cgroup, through its `tasks` file that was opened on the host's side: writing "0"
/// moves the writing thread, which needs no global lock (`kernel/cgroup/cgroup.c`, `cgroup_procs_write_start`).
pub(crate) fn join_cgroups(tasks: &[OwnedFd]) -> Result<(), StepError> {
    for file in tasks {
        rustix::io::write(file, b"0").step("join a control group")?;
    }
    Ok(())
}

/// What processes of a container give up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Confinement {
    capabilities: CapabilitySet,
    subvolumes: Subvolumes,
}

impl Confinement {
    /// The capabilities that all lose and those that the specification names, and the system calls that are filtered.
    ///
    /// An unprivileged container with a policy namespace of its own keeps the capability to load profiles, which the
    /// kernel then grants for that namespace alone (`aa_policy_admin_capable` in security/apparmor/policy.c). One that
    /// runs containers makes subvolumes for them.
    pub fn of(spec: &ContainerSpec) -> Self {
        let own_policy = spec.idmap.is_some() && spec.apparmor.as_ref().is_some_and(|label| label.contains("//&"));
        let always = if own_policy {
            capabilities::ALWAYS_DROPPED.difference(CapabilitySet::MAC_ADMIN)
        } else {
            capabilities::ALWAYS_DROPPED
        };
        let named = spec.drop_capabilities.iter().filter_map(|name| capabilities::capability_by_name(name));
        Self {
            capabilities: named.fold(always, |a, b| a | b),
            subvolumes: if spec.nesting { Subvolumes::Allowed } else { Subvolumes::Denied },
        }
    }

    /// Gives it up for good. Needs the full capabilities of the container's user namespace, so it comes before a change
    /// of user.
    fn apply(self) -> Result<(), StepError> {
        for capability in self.capabilities.iter() {
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                // EINVAL: an older kernel that has no such capability to give up.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(error).step("drop capabilities"),
            }
        }
        duet_sys::seccomp::install(&seccomp::filter(self.subvolumes)).step("install the system call filter")
    }
}

/// Leaves the host's key rings and becomes a user of the container. A kernel without keys is as good.
pub(crate) fn become_user(uid: u32, gid: u32) -> Result<(), StepError> {
    if let Err(error) = duet_sys::process::new_session_keyring()
        && error.raw_os_error() != Some(libc::ENOSYS)
    {
        return Err(error).step("leave the host's key rings");
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_groups(&[]).step("drop groups")?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).step("set the group")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).step("set the user")
}

/// Resets what a new program inherits from the monitor: the out-of-memory score, signal actions and mask, and umask.
/// The score is written with the host's capabilities, so that the container cannot lower it back.
pub(crate) fn reset_process() {
    duet_sys::process::reset_signals();
    rustix::process::umask(Mode::from_raw_mode(0o022));
}

/// Sets the calling process's out-of-memory score back to that of an ordinary one.
pub(crate) fn reset_oom_score() {
    // The monitor may have been unable to lower it, and then there is nothing to undo.
    if let Ok(file) = rustix::fs::open(c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        let _ = rustix::io::write(file, b"0");
    }
}

/// The bounds on open files that systemd gives to services and expects to find (systemd-system.conf(5),
/// `DefaultLimitNOFILE=`), independent of how the daemon was started.
const OPEN_FILES: rustix::process::Rlimit = rustix::process::Rlimit { current: Some(1024), maximum: Some(524_288) };

/// Sets the resource limits of a process of the container (`None`: of the caller), from the host's side.
pub(crate) fn set_rlimits(limits: &BTreeMap<String, Rlimit>, pid: Option<Pid>) -> Result<(), StepError> {
    if !limits.contains_key("nofile") {
        // A daemon without CAP_SYS_RESOURCE cannot raise its own limit; then the container has to do with that.
        let _ = rustix::process::prlimit(pid, Resource::Nofile, OPEN_FILES);
    }
    for (name, limit) in limits {
        let Some(resource) = crate::spec::rlimit_by_name(name) else { continue };
        let limit = rustix::process::Rlimit { current: limit.soft, maximum: limit.hard };
        rustix::process::prlimit(pid, resource, limit).step_at("set the resource limit", name)?;
    }
    Ok(())
}

/// Opens the /proc that the calling process sees.
pub(crate) fn open_proc() -> Result<OwnedFd, StepError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(c"/proc", flags, Mode::empty()).step("open /proc")
}

/// Has AppArmor give a label to the program that the calling thread executes next (proc_pid_attr(5)). Comes after the
/// last change of credentials: the kernel takes it only from those that the file was opened with
/// (`proc_pid_attr_write` in fs/proc/base.c).
pub(crate) fn label_next_program(proc: &OwnedFd, label: &str) -> Result<(), StepError> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(proc, c"thread-self/attr/apparmor/exec", flags, Mode::empty())
        .step("open the AppArmor label")?;
    rustix::io::write(&file, format!("exec {label}").as_bytes()).step_at("take the AppArmor label", &label)?;
    Ok(())
}

/// Opens the calling process's root directory.
pub(crate) fn open_root() -> Result<OwnedFd, StepError> {
    rustix::fs::openat(CWD, c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .step("open the root directory")
}
