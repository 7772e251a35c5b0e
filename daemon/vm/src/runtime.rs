//! Starting a virtual machine: the daemon's side of the handshake.
//!
//! The phases are types. [`Launched`] is a monitor that waits for the specification, [`Starting`] one that was sent it;
//! [`Starting::wait_started`] says that the machine runs (which its guest does not yet). Dropping either before that closes
//! the handshake socket, on which the monitor kills what it made and leaves nothing behind.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use duet_control::protocol::{self, MAX_PACKET, ProtocolError};
use duet_sys::socket;
use thiserror::Error;

use crate::handshake::{HandshakeEvent, HandshakeRequest};
use crate::spec::{SpecError, VmSpec};

/// How long a start may take: far more than a loaded machine needs.
pub const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a virtual machine did not start. Nothing is left of it.
#[derive(Debug, Error)]
pub enum StartError {
    /// The specification is refused.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The monitor's program cannot be run.
    #[error("cannot run the monitor {path:?}: {source}")]
    Binary {
        /// Its path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The connection to the monitor failed.
    #[error("cannot {step}: {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A step in the monitor failed.
    #[error("{step}: {error}")]
    Step {
        /// What was being done.
        step: String,
        /// What went wrong.
        error: String,
    },
    /// The monitor died without a word.
    #[error("the monitor ended while starting the virtual machine; its log says why")]
    MonitorGone,
    /// It took too long.
    #[error("the virtual machine did not start within {} s", START_TIMEOUT.as_secs())]
    Timeout,
    /// The monitor said something that makes no sense.
    #[error("the monitor answered with {0}")]
    Protocol(#[from] ProtocolError),
}

fn io_error(step: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Io { step, source }
}

/// A monitor that waits for its specification, in the daemon's own control group or wherever the caller has put it
/// since: what it forks off for good once it has the specification stays there.
#[derive(Debug)]
pub struct Launched {
    handshake: OwnedFd,
    first: First,
}

/// The process that forks the real monitor off once there is a specification. Dropped before, it is killed.
#[derive(Debug)]
struct First(Child);

impl Drop for First {
    fn drop(&mut self) {
        // Where it was waited for, this does nothing.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A monitor that starts the machine.
#[derive(Debug)]
pub struct Starting {
    handshake: OwnedFd,
    deadline: Instant,
}

/// A running machine.
#[derive(Debug)]
pub struct Started {
    /// The process id of the process that is the machine, on the host.
    pub pid: u32,
    /// Refers to it.
    pub pidfd: OwnedFd,
}

impl Launched {
    /// Runs the program `monitor` for the virtual machine `name`; `log` becomes its standard output and error.
    ///
    /// # Errors
    /// [`StartError::Binary`] or [`StartError::Io`] if it could not be run.
    pub fn spawn(name: &str, monitor: &Path, log: File) -> Result<Self, StartError> {
        let (ours, theirs) = socket::packet_pair().map_err(io_error("make the handshake socket"))?;
        socket::reserve_send_buffer(&ours, MAX_PACKET).map_err(io_error("set up the handshake socket"))?;
        let log_too = log.try_clone().map_err(io_error("share the monitor's log"))?;
        let child = Command::new(monitor)
            .arg0(format!("[duet monitor] {name}"))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::from(log))
            .stderr(Stdio::from(log_too))
            .spawn()
            .map_err(|source| StartError::Binary { path: monitor.to_owned(), source })?;
        Ok(Self { handshake: ours, first: First(child) })
    }

    /// Its process id, good until [`Self::send`]: the monitor itself is another process then.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.first.0.id()
    }

    /// Sends it the specification. `fds` are what [`crate::spec::FdIndex`] counts.
    ///
    /// # Errors
    /// [`StartError::Spec`] if it is refused, [`StartError::Io`] if it could not be sent.
    pub fn send(mut self, spec: &VmSpec, fds: &[BorrowedFd<'_>]) -> Result<Starting, StartError> {
        spec.check(fds.len())?;
        let deadline = Instant::now() + START_TIMEOUT;
        let request = HandshakeRequest::Start { spec: Box::new(spec.clone()) };
        let sent = socket::send(&self.handshake, &protocol::encode(&request), fds);
        if sent.is_err() {
            // It waits for what will not come.
            let _ = self.first.0.kill();
        }
        // The first process only forks the real monitor off, so that this one need not be its parent.
        self.first.0.wait().map_err(io_error("wait for the monitor to settle"))?;
        sent.map_err(io_error("send the specification to the monitor"))?;
        Ok(Starting { handshake: self.handshake, deadline })
    }
}

impl Starting {
    /// Waits until the machine runs, at most [`START_TIMEOUT`] from the sending on.
    ///
    /// # Errors
    /// The start failed.
    pub fn wait_started(self) -> Result<Started, StartError> {
        let told = socket::wait_readable(&self.handshake, self.deadline).map_err(io_error("wait for the monitor"))?;
        if !told {
            return Err(StartError::Timeout);
        }
        let mut buffer = vec![0; 16 * 1024];
        let packet = socket::receive(&self.handshake, &mut buffer).map_err(io_error("hear from the monitor"))?;
        if packet.len == 0 {
            return Err(StartError::MonitorGone);
        }
        match protocol::parse("handshake event", &buffer[..packet.len])? {
            HandshakeEvent::Started { pid } => {
                let [pidfd] = packet.fds.try_into().map_err(|fds: Vec<_>| ProtocolError::Descriptors {
                    request: "started",
                    expected: 1,
                    got: fds.len(),
                })?;
                Ok(Started { pid, pidfd })
            }
            HandshakeEvent::Failed { step, error } => Err(StartError::Step { step, error }),
        }
    }
}
