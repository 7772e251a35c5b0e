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

use std::os::fd::OwnedFd;
use std::process::ExitCode;

use duet_control::monitor::{
    SPEC_TIMEOUT, clock, connection, console, ending, protect_from_oom, receive_packet, say, settle,
};

use crate::handshake::{HandshakeEvent, HandshakeRequest};
use crate::step::StepError;

mod boot;
mod cgroups;
mod handshake;
mod hotplug;
pub(crate) mod props;
mod server;
pub(crate) mod stage;
mod stop;
mod task;

use handshake::Handshake;

/// The whole of the `duet-monitor` program. Its standard input is the handshake socket; what it has to say beyond the
/// protocol goes to its standard error.
pub fn main() -> ExitCode {
    // SAFETY: the process has a single thread.
    match unsafe { settle() }.and_then(|socket| socket.map_or(Ok(()), run)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(error);
            ExitCode::FAILURE
        }
    }
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
