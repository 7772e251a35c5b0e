//! The messages between the daemon and an instance's monitor.
//!
//! The socket is `AF_UNIX` `SOCK_SEQPACKET`: one message is one packet of JSON, descriptors travel beside it
//! (`SCM_RIGHTS`, unix(7)). Unknown fields are ignored and unknown requests get [`ErrorKind::Invalid`], so that a daemon
//! and a monitor of neighbouring versions understand each other; so does a request that this kind of instance has not.
//!
//! It lies in the run directory ([`SOCKET_NAME`]) and takes any number of connections. Each request gets exactly one reply,
//! in order. Three kinds of connection then carry further packets that were not asked for: one that did
//! [`Request::Exec`] gets [`Reply::ExecExited`], one that did [`Request::Watch`] gets [`Reply::Ready`] and
//! [`Reply::Exited`], one that holds
//! the console gets [`Reply::ConsoleTaken`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::attach::{DeviceNode, MountSpec};

/// The name of the control socket in the run directory.
pub const SOCKET_NAME: &str = "monitor.sock";
/// The name of the file in the run directory that says how the instance ended ([`ExitRecord`]).
pub const EXIT_FILE: &str = "exit.json";
/// The largest packet in bytes. Both ends set their send buffers to hold it.
pub const MAX_PACKET: usize = 192 * 1024;
/// The most descriptors that travel with one packet (the kernel's own bound, `SCM_MAX_FD`, is 253).
pub const MAX_FDS: usize = 128;

/// What a client asks on the control socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// How is it? Replied by [`Reply::Status`] with init's pidfd and, of a container, the netlink socket.
    Status,
    /// Run a program. Without a pty, three descriptors come along: its standard input, output and error.
    Exec(ExecRequest),
    /// Send a signal to the program that this connection runs.
    ExecSignal {
        /// The signal's number.
        signal: i32,
    },
    /// Set the size of the window of the virtual machine's program that this connection runs. (A container's terminal comes
    /// to who asked for it, and is told there.)
    ExecResize(PtySize),
    /// Ask a virtual machine's guest how it is. Replied by [`Reply::GuestState`].
    GuestState,
    /// Serve a virtual machine's files. Replied by [`Reply::Files`] with a stream to the service.
    Files,
    /// Pack a virtual machine's root filesystem as a tar archive. Two descriptors come along: what it is written to, and
    /// what a sentence is written to should that fail. Otherwise as [`Request::Exec`].
    Archive,
    /// Attach to the console. Replied by [`Reply::Console`] with one end of a stream socket pair.
    Console {
        /// Take it from the client that has it.
        #[serde(default)]
        force: bool,
    },
    /// Set the console's window size.
    ConsoleResize(PtySize),
    /// Send a signal to init.
    SignalInit {
        /// The signal's number.
        signal: i32,
    },
    /// Ask init to shut down, by the signal that this kind of init understands.
    Stop,
    /// Mount something in the running container. The source comes along as a detached mount, whatever
    /// [`MountSpec::source`] says: the monitor does not see the host's mounts.
    AttachMount(MountSpec),
    /// Undo a mount.
    DetachMount {
        /// The path in the container.
        target: PathBuf,
    },
    /// Make a device node in the running container.
    AttachDevice(DeviceNode),
    /// Remove a device node.
    DetachDevice {
        /// The path in the container.
        target: PathBuf,
    },
    /// Tell this connection when the instance ends.
    Watch,
}

/// What the monitor says on the control socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Ok,
    /// The answer to [`Request::Status`].
    Status(Status),
    /// The program runs. With a pty, its master side comes along; of a virtual machine's, a stream socket.
    ExecStarted {
        /// Its process id on the host, or in the virtual machine.
        pid: u32,
    },
    /// The program ended; nothing further comes on this connection on its account.
    ExecExited {
        /// How it ended.
        status: ExecStatus,
    },
    /// How the guest is, as it says: `duet_agent::protocol::message::State`.
    GuestState(serde_json::Value),
    /// The stream to the service comes along.
    Files,
    /// The console's stream comes along.
    Console,
    /// Another client took the console; the stream is closed.
    ConsoleTaken,
    /// Init said that the system is up (told once to each connection that watches).
    Ready,
    /// The instance ended; the connection closes after this.
    Exited(ExitRecord),
    /// The request was not carried out.
    Error(ErrorReply),
}

/// The answer to [`Request::Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The instance's name, as it was at start.
    pub name: String,
    /// Init's process id on the host; of a virtual machine, that of the process which is the machine.
    pub init_pid: u32,
    /// The monitor's own process id.
    pub monitor_pid: u32,
    /// When init was executed, in seconds since 1970.
    pub started_at: f64,
    /// Milliseconds from the start request to init's execution, in all and by step.
    #[serde(default)]
    pub start_timings: Vec<(String, f64)>,
    /// Whether a client is attached to the console.
    pub console_attached: bool,
    /// Whether init has said that the system is up.
    #[serde(default)]
    pub ready: bool,
    /// What the daemon gave it to keep: the changes of its configuration that belong to this start.
    #[serde(default)]
    pub notes: BTreeMap<String, Option<String>>,
    /// The monitor's version.
    pub version: String,
}

/// A program to run in the container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The program and its arguments; the program is looked for in the `PATH` of `environment`.
    pub argv: Vec<String>,
    /// Its environment. `PATH`, `LANG` and, for uid 0, `HOME` and `USER` have defaults.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Its working directory; by default `/root` for uid 0 if it exists, else `/`.
    #[serde(default)]
    pub cwd: Option<PathBuf>,
    /// The user, as the container sees it.
    #[serde(default)]
    pub uid: u32,
    /// The group, as the container sees it.
    #[serde(default)]
    pub gid: u32,
    /// With a size: the program gets a new pseudoterminal of the container and is killed when the connection closes.
    #[serde(default)]
    pub pty: Option<PtySize>,
}

/// The size of a terminal's window in characters; zero is unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PtySize {
    /// Width.
    pub columns: u16,
    /// Height.
    pub rows: u16,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecStatus {
    /// It returned this code.
    Code(i32),
    /// A signal killed it.
    Signal(i32),
}

impl ExecStatus {
    /// The code as a shell tells it: 128 + the signal's number for a killed program.
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// How an instance ended. The monitor writes it to [`EXIT_FILE`] and tells it to the watchers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Why.
    pub reason: ExitReason,
    /// When, in seconds since 1970.
    pub at: f64,
}

/// Why a container ended. Inside a PID namespace, reboot(2) ends init with a signal that says which kind was asked for
/// (pid_namespaces(7)): `SIGHUP` for a restart, `SIGINT` for halt and power off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ExitReason {
    /// It halted or powered off.
    Halt,
    /// It asked to be started again.
    Reboot,
    /// A signal killed init.
    Signal {
        /// The signal's number.
        signal: i32,
    },
    /// Init returned.
    Exited {
        /// Its code.
        code: i32,
    },
}

impl ExitReason {
    /// Reads a wait status (waitpid(2)) of an init.
    pub fn from_wait(status: ExecStatus) -> Self {
        match status {
            ExecStatus::Signal(libc::SIGHUP) => Self::Reboot,
            ExecStatus::Signal(libc::SIGINT) => Self::Halt,
            ExecStatus::Signal(signal) => Self::Signal { signal },
            ExecStatus::Code(code) => Self::Exited { code },
        }
    }
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Error)]
#[error("{message}")]
pub struct ErrorReply {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// One sentence.
    pub message: String,
}

/// The kinds of failure that a caller treats differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request cannot be understood, or makes no sense on this connection.
    Invalid,
    /// The program to run does not exist (a shell's 127).
    CommandNotFound,
    /// The program exists but cannot be executed (a shell's 126).
    CommandNotExecutable,
    /// Another client has the console.
    Busy,
    /// The named thing does not exist.
    NotFound,
    /// The kernel refused.
    System,
    /// A kind that this version does not know.
    #[serde(other)]
    Other,
}

/// Why a packet is no message.
#[derive(Debug, Error)]
pub enum ProtocolError {
    /// The packet was cut off at [`MAX_PACKET`].
    #[error("a packet of more than {MAX_PACKET} bytes")]
    TooLarge,
    /// It is not the JSON of such a message.
    #[error("not a {what}: {source}")]
    Malformed {
        /// The kind of message that was expected.
        what: &'static str,
        /// The parser's complaint.
        source: serde_json::Error,
    },
    /// The number of descriptors does not fit the request.
    #[error("{request} takes {expected} descriptors, {got} came along")]
    Descriptors {
        /// The request.
        request: &'static str,
        /// How many it needs.
        expected: usize,
        /// How many came.
        got: usize,
    },
}

/// Reads one packet from the control socket: pure, so that it can be fed anything.
///
/// # Errors
/// [`ProtocolError`] says why the packet is no request that can be carried out.
pub fn parse_request(packet: &[u8], fds: usize) -> Result<Request, ProtocolError> {
    let request: Request = parse("request", packet)?;
    let (name, expected) = match &request {
        Request::Exec(exec) if exec.pty.is_none() => ("exec without a pty", 3),
        Request::Exec(_) => ("exec with a pty", 0),
        Request::AttachMount(_) => ("attach_mount", 1),
        Request::Archive => ("archive", 2),
        Request::Status
        | Request::ExecSignal { .. }
        | Request::ExecResize(_)
        | Request::GuestState
        | Request::Files
        | Request::Console { .. }
        | Request::ConsoleResize(_)
        | Request::SignalInit { .. }
        | Request::Stop
        | Request::DetachMount { .. }
        | Request::AttachDevice(_)
        | Request::DetachDevice { .. }
        | Request::Watch => ("this request", 0),
    };
    if fds == expected { Ok(request) } else { Err(ProtocolError::Descriptors { request: name, expected, got: fds }) }
}

/// Reads one packet as any message of this module.
///
/// # Errors
/// [`ProtocolError::TooLarge`] and [`ProtocolError::Malformed`].
pub fn parse<T: for<'de> Deserialize<'de>>(what: &'static str, packet: &[u8]) -> Result<T, ProtocolError> {
    if packet.len() > MAX_PACKET {
        return Err(ProtocolError::TooLarge);
    }
    serde_json::from_slice(packet).map_err(|source| ProtocolError::Malformed { what, source })
}

/// Writes a message as one packet.
///
/// # Panics
/// Never: these types have string keys only and no fallible serializer.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    serde_json::to_vec(message).expect("protocol messages always serialize")
}
