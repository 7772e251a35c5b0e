//! The service: `duet-monitor files`, the only code that touches a container's files.
//!
//! Descriptor 0 is the socket, descriptor 1 what to serve ([`super::protocol::Subject`]), descriptor 2 the daemon's log.
//! One thread works through the requests in order; another only waits for a reason to end. See [`super`] for the why.

mod attributes;
mod enter;
mod handles;
mod ops;
mod remove;
mod resolve;

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use duet_sys::process;
use rustix::io::Errno;
use serde::Deserialize;

use super::protocol::{FailureKind, MAX_PACKET, Op, Reply, Request, Response, Setup, VERSION};
use super::wire::Wire;

/// Runs the service until its client or its container is gone.
///
/// To be called once, before the process has started any thread: a user namespace can only be entered by a process with a
/// single one.
#[must_use]
pub fn main() -> ExitCode {
    let (wire, subject) =
        match enter::take_descriptors().and_then(|(socket, subject)| Ok((Wire::new(socket)?, subject))) {
            Ok(pair) => pair,
            Err(errno) => {
                let what = "descriptors 0 and 1 must be a socket and what to serve";
                let _ = writeln!(io::stderr(), "duet-monitor files: {what}: {errno}");
                return ExitCode::FAILURE;
            }
        };
    let mut channel = Channel { wire, buffer: vec![0; MAX_PACKET].into_boxed_slice() };
    let begun = channel.setup().and_then(|setup| {
        let entered = enter::enter(&setup, subject)?;
        watch(&channel.wire, entered.subject)?;
        Ok(ops::Service::new(entered.root, entered.descriptors, setup.id_limit))
    });
    match begun {
        Ok(mut service) => {
            if channel.answer(0, Reply::Ready { version: VERSION }, &[]).is_ok() {
                channel.serve(&mut service);
            }
            ExitCode::SUCCESS
        }
        Err(failure) => {
            // If the client has gone there is nobody left to tell.
            let _ = channel.answer(0, failure.into_reply(), &[]);
            ExitCode::FAILURE
        }
    }
}

/// Why an operation failed.
#[derive(Debug)]
struct Failure {
    kind: FailureKind,
    errno: Option<Errno>,
    detail: String,
}

/// The result of an operation.
type Outcome<T> = Result<T, Failure>;

impl Failure {
    fn of(kind: FailureKind) -> Self {
        Self { kind, errno: None, detail: String::new() }
    }

    /// A failure before the service is ready, in the step `what`.
    fn setup(what: &str) -> impl FnOnce(Errno) -> Self + '_ {
        move |errno| Self { kind: FailureKind::Setup, errno: Some(errno), detail: what.to_owned() }
    }

    fn into_reply(self) -> Reply {
        let errno = self.errno.map_or(0, Errno::raw_os_error);
        Reply::Failed { kind: self.kind, errno, detail: self.detail }
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self { kind: FailureKind::System, errno: Some(errno), detail: String::new() }
    }
}

/// Waits, in a thread of its own, for the client or the container's init to go, and then ends the process at once.
///
/// Nothing is lost by that: every operation that was answered is done. And the thread that works may be stuck.
fn watch(wire: &Wire, subject: Option<OwnedFd>) -> Outcome<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    let socket = wire.as_fd().try_clone_to_owned().map_err(|_| Failure::setup("watch the client")(Errno::MFILE))?;
    let wait = move || {
        loop {
            // No events are asked for of the socket: the kernel always reports a hang-up. A pidfd becomes readable when its
            // process exits (pidfd_open(2)).
            let mut fds = vec![PollFd::new(&socket, PollFlags::empty())];
            fds.extend(subject.as_ref().map(|subject| PollFd::new(subject, PollFlags::IN)));
            match poll(&mut fds, None) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) | Err(_) => process::exit_now(0),
            }
        }
    };
    std::thread::Builder::new().name("watch".to_owned()).stack_size(64 * 1024).spawn(wait).map(drop).map_err(|error| {
        Failure::setup("start the watching thread")(Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))
    })
}

/// The socket, and room for the packet being worked on.
struct Channel {
    wire: Wire,
    buffer: Box<[u8]>,
}

/// What can be told of a request that can't be understood as a whole.
#[derive(Deserialize)]
struct Identified {
    id: u64,
}

impl Channel {
    /// The next packet: where its data begins and where it ends. `None` when the client is gone or talks nonsense.
    fn receive(&mut self) -> Option<(usize, usize)> {
        let length = self.wire.receive(&mut self.buffer, None).ok()?;
        let head = u32::from_le_bytes(self.buffer.get(..4)?.try_into().ok()?) as usize;
        let data = head.checked_add(4)?;
        (length >= data).then_some((data, length))
    }

    fn setup(&mut self) -> Outcome<Setup> {
        let (head_end, _) = self.receive().ok_or_else(|| Failure::setup("read what to serve")(Errno::PROTO))?;
        serde_json::from_slice(&self.buffer[4..head_end])
            .map_err(|_| Failure::setup("understand what to serve")(Errno::PROTO))
    }

    fn serve(&mut self, service: &mut ops::Service) {
        while let Some((head_end, end)) = self.receive() {
            let head = &self.buffer[4..head_end];
            let answered = match serde_json::from_slice::<Request>(head) {
                Ok(Request { id, op: Op::Read { handle, offset, length } }) => {
                    match service.read(handle, offset, length) {
                        Ok(data) => answer(&self.wire, id, Reply::Data, data),
                        Err(failure) => answer(&self.wire, id, failure.into_reply(), &[]),
                    }
                }
                Ok(Request { id, op }) => {
                    let reply = service.run(op, &self.buffer[head_end..end]).unwrap_or_else(Failure::into_reply);
                    self.answer(id, reply, &[])
                }
                Err(error) => match serde_json::from_slice::<Identified>(head) {
                    Ok(Identified { id }) => {
                        let failure =
                            Failure { kind: FailureKind::Unsupported, errno: None, detail: error.to_string() };
                        self.answer(id, failure.into_reply(), &[])
                    }
                    Err(_) => return,
                },
            };
            if answered.is_err() {
                return;
            }
        }
    }

    fn answer(&self, id: u64, reply: Reply, data: &[u8]) -> Result<(), Errno> {
        answer(&self.wire, id, reply, data)
    }
}

fn answer(wire: &Wire, id: u64, reply: Reply, data: &[u8]) -> Result<(), Errno> {
    let head = serde_json::to_vec(&Response { id, reply }).map_err(|_| Errno::PROTO)?;
    wire.send(&head, data, None)
}
