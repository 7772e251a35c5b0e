//! Ending the system, and its clock.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::time::ClockId;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_remount};
use rustix::system::RebootCommand;

use super::report;
use crate::protocol::message::{ErrorKind, ErrorReply, ExecRequest};

/// How long programs that were killed may take to close their files.
const PUTTING_DOWN: Duration = Duration::from_secs(2);

/// The kinds of init that are told apart, by their program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InitKind {
    /// `SIGRTMIN+4` is power off and `SIGRTMIN+5` reboot (systemd(1)).
    Systemd,
    /// `SIGUSR2` is power off and `SIGTERM` reboot (busybox `init/init.c`).
    Busybox,
    /// There is none: process 1 is of this program, and waits ([`crate::init`], `duet.serve`).
    None,
    /// Others come with commands of these names.
    Other,
}

impl InitKind {
    /// That of the running init.
    pub fn running() -> Self {
        // Through these links the files themselves are looked at, deleted as they are.
        let file = |path: &str| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
        match file("/proc/1/exe") {
            init @ Some(_) if init == file("/proc/self/exe") => Self::None,
            _ => Self::of(&std::fs::read_link("/proc/1/exe").unwrap_or_default()),
        }
    }

    fn of(program: &Path) -> Self {
        match program.file_name().and_then(|name| name.to_str()) {
            Some("systemd") => Self::Systemd,
            Some(name) if name.starts_with("busybox") => Self::Busybox,
            _ => Self::Other,
        }
    }
}

/// Asks the init to shut the system down. For an init that takes no signal there is a command to run.
pub(super) fn ask_init(reboot: bool) -> Result<Option<ExecRequest>, ErrorReply> {
    let signal = match (InitKind::running(), reboot) {
        (InitKind::Systemd, false) => libc::SIGRTMIN() + 4,
        (InitKind::Systemd, true) => libc::SIGRTMIN() + 5,
        (InitKind::Busybox, false) => libc::SIGUSR2,
        (InitKind::Busybox, true) => libc::SIGTERM,
        (InitKind::None | InitKind::Other, _) => {
            let command = if reboot { "reboot" } else { "poweroff" };
            let found = ["/sbin", "/usr/sbin", "/bin", "/usr/bin"].map(|dir| format!("{dir}/{command}"));
            let Some(path) = found.into_iter().find(|path| Path::new(path).exists()) else {
                let message =
                    format!("the init is of an unknown kind and there is no {command}: it can only be forced");
                return Err(ErrorReply::new(ErrorKind::System, message));
            };
            let environment = BTreeMap::new();
            return Ok(Some(ExecRequest { argv: vec![path], environment, ..ExecRequest::default() }));
        }
    };
    let init = rustix::process::pidfd_open(rustix::process::Pid::INIT, rustix::process::PidfdFlags::empty());
    init.map_err(io::Error::from)
        .and_then(|init| duet_sys::process::signal(init, signal))
        .map(|()| None)
        .map_err(|error| ErrorReply::new(ErrorKind::System, format!("the init takes no signal: {error}")))
}

/// Leaves the root as if it was unmounted, where no init does: ends all programs, and makes it read-only. Returns when
/// that is done, or cannot be.
pub(super) fn put_root_down() {
    // All but process 1 and this one (kill(2)).
    if let Err(error) = nix::sys::signal::kill(nix::unistd::Pid::from_raw(-1), nix::sys::signal::Signal::SIGKILL) {
        report(&format!("there is nothing to end: {error}"));
    }
    let deadline = Instant::now() + PUTTING_DOWN;
    while let Err(error) = mount_remount("/", MountFlags::RDONLY, "") {
        // It is busy until the last of them has closed its files. What is written is safe all the same, by the journal.
        if error != Errno::BUSY || Instant::now() >= deadline {
            return report(&format!("the root cannot be made read-only: {error}"));
        }
        sleep(Duration::from_millis(2));
    }
}

/// Has the kernel end the system at once, once the disks have what is written to them. Returns only if that failed.
pub(crate) fn end_now(reboot: bool) -> io::Result<()> {
    rustix::fs::sync();
    Ok(rustix::system::reboot(if reboot { RebootCommand::Restart } else { RebootCommand::PowerOff })?)
}

/// Sets the clock.
pub(super) fn set_time(seconds: i64, nanoseconds: u32) -> Result<(), ErrorReply> {
    if nanoseconds >= 1_000_000_000 {
        return Err(ErrorReply::new(ErrorKind::Invalid, "a second has less nanoseconds than that"));
    }
    nix::time::clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, nanoseconds.into()))
        .map_err(|error| ErrorReply::new(ErrorKind::System, format!("the clock cannot be set: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inits_are_told_apart_by_their_program() {
        let kind = |path: &str| InitKind::of(Path::new(path));
        assert_eq!(kind("/usr/lib/systemd/systemd"), InitKind::Systemd);
        assert_eq!(kind("/bin/busybox"), InitKind::Busybox);
        assert_eq!(kind("/sbin/init"), InitKind::Other);
    }
}
