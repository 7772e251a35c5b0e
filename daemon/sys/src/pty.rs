//! Pseudoterminals of a given devpts instance.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::{Winsize, tcsetwinsize};

/// A pseudoterminal: the two ends.
#[derive(Debug)]
pub struct Pty {
    /// The end that the terminal emulator holds.
    pub master: OwnedFd,
    /// The end that the program sees as its terminal.
    pub slave: OwnedFd,
}

/// Makes a pseudoterminal in the devpts instance whose root directory is `devpts`. Both ends are close-on-exec.
///
/// The slave belongs to the filesystem uid of the calling thread. It is reached by `TIOCGPTPEER` (ioctl_tty(2)) and not
/// by its path, which in a container anyone may have mounted over.
///
/// # Errors
/// As open(2) of `ptmx` and ioctl(2).
pub fn open(devpts: impl AsFd) -> io::Result<Pty> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::openat(devpts, c"ptmx", flags, Mode::empty())?;
    rustix::pty::unlockpt(&master)?;
    let slave =
        rustix::pty::ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    Ok(Pty { master, slave })
}

/// Sets the window size in characters.
///
/// # Errors
/// As ioctl(2) `TIOCSWINSZ`.
pub fn resize(pty: impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    Ok(tcsetwinsize(pty, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?)
}

/// Makes the terminal the controlling one of the calling session leader.
///
/// # Errors
/// As ioctl(2) `TIOCSCTTY`.
pub fn make_controlling(slave: impl AsFd) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer, no pointer.
    if unsafe { libc::ioctl(slave.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
