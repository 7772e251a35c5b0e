//! Waiting for an engine and other descriptors at once.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::{Engine, Source};

/// What can be done without waiting.
#[derive(Debug, Default)]
pub struct Ready {
    /// Of the engine's.
    pub engine: Vec<Source>,
    /// Of the other descriptors, in their order.
    pub others: Vec<bool>,
}

/// Waits until something can be done, or as long as `timeout` says.
///
/// # Errors
/// As poll(2); an interrupted wait is none.
pub fn wait(engine: Option<&Engine>, others: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<Ready> {
    let interests = engine.map(Engine::interests).unwrap_or_default();
    let mut fds: Vec<PollFd<'_>> =
        interests.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
    fds.extend(others.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
    let timeout = timeout.map(|time| Timespec {
        tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    });
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok(Ready { engine: Vec::new(), others: vec![false; others.len()] }),
        Err(errno) => return Err(errno.into()),
    }
    let mut ready = Ready::default();
    for (fd, (source, ..)) in fds.iter().zip(&interests) {
        if !fd.revents().is_empty() {
            ready.engine.push(*source);
        }
    }
    ready.others = fds[interests.len()..].iter().map(|fd| !fd.revents().is_empty()).collect();
    Ok(ready)
}
