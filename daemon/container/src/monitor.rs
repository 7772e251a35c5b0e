//! The monitor: one small process for each running container.
//!
//! It is the parent of the container's PID 1, owns its console, starts programs in it, changes its mounts and devices
//! while it runs, and says how it ended. It outlives the daemon; if it is killed, the kernel kills the container's init
//! with it (`PR_SET_PDEATHSIG`), so that no container runs without one.
//!
//! It has one thread and one loop ([`server`]) over poll(2), and never blocks on a client: sockets are non-blocking,
//! buffers are bounded, and who does not take its messages is disconnected. Before the loop it goes through the start
//! ([`boot`]) in a straight line; there, every wait has a deadline, and the daemon's end of the handshake closing means
//! that the start is given up: init is killed, and nothing is left.
//!
//! What it keeps small: no runtime, no allocation of large buffers, and no mount of the host ([`stage`]).

use std::fmt::Display;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use duet_sys::socket;
use nix::unistd::ForkResult;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit};

use crate::handshake::{HandshakeEvent, HandshakeRequest};
use crate::protocol::{self, MAX_PACKET};
use crate::step::{Step, StepError};

mod boot;
mod cgroups;
mod clock;
mod connection;
mod console;
mod ending;
mod handshake;
mod hotplug;
pub(crate) mod props;
mod server;
pub(crate) mod stage;
mod stop;
mod task;

use handshake::Handshake;

/// How long the daemon may take to send the specification: the host's systemd may have to make a scope first.
const SPEC_TIMEOUT: Duration = Duration::from_secs(30);

/// The whole of the `duet-monitor` program. Its standard input is the handshake socket; what it has to say beyond the
/// protocol goes to its standard error.
pub fn main() -> ExitCode {
    match settle().and_then(|socket| socket.map_or(Ok(()), run)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(error);
            ExitCode::FAILURE
        }
    }
}

/// Tells whoever reads the log. On a full disk nobody can be told, which is no reason to end (as `eprintln!` does): the
/// container would end with the monitor.
fn say(what: impl Display) {
    let _ = writeln!(std::io::stderr(), "duet-monitor: {what}");
}

/// Leaves the daemon's process tree and takes the handshake socket. `None` in the process that has nothing left to do.
fn settle() -> Result<Option<OwnedFd>, StepError> {
    let stdin = std::io::stdin();
    let socket = stdin.as_fd().try_clone_to_owned().step("take the handshake socket")?;
    // The daemon knows this process by its id until then, and may move it to another control group.
    let told = socket::wait_readable(&socket, Instant::now() + SPEC_TIMEOUT).step("wait for the specification")?;
    if !told {
        return Err(StepError::new("wait for the specification", "it took too long"));
    }
    // SAFETY: the process has a single thread.
    if let ForkResult::Parent { .. } = unsafe { nix::unistd::fork() }.step("leave the daemon")? {
        return Ok(None);
    }
    rustix::process::setsid().step("start a session")?;
    let null = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).step("open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).step("replace the standard input")?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).step("protect memory")?;
    rustix::process::umask(Mode::empty());
    // A descriptor for each client, and two for each program; what runs in the container gets bounds of its own.
    let most = rustix::process::getrlimit(Resource::Nofile).maximum;
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })
        .step("raise the limit of open files")?;
    duet_sys::process::set_name(c"duet-monitor").step("set the process's name")?;
    Ok(Some(socket))
}

fn run(socket: OwnedFd) -> Result<(), StepError> {
    let handshake = Handshake::new(socket)?;
    match start(&handshake) {
        Ok(running) => {
            drop(handshake);
            server::serve(running)
        }
        Err(error) => {
            // The daemon may have gone: then this is for the log alone.
            let failed = HandshakeEvent::Failed { step: error.step.clone(), error: error.error.clone() };
            let _ = handshake.send(&failed, &[]);
            Err(error)
        }
    }
}

fn start(handshake: &Handshake) -> Result<server::Running, StepError> {
    let clock = clock::StartClock::new();
    let (request, fds) = handshake.receive(SPEC_TIMEOUT, "wait for the specification")?;
    let HandshakeRequest::Start { spec } = request else {
        return Err(StepError::new("read the specification", "the daemon sent something else"));
    };
    spec.check(fds.len()).map_err(|error| StepError::new("check the specification", error))?;
    boot::boot(handshake, *spec, fds, clock)
}

/// Bounds of what a packet may be, for the places that receive one.
fn receive_packet(socket: impl AsFd) -> std::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let len = socket::next_len(&socket)?.min(MAX_PACKET);
    // One byte more than announced, so that the end of the stream and an empty packet need no special case.
    let mut buffer = vec![0; len + 1];
    let packet = socket::receive(socket, &mut buffer)?;
    if packet.truncated {
        return Err(std::io::Error::other(protocol::ProtocolError::TooLarge.to_string()));
    }
    buffer.truncate(packet.len);
    Ok((buffer, packet.fds))
}
