//! What the daemon is made of: one value that every handler and task shares.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::apparmor::AppArmor;
use crate::error::{Context, Result};
use crate::events::Events;
use crate::grace::GracePeriods;
use crate::images::Images;
use crate::instances::Instances;
use crate::inventory::Inventory;
use crate::machines::Machines;
use crate::network;
use crate::operations::Operations;
use crate::pools::Pools;
use crate::systemd::Systemd;
use crate::warnings::Warnings;

/// Where things are kept below the state directory (`DUET_DIR`).
#[derive(Clone, Debug)]
pub struct Paths {
    /// The state directory itself.
    pub root: PathBuf,
}

impl Paths {
    /// The API's socket.
    pub fn socket(&self) -> PathBuf {
        self.root.join("unix.socket")
    }

    /// The inventory.
    pub fn database(&self) -> PathBuf {
        self.root.join("duet.db")
    }

    /// Image files by fingerprint.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Where pools' own directories are.
    pub fn pools(&self) -> PathBuf {
        self.root.join("storage-pools")
    }

    /// A pool's own directory.
    pub fn pool(&self, name: &str) -> PathBuf {
        self.pools().join(name)
    }

    /// Where the files of pools on a file are.
    pub fn disks(&self) -> PathBuf {
        self.root.join("disks")
    }

    /// The file of a pool on a file.
    pub fn disk(&self, pool: &str) -> PathBuf {
        self.disks().join(format!("{pool}.img"))
    }

    /// An instance's run directory: gone when it stops.
    pub fn run(&self, id: i64) -> PathBuf {
        self.root.join("run").join(id.to_string())
    }

    /// The run directory of what serves a stopped virtual machine's disk.
    pub fn serving(&self, name: &str) -> PathBuf {
        self.root.join("run").join(name)
    }

    /// The mark of short grace periods.
    pub fn grace(&self) -> PathBuf {
        self.root.join("rcu_expedited")
    }

    /// An instance's logs.
    pub fn logs(&self, instance: &str) -> PathBuf {
        self.root.join("logs").join(instance)
    }

    /// Device nodes made for an instance.
    pub fn devices(&self, id: i64) -> PathBuf {
        self.root.join("devices").join(id.to_string())
    }

    /// An instance's own metadata and templates, once it has any.
    pub fn metadata(&self, id: i64) -> PathBuf {
        self.root.join("metadata").join(id.to_string())
    }

    /// What was made for kernels of virtual machines.
    pub fn kernels(&self) -> PathBuf {
        self.root.join("kernels")
    }

    /// Files of managed networks.
    pub fn networks(&self) -> PathBuf {
        self.root.join("networks")
    }

    /// Where uploads and builds are worked on; emptied at start.
    pub fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    /// Makes the directories. Only root may look in, except that containers' roots must be reachable by their
    /// shifted ids through idmapped mounts, which do not walk these parents.
    ///
    /// # Errors
    /// With the path that could not be made.
    pub fn create(&self) -> Result<()> {
        use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
        let dirs = [
            (self.root.clone(), 0o711),
            (self.images(), 0o700),
            (self.pools(), 0o711),
            (self.disks(), 0o700),
            (self.root.join("run"), 0o711),
            (self.root.join("logs"), 0o700),
            (self.root.join("metadata"), 0o700),
            (self.root.join("devices"), 0o711),
            (self.networks(), 0o711),
            (self.kernels(), 0o700),
            (self.work(), 0o700),
        ];
        for (dir, mode) in dirs {
            let make = || {
                std::fs::DirBuilder::new().recursive(true).mode(mode).create(&dir)?;
                std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(mode))
            };
            make().doing(format_args!("cannot make {}", dir.display()))?;
        }
        Ok(())
    }
}

/// The parts.
pub struct Parts {
    /// Where things are kept.
    pub paths: Paths,
    /// Everything that is intended.
    pub inventory: Inventory,
    /// Background operations.
    pub operations: Operations,
    /// The events channel.
    pub events: Events,
    /// Bridges, veths, addresses.
    pub network: network::Manager,
    /// Profiles of running instances.
    pub apparmor: AppArmor,
    /// Storage pools and their drivers.
    pub pools: Pools,
    /// The image store.
    pub images: Images,
    /// Running and stopped instances.
    pub instances: Instances,
    /// What virtual machines need of the host.
    pub machines: Machines,
    /// The host's systemd.
    pub systemd: Systemd,
    /// How long the kernel takes for what it frees.
    pub grace: Arc<GracePeriods>,
    /// Held while a client's change of anything but an instance is read, compared with its ETag and written, so that no
    /// other comes in between. An instance's slot does that for instances.
    pub edits: Mutex<()>,
    /// What an admin should know.
    pub warnings: Warnings,
    /// Fires when the networks are up and changes can be made.
    pub ready: CancellationToken,
    /// Fires when the host goes down: no instance is started any more.
    pub closing: CancellationToken,
    /// Fires when all instances were stopped: the daemon is to end.
    pub leaving: CancellationToken,
    /// Fires when the daemon goes down.
    pub shutdown: CancellationToken,
}

/// The daemon, cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Parts>);

impl App {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// The prefix of this daemon's cgroups: `duet`, or `duet-<hash>` for a state directory other than the standard one,
/// so that several daemons (tests) can share a host.
pub fn cgroup_prefix(root: &Path) -> String {
    use sha2::{Digest, Sha256};
    use std::os::unix::ffi::OsStrExt;
    if root == Path::new(crate::DEFAULT_DIR) {
        return "duet".to_owned();
    }
    let digest = Sha256::digest(root.as_os_str().as_bytes());
    format!("duet-{:02x}{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2], digest[3])
}
