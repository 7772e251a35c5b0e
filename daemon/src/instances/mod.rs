//! Instances: their lifecycle, from the inventory's rows to running processes and back.
//!
//! - [`lifecycle`] says, as a pure value, what may be asked of an instance when.
//! - A [`slot::Slot`] is one instance's place in memory; a [`slot::Held`] claim makes one task the only one to change it.
//! - [`live::Live`] is what runs; it can be had again from the kernel after the daemon was killed ([`boot`]).
//! - The other files are one verb each. They check, change the host, commit to the inventory, then clean up, in this
//!   order, so that a crash between any two steps leaves either what was before or something that a sweep removes.

mod addresses;
pub mod boot;
pub mod console;
pub mod copy;
pub mod create;
pub mod delete;
mod disk_limits;
pub mod exec;
pub mod expand;
pub mod files;
mod guest;
pub mod idmap;
pub mod lifecycle;
pub mod listing;
pub mod live;
pub mod machine;
mod oom;
pub mod plan;
pub mod schedule;
pub mod service;
pub mod sftp;
pub mod shutdown;
pub mod slot;
pub mod snapshot;
pub mod start;
pub mod state;
pub mod stop;
pub mod templates;
mod transfer;
mod undo;
pub mod update;
pub mod wait;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use duet_container::cgroup::Layout;
use duet_container::runtime::MonitorBinary;

pub use expand::{Expanded, check_references, expand_all};
pub use plan::static_hosts;

use crate::app::App;
use crate::error::{Context, Error, Result};
use crate::storage::{LayerId, Made, Taken, Volume};
use idmap::HostIds;
use listing::Listing;
use slot::{Slot, Slots};

/// What the verbs share.
pub struct Instances {
    slots: Slots,
    cgroups: Arc<Layout>,
    cgroup_prefix: String,
    monitor: Arc<MonitorBinary>,
    monitor_path: PathBuf,
    host_ids: HostIds,
    /// Names that are being made.
    reserved: Arc<Mutex<HashSet<String>>>,
    /// Bytes of a stopped instance's own layer, which does not change while it is stopped.
    usage: Mutex<HashMap<i64, (LayerId, u64)>>,
    /// What lists of all instances are made of.
    pub listing: Listing,
}

impl Instances {
    /// Looks at the host.
    ///
    /// # Errors
    /// Where there is no usable cgroup tree, or no monitor program.
    pub fn new(state_dir: &Path, monitor: &Path) -> Result<Self> {
        Ok(Self {
            slots: Slots::default(),
            cgroups: Arc::new(Layout::detect().doing("this host's control groups cannot be used")?),
            cgroup_prefix: crate::app::cgroup_prefix(state_dir),
            monitor_path: monitor.to_owned(),
            monitor: Arc::new(MonitorBinary::open(monitor).doing("duet-monitor belongs beside duetd")?),
            host_ids: HostIds::read(),
            reserved: Arc::default(),
            usage: Mutex::default(),
            listing: Listing::default(),
        })
    }

    /// An instance's place in memory.
    pub fn slot(&self, id: i64) -> Arc<Slot> {
        self.slots.get(id)
    }

    /// Every place whose instance runs.
    pub fn running(&self) -> Vec<Arc<Slot>> {
        self.slots.running()
    }

    /// Forgets a deleted instance.
    fn forget(&self, id: i64) {
        self.slots.forget(id);
        self.forget_usage(id);
    }

    /// The host's control groups.
    pub fn cgroups(&self) -> &Arc<Layout> {
        &self.cgroups
    }

    /// The control group of an instance.
    pub fn cgroup_name(&self, instance: &str) -> String {
        format!("{}/{instance}", self.cgroup_prefix)
    }

    /// The directory that holds the control groups of all instances.
    pub fn cgroup_prefix(&self) -> &str {
        &self.cgroup_prefix
    }

    /// The monitor's program.
    pub fn monitor_binary(&self) -> Arc<MonitorBinary> {
        Arc::clone(&self.monitor)
    }

    /// The monitor's program, by path: for what is not run in a container.
    pub fn monitor_path(&self) -> &Path {
        &self.monitor_path
    }

    /// The host ids that instances may be given.
    pub fn host_ids(&self) -> HostIds {
        self.host_ids
    }

    /// Reserves a name until the reservation is dropped.
    ///
    /// # Errors
    /// Where it is taken, or being taken.
    pub fn reserve(&self, app: &App, name: &str) -> Result<Reservation> {
        let taken = || Error::conflict(format!("Instance \"{name}\" already exists"));
        if !self.reserved.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned()) {
            return Err(taken());
        }
        let reservation = Reservation { name: name.to_owned(), all: Arc::clone(&self.reserved) };
        if app.inventory.instance(name)?.is_some() { Err(taken()) } else { Ok(reservation) }
    }

    /// Remembers a stopped instance's own bytes.
    fn remember_usage(&self, id: i64, upper: LayerId, bytes: u64) {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner).insert(id, (upper, bytes));
    }

    /// A stopped instance's own bytes, if they are known.
    fn known_usage(&self, id: i64, upper: LayerId) -> Option<u64> {
        let usage = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        usage.get(&id).filter(|(of, _)| *of == upper).map(|(_, bytes)| *bytes)
    }

    /// What is on disk may have changed.
    pub fn forget_usage(&self, id: i64) {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

/// A name that nobody else can take meanwhile.
pub struct Reservation {
    name: String,
    all: Arc<Mutex<HashSet<String>>>,
}

impl Reservation {
    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name, given up: its row is there.
    fn into_name(self) -> String {
        self.name.clone()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

/// A new volume, alone or together with what became of its source.
enum MadeVolume {
    /// Alone.
    Alone(Made<Volume>),
    /// With its source.
    Taken(Made<Taken<Volume>>),
}

impl MadeVolume {
    fn volume(&self) -> &Volume {
        match self {
            Self::Alone(made) => made,
            Self::Taken(made) => &made.taken,
        }
    }

    fn keep(self) {
        match self {
            Self::Alone(made) => drop(made.keep()),
            Self::Taken(made) => drop(made.keep()),
        }
    }
}
