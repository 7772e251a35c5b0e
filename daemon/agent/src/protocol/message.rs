//! The requests and answers, as JSON. Unknown fields are ignored and an unknown request gets [`ErrorKind::Invalid`], so
//! that neighbouring versions understand each other.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What a channel is opened for. Each gets one [`Reply`]; [`Request::Exec`], [`Request::Files`] and [`Request::Archive`] get
/// [`Reply::Exited`] as a second one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// Run a program. -> [`Reply::Started`]
    Exec(ExecRequest),
    /// Serve the guest's files on the channel, by the protocol of [`duet_files`]: what the client says is standard input, what
    /// the service says is standard output. -> [`Reply::Started`]
    Files,
    /// Send the root filesystem as a tar archive, without what else is mounted below it: standard output is the archive, standard
    /// error is a sentence if that fails, and the status is zero if it did not. -> [`Reply::Started`]
    Archive,
    /// -> [`Reply::State`]
    State,
    /// Shut down. -> [`Reply::Done`] once it has begun, and for [`Power::force`] nothing more.
    Power(Power),
    /// Set the clock. -> [`Reply::Done`]
    SetTime {
        /// Seconds since 1970-01-01 UTC.
        seconds: i64,
        /// Nanoseconds beyond them.
        nanoseconds: u32,
    },
}

/// What the host says later about the program of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Control {
    /// Send a signal to it and to its process group.
    Signal {
        /// The signal's number.
        signal: i32,
    },
    /// Set the size of its terminal's window.
    Resize(PtySize),
}

/// What the guest answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Done,
    /// The program runs.
    Started {
        /// Its process id in the guest.
        pid: u32,
    },
    /// The program ended. What it wrote until then is still on its way, and ends with the streams' ends; what others write
    /// who hold its output open is not carried over any more.
    Exited {
        /// How.
        status: ExecStatus,
    },
    /// How the guest is.
    State(Box<State>),
    /// The request was not carried out.
    Error(ErrorReply),
}

/// A program to run in the guest.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The program and its arguments; the program is looked for in the `PATH` of `environment`.
    pub argv: Vec<String>,
    /// Its environment. `PATH`, `LANG` and, for uid 0, `HOME` and `USER` have defaults.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Its working directory; by default `/root` for uid 0 if it exists, else `/`.
    #[serde(default)]
    pub cwd: Option<String>,
    /// The user, by number: the guest's account database is not looked at.
    #[serde(default)]
    pub uid: u32,
    /// The group, by number.
    #[serde(default)]
    pub gid: u32,
    /// With a size: the program gets a new pseudoterminal and is killed when the channel is closed.
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
    /// The code as a shell tells it: 128 + the signal's number for a killed program. What a guest says is kept to what a
    /// status can be (0 to 255).
    #[must_use]
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code & 0xff,
            Self::Signal(signal) => 128 + (signal & 0x7f),
        }
    }
}

/// How to shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Power {
    /// Start again afterwards.
    #[serde(default)]
    pub reboot: bool,
    /// Write the disks' caches out and have the kernel do it at once, without asking the init.
    #[serde(default)]
    pub force: bool,
}

/// How a guest is. A guest can say anything here.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Its host name.
    pub hostname: String,
    /// Its kernel's release (uname(2)).
    pub kernel: String,
    /// The fields of os-release(5).
    pub os_release: BTreeMap<String, String>,
    /// Whether the init has said that the system is up; `None` for inits that never do.
    pub up: Option<bool>,
    /// How many processes there are, the kernel's own included.
    pub processes: u64,
    /// Memory.
    pub memory: Memory,
    /// The root filesystem.
    pub root: Space,
    /// Network interfaces by name.
    pub network: BTreeMap<String, Interface>,
}

/// Memory as /proc/meminfo has it, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// In all.
    pub total: u64,
    /// What programs can still get, droppable caches included.
    pub available: u64,
    /// Swap space in all.
    pub swap_total: u64,
    /// Swap space that is free.
    pub swap_free: u64,
}

/// Space on a filesystem, in bytes (statvfs(3)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Space {
    /// In all.
    pub total: u64,
    /// In use.
    pub used: u64,
    /// Free for users other than root.
    pub available: u64,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// Its hardware address, six pairs of hexadecimal digits for Ethernet.
    pub hwaddr: String,
    /// The largest packet in bytes.
    pub mtu: u32,
    /// Whether it is switched on (`IFF_UP`, netdevice(7)).
    pub up: bool,
    /// Whether it is the loopback interface.
    pub loopback: bool,
    /// Whether it is of a point-to-point kind.
    pub point_to_point: bool,
    /// Whether it can broadcast.
    pub broadcast: bool,
    /// What went through it.
    pub counters: Counters,
}

/// An address of a network interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// The length of its network's prefix.
    pub prefix: u8,
}

/// What went through a network interface (Linux' Documentation/ABI/testing/sysfs-class-net-statistics).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Bytes received.
    pub bytes_received: u64,
    /// Bytes sent.
    pub bytes_sent: u64,
    /// Packets received.
    pub packets_received: u64,
    /// Packets sent.
    pub packets_sent: u64,
    /// Bad packets received.
    pub errors_received: u64,
    /// Packets that could not be sent.
    pub errors_sent: u64,
    /// Packets received and thrown away.
    pub packets_dropped_inbound: u64,
    /// Packets thrown away instead of sent.
    pub packets_dropped_outbound: u64,
}

/// The most network interfaces in a [`State`].
pub const MAX_INTERFACES: usize = 256;
/// The most addresses in a [`State`], of all interfaces together.
pub const MAX_ADDRESSES: usize = 1024;
/// The most characters of a name or value in a [`State`].
pub const MAX_TEXT: usize = 256;

impl State {
    /// What the host keeps of what a guest said: as many entries and characters as a real guest has, and none that could
    /// command a terminal.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        self.hostname = plain(&self.hostname);
        self.kernel = plain(&self.kernel);
        self.os_release = self.os_release.iter().take(64).map(|(name, value)| (plain(name), plain(value))).collect();
        let mut left = MAX_ADDRESSES;
        self.network = std::mem::take(&mut self.network)
            .into_iter()
            .take(MAX_INTERFACES)
            .map(|(name, mut interface)| {
                interface.hwaddr = plain(&interface.hwaddr);
                interface.addresses.truncate(left);
                left -= interface.addresses.len();
                (plain(&name), interface)
            })
            .collect();
        self
    }
}

fn plain(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(MAX_TEXT).collect()
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

impl ErrorReply {
    /// A failure of this kind.
    pub fn new(kind: ErrorKind, message: impl ToString) -> Self {
        Self { kind, message: message.to_string() }
    }

    /// As [`State::bounded`].
    #[must_use]
    pub fn bounded(self) -> Self {
        Self { kind: self.kind, message: plain(&self.message) }
    }
}

/// The kinds of failure that a caller treats differently; they are those of a container's monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request cannot be understood, or makes no sense on this channel.
    Invalid,
    /// The program to run does not exist (a shell's 127).
    CommandNotFound,
    /// The program exists but cannot be executed (a shell's 126).
    CommandNotExecutable,
    /// The kernel refused.
    System,
    /// A kind that this version does not know.
    #[serde(other)]
    Other,
}

/// Writes a message.
///
/// # Panics
/// Never: these types have string keys only and no fallible serializer.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    serde_json::to_vec(message).expect("protocol messages always serialize")
}

/// Reads a message.
///
/// # Errors
/// [`ErrorKind::Invalid`] with the parser's complaint.
pub fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, ErrorReply> {
    serde_json::from_slice(bytes)
        .map_err(|error| ErrorReply::new(ErrorKind::Invalid, format!("the message is not understood: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_flood_or_command_a_terminal() {
        let mut state = State { hostname: format!("a\x1b[2J{}", "b".repeat(5000)), ..State::default() };
        for number in 0..1000 {
            let address = Address { address: IpAddr::from([10, 0, 0, 1]), prefix: 24 };
            let interface = Interface { addresses: vec![address; 10], hwaddr: "\n".into(), ..Interface::default() };
            state.network.insert(format!("eth{number:04}"), interface);
        }
        let state = state.bounded();
        assert_eq!(state.hostname.len(), MAX_TEXT);
        assert!(!state.hostname.contains('\x1b'));
        assert_eq!(state.network.len(), MAX_INTERFACES);
        assert_eq!(state.network.values().map(|one| one.addresses.len()).sum::<usize>(), MAX_ADDRESSES);
        assert!(encode(&Reply::State(Box::new(state))).len() < crate::protocol::MAX_MESSAGE);
    }

    #[test]
    fn a_status_is_one_whatever_is_said() {
        assert_eq!(ExecStatus::Code(3).shell_code(), 3);
        assert_eq!(ExecStatus::Signal(9).shell_code(), 137);
        assert_eq!(ExecStatus::Signal(i32::MAX).shell_code(), 255);
        assert_eq!(ExecStatus::Code(i32::MIN).shell_code(), 0);
    }

    #[test]
    fn newer_words_are_understood_as_far_as_they_can_be() {
        assert_eq!(decode::<Request>(br#"{"type":"state","more":1}"#), Ok(Request::State));
        assert_eq!(decode::<Request>(br#"{"type":"dance"}"#).unwrap_err().kind, ErrorKind::Invalid);
        let reply = decode::<Reply>(br#"{"type":"error","kind":"tired","message":"zzz"}"#).unwrap();
        assert_eq!(reply, Reply::Error(ErrorReply::new(ErrorKind::Other, "zzz")));
    }
}
