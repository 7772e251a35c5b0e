//! The service's process and the socket to it: requests out, answers in, and the reasons why there are none.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use duet_sys::socket;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::{FileError, Result};
use super::protocol::{MAX_PACKET, Op, Reply, Request, Response, Setup, VERSION};
use super::wire::Wire;

/// How many requests of a bulk transfer are under way at once, so that neither side waits for the other's turn.
pub(super) const WINDOW: usize = 4;

/// How long dropping a session waits for the killed service. It takes longer only when it is stuck in the kernel.
const GRACE: Duration = Duration::from_millis(500);

/// A running service.
#[derive(Debug)]
pub(super) struct Connection {
    wire: Wire,
    service: Service,
    /// The pidfd of the container's init, to tell why a session ended.
    init: Option<OwnedFd>,
    /// The id that the next request gets, and that of the next answer. Answers come in the order of the requests.
    next_request: u64,
    next_answer: u64,
    pub timeout: Duration,
    /// Why nothing works any more.
    broken: Option<Broken>,
    buffer: Box<[u8]>,
}

#[derive(Clone, Copy, Debug)]
enum Broken {
    /// The other side has closed.
    Ended,
    /// An answer did not come in time, and may come later.
    TimedOut(Duration),
    /// An answer wasn't one.
    Nonsense,
}

impl Connection {
    /// Runs `program files` with `passed` as its descriptor 1, and waits until it is in the container.
    pub fn start(
        program: &Path,
        passed: BorrowedFd<'_>,
        init: Option<OwnedFd>,
        setup: &Setup,
        timeout: Duration,
    ) -> Result<Self> {
        let failed = |source: io::Error| FileError::Start { program: program.to_owned(), source };
        let (ours, theirs) = socket::packet_pair().map_err(failed)?;
        for end in [&ours, &theirs] {
            socket::reserve_send_buffer(end, MAX_PACKET * (WINDOW + 1)).map_err(failed)?;
        }
        let passed = passed.try_clone_to_owned().map_err(failed)?;
        let child = Command::new(program)
            .arg("files")
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::from(passed))
            .spawn()
            .map_err(failed)?;
        let wire = Wire::new(ours).map_err(|errno| failed(errno.into()))?;
        Self::begin(wire, Service(Some(child)), init, setup, timeout)
    }

    /// Speaks with a service that runs already, at the other end of a stream socket.
    pub fn over(socket: OwnedFd, setup: &Setup, timeout: Duration) -> Result<Self> {
        let wire = Wire::new(socket).map_err(|errno| FileError::Protocol(format!("no socket: {errno}")))?;
        Self::begin(wire, Service(None), None, setup, timeout)
    }

    fn begin(wire: Wire, service: Service, init: Option<OwnedFd>, setup: &Setup, timeout: Duration) -> Result<Self> {
        let mut connection = Self {
            wire,
            service,
            init,
            next_request: 1,
            next_answer: 0,
            timeout,
            broken: None,
            buffer: vec![0; MAX_PACKET].into_boxed_slice(),
        };
        let head = serde_json::to_vec(setup).map_err(|error| FileError::Protocol(error.to_string()))?;
        connection.put(&head, &[])?;
        match connection.receive(Path::new("/"))? {
            (Reply::Ready { version: VERSION }, _) => Ok(connection),
            (other, _) => connection.nonsense(&other),
        }
    }

    /// Sends a request.
    pub fn send(&mut self, op: Op, data: &[u8]) -> Result<()> {
        let request = Request { id: self.next_request, op };
        let head = serde_json::to_vec(&request).map_err(|error| FileError::Protocol(error.to_string()))?;
        self.put(&head, data)?;
        self.next_request += 1;
        Ok(())
    }

    /// Receives the answer to the oldest request under way, with its data. A failure is about `path`.
    pub fn receive(&mut self, path: &Path) -> Result<(Reply, &[u8])> {
        self.usable()?;
        let deadline = Instant::now() + self.timeout;
        let length = match self.wire.receive(&mut self.buffer, Some(deadline)) {
            Ok(0) => return Err(self.give_up(Broken::Ended)),
            Ok(length) => length,
            Err(Errno::TIMEDOUT) => return Err(self.give_up(Broken::TimedOut(self.timeout))),
            Err(Errno::MSGSIZE) => return self.nonsense(&"an oversized packet"),
            Err(_) => return Err(self.give_up(Broken::Ended)),
        };
        let Some((head, data)) = split(length, &self.buffer) else { return self.nonsense(&"a broken packet") };
        let response: Response = match serde_json::from_slice(&self.buffer[head]) {
            Ok(response) => response,
            Err(error) => return self.nonsense(&error),
        };
        if response.id != self.next_answer {
            return self.nonsense(&"an answer to another question");
        }
        self.next_answer += 1;
        match response.reply {
            Reply::Failed { kind, errno, detail } => {
                let failure = FileError::from_wire(kind, errno, detail, path.to_owned());
                // A service that couldn't begin because the container had just stopped.
                let stopped = matches!(failure, FileError::Setup { .. }) && self.init_exited();
                Err(if stopped { FileError::ContainerStopped } else { failure })
            }
            reply => Ok((reply, &self.buffer[data])),
        }
    }

    /// How many requests are under way.
    pub fn under_way(&self) -> u64 {
        self.next_request - self.next_answer
    }

    /// Takes in the answers that nobody wants any more, so that the next request gets its own.
    pub fn drain(&mut self) {
        while self.under_way() > 0 && self.broken.is_none() {
            // Failures of operations that were given up concern nobody; a broken connection ends the loop.
            let _ = self.receive(Path::new(""));
        }
    }

    /// Ends a connection whose service says what makes no sense.
    pub fn nonsense<T>(&mut self, said: &dyn std::fmt::Debug) -> Result<T> {
        self.broken = Some(Broken::Nonsense);
        self.service.kill();
        Err(FileError::Protocol(format!("{said:?}")))
    }

    fn put(&mut self, head: &[u8], data: &[u8]) -> Result<()> {
        self.usable()?;
        // The service needs a moment to notice; nothing is begun in it.
        if self.init_exited() {
            return Err(self.give_up(Broken::Ended));
        }
        // A service that hangs takes nothing in, and the buffer fills.
        let sent = sockopt::set_socket_timeout(&self.wire, sockopt::Timeout::Send, Some(self.timeout))
            .and_then(|()| self.wire.send(head, data, Some(Instant::now() + self.timeout)));
        sent.map_err(|errno| match errno {
            Errno::AGAIN | Errno::TIMEDOUT => self.give_up(Broken::TimedOut(self.timeout)),
            Errno::MSGSIZE => FileError::Protocol("a refusal of an oversized request".to_owned()),
            _ => self.give_up(Broken::Ended),
        })
    }

    fn usable(&self) -> Result<()> {
        match self.broken {
            None => Ok(()),
            Some(why) => Err(self.explain(why)),
        }
    }

    fn give_up(&mut self, why: Broken) -> FileError {
        self.broken = Some(why);
        self.service.kill();
        self.explain(why)
    }

    fn explain(&self, why: Broken) -> FileError {
        match why {
            Broken::Ended | Broken::TimedOut(_) if self.init_exited() => FileError::ContainerStopped,
            Broken::Ended => FileError::SessionLost,
            Broken::TimedOut(after) => FileError::TimedOut(after),
            Broken::Nonsense => FileError::SessionLost,
        }
    }

    fn init_exited(&self) -> bool {
        self.init.as_ref().is_some_and(|init| readable_within(init, Duration::ZERO))
    }
}

/// Where in a packet of `length` bytes the head and the data are.
fn split(length: usize, packet: &[u8]) -> Option<(std::ops::Range<usize>, std::ops::Range<usize>)> {
    let head = u32::from_le_bytes(packet.get(..4)?.try_into().ok()?) as usize;
    let end = head.checked_add(4).filter(|end| *end <= length)?;
    Some((4..end, end..length))
}

/// Whether a descriptor becomes readable, which for a pidfd means that its process has exited.
fn readable_within(fd: &OwnedFd, time: Duration) -> bool {
    let timeout = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() };
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)).is_ok_and(|ready| ready > 0)
}

/// The service's process. It is killed and reaped when this is dropped.
#[derive(Debug)]
struct Service(Option<Child>);

impl Service {
    fn kill(&mut self) {
        if let Some(child) = &mut self.0 {
            // Only fails when it has been reaped, which is done in `drop` alone.
            let _ = child.kill();
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
        let Some(mut child) = self.0.take() else { return };
        let pidfd = Pid::from_raw(child.id().cast_signed()).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        if pidfd.is_some_and(|pidfd| readable_within(&pidfd, GRACE)) {
            let _ = child.wait();
            return;
        }
        // It is stuck in a filesystem that the container serves and goes when that does. Somebody has to reap it then.
        let reaper = std::thread::Builder::new().name("reap files".to_owned()).stack_size(64 * 1024);
        let _ = reaper.spawn(move || child.wait());
    }
}
