//! What every monitor is made of, whatever it watches over: clients' connections, the console, the end.
//!
//! A monitor has one loop over poll(2), and never blocks on a client: sockets are non-blocking, buffers are bounded, and who
//! does not take its messages is disconnected.

use std::fmt::Display;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use duet_sys::socket;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit};

use crate::protocol::{self, MAX_PACKET};
use crate::step::{Step, StepError};

pub mod clock;
pub mod connection;
pub mod console;
pub mod ending;

pub use connection::Connection;

/// How long the daemon may take to send the specification: the host's systemd may have to make a scope first.
pub const SPEC_TIMEOUT: Duration = Duration::from_secs(30);

/// Tells whoever reads the log. On a full disk nobody can be told, which is no reason to end (as `eprintln!` does): the
/// instance would end with the monitor.
pub fn say(what: impl Display) {
    let _ = writeln!(std::io::stderr(), "duet-monitor: {what}");
}

/// Leaves the daemon's process tree and takes the handshake socket, which is the standard input, once there is something to
/// read on it. `None` in the process that has nothing left to do.
///
/// # Safety
/// The process must have a single thread.
///
/// # Errors
/// The step that failed.
pub unsafe fn settle() -> Result<Option<OwnedFd>, StepError> {
    let stdin = std::io::stdin();
    let socket = stdin.as_fd().try_clone_to_owned().step("take the handshake socket")?;
    // The daemon knows this process by its id until then, and may move it to another control group.
    let told = socket::wait_readable(&socket, Instant::now() + SPEC_TIMEOUT).step("wait for the specification")?;
    if !told {
        return Err(StepError::new("wait for the specification", "it took too long"));
    }
    // SAFETY: the caller promises a single thread.
    if let nix::unistd::ForkResult::Parent { .. } = unsafe { nix::unistd::fork() }.step("leave the daemon")? {
        return Ok(None);
    }
    rustix::process::setsid().step("start a session")?;
    let null = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).step("open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).step("replace the standard input")?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).step("protect memory")?;
    rustix::process::umask(Mode::empty());
    // A descriptor for each client, and two for each program.
    let most = rustix::process::getrlimit(Resource::Nofile).maximum;
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })
        .step("raise the limit of open files")?;
    duet_sys::process::set_name(c"duet-monitor").step("set the process's name")?;
    Ok(Some(socket))
}

/// Makes the kernel prefer everybody else when memory runs out. A host that does not allow it does without.
pub fn protect_from_oom() {
    let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
}

/// Receives one packet of at most [`MAX_PACKET`] bytes with its descriptors. An empty one is the end of the stream.
///
/// # Errors
/// As recvmsg(2). An error without a number says that the packet was too long.
pub fn receive_packet(socket: impl AsFd) -> std::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
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
