//! Ending the system, and its clock.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use nix::sys::time::TimeSpec;
use nix::time::ClockId;
use rustix::system::RebootCommand;

use crate::protocol::message::{ErrorKind, ErrorReply, ExecRequest};

/// The kinds of init that are told apart, by their program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InitKind {
    /// `SIGRTMIN+4` is power off and `SIGRTMIN+5` reboot (systemd(1)).
    Systemd,
    /// `SIGUSR2` is power off and `SIGTERM` reboot (busybox `init/init.c`).
    Busybox,
    /// Others come with commands of these names.
    Other,
}

impl InitKind {
    /// That of the running init.
    pub fn running() -> Self {
        Self::of(&std::fs::read_link("/proc/1/exe").unwrap_or_default())
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
        (InitKind::Other, _) => {
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
