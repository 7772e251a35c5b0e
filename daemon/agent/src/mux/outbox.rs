//! What is still to be written to the transport.

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;

use super::Lost;
use crate::protocol::MAX_DATA;
use crate::protocol::frame::{self, Frame, HEADER};

/// From how many bytes on no more is taken from local descriptors.
const FULL: usize = 128 * 1024;
/// From how many bytes on the other side is taken not to read at all: what it asks for is answered, and it would have to
/// take the answers.
const OVERFULL: usize = 4 << 20;
/// Up to how many written bytes are kept in front before the rest is moved.
const SLACK: usize = 64 * 1024;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    /// How many of them are written.
    written: usize,
}

/// What a read of a local descriptor gave.
pub(super) enum Taken {
    /// So many bytes.
    Bytes(usize),
    /// Nothing yet.
    Nothing,
    /// It is over.
    End,
}

impl Outbox {
    pub fn is_empty(&self) -> bool {
        self.waiting() == 0
    }

    pub fn is_full(&self) -> bool {
        self.waiting() >= FULL
    }

    pub fn is_overfull(&self) -> bool {
        self.waiting() >= OVERFULL
    }

    fn waiting(&self) -> usize {
        self.bytes.len() - self.written
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub fn frame(&mut self, channel: u32, frame: Frame<'_>) {
        frame::encode(channel, frame, &mut self.bytes);
    }

    /// Reads once from a descriptor, at most `limit` bytes, straight into a frame.
    pub fn data(&mut self, channel: u32, stream: u8, fd: impl AsFd, limit: usize) -> Taken {
        const HEAD: usize = HEADER + 1;
        let begin = self.bytes.len();
        self.bytes.resize(begin + HEAD + limit.min(MAX_DATA), 0);
        let (count, taken) = match rustix::io::read(fd, &mut self.bytes[begin + HEAD..]) {
            Ok(0) => (0, Taken::End),
            Ok(count) => (count, Taken::Bytes(count)),
            Err(Errno::AGAIN | Errno::INTR) => (0, Taken::Nothing),
            // EIO is how a terminal's master tells that nobody has the terminal open any more.
            Err(_) => (0, Taken::End),
        };
        if count > 0 {
            self.bytes[begin..begin + HEAD].copy_from_slice(&frame::data_header(channel, stream, count));
            self.bytes.truncate(begin + HEAD + count);
        } else {
            self.bytes.truncate(begin);
        }
        taken
    }

    /// Writes as much as the transport takes.
    pub fn flush(&mut self, transport: impl AsFd) -> Result<(), Lost> {
        while !self.is_empty() {
            match rustix::io::write(&transport, &self.bytes[self.written..]) {
                Ok(0) => return Err(Lost::Failed(io::ErrorKind::WriteZero.into())),
                Ok(count) => self.written += count,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Lost::Ended),
                Err(errno) => return Err(Lost::Failed(errno.into())),
            }
        }
        if self.is_empty() {
            self.bytes.clear();
            self.written = 0;
            self.bytes.shrink_to(FULL);
        } else if self.written >= SLACK {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
        Ok(())
    }
}
