//! Shorter waits for the kernel while instances are killed.
//!
//! Most of the time in which a killed container's processes end is spent waiting for RCU grace periods, one after
//! another: for its inotify groups, its packet sockets, the mount namespaces of its services. Incus and LXD wait for
//! them as well. With `/sys/kernel/rcu_expedited` (Documentation/admin-guide/kernel-parameters.txt,
//! `rcupdate.rcu_expedited`) a grace period takes microseconds instead of milliseconds, for an interrupt of each busy
//! CPU; the kernel itself has it on while it boots. It is switched on from the kill to the end, and off again with the
//! last of those that are under way. `rcupdate.rcu_normal`, which hosts with real-time duties set, overrules it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

const SWITCH: &str = "/sys/kernel/rcu_expedited";

/// Who wants short grace periods at present.
#[derive(Debug)]
pub struct GracePeriods {
    switch: PathBuf,
    /// Is there while the switch is on by us, so that a daemon that was killed in between is made up for by the next.
    mark: PathBuf,
    wanted: Mutex<usize>,
}

impl GracePeriods {
    /// `mark` is a file's path that nothing else has. Where a daemon before this one left the switch on, it is put
    /// back.
    pub fn new(mark: PathBuf) -> Arc<Self> {
        Self::of(SWITCH.into(), mark)
    }

    fn of(switch: PathBuf, mark: PathBuf) -> Arc<Self> {
        let periods = Self { switch, mark, wanted: Mutex::new(0) };
        periods.leave();
        Arc::new(periods)
    }

    /// Short ones until the result is dropped. Where the host has no such switch, or has it on already, nothing
    /// changes.
    pub fn shorten(self: &Arc<Self>) -> Short {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if *wanted == 0 {
            self.enter();
        }
        *wanted += 1;
        Short(Arc::clone(self))
    }

    fn enter(&self) {
        let off = std::fs::read_to_string(&self.switch).is_ok_and(|value| value.trim() == "0");
        if off && std::fs::write(&self.mark, "").is_ok() && std::fs::write(&self.switch, "1").is_err() {
            // A container's /sys, or a host that keeps it from us.
            let _ = std::fs::remove_file(&self.mark);
        }
    }

    fn leave(&self) {
        // Without a mark the switch was on before, or is not ours to use.
        if !self.mark.exists() {
            return;
        }
        match std::fs::write(&self.switch, "0") {
            Ok(()) => drop(std::fs::remove_file(&self.mark)),
            Err(error) => tracing::warn!(%error, "{} stays 1", self.switch.display()),
        }
    }
}

/// The wish for short grace periods.
#[derive(Debug)]
pub struct Short(Arc<GracePeriods>);

impl Drop for Short {
    fn drop(&mut self) {
        let mut wanted = self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        *wanted -= 1;
        if *wanted == 0 {
            self.0.leave();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host(tempfile::TempDir);

    impl Host {
        /// Its switch as it is, and none where that is None.
        fn with(switch: Option<&str>) -> Self {
            let host = Self(tempfile::tempdir().unwrap());
            if let Some(value) = switch {
                std::fs::write(host.0.path().join("switch"), value).unwrap();
            }
            host
        }

        fn daemon(&self) -> Arc<GracePeriods> {
            GracePeriods::of(self.0.path().join("switch"), self.0.path().join("mark"))
        }

        /// The switch, and whether the mark is there.
        fn state(&self) -> (Option<String>, bool) {
            let switch = std::fs::read_to_string(self.0.path().join("switch")).ok();
            (switch.map(|value| value.trim().to_owned()), self.0.path().join("mark").exists())
        }
    }

    #[test]
    fn on_while_anyone_wants_it() {
        let host = Host::with(Some("0\n"));
        let daemon = host.daemon();
        let first = daemon.shorten();
        let second = daemon.shorten();
        assert_eq!(host.state(), (Some("1".into()), true));
        drop(first);
        assert_eq!(host.state(), (Some("1".into()), true));
        drop(second);
        assert_eq!(host.state(), (Some("0".into()), false));
    }

    #[test]
    fn what_the_admin_switched_on_stays_on() {
        let host = Host::with(Some("1\n"));
        drop(host.daemon().shorten());
        assert_eq!(host.state(), (Some("1".into()), false));
    }

    #[test]
    fn a_host_without_the_switch_gets_none() {
        let host = Host::with(None);
        // The kernel's directory takes no new files.
        std::fs::create_dir(host.0.path().join("switch")).unwrap();
        drop(host.daemon().shorten());
        assert_eq!(host.state(), (None, false));
    }

    #[test]
    fn the_next_daemon_makes_up_for_one_that_was_killed() {
        let host = Host::with(Some("0\n"));
        std::mem::forget(host.daemon().shorten());
        assert_eq!(host.state(), (Some("1".into()), true));
        let _next = host.daemon();
        assert_eq!(host.state(), (Some("0".into()), false));
    }
}
