//! Children of the monitor other than init: programs that clients run, and the helpers of hot plug.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use duet_sys::process::{self, Fork, Namespaces};
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus};

use super::server::Running;
use crate::inside;
use crate::inside::link::{Link, Report};
use crate::protocol::{ErrorKind, ErrorReply, ExecRequest, ExecStatus};
use crate::step::{Step, StepError};

/// Names a task for as long as the monitor lives.
pub(super) type TaskId = u64;

/// How long a child may take until it executes its program or is done.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What a task is for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// Runs a program; with a terminal it ends with its connection.
    Program { interactive: bool },
    /// Mounts what was offered under this name.
    Attach { offered: String },
    /// Changes the container's mounts otherwise.
    Change,
}

pub(super) struct Task {
    pub purpose: Purpose,
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// Open until the child has executed its program, or reported.
    pub link: Option<Link>,
    /// The connection that asked for it, while that lives.
    pub connection: Option<u64>,
    pub terminal: Option<OwnedFd>,
    /// The program runs: its end is worth telling.
    pub started: bool,
    /// When it is killed if it has not started by then.
    pub deadline: Instant,
}

/// What a line to a child brought.
pub(super) enum News {
    /// Nothing yet.
    Quiet,
    /// The program has its terminal.
    Terminal(OwnedFd),
    /// The program was executed, or the child ended without a word.
    Closed,
    /// The child is done.
    Done,
    /// The child failed and ends.
    Failed(ErrorReply),
}

impl Task {
    /// Starts a program in the container.
    pub fn run_program(
        running: &Running,
        request: &ExecRequest,
        fds: Vec<OwnedFd>,
        connection: u64,
    ) -> Result<Self, ErrorReply> {
        let program = inside::exec::Program::prepare(request).ok_or_else(|| ErrorReply {
            kind: ErrorKind::Invalid,
            message: "the command is empty, or contains a zero byte".to_owned(),
        })?;
        let stdio = <[OwnedFd; 3]>::try_from(fds).ok();
        let interactive = stdio.is_none();
        let spawn = || {
            let (link, theirs) = Link::pair().step("make the line to the program")?;
            link.set_nonblocking().step("set up the line to the program")?;
            let tasks = running.cgroups.open_tasks()?;
            // SAFETY: the process has a single thread.
            match unsafe { running.cgroups.fork(Namespaces::default()) }.step("fork into the container")? {
                Fork::Child => inside::exec::run(inside::exec::Plan {
                    link: theirs,
                    init: running.init.as_fd(),
                    namespaces: running.joined_namespaces(),
                    tasks,
                    rlimits: &running.rlimits,
                    confinement: running.confinement,
                    apparmor: running.apparmor.as_deref(),
                    devpts: running.devpts.as_fd(),
                    idmap: running.idmap,
                    stdio,
                    program,
                }),
                Fork::Parent { pid, pidfd } => {
                    Ok(Self::new(Purpose::Program { interactive }, pid, pidfd, link, connection))
                }
            }
        };
        spawn().map_err(|error: StepError| ErrorReply { kind: ErrorKind::System, message: error.to_string() })
    }

    /// Starts a helper in the container's mount namespace.
    pub fn run_helper(
        running: &Running,
        purpose: Purpose,
        action: &inside::hotplug::Action,
        connection: u64,
    ) -> Result<Self, StepError> {
        let (link, theirs) = Link::pair().step("make the line to the helper")?;
        link.set_nonblocking().step("set up the line to the helper")?;
        // SAFETY: the process has a single thread.
        match unsafe { process::fork_into(Namespaces::default(), None) }.step("fork a helper")? {
            Fork::Child => inside::hotplug::run(&theirs, running.init.as_fd(), running.mount_namespaces(), action),
            Fork::Parent { pid, pidfd } => Ok(Self::new(purpose, pid, pidfd, link, connection)),
        }
    }

    fn new(purpose: Purpose, pid: i32, pidfd: OwnedFd, link: Link, connection: u64) -> Self {
        Self {
            purpose,
            pid,
            pidfd,
            link: Some(link),
            connection: Some(connection),
            terminal: None,
            started: false,
            deadline: Instant::now() + TIMEOUT,
        }
    }

    /// Hears from the child.
    pub fn hear(&mut self) -> News {
        let Some(link) = &self.link else { return News::Quiet };
        let news = match link.receive::<Report>() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return News::Quiet,
            Err(_) | Ok(None) => News::Closed,
            Ok(Some((Report::Terminal, mut fds))) => match fds.pop() {
                Some(terminal) => return News::Terminal(terminal),
                None => News::Failed(system("the program passed no terminal")),
            },
            Ok(Some((Report::Done, _))) => News::Done,
            Ok(Some((Report::Failed(error), _))) => News::Failed(system(error)),
            Ok(Some((Report::NotFound(message), _))) => {
                News::Failed(ErrorReply { kind: ErrorKind::CommandNotFound, message })
            }
            Ok(Some((Report::NotExecutable(message), _))) => {
                News::Failed(ErrorReply { kind: ErrorKind::CommandNotExecutable, message })
            }
            Ok(Some((Report::Ready, _))) => News::Failed(system("the child said something out of order")),
        };
        self.link = None;
        news
    }

    /// Takes the exit status if the child has ended.
    pub fn reap(&self) -> Option<ExecStatus> {
        reap(self.pidfd.as_fd(), WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }

    /// Sends a signal to the program and those that it started without giving them process groups of their own.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        // The number cannot have been given away: the child is not reaped yet. It is a group's if the child got as far
        // as starting a session.
        process::signal_group(self.pid, signal).or_else(|_| process::signal(&self.pidfd, signal))
    }
}

fn system(message: impl ToString) -> ErrorReply {
    ErrorReply { kind: ErrorKind::System, message: message.to_string() }
}

/// Takes a child's exit status.
pub(super) fn reap(pidfd: BorrowedFd<'_>, options: WaitIdOptions) -> Option<ExecStatus> {
    let status: WaitIdStatus = rustix::process::waitid(WaitId::PidFd(pidfd), options).ok()??;
    Some(match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExecStatus::Code(code),
        (None, Some(signal)) => ExecStatus::Signal(signal),
        (None, None) => return None,
    })
}
