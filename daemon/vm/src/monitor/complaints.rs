//! What the machine's program writes to its standard error: passed on to the monitor's log as long as it is little, and
//! its last line kept for whoever asks why there is no machine.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The most bytes that are passed on of one machine.
const PASSED_ON: usize = 64 * 1024;
/// The most bytes of a line that are kept.
const LINE: usize = 400;

#[derive(Debug)]
pub(super) struct Complaints {
    /// Until its end.
    pipe: Option<OwnedFd>,
    left: usize,
    line: Vec<u8>,
    last: Vec<u8>,
}

impl Complaints {
    /// Reads from a pipe, which is non-blocking.
    pub fn new(pipe: OwnedFd) -> Self {
        Self { pipe: Some(pipe), left: PASSED_ON, line: Vec::new(), last: Vec::new() }
    }

    pub fn interest(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Reads what there is, but not without end.
    pub fn read(&mut self) {
        let mut chunk = [0; 4096];
        for _ in 0..16 {
            let Some(pipe) = &self.pipe else { return };
            match rustix::io::read(pipe, &mut chunk) {
                Ok(0) => self.pipe = None,
                Ok(len) => self.take(&chunk[..len]),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
                Err(_) => self.pipe = None,
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let passed = &bytes[..bytes.len().min(self.left)];
        self.left -= passed.len();
        // The log's disk may be full.
        let _ = std::io::stderr().write_all(passed);
        for byte in bytes {
            if *byte != b'\n' {
                if self.line.len() < LINE {
                    self.line.push(*byte);
                }
            } else if !self.line.is_empty() {
                std::mem::swap(&mut self.last, &mut self.line);
                self.line.clear();
            }
        }
    }

    /// The last line, as text that cannot command a terminal.
    pub fn last(&self) -> Option<String> {
        let line = if self.line.is_empty() { &self.last } else { &self.line };
        let text: String = String::from_utf8_lossy(line).chars().filter(|letter| !letter.is_control()).collect();
        (!text.is_empty()).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_kept_and_short() {
        let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        let mut complaints = Complaints::new(ours);
        assert_eq!(complaints.last(), None);
        rustix::io::write(&theirs, b"first\nsec\x1bond\n\n").unwrap();
        complaints.read();
        assert_eq!(complaints.last().unwrap(), "second");
        rustix::io::write(&theirs, &[b'x'; 4000]).unwrap();
        drop(theirs);
        complaints.read();
        assert_eq!(complaints.last().unwrap(), "x".repeat(LINE));
        assert!(complaints.interest().is_none());
    }
}
