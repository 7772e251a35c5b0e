//! What the main thread waits for while the machine runs: its end, input for the serial port, the control socket.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use duet_sys::socket;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;

use crate::board::{Board, lock};
use crate::control;
use crate::power::Ending;
use crate::serial;
use crate::vcpu::Cpus;

/// The most connections to the control socket at a time; others wait until one is closed.
const MAX_CONNECTIONS: usize = 16;
/// What is taken from the serial port's input at a time in bytes.
const CHUNK: usize = 256;

/// The descriptors that lead out of the machine.
#[derive(Debug)]
pub struct Outside {
    /// The serial port's input.
    pub input: Option<File>,
    /// The control socket, listening.
    pub control: Option<OwnedFd>,
}

/// What can have happened.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    End,
    Drained,
    Input,
    Listener,
    Connection(usize),
}

/// Serves the machine until it ends.
///
/// # Errors
/// If it can no longer be waited for anything.
pub fn serve(outside: Outside, board: &Board, cpus: &Cpus) -> io::Result<Ending> {
    let Outside { mut input, control } = outside;
    let drained = lock(&board.serial).events().0.try_clone()?;
    let mut connections: Vec<OwnedFd> = Vec::new();
    // What the serial port had no room for yet.
    let mut waiting: Vec<u8> = Vec::new();
    if let Some(listener) = &control {
        socket::set_nonblocking(listener, true)?;
    }
    loop {
        let ready =
            wait(board, &drained, input.as_ref().filter(|_| waiting.is_empty()), control.as_ref(), &connections)?;
        if ready.contains(&Source::Drained) {
            let _ = drained.read();
        }
        if ready.contains(&Source::Input) && !read_input(&mut input, &mut waiting) {
            input = None;
        }
        if !waiting.is_empty() {
            let taken = serial::receive(&mut lock(&board.serial), &waiting);
            waiting.drain(..taken);
        }
        // From the last on, so that the numbers of the others stay right.
        for source in ready.iter().rev() {
            if let Source::Connection(index) = source
                && !control::answer(&connections[*index], board, cpus)
            {
                connections.swap_remove(*index);
            }
        }
        if ready.contains(&Source::Listener)
            && let Some(listener) = &control
            && let Ok(Some(connection)) = socket::accept(listener)
            && socket::set_nonblocking(&connection, true).is_ok()
        {
            connections.push(connection);
        }
        if let Some(ending) = board.power.ending() {
            return Ok(ending);
        }
    }
}

fn wait(
    board: &Board,
    drained: &vmm_sys_util::eventfd::EventFd,
    input: Option<&File>,
    control: Option<&OwnedFd>,
    connections: &[OwnedFd],
) -> io::Result<Vec<Source>> {
    let (ended, drained) = (borrow(&board.power.ended), borrow(drained));
    let mut sources = vec![(Source::End, ended), (Source::Drained, drained)];
    sources.extend(input.map(|input| (Source::Input, input.as_fd())));
    sources.extend(
        control.filter(|_| connections.len() < MAX_CONNECTIONS).map(|control| (Source::Listener, control.as_fd())),
    );
    sources.extend(connections.iter().enumerate().map(|(index, fd)| (Source::Connection(index), fd.as_fd())));
    let mut wanted: Vec<PollFd<'_>> = sources.iter().map(|(_, fd)| PollFd::new(fd, PollFlags::IN)).collect();
    retry_on_intr(|| poll(&mut wanted, None))?;
    Ok(wanted.iter().zip(&sources).filter(|(fd, _)| !fd.revents().is_empty()).map(|(_, (source, _))| *source).collect())
}

/// Reads what there is. `false`: there will be no more.
fn read_input(input: &mut Option<File>, waiting: &mut Vec<u8>) -> bool {
    let Some(file) = input else { return false };
    let mut chunk = [0; CHUNK];
    match file.read(&mut chunk) {
        Ok(0) => false,
        Ok(len) => {
            waiting.extend_from_slice(&chunk[..len]);
            true
        }
        Err(error) => is_passing(&error),
    }
}

/// Whether the same call may succeed another time.
pub(crate) fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// vmm-sys-util's type does not know of I/O safety yet.
pub(crate) fn borrow(event: &vmm_sys_util::eventfd::EventFd) -> std::os::fd::BorrowedFd<'_> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open as long as `event`, which the result borrows.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
