//! The client's thread.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::event::{EventfdFlags, eventfd};

use super::ClientError;
use crate::mux::{Engine, Event, wait};
use crate::protocol::message::{self, ExecStatus, Reply};

/// What a caller gets for a request.
pub(super) type Answer = Result<Reply, ClientError>;

/// What callers tell the thread.
#[derive(Debug)]
pub(super) enum Command {
    Open { ticket: u64, request: Vec<u8>, streams: Vec<(u8, OwnedFd)>, answer: SyncSender<Answer>, purpose: Purpose },
    Say { ticket: u64, message: Vec<u8> },
    Close { ticket: u64 },
}

/// What a channel is for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// One request with one answer.
    Question,
    /// A program; its end is told once.
    Program { exited: Option<SyncSender<ExecStatus>>, signal: OwnedFd },
}

impl Drop for Purpose {
    fn drop(&mut self) {
        if let Self::Program { exited, signal } = self {
            // The other end is dropped first, so that whoever sees the signal finds that out.
            *exited = None;
            raise(signal);
        }
    }
}

/// What callers and the thread have in common. The thread ends when no caller has it any more.
#[derive(Debug)]
pub(super) struct Shared {
    queue: Mutex<Queue>,
    wake: OwnedFd,
}

#[derive(Debug, Default)]
struct Queue {
    commands: VecDeque<Command>,
    tickets: u64,
    lost: Option<String>,
}

impl Shared {
    pub fn ticket(&self) -> u64 {
        let mut queue = self.queue();
        queue.tickets += 1;
        queue.tickets
    }

    pub fn command(&self, command: Command) -> Result<(), ClientError> {
        let mut queue = self.queue();
        if let Some(why) = &queue.lost {
            return Err(ClientError::Lost(why.clone()));
        }
        queue.commands.push_back(command);
        drop(queue);
        raise(&self.wake);
        Ok(())
    }

    pub fn lost(&self) -> Option<String> {
        self.queue().lost.clone()
    }

    /// Why an answer never comes.
    pub fn why_lost(&self) -> ClientError {
        ClientError::Lost(self.lost().unwrap_or_else(|| "the agent closed the channel without an answer".to_owned()))
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // What is in it is whole at any moment.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        raise(&self.wake);
    }
}

/// Makes an eventfd readable.
fn raise(fd: &OwnedFd) {
    // It fails only when the counter is at its limit, and then it is readable.
    let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
}

/// A channel of which somebody wants to hear.
struct Call {
    ticket: u64,
    channel: u32,
    answer: Option<SyncSender<Answer>>,
    purpose: Purpose,
}

pub(super) struct Worker {
    engine: Engine,
    shared: Weak<Shared>,
    wake: OwnedFd,
    calls: Vec<Call>,
}

/// Why the thread ends.
enum Ending {
    /// Nobody has the client any more.
    Dropped,
    Lost(String),
}

impl Worker {
    /// Starts the thread; `events` are those that came with the greeting.
    pub fn start(engine: Engine, events: Vec<Event>) -> io::Result<Arc<Shared>> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared { queue: Mutex::default(), wake: wake.try_clone()? });
        let mut worker = Self { engine, shared: Arc::downgrade(&shared), wake, calls: Vec::new() };
        let run = move || {
            let ending = worker.run(events);
            if let (Some(shared), Ending::Lost(why)) = (worker.shared.upgrade(), ending) {
                let mut queue = shared.queue();
                queue.lost = Some(why);
                queue.commands.clear();
            }
            // With the worker go the senders, by which those who wait learn of it.
        };
        std::thread::Builder::new().name("agent".to_owned()).stack_size(256 * 1024).spawn(run)?;
        Ok(shared)
    }

    fn run(&mut self, mut events: Vec<Event>) -> Ending {
        loop {
            for event in events.drain(..) {
                if let Err(why) = self.heard(event) {
                    return Ending::Lost(why);
                }
            }
            let ready = match wait(Some(&self.engine), &[self.wake.as_fd()], None) {
                Ok(ready) => ready,
                Err(error) => return Ending::Lost(error.to_string()),
            };
            if ready.others.first() == Some(&true) {
                let mut count = [0; 8];
                // It is empty only if it was read already, which no one else does.
                let _ = rustix::io::read(&self.wake, &mut count);
            }
            let Some(shared) = self.shared.upgrade() else { return Ending::Dropped };
            let commands = std::mem::take(&mut shared.queue().commands);
            drop(shared);
            // Before what is read from descriptors, so that who resizes a terminal and then types does so in this order.
            for command in commands {
                self.carry_out(command);
            }
            if let Err(lost) = self.engine.progress(&ready.engine, &mut events) {
                // What came before the end is still told.
                for event in events.drain(..) {
                    let _ = self.heard(event);
                }
                return Ending::Lost(lost.to_string());
            }
        }
    }

    fn carry_out(&mut self, command: Command) {
        let find = |calls: &[Call], ticket| calls.iter().position(|call| call.ticket == ticket);
        match command {
            Command::Open { ticket, request, streams, answer, purpose } => {
                let Some(channel) = self.engine.open(&request) else {
                    // The caller may have given up by now.
                    let _ = answer.try_send(Err(ClientError::Busy));
                    return;
                };
                for (stream, fd) in streams {
                    if let Err(error) = self.engine.attach(channel, stream, fd) {
                        let _ = answer.try_send(Err(ClientError::System(error)));
                        self.engine.close(channel);
                        return;
                    }
                }
                self.calls.push(Call { ticket, channel, answer: Some(answer), purpose });
            }
            Command::Say { ticket, message } => {
                if let Some(at) = find(&self.calls, ticket) {
                    self.engine.message(self.calls[at].channel, &message);
                }
            }
            Command::Close { ticket } => {
                if let Some(at) = find(&self.calls, ticket) {
                    let call = self.calls.swap_remove(at);
                    self.engine.close(call.channel);
                }
            }
        }
    }

    /// Tells those who wait. What makes no sense is the guest's fault and ends the connection.
    fn heard(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Greeted => Ok(()),
            Event::Reset | Event::Opened(..) => Err("the agent acts as a client".to_owned()),
            Event::Closed(channel) => {
                // A program's call stays no longer than its end is told; what it wrote is on its way to the descriptors.
                self.calls.retain(|call| call.channel != channel);
                Ok(())
            }
            Event::Message(channel, message) => {
                let Some(at) = self.calls.iter().position(|call| call.channel == channel) else { return Ok(()) };
                let reply: Reply = message::decode(&message).map_err(|error| error.bounded().message)?;
                self.reply(at, reply)
            }
        }
    }

    fn reply(&mut self, at: usize, reply: Reply) -> Result<(), String> {
        let call = &mut self.calls[at];
        if let Some(answer) = call.answer.take() {
            let goes_on = matches!(reply, Reply::Started { .. });
            // The caller may have given up by now.
            let _ = answer.try_send(Ok(reply));
            if !goes_on {
                let call = self.calls.swap_remove(at);
                self.engine.close(call.channel);
            }
            return Ok(());
        }
        if let (Purpose::Program { exited, signal }, Reply::Exited { status }) = (&mut call.purpose, reply)
            && let Some(exited) = exited.take()
        {
            let _ = exited.try_send(status);
            raise(signal);
            return Ok(());
        }
        Err("the agent said something that it was not asked".to_owned())
    }
}
