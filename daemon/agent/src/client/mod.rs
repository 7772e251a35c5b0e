//! The host's side: what the process that watches over a virtual machine asks its guest.
//!
//! A [`Client`] has one connection and one thread, which runs the [`crate::mux::Engine`]; without tokio, so that it costs a
//! monitor next to nothing. Callers hand it commands and wait, always with a deadline, for what becomes of them.
//!
//! Nothing that a guest does blocks the thread, grows it without bound, or makes it panic. A guest that breaks the protocol
//! loses its connection.

mod error;
mod exec;
mod files;
mod vsock;
mod worker;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

pub use error::ClientError;
pub use exec::{Exec, Stdio};
pub use vsock::connect as connect_vsock;

use crate::mux::{Engine, Event, Link, wait};
use crate::protocol::message::{self, Power, Reply, Request, State};
use crate::protocol::{MAX_CHANNELS, MAX_MESSAGE};
use worker::{Answer, Command, Purpose, Shared, Worker};

/// A connection to a guest's agent. It ends when this and all its [`Exec`]s are dropped.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

impl Client {
    /// Greets the agent and starts the thread. `stream` becomes non-blocking, with all who share its open file description.
    ///
    /// # Errors
    /// [`ClientError::TimedOut`] when no agent answers within `timeout`, [`ClientError::Lost`] when the stream ends.
    pub fn connect(stream: OwnedFd, link: Link, timeout: Duration) -> Result<Self, ClientError> {
        let nonce = RandomState::new().build_hasher().finish();
        let mut engine = Engine::host(stream, link, nonce).map_err(ClientError::System)?;
        let deadline = Instant::now() + timeout;
        let mut events = Vec::new();
        while !engine.greeted() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ClientError::TimedOut { what: "a greeting", after: timeout });
            }
            let ready = wait(Some(&engine), &[], Some(left)).map_err(ClientError::System)?;
            engine.progress(&ready.engine, &mut events).map_err(ClientError::lost)?;
        }
        events.retain(|event| *event != Event::Greeted);
        Ok(Self { shared: Worker::start(engine, events).map_err(ClientError::System)? })
    }

    /// Whether the connection is of no more use.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.shared.lost().is_some()
    }

    /// How the guest is, as it says.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn state(&self, timeout: Duration) -> Result<State, ClientError> {
        match self.ask(&Request::State, timeout)? {
            Reply::State(state) => Ok(state.bounded()),
            _ => Err(ClientError::WrongAnswer),
        }
    }

    /// Has the guest shut down. That it has begun does not mean that it ends.
    ///
    /// # Errors
    /// [`ClientError`]. When forced, the guest may be gone before it has answered: [`ClientError::Lost`] is what was wanted.
    pub fn power(&self, power: Power, timeout: Duration) -> Result<(), ClientError> {
        self.done(&Request::Power(power), timeout)
    }

    /// Sets the guest's clock, to a time since 1970-01-01 UTC.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn set_time(&self, now: Duration, timeout: Duration) -> Result<(), ClientError> {
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        self.done(&Request::SetTime { seconds, nanoseconds: now.subsec_nanos() }, timeout)
    }

    fn done(&self, request: &Request, timeout: Duration) -> Result<(), ClientError> {
        match self.ask(request, timeout)? {
            Reply::Done => Ok(()),
            _ => Err(ClientError::WrongAnswer),
        }
    }

    fn ask(&self, request: &Request, timeout: Duration) -> Result<Reply, ClientError> {
        let (ticket, answers) = self.open(request, Vec::new(), Purpose::Question)?;
        self.answer(ticket, &answers, timeout)
    }

    fn open(
        &self,
        request: &Request,
        streams: Vec<(u8, OwnedFd)>,
        purpose: Purpose,
    ) -> Result<(u64, Receiver<Answer>), ClientError> {
        let request = message::encode(request);
        if request.len() > MAX_MESSAGE {
            return Err(ClientError::TooLarge);
        }
        let (answer, answers) = sync_channel(1);
        let ticket = self.shared.ticket();
        self.shared.command(Command::Open { ticket, request, streams, answer, purpose })?;
        Ok((ticket, answers))
    }

    fn answer(&self, ticket: u64, answers: &Receiver<Answer>, timeout: Duration) -> Result<Reply, ClientError> {
        use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
        match answers.recv_timeout(timeout) {
            Ok(Ok(Reply::Error(error))) => Err(ClientError::Refused(error.bounded())),
            Ok(answer) => answer,
            Err(Timeout) => {
                // Nobody hears the answer any more. If the connection is lost as well there is nothing to close.
                let _ = self.shared.command(Command::Close { ticket });
                Err(ClientError::TimedOut { what: "an answer", after: timeout })
            }
            Err(Disconnected) => Err(self.shared.why_lost()),
        }
    }
}

/// Why nothing more can be opened, for messages.
const FULL: usize = MAX_CHANNELS;
