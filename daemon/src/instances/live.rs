//! What runs of an instance: its init, its monitor, its control group and the view into its network.
//!
//! Everything here can be had again from the kernel and the monitor after the daemon was restarted: [`adopt`] makes
//! the same value that a start made.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use duet_container::cgroup::{Cgroup, CpuList};
use duet_container::spec::IdMap;
use duet_control::client::MonitorClient;
use duet_control::protocol::{ExitReason, ExitRecord, Reply};
use jiff::Timestamp;
use tokio::sync::watch;

use super::guest::Guest;
use crate::error::{Context, Error, Result, blocking};
use crate::network::{NetnsState, NetnsWatcher};

/// A running instance.
pub struct Live {
    /// The instance's name, which is fixed while it runs.
    pub name: String,
    /// Where its monitor's socket is.
    pub run_dir: PathBuf,
    /// Its init on the host.
    pub init_pid: u32,
    /// Refers to its init, whatever becomes of the number.
    pub pidfd: OwnedFd,
    /// When init was executed.
    pub started_at: Timestamp,
    /// Where it is counted, limited, frozen and killed.
    pub cgroup: Cgroup,
    /// What can be seen of its inside.
    inside: Inside,
    /// Device -> link on the host.
    nics: Mutex<BTreeMap<String, String>>,
    /// The CPUs it may run on; None for all.
    cpus: Mutex<Option<CpuList>>,
    frozen: AtomicBool,
    ready: AtomicBool,
    /// Somebody asked for its end and does what follows from it.
    stop_requested: AtomicBool,
    /// How it ended, once it has and what it held on the host is released.
    ended: watch::Sender<Option<ExitReason>>,
}

/// What can be seen of an instance's inside, and how.
pub enum Inside {
    /// A container's is a part of the host.
    Container {
        /// Its user namespace's map; None for a privileged one.
        idmap: Option<IdMap>,
        /// The view into its network namespace.
        netns: NetnsWatcher,
    },
    /// A virtual machine's is what its guest says of itself.
    Machine(Guest),
}

impl Inside {
    /// A container's; `netlink` is a netlink socket in its network namespace.
    ///
    /// # Errors
    /// Where its network cannot be watched.
    pub fn container(idmap: Option<IdMap>, netlink: OwnedFd) -> Result<Self> {
        let netns = NetnsWatcher::spawn(netlink).doing("cannot watch the instance's network")?;
        Ok(Self::Container { idmap, netns })
    }
}

/// What a start or an adoption knows.
pub struct Parts {
    /// See [`Live`].
    pub name: String,
    /// See [`Live`].
    pub run_dir: PathBuf,
    /// See [`Live`].
    pub init_pid: u32,
    /// See [`Live`].
    pub pidfd: OwnedFd,
    /// See [`Live`].
    pub started_at: Timestamp,
    /// See [`Live`].
    pub cgroup: Cgroup,
    /// See [`Live`].
    pub inside: Inside,
    /// Device -> link on the host.
    pub nics: BTreeMap<String, String>,
    /// The CPUs it may run on; None for all.
    pub cpus: Option<CpuList>,
    /// Whether it is held by the freezer.
    pub frozen: bool,
}

impl Live {
    /// Puts a running instance together.
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            name: parts.name,
            run_dir: parts.run_dir,
            init_pid: parts.init_pid,
            pidfd: parts.pidfd,
            started_at: parts.started_at,
            cgroup: parts.cgroup,
            inside: parts.inside,
            nics: Mutex::new(parts.nics),
            cpus: Mutex::new(parts.cpus),
            frozen: AtomicBool::new(parts.frozen),
            ready: AtomicBool::new(false),
            stop_requested: AtomicBool::new(false),
            ended: watch::Sender::new(None),
        })
    }

    /// Its guest, where it is a virtual machine.
    pub fn guest(&self) -> Option<&Guest> {
        match &self.inside {
            Inside::Container { .. } => None,
            Inside::Machine(guest) => Some(guest),
        }
    }

    /// Whether it is a virtual machine.
    pub fn is_machine(&self) -> bool {
        self.guest().is_some()
    }

    /// Its user namespace's map; None where it has none.
    pub fn idmap(&self) -> Option<IdMap> {
        match &self.inside {
            Inside::Container { idmap, .. } => *idmap,
            Inside::Machine(_) => None,
        }
    }

    /// Its network as it was last heard of.
    pub fn network(&self) -> Arc<NetnsState> {
        match &self.inside {
            Inside::Container { netns, .. } => netns.current(),
            Inside::Machine(guest) => guest.network(),
        }
    }

    /// Whether it is held by the freezer.
    pub fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Acquire)
    }

    /// Records that it is held by the freezer, or not.
    pub fn set_frozen(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Release);
    }

    /// Says that the caller will do what follows from its end.
    pub fn request_stop(&self) {
        self.stop_requested.store(true, Ordering::Release);
    }

    /// The caller gave up; its end, should it come, is handled by itself.
    pub fn withdraw_stop(&self) {
        self.stop_requested.store(false, Ordering::Release);
    }

    /// Whether somebody asked for its end.
    pub fn stop_requested(&self) -> bool {
        self.stop_requested.load(Ordering::Acquire)
    }

    /// The CPUs it may run on; None for all.
    pub fn cpus(&self) -> Option<CpuList> {
        self.cpus.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records the CPUs it may run on.
    pub fn set_cpus(&self, cpus: Option<CpuList>) {
        *self.cpus.lock().unwrap_or_else(PoisonError::into_inner) = cpus;
    }

    /// Device -> link on the host.
    pub fn nics(&self) -> BTreeMap<String, String> {
        self.nics.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records a link that was plugged in (Some) or out (None).
    pub fn set_nic(&self, device: &str, host_name: Option<String>) {
        let mut nics = self.nics.lock().unwrap_or_else(PoisonError::into_inner);
        match host_name {
            Some(host_name) => nics.insert(device.to_owned(), host_name),
            None => nics.remove(device),
        };
    }

    /// Its network now; of a container with the counters of this moment.
    pub async fn network_now(&self) -> Arc<NetnsState> {
        match &self.inside {
            Inside::Container { netns, .. } => match netns.snapshot().await {
                Ok(network) => Arc::new(network),
                Err(_) => netns.current(),
            },
            Inside::Machine(guest) => guest.network(),
        }
    }

    /// Waits for its end.
    pub async fn wait_end(&self) -> ExitReason {
        let mut ended = self.ended.subscribe();
        loop {
            if let Some(reason) = *ended.borrow_and_update() {
                return reason;
            }
            // The sender lives in self.
            let _ = ended.changed().await;
        }
    }

    /// Whether its init has said that the system is up.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Records that its init has said so.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// Has changes of its addresses count as changes of its slot.
    pub fn announce_to(&self, slot: &Arc<super::slot::Slot>) {
        let mut states = match &self.inside {
            Inside::Container { netns, .. } => netns.subscribe(),
            Inside::Machine(guest) => guest.subscribe(),
        };
        let slot = Arc::clone(slot);
        tokio::spawn(async move {
            while states.changed().await.is_ok() {
                states.borrow_and_update();
                slot.announce();
            }
        });
    }

    /// Records how it ended.
    pub fn set_ended(&self, reason: ExitReason) {
        self.ended.send_replace(Some(reason));
    }

    /// Host uid and gid of its root.
    pub fn owner(&self) -> (u32, u32) {
        self.idmap().map_or((0, 0), |map| (map.host_base_uid, map.host_base_gid))
    }

    /// A call to its monitor, on a worker thread.
    ///
    /// # Errors
    /// What the monitor answered, or that it does not.
    pub async fn call<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(MonitorClient) -> std::result::Result<T, duet_control::client::ClientError> + Send + 'static,
    {
        let run_dir = self.run_dir.clone();
        blocking(move || MonitorClient::connect(&run_dir).and_then(work).map_err(|e| Error::invalid(e.to_string())))
            .await
    }
}

/// Connects to a monitor and waits, without a thread, until the container ends; calls `ready` when its init says that
/// the system is up. None: the monitor vanished.
///
/// # Errors
/// Where there is no monitor.
pub fn watch_end(
    run_dir: &std::path::Path,
    ready: impl Fn() + Send + 'static,
) -> Result<impl Future<Output = Option<ExitRecord>> + Send + 'static> {
    let client = MonitorClient::connect(run_dir).doing("cannot reach the monitor")?;
    client.watch().doing("cannot watch the monitor")?;
    let socket = crate::readiness::register(client)?;
    Ok(async move {
        loop {
            let mut guard = socket.readable().await.ok()?;
            match socket.get_ref().try_receive() {
                Ok(Some((Reply::Exited(record), _))) => return Some(record),
                Ok(Some((Reply::Ready, _))) => ready(),
                Ok(Some(_)) => {}
                Ok(None) => guard.clear_ready(),
                Err(_) => return None,
            }
        }
    })
}

/// The time that a monitor reports as seconds.
pub fn timestamp(seconds: f64) -> Timestamp {
    // Whole microseconds: what a double holds exactly for centuries to come.
    #[allow(clippy::cast_possible_truncation)]
    Timestamp::from_microsecond((seconds * 1e6) as i64).unwrap_or(Timestamp::UNIX_EPOCH)
}
