//! What the other threads tell the loop, which waits for it in poll(2).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use duet_control::protocol::ErrorReply;
use duet_control::step::{Step, StepError};
use rustix::event::{EventfdFlags, eventfd};

use super::agent::News;
use super::task::Outcome;

/// A message.
pub(super) enum Message {
    Agent(News),
    /// What has become of a connection's request.
    Task {
        connection: u64,
        outcome: Result<Outcome, ErrorReply>,
    },
}

/// The way from another thread to the loop.
#[derive(Clone)]
pub(super) struct Teller {
    messages: Sender<Message>,
    wake: Arc<OwnedFd>,
}

/// The loop's end of it: readable when there are messages.
pub(super) struct Messages {
    messages: Receiver<Message>,
    wake: Arc<OwnedFd>,
}

pub(super) fn channel() -> Result<(Teller, Messages), StepError> {
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).step("make an event")?;
    let wake = Arc::new(wake);
    let (sender, receiver) = std::sync::mpsc::channel();
    Ok((Teller { messages: sender, wake: wake.clone() }, Messages { messages: receiver, wake }))
}

impl Teller {
    pub fn tell(&self, message: Message) {
        // The loop ends with the process; and the counter is refused only if it is at its limit, which wakes as well.
        let _ = self.messages.send(message);
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }
}

impl Messages {
    /// Takes the next one, if there is one.
    pub fn next(&self) -> Option<Message> {
        let mut count = [0; 8];
        // First, so that a message after the last one wakes again. It is empty if it was read already.
        let _ = rustix::io::read(&*self.wake, &mut count);
        self.messages.try_recv().ok()
    }
}

impl AsFd for Messages {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
