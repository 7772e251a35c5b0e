//! A client's connection: what it waits for, and what waits for it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use duet_sys::socket;
use rustix::event::PollFlags;

use crate::protocol::{self, ErrorKind, ErrorReply, Reply};

/// How many messages may wait for a client. None needs more than its reply and an event or two; who lets this many
/// pile up sends requests without reading replies.
const OUTBOX_LIMIT: usize = 16;

/// A client's connection.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    outbox: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    /// It wants to be told of the instance's end.
    pub watching: bool,
    /// It attached to the console last.
    pub has_console: bool,
    /// Its last request is still being carried out by this task; further ones wait, so that replies stay in order.
    pub waits_for: Option<u64>,
    /// The program that it runs.
    pub program: Option<u64>,
    /// It is to be closed: it failed, or left.
    pub dead: bool,
}

impl Connection {
    /// Of a socket that is non-blocking.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            outbox: VecDeque::new(),
            watching: false,
            has_console: false,
            waits_for: None,
            program: None,
            dead: false,
        }
    }

    /// What poll(2) is to watch of it.
    #[must_use]
    pub fn interest(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.waits_for.is_none() && self.outbox.is_empty());
        flags.set(PollFlags::OUT, !self.outbox.is_empty());
        flags
    }

    /// Takes the next packet; `None` if there is none, or the client has left (it is dead then).
    pub fn receive(&mut self) -> Option<io::Result<(Vec<u8>, Vec<OwnedFd>)>> {
        match super::receive_packet(&self.socket) {
            Ok((packet, _)) if packet.is_empty() => {
                self.dead = true;
                None
            }
            Ok(received) => Some(Ok(received)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) if error.raw_os_error().is_some() => {
                self.dead = true;
                None
            }
            Err(error) => Some(Err(error)),
        }
    }

    /// Sends a message now or as soon as the client takes it.
    pub fn send(&mut self, reply: &Reply, fds: Vec<OwnedFd>) {
        if self.outbox.len() >= OUTBOX_LIMIT {
            self.dead = true;
            return;
        }
        self.outbox.push_back((protocol::encode(reply), fds));
        self.flush();
    }

    /// Refuses a request.
    pub fn refuse(&mut self, kind: ErrorKind, message: impl ToString) {
        self.send(&Reply::Error(ErrorReply { kind, message: message.to_string() }), Vec::new());
    }

    /// Sends what waits, as far as the client takes it.
    pub fn flush(&mut self) {
        while let Some((bytes, fds)) = self.outbox.front() {
            let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match socket::send(&self.socket, bytes, &borrowed) {
                Ok(()) => {
                    self.outbox.pop_front();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.dead = true;
                    return;
                }
            }
        }
    }

    /// Whether everything was sent, or never will be.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.dead || self.outbox.is_empty()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
