//! A program that the client runs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use std::{fs, io};

use duet_sys::process::{self, Fork, Namespaces};
use duet_sys::{mount, pty, socket};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitId, WaitIdOptions};

use super::archive;
use super::child::{self, Command};
use crate::protocol::message::{self, ErrorKind, ErrorReply, ExecRequest, ExecStatus, PtySize};
use crate::protocol::{STDERR, STDIN, STDOUT};

/// How long a child may take until it executes its program.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The longest report of a child that failed, in bytes.
const MAX_REPORT: usize = 4096;

pub(super) struct Program {
    /// Where its client hears of it, while that does.
    pub channel: Option<u32>,
    pub pid: u32,
    pidfd: OwnedFd,
    /// Open until the child has executed its program, or told why not.
    report: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    deadline: Instant,
    ended: bool,
}

/// What came of looking at a program.
pub(super) enum Progress {
    None,
    Started,
    Failed(ErrorReply),
    Exited(ExecStatus),
}

/// The client's ends of a program's descriptors, by stream.
pub(super) type Streams = Vec<(u8, OwnedFd)>;

impl Program {
    pub fn start(channel: Option<u32>, request: &ExecRequest) -> Result<(Self, Streams), ErrorReply> {
        let command = Command::prepare(request)
            .ok_or_else(|| ErrorReply::new(ErrorKind::Invalid, "the command is empty, or contains a zero byte"))?;
        spawn(channel, request, &command)
            .map_err(|error| ErrorReply::new(ErrorKind::System, format!("the program cannot be started: {error}")))
    }

    /// Starts the service for files, which is a program like others to its client.
    pub fn serve_files(channel: u32) -> Result<(Self, Streams), ErrorReply> {
        spawn_files(channel).map_err(|error| {
            ErrorReply::new(ErrorKind::System, format!("the service for files cannot be started: {error}"))
        })
    }

    /// Starts packing the root filesystem, which is a program like others too.
    pub fn archive(channel: u32) -> Result<(Self, Streams), ErrorReply> {
        spawn_archive(channel).map_err(|error| {
            ErrorReply::new(ErrorKind::System, format!("the archive of the root filesystem cannot be started: {error}"))
        })
    }

    fn new(channel: Option<u32>, pid: i32, pidfd: OwnedFd, report: OwnedFd) -> io::Result<Self> {
        let (pid, deadline) = (u32::try_from(pid).map_err(io::Error::other)?, Instant::now() + TIMEOUT);
        Ok(Self { channel, pid, pidfd, report: Some(report), terminal: None, deadline, ended: false })
    }

    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let end = (!self.ended).then_some(&self.pidfd);
        self.report.as_ref().or(end).into_iter().map(AsFd::as_fd)
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.report.as_ref().filter(|_| Instant::now() < self.deadline).map(|_| self.deadline)
    }

    /// Kills a child that did not get as far as its program.
    pub fn enforce_deadline(&mut self) {
        if self.report.is_some() && Instant::now() >= self.deadline {
            // It is gone already, or will be reaped.
            let _ = process::signal(&self.pidfd, libc::SIGKILL);
        }
    }

    /// Whether there is nothing more to hear of it.
    pub fn ended(&self) -> bool {
        self.ended
    }

    pub fn look(&mut self) -> Progress {
        match &self.report {
            Some(report) => {
                let mut text = vec![0; MAX_REPORT];
                // A pipe holds a report as a whole: it is written at once and shorter than PIPE_BUF (pipe(7)).
                let length = match rustix::io::read(report, &mut text) {
                    Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Progress::None,
                    Err(_) => 0,
                    Ok(length) => length,
                };
                self.report = None;
                if length == 0 {
                    return Progress::Started;
                }
                // Nothing of it is heard any more but that.
                let error = message::decode(&text[..length]).unwrap_or_else(|error| error);
                self.channel = None;
                Progress::Failed(error)
            }
            None => match reap(&self.pidfd) {
                Some(status) => {
                    self.ended = true;
                    Progress::Exited(status)
                }
                None => Progress::None,
            },
        }
    }

    pub fn signal(&self, signal: i32) -> io::Result<()> {
        if self.ended {
            return Ok(());
        }
        // The number cannot have been given away: the child is not reaped yet. It is a group's if the child got as far as
        // starting a session.
        let group = i32::try_from(self.pid).map_err(io::Error::other)?;
        process::signal_group(group, signal).or_else(|_| process::signal(&self.pidfd, signal))
    }

    pub fn resize(&self, size: PtySize) -> io::Result<()> {
        self.terminal.as_ref().map_or(Ok(()), |terminal| pty::resize(terminal, size.columns, size.rows))
    }

    /// Nobody listens any more.
    pub fn abandon(&mut self) {
        self.channel = None;
        if self.terminal.take().is_some() {
            // It may have ended.
            let _ = self.signal(libc::SIGHUP);
            let _ = self.signal(libc::SIGKILL);
        }
    }
}

fn spawn(channel: Option<u32>, request: &ExecRequest, command: &Command) -> io::Result<(Program, Streams)> {
    let (report, report_theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    socket::set_nonblocking(&report, true)?;
    let (uid, gid) = (Uid::from_raw(request.uid), Gid::from_raw(request.gid));
    let mut streams = Vec::new();
    let mut terminal = None;
    let stdio = match (request.pty, channel) {
        (Some(size), _) => {
            let made = pty::open(devpts()?)?;
            pty::resize(&made.master, size.columns, size.rows)?;
            rustix::fs::fchown(&made.slave, Some(uid), None)?;
            streams = vec![(STDIN, made.master.try_clone()?), (STDOUT, made.master.try_clone()?)];
            terminal = Some(made.master);
            [made.slave.try_clone()?, made.slave.try_clone()?, made.slave]
        }
        (None, Some(_)) => {
            let (stdin_theirs, stdin) = pipe_with(PipeFlags::CLOEXEC)?;
            let (stdout, stdout_theirs) = pipe_with(PipeFlags::CLOEXEC)?;
            let (stderr, stderr_theirs) = pipe_with(PipeFlags::CLOEXEC)?;
            // Opening /dev/stdout means opening such a pipe anew, by its permissions (proc_pid_fd(5)).
            for end in [&stdin, &stdout, &stderr] {
                rustix::fs::fchown(end, Some(uid), Some(gid))?;
            }
            streams = vec![(STDIN, stdin), (STDOUT, stdout), (STDERR, stderr)];
            [stdin_theirs, stdout_theirs, stderr_theirs]
        }
        (None, None) => {
            let null: OwnedFd = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?.into();
            [null.try_clone()?, null.try_clone()?, null]
        }
    };
    // SAFETY: the agent has a single thread.
    match unsafe { process::fork_into(Namespaces::default(), None) }? {
        Fork::Child => child::run(command, stdio, terminal.is_some(), &report_theirs),
        Fork::Parent { pid, pidfd } => {
            Ok((Program { terminal, ..Program::new(channel, pid, pidfd, report)? }, streams))
        }
    }
}

fn spawn_files(channel: u32) -> io::Result<(Program, Streams)> {
    let (report, report_theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    socket::set_nonblocking(&report, true)?;
    let (ours, theirs) = socket::stream_pair()?;
    let root = rustix::fs::open(c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let streams = vec![(STDIN, ours.try_clone()?), (STDOUT, ours)];
    // SAFETY: the agent has a single thread.
    match unsafe { process::fork_into(Namespaces::default(), None) }? {
        Fork::Child => child::serve_files(&theirs, &root, &report_theirs),
        Fork::Parent { pid, pidfd } => Ok((Program::new(Some(channel), pid, pidfd, report)?, streams)),
    }
}

fn spawn_archive(channel: u32) -> io::Result<(Program, Streams)> {
    let (report, report_theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    socket::set_nonblocking(&report, true)?;
    let (stdout, stdout_theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, stderr_theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: the agent has a single thread.
    match unsafe { process::fork_into(Namespaces::default(), None) }? {
        Fork::Child => archive::run(&stdout_theirs, &stderr_theirs, &report_theirs),
        Fork::Parent { pid, pidfd } => {
            Ok((Program::new(Some(channel), pid, pidfd, report)?, vec![(STDOUT, stdout), (STDERR, stderr)]))
        }
    }
}

/// The terminals that the image has mounted, else an instance of our own: an image whose init did not come that far has a
/// shell all the same.
fn devpts() -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(c"/dev/pts", flags, Mode::empty()) {
        Ok(dir)
            if rustix::fs::accessat(&dir, c"ptmx", rustix::fs::Access::EXISTS, rustix::fs::AtFlags::empty())
                .is_ok() =>
        {
            Ok(dir)
        }
        _ => mount::new_filesystem("devpts", &[("mode", Some("620")), ("ptmxmode", Some("666"))], 0),
    }
}

fn reap(pidfd: &OwnedFd) -> Option<ExecStatus> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let status = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options).ok()??;
    Some(match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExecStatus::Code(code),
        (None, Some(signal)) => ExecStatus::Signal(signal),
        (None, None) => return None,
    })
}
