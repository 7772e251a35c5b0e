//! The running dnsmasq: found again, signalled, ended.

use std::{fs, os::fd::OwnedFd, time::Duration};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::{io::unix::AsyncFd, time::timeout};

use super::{
    super::{
        error::{Error, Result},
        readable,
    },
    DNSMASQ, NetworkDir,
};

/// How long it may take to end after SIGTERM, and again after SIGKILL.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// A running dnsmasq of ours.
#[derive(Debug)]
pub(in crate::network) struct Running {
    network: String,
    pid: Pid,
    fd: OwnedFd,
}

impl Running {
    /// The dnsmasq that runs on this network's configuration, if one does.
    pub fn find(dir: &NetworkDir) -> Option<Self> {
        if let Some(found) = Self::find_noted(dir) {
            return Some(found);
        }
        // The pid file is missing or stale. One that is still alive would fight with a new one over the port.
        pids().find_map(|pid| Self::adopt(dir, pid))
    }

    /// As [`Running::find`], but only the one that the pid file tells of; a few system calls.
    pub fn find_noted(dir: &NetworkDir) -> Option<Self> {
        let noted = fs::read_to_string(dir.pid_file()).ok()?.trim().parse().ok()?;
        Self::adopt(dir, noted)
    }

    fn adopt(dir: &NetworkDir, pid: i32) -> Option<Self> {
        let process = Pid::from_raw(pid)?;
        let cmdline = || fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        // Look before opening, to open no fd on every process of the host, and again after, now that the fd pins it.
        let ours = |cmdline: Vec<u8>| {
            let wanted = config_argument(dir);
            let mut args = cmdline.split(|b| *b == 0);
            let program = args.next().unwrap_or_default();
            program.ends_with(DNSMASQ.name.as_bytes()) && args.any(|arg| arg == wanted.as_bytes())
        };
        if !ours(cmdline()) {
            return None;
        }
        let fd = pidfd_open(process, PidfdFlags::NONBLOCK).ok()?;
        ours(cmdline()).then(|| Running { network: dir.name.clone(), pid: process, fd })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Makes it read the host files anew.
    pub fn reload(&self) -> Result<()> {
        self.signal(Signal::HUP)
    }

    /// Ends it: SIGTERM, and SIGKILL when the deadline has passed.
    pub async fn stop(self) -> Result<()> {
        let watched = self.watch()?;
        for signal in [Signal::TERM, Signal::KILL] {
            self.signal(signal)?;
            if timeout(STOP_DEADLINE, watched.readable()).await.is_ok() {
                return Ok(());
            }
        }
        let seconds = 2 * STOP_DEADLINE.as_secs();
        Err(Error::DnsmasqStuck { network: self.network.clone(), pid: self.pid(), seconds })
    }

    /// What becomes readable when it has ended (pidfd_open(2)).
    pub fn watch(&self) -> Result<AsyncFd<OwnedFd>> {
        let watched = self.fd.try_clone().and_then(readable::register);
        watched.map_err(|e| Error::system(format!("cannot watch dnsmasq (pid {})", self.pid()), e))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        match pidfd_send_signal(&self.fd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(Error::system(format!("cannot signal dnsmasq (pid {})", self.pid()), e)),
        }
    }
}

/// The processes of the host.
fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Waits until every dnsmasq is gone that is on its way out. The kernel takes a killed process' memory, and with it the
/// command line by which we would know it, before it closes its sockets: for a moment it holds the port of a network
/// and is nobody's.
pub(super) async fn dying_are_gone() {
    let read = |pid: i32, file: &str| fs::read(format!("/proc/{pid}/{file}"));
    for pid in pids() {
        let dies = read(pid, "comm").is_ok_and(|comm| comm.trim_ascii() == DNSMASQ.name.as_bytes())
            && read(pid, "cmdline").is_ok_and(|cmdline| cmdline.is_empty());
        let Some(process) = Pid::from_raw(pid).filter(|_| dies) else { continue };
        let Ok(fd) = pidfd_open(process, PidfdFlags::NONBLOCK) else { continue };
        if let Ok(watched) = readable::register(fd) {
            // One that hangs in the kernel is not ours to wait for; starting another says what is wrong.
            let _ = timeout(STOP_DEADLINE, watched.readable()).await;
        }
    }
}

pub(super) fn config_argument(dir: &NetworkDir) -> String {
    format!("--conf-file={}", dir.config().display())
}
