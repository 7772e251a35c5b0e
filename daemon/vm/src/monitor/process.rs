//! The process that is the machine, from the fork to the execution of its program.

use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use duet_control::protocol::ExecStatus;
use duet_control::step::{Step, StepError};
use duet_sys::process::{self, Fork, Namespaces};
use duet_sys::socket;
use rustix::io::FdFlags;
use rustix::process::{PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus};

use super::cgroups::Cgroups;
use super::jail;
use crate::spec::UserSpec;

/// What is executed.
pub(super) struct Program {
    pub path: CString,
    pub argv: Vec<CString>,
    /// Its standard input.
    pub stdin: OwnedFd,
    /// Its standard output and error.
    pub complaints: OwnedFd,
    /// What it inherits besides, under the numbers that they have.
    pub inherited: Vec<OwnedFd>,
    /// The user that it becomes beforehand, in a root with nothing of the host's; else that is its own matter.
    pub user: Option<UserSpec>,
}

/// The machine's process: killed and reaped when dropped.
#[derive(Debug)]
pub(super) struct Child {
    pub pid: u32,
    pidfd: OwnedFd,
    reaped: bool,
}

impl Child {
    /// Runs the program as process 1 of a namespace of process ids.
    ///
    /// # Safety
    /// The calling process must have a single thread.
    pub unsafe fn spawn(program: &Program, cgroups: &Cgroups) -> Result<Self, StepError> {
        // Tells the child whether the monitor still lives, even from another namespace of process ids.
        let monitor = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
            .step("refer to the monitor's own process")?;
        let namespaces = if program.user.is_some() { Namespaces::PID.and(jail::NAMESPACES) } else { Namespaces::PID };
        // SAFETY: the caller promises a single thread.
        match unsafe { cgroups.fork(namespaces) }.step("fork the machine's process")? {
            Fork::Parent { pid, pidfd } => Ok(Self { pid: pid.unsigned_abs(), pidfd, reaped: false }),
            Fork::Child => {
                let error = run(program, cgroups, &monitor);
                let _ = writeln!(std::io::stderr(), "{error}");
                process::exit_now(127)
            }
        }
    }

    /// Takes its exit status, if it has ended.
    pub fn reap(&mut self) -> Option<ExecStatus> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status: WaitIdStatus = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options).ok()??;
        self.reaped = true;
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Some(ExecStatus::Code(code)),
            (None, Some(signal)) => Some(ExecStatus::Signal(signal)),
            (None, None) => None,
        }
    }

    /// Kills it.
    pub fn kill(&self) -> std::io::Result<()> {
        process::signal(&self.pidfd, libc::SIGKILL)
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            // It may have ended on its own.
            let _ = self.kill();
            let _ = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        }
    }
}

/// In the child. Returns only why it failed.
fn run(program: &Program, cgroups: &Cgroups, monitor: &OwnedFd) -> StepError {
    match prepare(program, cgroups, monitor) {
        Ok(()) => {
            let error = process::exec(&program.path, &program.argv, &[]);
            StepError::new(format_args!("execute {}", program.path.to_string_lossy()), error)
        }
        Err(error) => error,
    }
}

fn prepare(program: &Program, cgroups: &Cgroups, monitor: &OwnedFd) -> Result<(), StepError> {
    rustix::stdio::dup2_stdin(&program.stdin).step("set the standard input")?;
    rustix::stdio::dup2_stdout(&program.complaints).step("set the standard output")?;
    rustix::stdio::dup2_stderr(&program.complaints).step("set the standard error")?;
    cgroups.join()?;
    process::reset_signals();
    if let Some(user) = program.user {
        jail::enter(user)?;
    }
    // After the change of the user, which forgets it (prctl(2), PR_SET_PDEATHSIG).
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).step("end with the monitor")?;
    if socket::wait_readable(monitor, Instant::now()).step("look for the monitor")? {
        return Err(StepError::new("end with the monitor", "it has ended"));
    }
    for fd in &program.inherited {
        rustix::io::fcntl_setfd(fd, FdFlags::empty()).step("pass a descriptor on")?;
    }
    Ok(())
}
