//! Starting a container: the daemon's side of the handshake.
//!
//! The phases are types. [`Launched`] is a monitor that waits for the specification, [`Starting`] one that was sent it;
//! [`Starting::wait_created`] (or [`Starting::try_created`] for an asynchronous caller) turns it into [`Created`], whose
//! namespaces exist and whose init waits; the caller attaches the network interfaces to it; [`Created::go`] lets it run
//! and [`Created::wait_started`] (or [`Created::try_started`]) says that init's program was executed. Dropping either
//! before that closes the handshake socket, on which the monitor kills what it made and leaves nothing behind.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use duet_sys::mount::{self, Change};
use duet_sys::socket;
use rustix::fs::CWD;
use thiserror::Error;

use crate::handshake::{HandshakeEvent, HandshakeRequest};
use crate::protocol::{self, MAX_PACKET, ProtocolError};
use crate::spec::{ContainerSpec, SpecError};

/// How long each of the two waits of a start may take: far more than a loaded machine needs.
pub const PHASE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a container did not start. Nothing is left of it.
#[derive(Debug, Error)]
pub enum StartError {
    /// The specification is refused.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The monitor could not be run, or the connection to it failed.
    #[error("cannot {step}: {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The monitor's program cannot be used.
    #[error("cannot open the monitor's program {path:?}: {source}")]
    Binary {
        /// Its path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A step in the monitor or in the container failed.
    #[error("{step}: {error}")]
    Step {
        /// What was being done.
        step: String,
        /// What went wrong.
        error: String,
    },
    /// The monitor died without a word.
    #[error("the monitor ended while starting the container; its log says why")]
    MonitorGone,
    /// A phase took too long.
    #[error("the container did not get past {phase:?} within {} s", timeout.as_secs())]
    Timeout {
        /// Which phase.
        phase: &'static str,
        /// The time that was allowed.
        timeout: Duration,
    },
    /// The monitor said something that makes no sense.
    #[error("the monitor answered with {0}")]
    Protocol(#[from] ProtocolError),
}

/// The program of the monitor, held open so that it can be executed in a way that no container can write to.
///
/// A process of a privileged container can open the program of any process that it sees, `/proc/<pid>/exe`, for
/// writing. What it sees of the monitor (while a program is being started in the container) must therefore be on a
/// read-only mount; this one is detached, so that nobody can make it writable either.
#[derive(Debug)]
pub struct MonitorBinary {
    mount: OwnedFd,
}

impl MonitorBinary {
    /// Opens the monitor's program.
    ///
    /// # Errors
    /// [`StartError::Binary`].
    pub fn open(path: &Path) -> Result<Self, StartError> {
        let open = || {
            let real = path.canonicalize()?;
            let mount = mount::clone_tree(CWD, &real, false)?;
            let change = Change { set: mount::RDONLY, propagation: libc::MS_PRIVATE, ..Change::default() };
            mount::change(&mount, change)?;
            Ok(mount)
        };
        open().map(|mount| Self { mount }).map_err(|source| StartError::Binary { path: path.to_owned(), source })
    }
}

/// A monitor that works on the first half of a start.
#[derive(Debug)]
pub struct Starting {
    handshake: Handshake,
}

/// A container whose namespaces exist and whose init waits for [`Created::go`].
#[derive(Debug)]
pub struct Created {
    handshake: Handshake,
    /// Init's process id on the host: what the network interfaces are moved to.
    pub init_pid: u32,
    /// Refers to init.
    pub pidfd: OwnedFd,
    /// A `NETLINK_ROUTE` socket in the container's network namespace, subscribed to links and addresses.
    pub netlink: OwnedFd,
}

/// A running container.
#[derive(Debug)]
pub struct Started {
    /// Init's process id on the host.
    pub init_pid: u32,
    /// Refers to init.
    pub pidfd: OwnedFd,
    /// A `NETLINK_ROUTE` socket in the container's network namespace, subscribed to links and addresses.
    pub netlink: OwnedFd,
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

impl Launched {
    /// Runs the monitor of the container `name`; `log` becomes its standard output and error.
    ///
    /// # Errors
    /// [`StartError::Io`] if it could not be run.
    pub fn spawn(name: &str, binary: &MonitorBinary, log: File) -> Result<Self, StartError> {
        let io_error = |step| move |source| StartError::Io { step, source };
        let (ours, theirs) = socket::packet_pair().map_err(io_error("make the handshake socket"))?;
        socket::reserve_send_buffer(&ours, MAX_PACKET).map_err(io_error("set up the handshake socket"))?;
        let log_too = log.try_clone().map_err(io_error("share the monitor's log"))?;
        // The child resolves the path while the descriptor is still open in it: it is closed by the very exec.
        let child = Command::new(format!("/proc/self/fd/{}", binary.mount.as_raw_fd()))
            .arg0(format!("[duet monitor] {name}"))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::from(log))
            .stderr(Stdio::from(log_too))
            .spawn()
            .map_err(io_error("run the monitor"))?;
        Ok(Self { handshake: ours, first: First(child) })
    }

    /// Its process id, good until [`Self::send`]: the monitor itself is another process then.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.first.0.id()
    }

    /// Sends it the specification. `fds` are what [`crate::spec::MountSource::Fd`] counts.
    ///
    /// # Errors
    /// [`StartError::Spec`] if it is refused, [`StartError::Io`] if it could not be sent.
    pub fn send(mut self, spec: &ContainerSpec, fds: &[BorrowedFd<'_>]) -> Result<Starting, StartError> {
        spec.check(fds.len())?;
        let io_error = |step| move |source| StartError::Io { step, source };
        let request = HandshakeRequest::Start { spec: Box::new(spec.clone()) };
        let sent = socket::send(&self.handshake, &protocol::encode(&request), fds);
        // The first process only forks the real monitor off, so that this one need not be its parent.
        self.first.0.wait().map_err(io_error("wait for the monitor to settle"))?;
        sent.map_err(io_error("send the specification to the monitor"))?;
        socket::set_nonblocking(&self.handshake, true).map_err(io_error("set up the handshake socket"))?;
        Ok(Starting { handshake: Handshake { socket: self.handshake } })
    }
}

impl Starting {
    /// Runs a monitor and sends it the specification. `fds` are what [`crate::spec::MountSource::Fd`] counts; `log`
    /// becomes the monitor's standard output and error.
    ///
    /// # Errors
    /// [`StartError::Spec`] before anything is done, [`StartError::Io`] if the monitor could not be run.
    pub fn spawn(
        spec: &ContainerSpec,
        binary: &MonitorBinary,
        log: File,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Self, StartError> {
        spec.check(fds.len())?;
        Launched::spawn(&spec.name, binary, log)?.send(spec, fds)
    }

    /// Goes on if the monitor has answered; gives itself back if it has not yet.
    ///
    /// # Errors
    /// The start failed.
    pub fn try_created(self) -> Result<Result<Created, Self>, StartError> {
        let Some((event, fds)) = self.handshake.try_receive()? else { return Ok(Err(self)) };
        match event {
            HandshakeEvent::Created { init_pid } => {
                let [pidfd, netlink] = fds.try_into().map_err(|fds: Vec<_>| ProtocolError::Descriptors {
                    request: "created",
                    expected: 2,
                    got: fds.len(),
                })?;
                Ok(Ok(Created { handshake: self.handshake, init_pid, pidfd, netlink }))
            }
            HandshakeEvent::Failed { step, error } => Err(StartError::Step { step, error }),
            HandshakeEvent::Started => Err(StartError::Step {
                step: "create the container".into(),
                error: "the monitor started it unasked".into(),
            }),
        }
    }

    /// Waits for the namespaces, at most [`PHASE_TIMEOUT`].
    ///
    /// # Errors
    /// The start failed.
    pub fn wait_created(self) -> Result<Created, StartError> {
        let deadline = Instant::now() + PHASE_TIMEOUT;
        let mut phase = self;
        loop {
            match phase.try_created()? {
                Ok(created) => return Ok(created),
                Err(same) => phase = same,
            }
            phase.handshake.wait(deadline, "creating its namespaces")?;
        }
    }
}

impl Created {
    /// Lets init run: its network interfaces are in place. If the start has failed meanwhile, that is what
    /// [`Self::wait_started`] will say.
    ///
    /// # Errors
    /// The message could not be sent.
    pub fn go(&self) -> Result<(), StartError> {
        match socket::send(&self.handshake.socket, &protocol::encode(&HandshakeRequest::Go), &[]) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(source) => Err(StartError::Io { step: "tell the monitor to go", source }),
        }
    }

    /// Goes on if the monitor has answered; gives itself back if it has not yet.
    ///
    /// # Errors
    /// The start failed.
    pub fn try_started(self) -> Result<Result<Started, Self>, StartError> {
        match self.handshake.try_receive()? {
            None => Ok(Err(self)),
            Some((HandshakeEvent::Started, _)) => {
                Ok(Ok(Started { init_pid: self.init_pid, pidfd: self.pidfd, netlink: self.netlink }))
            }
            Some((HandshakeEvent::Failed { step, error }, _)) => Err(StartError::Step { step, error }),
            Some((HandshakeEvent::Created { .. }, _)) => Err(StartError::Step {
                step: "run init".into(),
                error: "the monitor created the container twice".into(),
            }),
        }
    }

    /// Waits until init's program was executed, at most [`PHASE_TIMEOUT`].
    ///
    /// # Errors
    /// The start failed.
    pub fn wait_started(self) -> Result<Started, StartError> {
        let deadline = Instant::now() + PHASE_TIMEOUT;
        let mut phase = self;
        loop {
            match phase.try_started()? {
                Ok(started) => return Ok(started),
                Err(same) => phase = same,
            }
            phase.handshake.wait(deadline, "running its init")?;
        }
    }
}

/// Starts a container from beginning to end; `network` attaches the interfaces in between.
///
/// # Errors
/// The start failed; an error of `network` is handed back as it is, after the container was undone.
pub fn start<E: From<StartError>>(
    spec: &ContainerSpec,
    binary: &MonitorBinary,
    log: File,
    fds: &[BorrowedFd<'_>],
    network: impl FnOnce(&Created) -> Result<(), E>,
) -> Result<Started, E> {
    let created = Starting::spawn(spec, binary, log, fds)?.wait_created()?;
    network(&created)?;
    created.go()?;
    Ok(created.wait_started()?)
}

impl AsFd for Starting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handshake.socket.as_fd()
    }
}

impl AsRawFd for Starting {
    fn as_raw_fd(&self) -> RawFd {
        self.handshake.socket.as_raw_fd()
    }
}

impl AsFd for Created {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handshake.socket.as_fd()
    }
}

impl AsRawFd for Created {
    fn as_raw_fd(&self) -> RawFd {
        self.handshake.socket.as_raw_fd()
    }
}

/// The daemon's end of the handshake socket, non-blocking.
#[derive(Debug)]
struct Handshake {
    socket: OwnedFd,
}

impl Handshake {
    fn try_receive(&self) -> Result<Option<(HandshakeEvent, Vec<OwnedFd>)>, StartError> {
        let mut buffer = vec![0; 16 * 1024];
        let packet = match socket::receive(&self.socket, &mut buffer) {
            Ok(packet) => packet,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(source) => return Err(StartError::Io { step: "hear from the monitor", source }),
        };
        if packet.len == 0 {
            return Err(StartError::MonitorGone);
        }
        Ok(Some((protocol::parse("handshake event", &buffer[..packet.len])?, packet.fds)))
    }

    fn wait(&self, deadline: Instant, phase: &'static str) -> Result<(), StartError> {
        let ready = socket::wait_readable(&self.socket, deadline)
            .map_err(|source| StartError::Io { step: "wait for the monitor", source })?;
        if ready { Ok(()) } else { Err(StartError::Timeout { phase, timeout: PHASE_TIMEOUT }) }
    }
}
