//! The monitor: one small process for each running virtual machine.
//!
//! It is the parent of the process that is the machine, owns its console, asks the agent in its guest to run programs, and
//! says how it ended. It outlives the daemon; if it is killed, the kernel kills the machine with it (`PR_SET_PDEATHSIG`),
//! so that no machine runs without one.
//!
//! It has one loop ([`server`]) over poll(2). What may take long is asked on a thread of its own ([`task`]), one for each
//! request under way, because the agent's client waits; another thread ([`agent`]) looks for the agent and loses it. They
//! tell the loop, which alone knows the clients. Nothing that a guest or a broken out machine says is trusted: what it
//! writes is read into bounded buffers, and it cannot make the monitor wait.
//!
//! Before the loop it goes through the start ([`boot`]) in a straight line; the daemon's end of the handshake closing
//! means that the start is given up: the machine is killed, and nothing is left.

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use duet_control::monitor::clock::StartClock;
use duet_control::monitor::{SPEC_TIMEOUT, receive_packet, say, settle};
use duet_control::protocol;
use duet_control::step::{Step, StepError};
use duet_sys::socket;

use crate::handshake::{HandshakeEvent, HandshakeRequest};

mod agent;
mod boot;
mod cgroups;
mod complaints;
mod jail;
mod machine;
mod messages;
mod process;
mod qemu;
mod server;
mod task;
mod vmm;

/// The whole of the `duet-vm-monitor` program. Its standard input is the handshake socket; what it has to say beyond the
/// protocol goes to its standard error.
#[must_use]
pub fn main() -> ExitCode {
    // Each thread would keep what it once allocated.
    duet_sys::memory::one_arena();
    // SAFETY: the process has a single thread.
    match unsafe { settle() }.and_then(|socket| socket.map_or(Ok(()), run)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(error);
            ExitCode::FAILURE
        }
    }
}

fn run(handshake: OwnedFd) -> Result<(), StepError> {
    // The sockets of a moment in the run directory are nobody else's.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    match start(&handshake) {
        Ok((running, door)) => {
            drop(handshake);
            duet_sys::memory::give_back();
            server::serve(running, door)
        }
        Err(error) => {
            // The daemon may have gone: then this is for the log alone.
            let failed = HandshakeEvent::Failed { step: error.step.clone(), error: error.error.clone() };
            let _ = socket::send(&handshake, &protocol::encode(&failed), &[]);
            Err(error)
        }
    }
}

fn start(handshake: &OwnedFd) -> Result<(server::Running, agent::Door), StepError> {
    let clock = StartClock::new();
    let step = "read the specification";
    // There is something: `settle` has waited for it.
    if !socket::wait_readable(handshake, Instant::now() + SPEC_TIMEOUT).step(step)? {
        return Err(StepError::new(step, "it took too long"));
    }
    let (packet, fds) = receive_packet(handshake).step(step)?;
    if packet.is_empty() {
        return Err(StepError::new(step, "the daemon gave the start up"));
    }
    let HandshakeRequest::Start { spec } =
        protocol::parse("handshake request", &packet).map_err(|error| StepError::new(step, error))?;
    spec.check(fds.len()).map_err(|error| StepError::new("check the specification", error))?;
    boot::boot(handshake, *spec, fds, clock)
}

/// How long the agent may take to answer a request: less than a client of the monitor waits.
const AGENT_TIMEOUT: Duration = Duration::from_secs(8);
