//! An instance's console: its log since boot, and the one client that may be attached to it.
//!
//! The monitor always reads what the instance writes, so that a boot never stalls for want of a reader. A client that
//! reads slowly holds the instance up for at most [`PATIENCE`]; from then on, until it reads again, what is written is
//! dropped for it (the log has it all).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use duet_sys::pty::{self, Pty};
use duet_sys::socket;
use rustix::event::PollFlags;
use rustix::pty::OpenptFlags;

use crate::protocol::PtySize;

/// How many bytes wait for a slow client.
const PENDING_LIMIT: usize = 32 * 1024;
/// How long a client may leave [`PENDING_LIMIT`] bytes untouched.
const PATIENCE: Duration = Duration::from_secs(1);
const CHUNK: usize = 4096;

/// The log of everything written to the console since boot, held to a size.
#[derive(Debug)]
pub struct ConsoleLog {
    file: File,
    limit: u64,
}

impl ConsoleLog {
    /// Creates the log, or empties that of the last boot. It is held to `limit` bytes.
    ///
    /// # Errors
    /// As open(2).
    pub fn create(path: &Path, limit: u64) -> io::Result<Self> {
        // Not in append mode, in which pwrite(2) appends whatever its offset says.
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(Self { file, limit })
    }

    /// Appends. When the log would grow beyond its limit, only its younger half is kept. The length is asked for each
    /// time, because others may empty the file.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let most = usize::try_from(self.limit / 2).unwrap_or(usize::MAX);
        let bytes = &bytes[bytes.len().saturating_sub(most)..];
        let mut len = self.file.metadata()?.len();
        if len + bytes.len() as u64 > self.limit {
            len = self.halve(len)?;
        }
        self.file.write_all_at(bytes, len)
    }

    fn halve(&mut self, len: u64) -> io::Result<u64> {
        let kept = len.min(self.limit / 2);
        let mut chunk = [0; CHUNK];
        let (mut from, mut to) = (len - kept, 0);
        while from < len {
            let got = self.file.read_at(&mut chunk, from)?;
            if got == 0 {
                break;
            }
            self.file.write_all_at(&chunk[..got], to)?;
            from += got as u64;
            to += got as u64;
        }
        self.file.set_len(to)?;
        Ok(to)
    }
}

/// The attached client.
#[derive(Debug)]
struct Client {
    stream: OwnedFd,
    /// Console output that it has not taken.
    pending: Vec<u8>,
    /// Since when it has been holding the instance up.
    stalled: Option<Instant>,
    /// It held the instance up for too long: what is written is dropped for it until it takes something again.
    lost: bool,
}

/// The console.
#[derive(Debug)]
pub struct Console {
    device: Device,
    log: ConsoleLog,
    /// Whether the last piece could not be logged.
    log_fails: bool,
    client: Option<Client>,
    /// Input from the client that the instance has not taken.
    input: Vec<u8>,
}

/// The instance's side.
#[derive(Debug)]
enum Device {
    /// A terminal's two ends. The slave is held open so that the master never reports that the last reader hung up.
    Terminal { master: OwnedFd, slave: OwnedFd },
    /// What the instance writes comes from `output` until that has ended, and what is typed goes into `input`.
    Stream { output: OwnedFd, input: OwnedFd, ended: bool },
}

impl Device {
    fn output(&self) -> &OwnedFd {
        match self {
            Self::Terminal { master, .. } => master,
            Self::Stream { output, .. } => output,
        }
    }

    fn input(&self) -> &OwnedFd {
        match self {
            Self::Terminal { master, .. } => master,
            Self::Stream { input, .. } => input,
        }
    }
}

/// What poll(2) is to watch of the console.
#[derive(Debug)]
pub struct Interest<'a> {
    /// What the instance writes; nothing once that has ended.
    pub output: Option<(BorrowedFd<'a>, PollFlags)>,
    /// Where what is typed goes, if some waits for that.
    pub input: Option<(BorrowedFd<'a>, PollFlags)>,
    /// The client's stream.
    pub client: Option<(BorrowedFd<'a>, PollFlags)>,
}

impl Console {
    /// A terminal, as containers have it.
    ///
    /// # Errors
    /// As fcntl(2).
    pub fn new(pty: Pty, log: ConsoleLog) -> io::Result<Self> {
        socket::set_nonblocking(&pty.master, true)?;
        Ok(Self::of(Device::Terminal { master: pty.master, slave: pty.slave }, log))
    }

    /// Two streams of bytes, as the serial port of a virtual machine has: what it writes comes from `output`, what is typed
    /// goes into `input`. It has no size.
    ///
    /// # Errors
    /// As fcntl(2).
    pub fn of_streams(output: OwnedFd, input: OwnedFd, log: ConsoleLog) -> io::Result<Self> {
        socket::set_nonblocking(&output, true)?;
        socket::set_nonblocking(&input, true)?;
        Ok(Self::of(Device::Stream { output, input, ended: false }, log))
    }

    fn of(device: Device, log: ConsoleLog) -> Self {
        Self { device, log, log_fails: false, client: None, input: Vec::new() }
    }

    /// Whether a client has it.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.client.is_some()
    }

    /// Attaches a client, in place of another one if there is. Returns the client's end of the stream.
    ///
    /// # Errors
    /// As socketpair(2).
    pub fn attach(&mut self) -> io::Result<OwnedFd> {
        let (ours, theirs) = socket::stream_pair()?;
        socket::set_nonblocking(&ours, true)?;
        self.detach();
        self.client = Some(Client { stream: ours, pending: Vec::new(), stalled: None, lost: false });
        Ok(theirs)
    }

    /// Lets go of the client.
    pub fn detach(&mut self) {
        self.client = None;
        self.input.clear();
    }

    /// Sets the size of the window. A stream has none, which is no error.
    ///
    /// # Errors
    /// As ioctl(2) `TIOCSWINSZ`.
    pub fn resize(&self, size: PtySize) -> io::Result<()> {
        match &self.device {
            Device::Terminal { master, .. } => pty::resize(master, size.columns, size.rows),
            Device::Stream { .. } => Ok(()),
        }
    }

    /// What is to be watched.
    #[must_use]
    pub fn interest(&self) -> Interest<'_> {
        let mut output = PollFlags::empty();
        let mut input = PollFlags::empty();
        let mut client = PollFlags::empty();
        if self.client.as_ref().is_none_or(|client| client.pending.len() < PENDING_LIMIT) {
            output |= PollFlags::IN;
        }
        if self.input.is_empty() {
            client |= PollFlags::IN;
        } else {
            input |= PollFlags::OUT;
        }
        if self.client.as_ref().is_some_and(|client| client.lost || !client.pending.is_empty()) {
            client |= PollFlags::OUT;
        }
        Interest {
            output: (!self.has_ended()).then(|| (self.device.output().as_fd(), output)),
            input: (!input.is_empty()).then(|| (self.device.input().as_fd(), input)),
            client: self.client.as_ref().map(|attached| (attached.stream.as_fd(), client)),
        }
    }

    /// When the console wants to be looked at even if nothing happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.client.as_ref().and_then(|client| client.stalled).map(|since| since + PATIENCE)
    }

    /// Drops what a stalled client has not taken in time.
    pub fn expire(&mut self) {
        if let Some(client) = &mut self.client
            && client.stalled.is_some_and(|since| since.elapsed() >= PATIENCE)
        {
            client.pending = Vec::new();
            client.stalled = None;
            client.lost = true;
        }
    }

    fn has_ended(&self) -> bool {
        matches!(self.device, Device::Stream { ended: true, .. })
    }

    fn end(&mut self) {
        if let Device::Stream { ended, .. } = &mut self.device {
            *ended = true;
        }
    }

    /// Reads what the instance wrote, for the log and the client.
    pub fn drain(&mut self) {
        let mut chunk = [0; CHUNK];
        match rustix::io::read(self.device.output(), &mut chunk) {
            // A terminal has no end; this is that of a stream.
            Ok(0) => self.end(),
            Ok(len) => {
                // A full disk must not stop the instance; what is missing in the log is missing, and said once.
                let logged = self.log.append(&chunk[..len]);
                if let (Err(error), false) = (&logged, self.log_fails) {
                    super::say(format_args!("write the console log: {error}"));
                }
                self.log_fails = logged.is_err();
                self.pass_on(&chunk[..len]);
            }
            Err(rustix::io::Errno::IO) => self.reopen_slave(),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_) => self.end(),
        }
    }

    /// Reads until nothing is left: after the instance's end.
    pub fn drain_all(&mut self) {
        for _ in 0..256 {
            let mut ready = [rustix::event::PollFd::new(self.device.output(), PollFlags::IN)];
            match rustix::event::poll(&mut ready, Some(&rustix::event::Timespec::default())) {
                Ok(1) if ready[0].revents().contains(PollFlags::IN) && !self.has_ended() => self.drain(),
                _ => break,
            }
        }
    }

    fn pass_on(&mut self, bytes: &[u8]) {
        if let Some(client) = self.client.as_mut().filter(|client| !client.lost) {
            client.pending.extend_from_slice(bytes);
            self.flush();
        }
    }

    /// Gives the client what it takes.
    fn flush(&mut self) {
        let Some(client) = &mut self.client else { return };
        while !client.pending.is_empty() {
            match send_some(&client.stream, &client.pending) {
                Ok(sent) => {
                    client.pending.drain(..sent);
                    client.stalled = None;
                }
                Err(rustix::io::Errno::AGAIN) => break,
                Err(_) => return self.detach(),
            }
        }
        if client.pending.len() >= PENDING_LIMIT {
            client.stalled.get_or_insert_with(Instant::now);
        }
        if client.pending.is_empty() {
            // Gives the memory back that a burst needed.
            client.pending.shrink_to(CHUNK);
        }
    }

    /// The client's stream is ready for what was asked of it.
    pub fn client_ready(&mut self, events: PollFlags) {
        if events.intersects(PollFlags::OUT) {
            if let Some(client) = &mut self.client {
                client.lost = false;
            }
            self.flush();
        }
        let gone = events.intersects(PollFlags::HUP | PollFlags::ERR);
        if !self.input.is_empty() {
            // What it still has to say would have to wait for the instance, and a client that has gone cannot.
            return if gone {
                self.detach()
            };
        }
        let Some(client) = self.client.as_ref().filter(|_| gone || events.contains(PollFlags::IN)) else { return };
        let mut chunk = [0; CHUNK];
        match rustix::io::read(&client.stream, &mut chunk) {
            Ok(0) => self.detach(),
            Ok(len) => {
                self.input.extend_from_slice(&chunk[..len]);
                self.feed();
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_) => self.detach(),
        }
    }

    /// Gives the instance what the client typed.
    pub fn feed(&mut self) {
        while !self.input.is_empty() {
            // Rust's programs ignore SIGPIPE.
            match rustix::io::write(self.device.input(), &self.input) {
                Ok(sent) => {
                    self.input.drain(..sent);
                }
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => self.input.clear(),
            }
        }
    }

    /// After a container hung the terminal up (vhangup(2), as a login does), a fresh slave keeps the master usable.
    fn reopen_slave(&mut self) {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        match &mut self.device {
            Device::Terminal { master, slave } => {
                if let Ok(fresh) = rustix::pty::ioctl_tiocgptpeer(&*master, flags) {
                    *slave = fresh;
                }
            }
            Device::Stream { ended, .. } => *ended = true,
        }
    }
}

/// Sends without a signal if the client has gone.
fn send_some(stream: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<usize> {
    rustix::net::send(stream, bytes, rustix::net::SendFlags::NOSIGNAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_its_younger_half() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = ConsoleLog::create(&path, 1000).unwrap();
        for number in 0..100 {
            log.append(format!("line {number:04} ..........\n").as_bytes()).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.len() <= 1000 && text.len() >= 480, "{}", text.len());
        assert!(text.ends_with("line 0099 ..........\n"), "{text}");
    }

    #[test]
    fn an_emptied_log_starts_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = ConsoleLog::create(&path, 1000).unwrap();
        log.append(b"old").unwrap();
        File::options().write(true).truncate(true).open(&path).unwrap();
        log.append(b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }
}
