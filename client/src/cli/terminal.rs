//! The user's terminal: raw mode, its size, and standard input as messages.

use std::io::{IsTerminal as _, Read as _};

use bytes::Bytes;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

/// Puts the terminal on standard input into raw mode until it is dropped.
pub(crate) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Switches to raw mode; `None` if standard input is not a terminal.
    pub(crate) fn enter() -> std::io::Result<Option<Self>> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Flushing drops what was typed but not read, such as the rest of a detach sequence.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// The terminal's columns and lines, or 0 and 0 where there is none.
pub(crate) fn size() -> (u16, u16) {
    tcgetwinsize(std::io::stdout()).map(|size| (size.ws_col, size.ws_row)).unwrap_or((0, 0))
}

/// Standard input, chunk by chunk, until its end.
///
/// A thread reads it, because it may be anything: a terminal, a pipe, a file, /dev/null. It ends with the process;
/// nobody waits for a read that nothing may ever answer.
pub(crate) fn stdin_chunks() -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        let mut stdin = std::io::stdin().lock();
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    if sender.blocking_send(Bytes::copy_from_slice(&buffer[..count])).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    receiver
}
