//! QEMU's control protocol (docs/interop/qmp-spec.txt and qemu-qmp-ref(7) there): lines of JSON, on a stream.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use duet_control::protocol::ExitReason;
use duet_control::step::{Step, StepError};
use duet_sys::socket;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::super::machine::PANICKED;

/// The longest line in bytes. QEMU's answers to what it is asked here, and its events, are far shorter.
const LINE_MAX: usize = 16 * 1024;

/// The monitor's end of the connection, and what was heard of the guest's end.
#[derive(Debug)]
pub(in super::super) struct Qmp {
    /// Until its end, or something that is no such protocol.
    socket: Option<OwnedFd>,
    line: Vec<u8>,
    /// Whether QEMU has answered: it runs the guest.
    answered: bool,
    ending: Option<ExitReason>,
}

/// What is of interest in a line; all else is passed over.
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<IgnoredAny>,
    #[serde(rename = "return")]
    answer: Option<IgnoredAny>,
    event: Option<String>,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    reason: Option<String>,
}

impl Qmp {
    pub fn new(socket: OwnedFd) -> Result<Self, StepError> {
        socket::set_nonblocking(&socket, true).step("set up QEMU's control socket")?;
        Ok(Self { socket: Some(socket), line: Vec::new(), answered: false, ending: None })
    }

    pub fn interest(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Whether QEMU runs the guest.
    pub fn answered(&self) -> bool {
        self.answered
    }

    /// How the guest ended, if QEMU has said so.
    pub fn ending(&self) -> Option<ExitReason> {
        self.ending
    }

    /// Presses the power button.
    pub fn power_button(&mut self) -> Result<(), StepError> {
        self.say(b"{\"execute\":\"system_powerdown\"}\n")
    }

    /// Reads what there is, but not without end.
    pub fn read(&mut self) {
        let mut chunk = [0; 4096];
        for _ in 0..16 {
            let Some(socket) = &self.socket else { return };
            match rustix::io::read(socket, &mut chunk) {
                Ok(0) => self.socket = None,
                Ok(len) => self.take(&chunk[..len]),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
                Err(_) => self.socket = None,
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte != b'\n' {
                self.line.push(*byte);
                if self.line.len() > LINE_MAX {
                    self.socket = None;
                    self.line = Vec::new();
                    return;
                }
                continue;
            }
            if let Ok(line) = serde_json::from_slice(&self.line) {
                self.hear(&line);
            }
            self.line.clear();
        }
    }

    fn hear(&mut self, line: &Line) {
        if line.greeting.is_some() {
            // If it cannot be told it does not answer, and that is met with.
            let _ = self.say(b"{\"execute\":\"qmp_capabilities\"}\n");
        }
        self.answered |= line.answer.is_some();
        let reason = line.data.as_ref().and_then(|data| data.reason.as_deref());
        let ending = match (line.event.as_deref(), reason) {
            (Some("GUEST_PANICKED"), _) | (Some("SHUTDOWN"), Some("guest-panic")) => PANICKED,
            (Some("SHUTDOWN"), Some("guest-shutdown")) => ExitReason::Halt,
            (Some("SHUTDOWN"), Some("guest-reset")) => ExitReason::Reboot,
            _ => return,
        };
        // A panic is followed by the end that it leads to.
        self.ending.get_or_insert(ending);
    }

    fn say(&mut self, line: &[u8]) -> Result<(), StepError> {
        let socket = self.socket.as_ref().ok_or_else(|| StepError::new("tell QEMU", "it does not listen any more"))?;
        // A line fits into an empty buffer, and one that is full belongs to a QEMU that does not listen.
        rustix::io::write(socket, line).step("tell QEMU").map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (Qmp, UnixStream) {
        let (ours, theirs) = socket::stream_pair().unwrap();
        (Qmp::new(ours).unwrap(), theirs.into())
    }

    #[test]
    fn it_greets_and_tells_the_end() {
        let (mut qmp, mut theirs) = pair();
        theirs.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n").unwrap();
        qmp.read();
        assert!(!qmp.answered());
        let mut said = [0; 31];
        theirs.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"{\"execute\":\"qmp_capabilities\"}\n");
        theirs.write_all(b"{\"return\": {}}\r\n{\"event\": \"SHUTDOWN\", \"data\"").unwrap();
        qmp.read();
        assert!(qmp.answered() && qmp.ending().is_none());
        theirs.write_all(b": {\"guest\": true, \"reason\": \"guest-reset\"}, \"timestamp\": {}}\r\n").unwrap();
        qmp.read();
        assert_eq!(qmp.ending(), Some(ExitReason::Reboot));
    }

    #[test]
    fn a_panic_is_not_what_it_leads_to() {
        let (mut qmp, mut theirs) = pair();
        theirs.write_all(b"{\"event\": \"GUEST_PANICKED\", \"data\": {\"action\": \"poweroff\"}}\n").unwrap();
        theirs.write_all(b"{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-shutdown\"}}\n").unwrap();
        qmp.read();
        assert_eq!(qmp.ending(), Some(PANICKED));
    }

    #[test]
    fn nonsense_does_not_grow_it() {
        let (mut qmp, mut theirs) = pair();
        theirs.set_nonblocking(true).unwrap();
        theirs.write_all(b"\n]\n{\"event\": 7}\n\"\"\n").unwrap();
        qmp.read();
        assert!(qmp.interest().is_some());
        theirs.write_all(&[b'['; 2 * LINE_MAX]).unwrap();
        qmp.read();
        assert!(qmp.interest().is_none() && qmp.line.capacity() == 0);
        assert!(qmp.power_button().is_err());
    }
}
