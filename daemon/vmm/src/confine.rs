//! What is left to the process once it has all that it needs: hardly anything. Whoever breaks out of the guest into it
//! finds no file, no network, no capability, and few system calls.
//!
//! Always: no new privileges, landlock where the kernel has it, and a list of system calls (all others kill the process);
//! that of the devices' threads is shorter. With a [`JailSpec`], which needs root, also namespaces of its own, an empty
//! read-only root and a user without rights. A process cannot move into a PID namespace by itself: whoever starts it can
//! put it into one.

use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;

use duet_sys::mount::{self, Change};
use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetError, Scope};
use rustix::fs::CWD;
use rustix::mount::UnmountFlags;
use rustix::thread::UnshareFlags;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use thiserror::Error;

use crate::spec::JailSpec;
use crate::virtio::{net, vhost};

/// Why the process could not be confined. It does not run a guest then.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// A system call was refused.
    #[error("the machine's process cannot {step}: {source}")]
    System {
        /// What was being done.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Landlock.
    #[error("the machine's process cannot give up files: {0}")]
    Landlock(#[from] RulesetError),
    /// Seccomp.
    #[error("the machine's process cannot give up system calls: {0}")]
    Seccomp(#[from] seccompiler::Error),
    /// The list of system calls is no program.
    #[error("the list of system calls cannot be compiled: {0}")]
    List(#[from] seccompiler::BackendError),
}

fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> ConfineError {
    move |source| ConfineError::System { step, source: source.into() }
}

/// The list for threads of devices. Set once the process is confined.
static WORKERS: OnceLock<BpfProgram> = OnceLock::new();

/// Confines the process, which has one thread yet.
///
/// # Errors
/// If any of it fails; some of it may be done then.
pub fn enter(jail: Option<&JailSpec>) -> Result<(), ConfineError> {
    let process = compile(PROCESS_CALLS, process_ioctls())?;
    let workers = compile(WORKER_CALLS, vec![FIONBIO])?;
    if let Some(jail) = jail {
        leave_host()?;
        become_user(jail)?;
    }
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(step("keep others from looking into it"))?;
    rustix::thread::set_no_new_privs(true).map_err(step("give up new privileges"))?;
    give_up_files()?;
    // There is no second machine in a process.
    let _ = WORKERS.set(workers);
    seccompiler::apply_filter(&process)?;
    Ok(())
}

/// Confines a thread of a device further, if the process is confined.
///
/// # Errors
/// If the kernel refuses.
pub fn enter_worker() -> io::Result<()> {
    WORKERS.get().map_or(Ok(()), |list| seccompiler::apply_filter(list).map_err(io::Error::other))
}

/// Moves into namespaces in which there is nothing, below a root in which there is nothing.
fn leave_host() -> Result<(), ConfineError> {
    let namespaces = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // SAFETY: no thread shares its files or directories with this one.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }.map_err(step("make namespaces"))?;
    let private = Change { propagation: libc::MS_PRIVATE, recursive: true, ..Change::default() };
    mount::change_at(CWD, c"/", private).map_err(step("cut its mounts off"))?;
    let attributes = mount::RDONLY | mount::NOSUID | mount::NODEV | mount::NOEXEC;
    let empty = mount::new_filesystem("tmpfs", &[("size", Some("4k")), ("mode", Some("555"))], attributes)
        .map_err(step("make an empty root"))?;
    // Any directory will do, and this one is on each host.
    mount::attach_at(&empty, CWD, c"/proc").map_err(step("attach its root"))?;
    rustix::process::fchdir(&empty).map_err(step("enter its root"))?;
    rustix::process::pivot_root(c".", c".").map_err(step("change its root"))?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH).map_err(step("leave the host's mounts"))?;
    rustix::process::chdir(c"/").map_err(step("enter its root"))
}

fn become_user(jail: &JailSpec) -> Result<(), ConfineError> {
    use rustix::process::{Gid, Uid};
    let (uid, gid) = (Uid::from_raw(jail.uid), Gid::from_raw(jail.gid));
    // The process has one thread, so that what the kernel keeps for each is all there is. Without root and its
    // capabilities there is no way back.
    // The kernel forgets with the user that the process is to end with its parent (prctl(2), PR_SET_PDEATHSIG).
    let death = rustix::process::parent_process_death_signal().map_err(step("ask what it ends with"))?;
    rustix::thread::set_thread_groups(&[]).map_err(step("leave its groups"))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(step("change its group"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(step("change its user"))?;
    rustix::process::set_parent_process_death_signal(death).map_err(step("end with its parent"))
}

fn give_up_files() -> Result<(), RulesetError> {
    let abi = ABI::V6;
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .restrict_self()?;
    Ok(())
}

const FIONBIO: u32 = 0x5421;

/// The requests that CPUs and their changes of devices need: to run, to connect interrupts and notifications, to tell a
/// guest that it was paused, and to start and stop network backends.
fn process_ioctls() -> Vec<u32> {
    const KVM_RUN: u32 = 0xae80;
    const KVM_IRQFD: u32 = 0x4020_ae76;
    const KVM_IOEVENTFD: u32 = 0x4040_ae79;
    const KVM_SET_GSI_ROUTING: u32 = 0x4008_ae6a;
    const KVM_KVMCLOCK_CTRL: u32 = 0xaead;
    let own = [KVM_RUN, KVM_IRQFD, KVM_IOEVENTFD, KVM_SET_GSI_ROUTING, KVM_KVMCLOCK_CTRL, FIONBIO];
    own.into_iter().chain(vhost::REQUESTS).chain([net::TUNSETOFFLOAD]).collect()
}

/// What a device's thread does: move data, wait, manage memory, end.
const WORKER_CALLS: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fallocate,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_write,
    libc::SYS_writev,
];

/// What the main thread and the CPUs do besides: start threads, answer on the control socket.
const PROCESS_CALLS: &[libc::c_long] = &[
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_eventfd2,
    libc::SYS_prctl,
    libc::SYS_recvmsg,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_sched_getaffinity,
    libc::SYS_seccomp,
    libc::SYS_sendmsg,
    libc::SYS_set_robust_list,
];

/// A list of system calls, with those requests of ioctl(2). All else kills the process.
fn compile(calls: &[libc::c_long], requests: Vec<u32>) -> Result<BpfProgram, seccompiler::BackendError> {
    let shared = if calls == WORKER_CALLS { &[] } else { WORKER_CALLS };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        calls.iter().chain(shared).map(|call| (*call, Vec::new())).collect();
    let requests = requests.into_iter().map(|request| {
        let is = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, request.into())?;
        SeccompRule::new(vec![is])
    });
    rules.insert(libc::SYS_ioctl, requests.collect::<Result<_, _>>()?);
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}
