//! Which signal asks an init to shut the system down.

use std::path::Path;

/// The kinds of init that are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InitKind {
    /// `SIGRTMIN+4` would be power off as well; `SIGRTMIN+3` is halt, which LXC and the OCI runtimes send (systemd(1)).
    Systemd,
    /// `SIGUSR2` is power off (busybox `init/init.c`).
    Busybox,
    /// `SIGPWR` is a failing power supply, upon which the other inits shut down (init(8) of sysvinit).
    Other,
}

/// The signal for the init with this process id. What an init looks like is up to the container; a lie only makes its
/// own stop take the longer way.
pub(super) fn signal_for(init_pid: u32) -> i32 {
    let exe = std::fs::read_link(format!("/proc/{init_pid}/exe")).unwrap_or_default();
    match kind_of(&exe) {
        InitKind::Systemd => libc::SIGRTMIN() + 3,
        InitKind::Busybox => libc::SIGUSR2,
        InitKind::Other => libc::SIGPWR,
    }
}

/// Whether the init with this process id says by itself when the system is up. Others are taken to be up at once.
pub(super) fn announces_readiness(init_pid: u32) -> bool {
    let exe = std::fs::read_link(format!("/proc/{init_pid}/exe")).unwrap_or_default();
    kind_of(&exe) == InitKind::Systemd
}

fn kind_of(exe: &Path) -> InitKind {
    match exe.file_name().and_then(|name| name.to_str()) {
        Some("systemd") => InitKind::Systemd,
        Some(name) if name.starts_with("busybox") => InitKind::Busybox,
        _ => InitKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inits_are_told_apart_by_their_program() {
        let kind = |path: &str| kind_of(Path::new(path));
        assert_eq!(kind("/usr/lib/systemd/systemd"), InitKind::Systemd);
        assert_eq!(kind("/bin/busybox"), InitKind::Busybox);
        assert_eq!(kind("/bin/busybox.static"), InitKind::Busybox);
        assert_eq!(kind("/sbin/init"), InitKind::Other);
        assert_eq!(kind(""), InitKind::Other);
    }
}
