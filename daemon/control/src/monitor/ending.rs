//! The end of an instance, and of its monitor with it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec, poll};
use rustix::fs::{AtFlags, Mode, OFlags};

use super::connection::Connection;
use crate::protocol::{self, EXIT_FILE, ExitRecord, Reply, SOCKET_NAME};
use crate::step::{Step, StepError};

/// How long watchers may take for the last message.
const FAREWELL: Duration = Duration::from_secs(1);

/// Writes down how the instance ended, so that a daemon that was away can read it. The record appears whole or not at
/// all.
///
/// # Errors
/// The step that failed.
pub fn record(run_dir: &OwnedFd, record: &ExitRecord) -> Result<(), StepError> {
    const NEW: &str = "exit.json.new";
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(run_dir, NEW, flags, Mode::from_raw_mode(0o600)).step("record the end")?;
    rustix::io::write(&file, &protocol::encode(record)).step("record the end")?;
    rustix::fs::renameat(run_dir, NEW, run_dir, EXIT_FILE).step("record the end")
}

/// Tells the watchers, and takes the control socket away.
///
/// # Errors
/// The socket could not be removed.
pub fn announce(
    run_dir: &OwnedFd,
    connections: &mut BTreeMap<u64, Connection>,
    record: &ExitRecord,
) -> Result<(), StepError> {
    // First, so that whoever is told finds no socket that nobody answers on.
    rustix::fs::unlinkat(run_dir, SOCKET_NAME, AtFlags::empty()).step("remove the control socket")?;
    for connection in connections.values_mut().filter(|connection| connection.watching) {
        connection.send(&Reply::Exited(record.clone()), Vec::new());
    }
    let deadline = Instant::now() + FAREWELL;
    loop {
        connections.retain(|_, connection| !connection.is_settled());
        let left = deadline.saturating_duration_since(Instant::now());
        if connections.is_empty() || left.is_zero() {
            return Ok(());
        }
        let timeout = Timespec::try_from(left).unwrap_or_default();
        let mut fds: Vec<_> = connections.values().map(|c| PollFd::new(c, c.interest())).collect();
        let _ = poll(&mut fds, Some(&timeout));
        drop(fds);
        connections.values_mut().for_each(Connection::flush);
    }
}
