//! The start, from the specification to the machine's first word.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use duet_control::monitor::clock::{self, StartClock};
use duet_control::monitor::console::{Console, ConsoleLog};
use duet_control::monitor::{protect_from_oom, receive_packet, say};
use duet_control::protocol::{self, EXIT_FILE, ExecStatus, SOCKET_NAME};
use duet_control::step::{Step, StepError};
use duet_sys::socket;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::agent::Door;
use super::cgroups::Cgroups;
use super::complaints::Complaints;
use super::machine::{Line, Machine};
use super::process::Child;
use super::server::Running;
use super::{qemu, vmm};
use crate::handshake::HandshakeEvent;
use crate::spec::{Accelerator, FdIndex, VmSpec};

/// How long the machine's program may take until it answers.
const TIMEOUT: Duration = Duration::from_secs(25);
/// How many connections may wait to be accepted.
const BACKLOG: i32 = 64;
/// The size in bytes to which the console's log is held, as a container's.
const CONSOLE_LOG_LIMIT: u64 = 1024 * 1024;

/// What the kernel is told of its console: both machines have the same serial port.
pub(super) const CONSOLE_WORDS: &str = "console=ttyS0";

/// The descriptors that came along with the specification. Each is taken once.
pub(super) struct Files(Vec<Option<OwnedFd>>);

impl Files {
    pub fn take(&mut self, index: FdIndex) -> Result<OwnedFd, StepError> {
        let fd = self.0.get_mut(index).and_then(Option::take);
        fd.ok_or_else(|| StepError::new("take a descriptor", format_args!("number {index} is not there")))
    }
}

pub(super) fn c_string(text: impl AsRef<OsStr>) -> Result<CString, StepError> {
    CString::new(text.as_ref().as_bytes()).step("write the machine's command line")
}

/// Runs the machine and tells the daemon. If this fails, nothing of it is left.
pub(super) fn boot(
    handshake: &OwnedFd,
    spec: VmSpec,
    fds: Vec<OwnedFd>,
    mut clock: StartClock,
) -> Result<(Running, Door), StepError> {
    let mut files = Files(fds.into_iter().map(Some).collect());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let run_dir =
        rustix::fs::open(&spec.run_dir, flags, Mode::empty()).step_at("open the run directory", &spec.run_dir)?;
    match rustix::fs::unlinkat(&run_dir, EXIT_FILE, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error).step("remove the record of the last end"),
    }
    let log = ConsoleLog::create(&spec.console_log, CONSOLE_LOG_LIMIT)
        .step_at("create the console log", &spec.console_log)?;
    let cgroups = Cgroups::open(&spec.cgroups)?;
    let (door, agent) = Door::make(&run_dir, spec.accelerator)?;
    let (complaints, complaints_theirs) = pipe_with(PipeFlags::CLOEXEC).step("make a pipe for complaints")?;
    socket::set_nonblocking(&complaints, true).step("set up the pipe for complaints")?;
    let (program, line, (output, input)) = match spec.accelerator {
        Accelerator::Emulation => {
            let prepared = qemu::prepare(&spec, &mut files, agent, complaints_theirs)?;
            let input = prepared.console.try_clone().step("share the console")?;
            (prepared.program, Line::Qemu(prepared.qmp), (prepared.console, input))
        }
        Accelerator::Kvm => {
            let prepared = vmm::prepare(&spec, &mut files, &run_dir, agent, complaints_theirs)?;
            (prepared.program, Line::Vmm(prepared.control), prepared.console)
        }
    };
    clock.lap("prepare");

    // SAFETY: the process has a single thread.
    let child = unsafe { Child::spawn(&program, &cgroups) }?;
    // With it go the monitor's copies of what the machine has: else it would not see their ends.
    drop((program, files, cgroups));
    // After the fork, so that the machine does not inherit it.
    protect_from_oom();
    clock.lap("fork");
    let mut machine = Machine { child, line };
    let mut complaints = Complaints::new(complaints);
    wait_answer(handshake, &mut machine, &mut complaints)?;
    clock.lap("answer");

    // Not before, so that whoever connects is answered.
    let listener = socket::listen_in(&run_dir, SOCKET_NAME.as_ref(), BACKLOG).step("listen in the run directory")?;
    let socket_file = SocketFile { dir: Some(run_dir.try_clone().step("share the run directory")?) };
    let console = Console::of_streams(output, input, log).step("set up the console")?;
    give_up_rights()?;
    let started = HandshakeEvent::Started { pid: machine.child.pid };
    socket::send(handshake, &protocol::encode(&started), &[machine.as_fd()]).step("talk to the daemon")?;
    socket_file.keep();
    let running = Running {
        name: spec.name,
        notes: spec.notes,
        machine,
        complaints,
        run_dir,
        listener,
        console,
        started_at: clock::now(),
        timings: clock.finish(),
    };
    Ok((running, door))
}

/// Waits until the machine's program says that it runs.
fn wait_answer(handshake: &OwnedFd, machine: &mut Machine, complaints: &mut Complaints) -> Result<(), StepError> {
    let step = "run the machine";
    let deadline = Instant::now() + TIMEOUT;
    while !machine.line.answered() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(StepError::new(step, "it does not answer"));
        }
        let (mut ended, mut given_up) = (false, false);
        {
            let mut fds = vec![PollFd::new(&machine.child, PollFlags::IN), PollFd::new(handshake, PollFlags::IN)];
            fds.extend(machine.line.interest().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            fds.extend(complaints.interest().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            let timeout = Timespec::try_from(left).map_err(|error| StepError::new(step, error))?;
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) => {
                    ended |= !fds[0].revents().is_empty();
                    given_up |= !fds[1].revents().is_empty();
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).step("wait for the machine"),
            }
        }
        if given_up {
            let said = receive_packet(handshake).step("hear from the daemon")?.0;
            let what = if said.is_empty() { "the daemon gave the start up" } else { "the daemon spoke out of turn" };
            return Err(StepError::new(step, what));
        }
        complaints.read();
        machine.line.read();
        if ended {
            let status = machine.child.reap();
            complaints.read();
            return Err(StepError::new(step, complaints.last().unwrap_or_else(|| describe(status))));
        }
    }
    Ok(())
}

fn describe(status: Option<ExecStatus>) -> String {
    match status {
        Some(ExecStatus::Code(code)) => format!("it ended with code {code} and without a word"),
        Some(ExecStatus::Signal(signal)) => format!("signal {signal} ended it"),
        None => "it ended".to_owned(),
    }
}

/// From here on the monitor kills the machine, which is another user's, and works on what is root's; threads inherit that.
fn give_up_rights() -> Result<(), StepError> {
    let kill = CapabilitySet::KILL;
    let left = CapabilitySets { effective: kill, permitted: kill, inheritable: CapabilitySet::empty() };
    rustix::thread::set_no_new_privs(true).step("give up new privileges")?;
    rustix::thread::set_capabilities(None, left).step("give up capabilities")
}

/// The control socket's file, which is removed if the start fails.
struct SocketFile {
    dir: Option<OwnedFd>,
}

impl SocketFile {
    fn keep(mut self) {
        self.dir = None;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Some(dir) = &self.dir
            && let Err(error) = rustix::fs::unlinkat(dir, SOCKET_NAME, AtFlags::empty())
        {
            // It may be gone with its directory, which is as good.
            say(format_args!("remove the control socket: {error}"));
        }
    }
}
