//! The daemon's side of the control socket.
//!
//! [`MonitorClient`] is synchronous and has no runtime in it: [`MonitorClient::call`] waits with a deadline (use it from
//! a blocking thread, or directly: the monitor answers within microseconds), while [`MonitorClient::send`] and
//! [`MonitorClient::try_receive`] never wait. For an asynchronous caller, wrap the client in an `AsyncFd` (it is
//! [`AsRawFd`]; the socket is always non-blocking), await readability and call [`MonitorClient::try_receive`] until it
//! says `None`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use duet_sys::socket;
use thiserror::Error;

use crate::attach::{DeviceNode, MountSource, MountSpec, open_source};
use crate::protocol::{
    self, ErrorReply, ExecRequest, ExitRecord, MAX_PACKET, ProtocolError, PtySize, Reply, Request, SOCKET_NAME, Status,
};

/// How long [`MonitorClient::call`] waits for a reply.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// One connection to a monitor.
#[derive(Debug)]
pub struct MonitorClient {
    socket: OwnedFd,
}

/// Why a call to a monitor failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No monitor listens in that directory: the container does not run.
    #[error("no monitor listens in {run_dir:?}")]
    NotRunning {
        /// The instance's run directory.
        run_dir: PathBuf,
    },
    /// The connection failed.
    #[error("the connection to the monitor failed ({step}): {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The monitor closed the connection: the container ended.
    #[error("the monitor closed the connection")]
    Closed,
    /// No reply in time.
    #[error("the monitor did not answer {request} within {} s", timeout.as_secs_f32())]
    Timeout {
        /// The request.
        request: &'static str,
        /// The time that was allowed.
        timeout: Duration,
    },
    /// The monitor refused.
    #[error(transparent)]
    Refused(#[from] ErrorReply),
    /// What should be mounted cannot be opened.
    #[error("cannot open {mount:?}: {source}")]
    Source {
        /// The source.
        mount: MountSource,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The reply makes no sense.
    #[error("the monitor answered with {0}")]
    Protocol(#[from] ProtocolError),
    /// The reply belongs to another request.
    #[error("the monitor answered {request} with an unexpected {reply}")]
    Unexpected {
        /// The request.
        request: &'static str,
        /// The reply.
        reply: String,
    },
}

/// A container as a daemon finds it: for adoption after a restart.
#[derive(Debug)]
pub struct Adopted {
    /// What the monitor says.
    pub status: Status,
    /// Refers to init.
    pub pidfd: OwnedFd,
    /// Of a container: a `NETLINK_ROUTE` socket in its network namespace, subscribed to links and addresses.
    pub netlink: Option<OwnedFd>,
}

/// A program that was started in the container. Its end arrives on the same connection as [`Reply::ExecExited`].
#[derive(Debug)]
pub struct Executed {
    /// Its process id on the host.
    pub pid: u32,
    /// The terminal's master end, if a pty was asked for.
    pub pty: Option<OwnedFd>,
}

impl MonitorClient {
    /// Connects to the monitor of the container with this run directory.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`] if there is none.
    pub fn connect(run_dir: &Path) -> Result<Self, ClientError> {
        let socket = socket::connect_in(run_dir, SOCKET_NAME.as_ref()).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { run_dir: run_dir.to_owned() }
            }
            _ => ClientError::Io { step: "connect", source },
        })?;
        socket::reserve_send_buffer(&socket, MAX_PACKET)
            .and_then(|()| socket::set_nonblocking(&socket, true))
            .map_err(|source| ClientError::Io { step: "set up the socket", source })?;
        Ok(Self { socket })
    }

    /// Sends a request without waiting for its reply.
    ///
    /// # Errors
    /// [`ClientError::Closed`] if the monitor is gone.
    pub fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        socket::send(&self.socket, &protocol::encode(request), fds).map_err(|source| match source.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::Closed,
            _ => ClientError::Io { step: "send", source },
        })
    }

    /// Takes the next message that has arrived; `None` if there is none yet.
    ///
    /// # Errors
    /// [`ClientError::Closed`] if the monitor is gone and everything it said was taken.
    pub fn try_receive(&self) -> Result<Option<(Reply, Vec<OwnedFd>)>, ClientError> {
        let len = match socket::next_len(&self.socket) {
            // One byte more, so that the end of the stream needs no special case.
            Ok(len) => len.min(MAX_PACKET) + 1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(source) => return Err(ClientError::Io { step: "receive", source }),
        };
        let mut buffer = vec![0; len];
        let packet = match socket::receive(&self.socket, &mut buffer) {
            Ok(packet) => packet,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(source) => return Err(ClientError::Io { step: "receive", source }),
        };
        if packet.len == 0 {
            return Err(ClientError::Closed);
        }
        if packet.truncated {
            return Err(ProtocolError::TooLarge.into());
        }
        Ok(Some((protocol::parse("reply", &buffer[..packet.len])?, packet.fds)))
    }

    /// Waits for the next message until a deadline; `None` if it passed.
    ///
    /// # Errors
    /// As [`Self::try_receive`].
    pub fn receive_until(&self, deadline: Instant) -> Result<Option<(Reply, Vec<OwnedFd>)>, ClientError> {
        loop {
            if let Some(message) = self.try_receive()? {
                return Ok(Some(message));
            }
            let ready = socket::wait_readable(&self.socket, deadline)
                .map_err(|source| ClientError::Io { step: "wait for a reply", source })?;
            if !ready {
                return Ok(None);
            }
        }
    }

    /// Sends a request and waits for its reply, at most [`CALL_TIMEOUT`].
    ///
    /// # Errors
    /// An error reply is [`ClientError::Refused`].
    pub fn call(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        self.call_within(CALL_TIMEOUT, request, fds)
    }

    fn call_within(
        &self,
        timeout: Duration,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        self.send(request, fds)?;
        let deadline = Instant::now() + timeout;
        loop {
            return match self.receive_until(deadline)? {
                // Not an answer: a connection that watches is told so at any time.
                Some((Reply::Ready, _)) => continue,
                Some((Reply::Error(error), _)) => Err(error.into()),
                Some(answer) => Ok(answer),
                None => Err(ClientError::Timeout { request: name_of(request), timeout }),
            };
        }
    }

    fn call_ok(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        match self.call(request, fds)?.0 {
            Reply::Ok => Ok(()),
            reply => Err(unexpected(request, &reply)),
        }
    }

    /// Asks how the container is.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn status(&self) -> Result<Adopted, ClientError> {
        match self.call(&Request::Status, &[])? {
            (Reply::Status(status), fds) => {
                let got = fds.len();
                let mut fds = fds.into_iter();
                let (Some(pidfd), netlink, None) = (fds.next(), fds.next(), fds.next()) else {
                    return Err(ProtocolError::Descriptors { request: "status", expected: 2, got }.into());
                };
                Ok(Adopted { status, pidfd, netlink })
            }
            (reply, _) => Err(unexpected(&Request::Status, &reply)),
        }
    }

    /// Runs a program. Without a pty, `stdio` are its standard input, output and error; with one, it is `None`.
    /// Afterwards this connection belongs to that program.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with [`protocol::ErrorKind::CommandNotFound`] and the like.
    pub fn exec(&self, request: ExecRequest, stdio: Option<[BorrowedFd<'_>; 3]>) -> Result<Executed, ClientError> {
        let request = Request::Exec(request);
        match self.call(&request, stdio.as_ref().map_or(&[], |fds| &fds[..]))? {
            (Reply::ExecStarted { pid }, fds) => Ok(Executed { pid, pty: fds.into_iter().next() }),
            (reply, _) => Err(unexpected(&request, &reply)),
        }
    }

    /// Sends a signal to the program that this connection runs.
    ///
    /// # Errors
    /// As [`Self::send`]. The reply arrives in order with the others.
    pub fn send_exec_signal(&self, signal: i32) -> Result<(), ClientError> {
        self.send(&Request::ExecSignal { signal }, &[])
    }

    /// Sets the size of the window of the virtual machine's program that this connection runs.
    ///
    /// # Errors
    /// As [`Self::send`]. The reply arrives in order with the others.
    pub fn send_exec_resize(&self, size: PtySize) -> Result<(), ClientError> {
        self.send(&Request::ExecResize(size), &[])
    }

    /// Asks a virtual machine's guest how it is. It may take as long as it likes; after `timeout` it is not waited for.
    ///
    /// # Errors
    /// [`ClientError::Refused`] where its agent does not answer (yet), else as [`Self::call`].
    pub fn guest_state(&self, timeout: Duration) -> Result<serde_json::Value, ClientError> {
        match self.call_within(timeout, &Request::GuestState, &[])? {
            (Reply::GuestState(state), _) => Ok(state),
            (reply, _) => Err(unexpected(&Request::GuestState, &reply)),
        }
    }

    /// A stream to a service for a virtual machine's files.
    ///
    /// # Errors
    /// As [`Self::guest_state`].
    pub fn files(&self) -> Result<OwnedFd, ClientError> {
        match self.call(&Request::Files, &[])? {
            (Reply::Files, fds) => fds
                .into_iter()
                .next()
                .ok_or_else(|| ProtocolError::Descriptors { request: "files", expected: 1, got: 0 }.into()),
            (reply, _) => Err(unexpected(&Request::Files, &reply)),
        }
    }

    /// Has a virtual machine's root filesystem packed into `archive`; its complaint goes to `errors`. Afterwards this
    /// connection belongs to the program that does so: the archive is whole if that ends with the code 0.
    ///
    /// # Errors
    /// As [`Self::guest_state`].
    pub fn archive(&self, archive: BorrowedFd<'_>, errors: BorrowedFd<'_>) -> Result<(), ClientError> {
        match self.call(&Request::Archive, &[archive, errors])? {
            (Reply::ExecStarted { .. }, _) => Ok(()),
            (reply, _) => Err(unexpected(&Request::Archive, &reply)),
        }
    }

    /// Attaches to the console: the stream carries its bytes both ways until either side closes it. The console is
    /// given up when this connection, or the stream, closes.
    ///
    /// # Errors
    /// [`protocol::ErrorKind::Busy`] if another client has it and `force` is not set.
    pub fn console(&self, force: bool) -> Result<OwnedFd, ClientError> {
        let request = Request::Console { force };
        match self.call(&request, &[])? {
            (Reply::Console, fds) => fds
                .into_iter()
                .next()
                .ok_or_else(|| ProtocolError::Descriptors { request: "console", expected: 1, got: 0 }.into()),
            (reply, _) => Err(unexpected(&request, &reply)),
        }
    }

    /// Sets the console's window size.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn resize_console(&self, size: PtySize) -> Result<(), ClientError> {
        self.call_ok(&Request::ConsoleResize(size), &[])
    }

    /// Sends a signal to init.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn signal_init(&self, signal: i32) -> Result<(), ClientError> {
        self.call_ok(&Request::SignalInit { signal }, &[])
    }

    /// Asks init to shut down, by its own signal. The end itself is told to watchers.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn stop(&self) -> Result<(), ClientError> {
        self.call_ok(&Request::Stop, &[])
    }

    /// Mounts something in the running container. `passed` is the detached mount if the source is [`MountSource::Fd`];
    /// the other sources are opened here, in the caller's mount namespace. An optional one that does not exist is
    /// passed over.
    ///
    /// # Errors
    /// [`ClientError::Source`] if the source cannot be opened, else as [`Self::call`].
    pub fn attach_mount(&self, mount: &MountSpec, passed: Option<BorrowedFd<'_>>) -> Result<(), ClientError> {
        let request = Request::AttachMount(mount.clone());
        if let Some(passed) = passed {
            return self.call_ok(&request, &[passed]);
        }
        match open_source(&mount.source, mount.recursive) {
            Ok(source) => self.call_ok(&request, &[source.as_fd()]),
            Err(error) if mount.optional && error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(ClientError::Source { source: error, mount: mount.source.clone() }),
        }
    }

    /// Undoes a mount in the running container.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn detach_mount(&self, target: &Path) -> Result<(), ClientError> {
        self.call_ok(&Request::DetachMount { target: target.to_owned() }, &[])
    }

    /// Makes a device node in the running container.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn attach_device(&self, device: &DeviceNode) -> Result<(), ClientError> {
        self.call_ok(&Request::AttachDevice(device.clone()), &[])
    }

    /// Removes a device node from the running container.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn detach_device(&self, target: &Path) -> Result<(), ClientError> {
        self.call_ok(&Request::DetachDevice { target: target.to_owned() }, &[])
    }

    /// Has this connection told when the container ends ([`Reply::Exited`], then the end of the stream).
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn watch(&self) -> Result<(), ClientError> {
        self.call_ok(&Request::Watch, &[])
    }
}

impl AsFd for MonitorClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for MonitorClient {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Reads how the container with this run directory ended; `None` if no monitor has written that (it was killed, or the
/// container runs or never did).
///
/// # Errors
/// If the file exists but cannot be read.
pub fn read_exit(run_dir: &Path) -> io::Result<Option<ExitRecord>> {
    match std::fs::read(run_dir.join(protocol::EXIT_FILE)) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn name_of(request: &Request) -> &'static str {
    match request {
        Request::Status => "status",
        Request::Exec(_) => "exec",
        Request::ExecSignal { .. } => "exec_signal",
        Request::ExecResize(_) => "exec_resize",
        Request::GuestState => "guest_state",
        Request::Files => "files",
        Request::Archive => "archive",
        Request::Console { .. } => "console",
        Request::ConsoleResize(_) => "console_resize",
        Request::SignalInit { .. } => "signal_init",
        Request::Stop => "stop",
        Request::AttachMount(_) => "attach_mount",
        Request::DetachMount { .. } => "detach_mount",
        Request::AttachDevice(_) => "attach_device",
        Request::DetachDevice { .. } => "detach_device",
        Request::Watch => "watch",
    }
}

fn unexpected(request: &Request, reply: &Reply) -> ClientError {
    ClientError::Unexpected { request: name_of(request), reply: format!("{reply:?}") }
}
