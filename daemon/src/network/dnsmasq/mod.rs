//! DHCP and DNS: one dnsmasq per bridge.
//!
//! All that a dnsmasq needs lies in `$DUET_DIR/networks/<name>/`:
//!
//! | file | written by | what |
//! |---|---|---|
//! | `dnsmasq.conf` | us, only while it is stopped | its whole configuration |
//! | `dnsmasq.pid` | dnsmasq | its process id |
//! | `dnsmasq.leases` | dnsmasq | leases, see [`super::leases`] |
//! | `hosts/<instance>.<nic>` | us | one static host, see [`StaticHost`] |
//!
//! dnsmasq puts itself into the background, in a session of its own and as a child of init, so it outlives the
//! daemon; its parent's exit status says whether it got all its sockets. Afterwards it is known by its command line,
//! which names our configuration file: the pid file only tells where to look first, and a process is signalled through
//! a pidfd that was opened *before* its command line was read, so never a stranger that inherited the number.
//! Because the configuration is only ever written while no dnsmasq runs on it, the file on disk is what the running
//! one has read, and comparing it with the wanted one decides about a restart.
//!
//! It drops root as soon as its sockets are open, to the user `dnsmasq` or `nobody` if there is one that can reach
//! the `hosts` directory; where the path is closed to others it stays root rather than lose the static hosts.

mod hosts;
mod process;
mod render;

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

pub use self::hosts::StaticHost;
use self::{hosts::file_name, process::config_argument};
pub(super) use self::{
    hosts::{HostChange, prune_hosts, remove_host, write_host},
    process::Running,
    render::render,
};
use super::error::{Error, Result};
use crate::program::{Program, complaint};

/// The DHCP and DNS server.
const DNSMASQ: Program = Program { name: "dnsmasq", package: "dnsmasq-base" };

/// The files of one network.
#[derive(Debug, Clone)]
pub(super) struct NetworkDir {
    name: String,
    dir: PathBuf,
}

impl NetworkDir {
    pub fn new(networks: &Path, name: &str) -> Self {
        NetworkDir { name: name.to_owned(), dir: networks.join(name) }
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    pub fn leases(&self) -> PathBuf {
        self.dir.join("dnsmasq.leases")
    }

    fn config(&self) -> PathBuf {
        self.dir.join("dnsmasq.conf")
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("dnsmasq.pid")
    }

    pub fn hosts(&self) -> PathBuf {
        self.dir.join("hosts")
    }

    /// Makes the directories that are missing. Others may pass through them, as a dnsmasq without root must.
    pub fn create(&self) -> Result<()> {
        for (dir, mode) in [(self.dir.clone(), 0o711), (self.hosts(), 0o755)] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(&dir)
                .map_err(|e| Error::file("create", dir.clone(), e))?;
        }
        Ok(())
    }

    /// Removes all files of the network.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", &self.dir, e)),
            _ => Ok(()),
        }
    }

    /// A name beside the files that nobody else uses: several may write at once, each file by one of them.
    fn temporary(&self) -> PathBuf {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        self.dir.join(format!(".new.{}", COUNTER.fetch_add(1, Ordering::Relaxed)))
    }

    /// Removes a file of the hosts directory. dnsmasq is told of each one that is deleted there, tries to read it, and
    /// logs an error; one that was moved away first it does not hear of.
    fn remove_host_file(&self, path: &Path) -> io::Result<()> {
        let temporary = self.temporary();
        fs::rename(path, &temporary)?;
        fs::remove_file(temporary)
    }

    /// Writes a file of ours so that readers see the old text or the new one, never a part.
    pub fn write(&self, path: &Path, text: &str) -> Result<()> {
        let temporary = self.temporary();
        let write = || {
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o644).open(&temporary)?;
            file.write_all(text.as_bytes())?;
            // Closed first: else dnsmasq hears of a host's file twice, of the move and of the close, and each time
            // compares all its leases with all its hosts.
            drop(file);
            fs::rename(&temporary, path)
        };
        write().map_err(|e| {
            let _ = fs::remove_file(&temporary);
            Error::file("write", path, e)
        })
    }

    fn host_file(&self, id: &str) -> PathBuf {
        self.hosts().join(file_name(id))
    }
}

/// Makes the network's dnsmasq run with this configuration, or not run if there is none. `anew` restarts it even if
/// the configuration is the same, as is needed when the bridge is another link than before: its DHCP socket is bound
/// to the link itself. Returns whether one was started.
pub(super) async fn ensure(dir: &NetworkDir, wanted: Option<&str>, anew: bool) -> Result<bool> {
    let running = Running::find(dir);
    let Some(wanted) = wanted else {
        stop(dir).await?;
        return Ok(false);
    };
    let same = fs::read_to_string(dir.config()).is_ok_and(|text| text == wanted);
    if let Some(running) = running {
        if same && !anew {
            return Ok(false);
        }
        if !same {
            // Better an error now, with the old one still serving, than none at all afterwards.
            check(dir, wanted).await?;
        }
        running.stop().await?;
    }
    process::dying_are_gone().await;
    if !same {
        dir.write(&dir.config(), wanted)?;
    }
    let argument = config_argument(dir);
    let output = DNSMASQ.run(&[argument.as_ref()], "").await?;
    if output.status.success() {
        return Ok(true);
    }
    Err(failure(dir, complaint(&output)))
}

/// Stops the network's dnsmasq if it runs.
pub(super) async fn stop(dir: &NetworkDir) -> Result<()> {
    if let Some(running) = Running::find(dir) {
        running.stop().await?;
    }
    // Left behind by one that was killed.
    let _ = fs::remove_file(dir.pid_file());
    Ok(())
}

/// Has dnsmasq read a configuration without acting on it.
async fn check(dir: &NetworkDir, text: &str) -> Result<()> {
    let trial = dir.path().join("dnsmasq.conf.trial");
    dir.write(&trial, text)?;
    let argument = format!("--conf-file={}", trial.display());
    let output = DNSMASQ.run(&["--test".as_ref(), argument.as_ref()], "").await;
    let _ = fs::remove_file(&trial);
    let output = output?;
    if output.status.success() { Ok(()) } else { Err(failure(dir, complaint(&output))) }
}

fn failure(dir: &NetworkDir, said: String) -> Error {
    let hint = if said.contains("Address already in use") {
        "; another DNS server listens on all addresses of this host: make it leave the bridge out (dnsmasq: \
         bind-interfaces, unbound: interface, named: listen-on)"
    } else {
        ""
    };
    let said = said.strip_prefix("dnsmasq: ").unwrap_or(&said).trim();
    Error::Dnsmasq { network: dir.name.clone(), message: format!("{said}{hint}") }
}
