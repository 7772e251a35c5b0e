//! Becoming the container's root and nothing more.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use duet_sys::process::{self, Namespaces};
use nix::unistd::{Gid, Uid};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::{Failure, Outcome};
use crate::protocol::{Setup, Subject, VERSION};

/// What a root that only works on files needs. Not among them, though harmless in the container's own hands: anything that
/// reaches processes (SYS_PTRACE, KILL), the kernel (SYS_ADMIN), devices (MKNOD) or files by number (DAC_READ_SEARCH). The
/// bounding set needs no change: without new privileges nothing can come back from it.
const KEPT: CapabilitySet =
    CapabilitySet::CHOWN.union(CapabilitySet::DAC_OVERRIDE).union(CapabilitySet::FOWNER).union(CapabilitySet::FSETID);

/// Descriptors the process may have open, which bounds what a client can make it hold.
const MAX_DESCRIPTORS: u64 = 2048;

/// `PROC_SUPER_MAGIC` of statfs(2).
const PROC_MAGIC: i64 = 0x9fa0;

/// The process, once it is where it shall be.
pub(super) struct Entered {
    /// The container's root directory.
    pub root: OwnedFd,
    /// `/proc/self/fd` of the host's proc, to open again by descriptor what is held by `O_PATH`.
    pub descriptors: OwnedFd,
    /// The pidfd of the container's init, where it runs.
    pub subject: Option<OwnedFd>,
}

/// Moves descriptors 0 and 1 out of the way of anything that reads or prints.
pub(super) fn take_descriptors() -> Result<(OwnedFd, OwnedFd), Errno> {
    let socket = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3)?;
    let subject = rustix::io::fcntl_dupfd_cloexec(std::io::stdout(), 3)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let failed = |errno: nix::errno::Errno| Errno::from_raw_os_error(errno as i32);
    nix::unistd::dup2_stdin(&null).map_err(failed)?;
    nix::unistd::dup2_stdout(&null).map_err(failed)?;
    Ok((socket, subject))
}

/// Goes where `setup` says, and gives up the rest.
pub(super) fn enter(setup: &Setup, subject: OwnedFd) -> Outcome<Entered> {
    if setup.version != VERSION {
        return Err(Failure::setup("speak the client's version of the protocol")(Errno::PROTONOSUPPORT));
    }
    let descriptors = open_descriptors().map_err(Failure::setup("open /proc/self/fd"))?;
    let (root, subject) = match setup.subject {
        Subject::Running { pid, user_namespace } => {
            let root = enter_running(&subject, pid, user_namespace)?;
            (root, Some(subject))
        }
        Subject::Root => (subject, None),
    };
    confine(&root)?;
    Ok(Entered { root, descriptors, subject })
}

fn open_descriptors() -> Result<OwnedFd, Errno> {
    let directory = openat(CWD, "/proc/self/fd", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    if rustix::fs::fstatfs(&directory)?.f_type != PROC_MAGIC {
        return Err(Errno::NOTDIR);
    }
    Ok(directory)
}

fn enter_running(init: &OwnedFd, pid: u32, user_namespace: bool) -> Outcome<OwnedFd> {
    // Init's own root rather than its mount namespace's, in case it changed that.
    let path = format!("/proc/{pid}/root");
    let root = openat(CWD, path.as_str(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(Failure::setup("open the container's root"))?;
    // If init lives now, the number could not have passed to another process by then.
    process::signal(init, 0).map_err(step("find the container's init"))?;
    let mut namespaces = Namespaces::MOUNT;
    if user_namespace {
        namespaces = namespaces.and(Namespaces::USER);
    }
    process::enter(init.as_fd(), namespaces).map_err(step("enter the container's namespaces"))?;
    if user_namespace {
        become_root().map_err(Failure::setup("become the container's root"))?;
    }
    Ok(root)
}

/// Uid and gid 0 of the user namespace just entered, where the process had no number so far.
fn become_root() -> Result<(), Errno> {
    let failed = |errno: nix::errno::Errno| Errno::from_raw_os_error(errno as i32);
    let (user, group) = (Uid::from_raw(0), Gid::from_raw(0));
    nix::unistd::setgroups(&[]).map_err(failed)?;
    nix::unistd::setresgid(group, group, group).map_err(failed)?;
    nix::unistd::setresuid(user, user, user).map_err(failed)
}

/// Makes `root` all that the process can name, and takes from it what it doesn't need.
fn confine(root: &OwnedFd) -> Outcome<()> {
    rustix::process::fchdir(root).map_err(Failure::setup("go to the container's root"))?;
    rustix::process::chroot(".").map_err(Failure::setup("change to the container's root"))?;
    rustix::process::umask(Mode::empty());
    let limit = |number| Rlimit { current: Some(number), maximum: Some(number) };
    rustix::process::setrlimit(Resource::Core, limit(0)).map_err(Failure::setup("forbid core dumps"))?;
    rustix::process::setrlimit(Resource::Nofile, limit(MAX_DESCRIPTORS)).map_err(Failure::setup("limit open files"))?;
    rustix::thread::set_no_new_privs(true).map_err(Failure::setup("give up new privileges"))?;
    let sets = CapabilitySets { effective: KEPT, permitted: KEPT, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).map_err(Failure::setup("drop capabilities"))?;
    // Last, since changes of rights before may reset it.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(Failure::setup("become untraceable"))
}

fn step(what: &'static str) -> impl FnOnce(std::io::Error) -> Failure {
    move |error| Failure::setup(what)(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// The name of a descriptor in [`Entered::descriptors`].
pub(super) fn descriptor_name(fd: impl AsFd) -> String {
    fd.as_fd().as_raw_fd().to_string()
}
