//! The control socket: `AF_UNIX`, `SOCK_SEQPACKET`; one packet is one JSON object, and each request gets exactly one
//! reply, in order. Whoever may connect to it may command the machine.

use std::os::fd::OwnedFd;

use duet_sys::socket;
use serde::{Deserialize, Serialize};

use crate::board::{Board, Limits};
use crate::events::is_passing;
use crate::power::Ending;
use crate::spec::{DiskLimits, NicLimits};
use crate::vcpu::Cpus;

/// The longest request in bytes.
const MAX_REQUEST: usize = 4096;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// How is it?
    Status,
    /// Hold the CPUs. The reply comes when none runs any more.
    Pause,
    /// Let them run again.
    Resume,
    /// Press the power button: the guest's system is to shut down.
    PowerButton,
    /// Ask the guest to give back so much memory, all in all. It may take its time, and may refuse.
    Balloon {
        /// Bytes.
        bytes: u64,
    },
    /// Change the limits of a disk, all of them.
    LimitDisk {
        /// Its slot on the PCI bus: 1 for the first device of the description.
        slot: u8,
        /// What is not said is not limited.
        limits: DiskLimits,
    },
    /// Change the limits of a network interface, all of them.
    LimitNic {
        /// Its slot on the PCI bus.
        slot: u8,
        /// What is not said is not limited.
        limits: NicLimits,
    },
    /// End the machine now.
    Stop,
}

/// What it is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Reply {
    /// It is done.
    Done,
    /// To [`Request::Status`].
    Status {
        /// Whether the CPUs are held.
        paused: bool,
        /// How many bytes of memory the guest has given back because it was asked to.
        balloon: u64,
    },
    /// It is not done.
    Failed {
        /// Why.
        error: String,
    },
}

/// Does what a request asks.
fn serve(request: &Request, board: &Board, cpus: &Cpus) -> Reply {
    match request {
        Request::Status => return Reply::Status { paused: cpus.paused(), balloon: board.balloon.actual() },
        Request::Pause => cpus.pause(),
        Request::Resume => cpus.resume(),
        // A counter that is full is an interrupt that is pending.
        Request::PowerButton => drop(board.power.button.write(1)),
        Request::Balloon { bytes } => board.balloon.set(*bytes),
        Request::LimitDisk { slot, limits } => match device(board, *slot) {
            Limits::Disk(limiter) => limiter.set(limits.read, limits.write),
            _ => return Reply::Failed { error: format!("slot {slot} has no disk") },
        },
        Request::LimitNic { slot, limits } => match device(board, *slot) {
            Limits::Nic(limiter) => limiter.set(limits.ingress, limits.egress),
            _ => {
                let error = format!("slot {slot} has no network interface, or one that the host's kernel serves");
                return Reply::Failed { error };
            }
        },
        Request::Stop => board.power.end(Ending::Stopped),
    }
    Reply::Done
}

fn device(board: &Board, slot: u8) -> &Limits {
    usize::from(slot).checked_sub(1).and_then(|index| board.limits.get(index)).unwrap_or(&Limits::No)
}

/// Receives one request and answers it. Says whether the connection goes on.
pub fn answer(connection: &OwnedFd, board: &Board, cpus: &Cpus) -> bool {
    let mut buffer = [0; MAX_REQUEST];
    let packet = match socket::receive(connection, &mut buffer) {
        Ok(packet) if packet.len > 0 => packet,
        Ok(_) => return false,
        Err(error) => return is_passing(&error),
    };
    let reply = match serde_json::from_slice(&buffer[..packet.len]) {
        Ok(request) => serve(&request, board, cpus),
        Err(error) => Reply::Failed { error: format!("this is no request: {error}") },
    };
    // Both kinds of reply can be written as JSON. A client that does not read its replies is let go of.
    serde_json::to_vec(&reply).is_ok_and(|bytes| socket::send(connection, &bytes, &[]).is_ok())
}
