//! The two ends of a stream.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::Shutdown;

use crate::protocol::{Violation, WINDOW};

/// A stream that is sent: where it comes from.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub fd: OwnedFd,
    /// How many bytes the other side has room for.
    pub credit: usize,
    /// It ends as soon as there is nothing to be read for the moment.
    pub last: bool,
}

impl Outgoing {
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd, credit: WINDOW, last: false }
    }

    pub fn grant(&mut self, bytes: u32) -> Result<(), Violation> {
        let credit = self.credit.saturating_add(bytes as usize);
        if credit > WINDOW {
            return Err(Violation::Window);
        }
        self.credit = credit;
        Ok(())
    }
}

/// A stream that is received: where it goes to.
#[derive(Debug)]
pub(super) struct Incoming {
    sink: Sink,
    buffer: VecDeque<u8>,
    /// How many bytes the other side may still send.
    room: usize,
    /// How many it may send besides, once it is told.
    owed: usize,
    ended: bool,
}

#[derive(Debug)]
enum Sink {
    /// Not known yet.
    Awaited,
    Open(OwnedFd),
    /// Nobody wants it: what comes is thrown away.
    Gone,
}

impl Incoming {
    pub fn new() -> Self {
        Self { sink: Sink::Awaited, buffer: VecDeque::new(), room: WINDOW, owed: 0, ended: false }
    }

    pub fn attach(&mut self, fd: OwnedFd) {
        self.sink = Sink::Open(fd);
    }

    /// Takes what came, within the window.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        if self.ended || bytes.len() > self.room {
            return Err(Violation::Window);
        }
        self.room -= bytes.len();
        self.buffer.extend(bytes);
        Ok(())
    }

    /// Nothing more will come.
    pub fn end(&mut self) {
        self.ended = true;
    }

    pub fn ended(&self) -> bool {
        self.ended
    }

    /// The channel is closed: nothing more will come, and what has no descriptor by now gets none.
    pub fn close(&mut self) {
        self.ended = true;
        if matches!(self.sink, Sink::Awaited) {
            self.sink = Sink::Gone;
        }
        self.write();
    }

    /// Whether all that came is where it belongs.
    pub fn drained(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The descriptor, if there is something to write.
    pub fn waits_for(&self) -> Option<BorrowedFd<'_>> {
        match &self.sink {
            Sink::Open(fd) if !self.buffer.is_empty() => Some(fd.as_fd()),
            _ => None,
        }
    }

    /// Writes as much as the descriptor takes, and lets it go when all is written. Answers whether it just broke: whoever
    /// read from it has closed it.
    pub fn write(&mut self) -> bool {
        let mut broken = false;
        while let (Sink::Open(fd), false) = (&self.sink, self.buffer.is_empty()) {
            match rustix::io::write(fd, self.buffer.as_slices().0) {
                Ok(count) => {
                    self.buffer.drain(..count);
                    self.owed += count;
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.sink = Sink::Gone;
                    broken = true;
                }
            }
        }
        if matches!(self.sink, Sink::Gone) {
            self.owed += self.buffer.len();
            self.buffer = VecDeque::new();
        }
        if self.ended && self.buffer.is_empty() {
            if let Sink::Open(fd) = &self.sink {
                // A socket may be held for the other direction too; of others ENOTSOCK says that closing it is enough.
                let _ = rustix::net::shutdown(fd, Shutdown::Write);
            }
            if !matches!(self.sink, Sink::Awaited) {
                self.sink = Sink::Gone;
            }
        }
        broken
    }

    /// How much room to tell the other side of, when it is worth telling.
    pub fn credit(&mut self) -> Option<u32> {
        if self.ended || self.owed < WINDOW / 4 {
            return None;
        }
        let owed = std::mem::take(&mut self.owed);
        self.room += owed;
        u32::try_from(owed).ok()
    }
}
