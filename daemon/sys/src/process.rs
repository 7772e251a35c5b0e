//! Making processes in new namespaces, and the process attributes that no safe wrapper covers.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::unistd::{Gid, Uid};

/// The namespaces that a new process gets, as `CLONE_NEW*` bits of clone(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Namespaces(u64);

impl Namespaces {
    /// A user namespace.
    pub const USER: Self = Self(libc::CLONE_NEWUSER as u64);
    /// A mount namespace.
    pub const MOUNT: Self = Self(libc::CLONE_NEWNS as u64);
    /// A PID namespace.
    pub const PID: Self = Self(libc::CLONE_NEWPID as u64);
    /// A network namespace.
    pub const NET: Self = Self(libc::CLONE_NEWNET as u64);
    /// A System V IPC and message queue namespace.
    pub const IPC: Self = Self(libc::CLONE_NEWIPC as u64);
    /// A cgroup namespace.
    pub const CGROUP: Self = Self(libc::CLONE_NEWCGROUP as u64);
    /// A host name namespace.
    pub const UTS: Self = Self(libc::CLONE_NEWUTS as u64);

    /// Both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// On which side of [`fork_into`] the caller finds itself.
#[derive(Debug)]
pub enum Fork {
    /// The new process.
    Child,
    /// The calling process.
    Parent {
        /// The new process's id, as the caller sees it.
        pid: i32,
        /// The new process's pidfd, close-on-exec.
        pidfd: OwnedFd,
    },
}

/// `CLONE_INTO_CGROUP` of clone3(2); libc's constant is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// The kernel's `struct clone_args` up to `cgroup` (`CLONE_ARGS_SIZE_VER2`, clone(2)).
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks into new namespaces and, if given, directly into a cgroup v2 directory (clone3(2), `CLONE_INTO_CGROUP`).
///
/// # Safety
/// As fork(2): the calling process must have a single thread, because the child gets a copy of every lock in the state
/// that it has at this moment and no other thread that would ever release one.
///
/// # Errors
/// As clone3(2). `EBUSY` means that the cgroup has controllers enabled for its children.
pub unsafe fn fork_into(namespaces: Namespaces, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    let mut pidfd: libc::c_int = -1;
    let mut args = CloneArgs {
        flags: namespaces.0 | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?;
    }
    // SAFETY: without CLONE_VM and with a zero stack the child continues on a copy of this stack, as after fork(2); the
    // caller promises a single thread. `pidfd` lives across the call and `args` has the size that is passed.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match pid {
        0 => Ok(Fork::Child),
        pid if pid > 0 => {
            // SAFETY: with CLONE_PIDFD the kernel stored a new descriptor that nothing else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Fork::Parent { pid: i32::try_from(pid).map_err(io::Error::other)?, pidfd })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Replaces the running program (execve(2)). Returns only if that failed.
pub fn exec(path: &CStr, argv: &[CString], environment: &[CString]) -> io::Error {
    let list = |strings: &[CString]| {
        strings.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect::<Vec<_>>()
    };
    let (argv, environment) = (list(argv), list(environment));
    // SAFETY: the path and all strings are terminated, both arrays end with a null pointer, and all outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends the process at once, without running anything of the program's.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) has no preconditions and does not return.
    unsafe { libc::_exit(code) }
}

/// Changes the title that ps(1) shows (`/proc/<pid>/cmdline`) to `title`, as far as the room of the original arguments
/// goes, and the thread's name to `name` (15 bytes).
///
/// # Errors
/// As prctl(2) `PR_SET_NAME`.
pub fn set_name(name: &CStr) -> io::Result<()> {
    Ok(rustix::thread::set_name(name)?)
}

/// Resets every signal to its default action and clears the signal mask, as a new program expects.
pub fn reset_signals() {
    // SAFETY: a zeroed sigaction is SIG_DFL with an empty mask and no flags; the set is initialised before its use.
    // Signals that cannot be changed (KILL, STOP, the C library's own) answer EINVAL, which is as good.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        for signal in 1..=64 {
            libc::sigaction(signal, &raw const default, std::ptr::null_mut());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Sends a signal by its number to the process a pidfd refers to (pidfd_send_signal(2)). Real-time signals are allowed.
///
/// # Errors
/// `ESRCH` if it is gone.
pub fn signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo makes the kernel fill one in as for kill(2); the other arguments are plain integers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends a signal to a whole process group.
///
/// # Errors
/// `ESRCH` if it has no member.
pub fn signal_group(group: i32, signal: i32) -> io::Result<()> {
    // SAFETY: killpg(3) takes plain integers.
    if unsafe { libc::killpg(group, signal) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Enters a namespace (setns(2)) given by its descriptor, or several given by a pidfd.
///
/// # Errors
/// As setns(2).
pub fn enter(fd: impl AsFd, namespaces: Namespaces) -> io::Result<()> {
    let flags = i32::try_from(namespaces.0).map_err(io::Error::other)?;
    // SAFETY: setns(2) takes plain integers.
    if unsafe { libc::setns(fd.as_fd().as_raw_fd(), flags) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Closes every descriptor but 0, 1, 2 and `kept` (close_range(2)).
///
/// # Safety
/// Nothing may use any other descriptor afterwards, and values that own one must not be dropped. Meant for a forked
/// child shortly before it executes another program.
///
/// # Errors
/// As close_range(2).
pub unsafe fn close_all_but(kept: u32) -> io::Result<()> {
    let close = |first: u32, last: u32| {
        if first > last {
            return Ok(());
        }
        // SAFETY: plain integers; the caller promises that no owner of these descriptors acts on them again.
        if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    close(3, kept.saturating_sub(1))?;
    close(kept.saturating_add(1).max(3), u32::MAX)
}

/// Gives the process a new, empty session keyring (keyctl(2) `KEYCTL_JOIN_SESSION_KEYRING`).
///
/// # Errors
/// `ENOSYS` on a kernel without keyrings, `EDQUOT` if the user has too many keys.
pub fn new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    let result =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// While it lives, files that the calling thread makes belong to another user, with its capabilities unchanged
/// (setfsuid(2)). Other threads are not affected.
#[derive(Debug)]
pub struct FilesystemUser {
    uid: Uid,
    gid: Gid,
    /// A thread's credentials are its own.
    not_send: std::marker::PhantomData<*const ()>,
}

impl FilesystemUser {
    /// Becomes that user for the filesystem.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SETUID` and `CAP_SETGID`.
    pub fn assume(uid: u32, gid: u32) -> io::Result<Self> {
        let capabilities = rustix::thread::capabilities(None)?;
        let gid_before = nix::unistd::setfsgid(Gid::from_raw(gid));
        let uid_before = nix::unistd::setfsuid(Uid::from_raw(uid));
        let this = Self { uid: uid_before, gid: gid_before, not_send: std::marker::PhantomData };
        // These calls do not say whether they worked, except by what they return when repeated.
        let (gid_now, uid_now) = (nix::unistd::setfsgid(Gid::from_raw(gid)), nix::unistd::setfsuid(Uid::from_raw(uid)));
        if (uid_now.as_raw(), gid_now.as_raw()) != (uid, gid) {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        // Leaving uid 0 took the capabilities that concern files out of the effective set.
        rustix::thread::set_capabilities(None, capabilities)?;
        Ok(this)
    }
}

impl Drop for FilesystemUser {
    fn drop(&mut self) {
        nix::unistd::setfsuid(self.uid);
        nix::unistd::setfsgid(self.gid);
    }
}
