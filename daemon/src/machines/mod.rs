//! What virtual machines need of the host besides what containers do.

mod boot;
pub mod disk;
pub mod image;
mod programs;

use std::path::Path;
use std::sync::Arc;

pub use boot::{Boot, COMMAND_LINE, SERVING, prepare};
pub use programs::{Engine, Programs};

use tokio::sync::OnceCell;

use crate::error::{Error, Result};

/// The memory of a virtual machine that says nothing, in bytes: as with Incus.
pub const DEFAULT_MEMORY: u64 = 1 << 30;
/// The root disk of one that says nothing, in bytes: as with Incus.
pub const DEFAULT_DISK: u64 = 10 << 30;
/// The serial number of the root disk, by which a guest finds it.
pub const ROOT_SERIAL: &str = "duet-root";

/// That of the disk with the kernel's modules, which the agent's init looks for.
pub const MODULES_SERIAL: &str = "duet-modules";

/// What virtual machines share.
pub struct Machines {
    programs: Programs,
    /// What runs them, once that was looked at.
    engine: OnceCell<Arc<Engine>>,
    /// One kernel at a time is prepared.
    preparing: std::sync::Mutex<()>,
}

impl Machines {
    /// With the programs that are installed beside the monitor of containers.
    pub fn new(monitor: &Path) -> Self {
        Self { programs: Programs::beside(monitor), engine: OnceCell::new(), preparing: std::sync::Mutex::default() }
    }

    /// The programs.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// What runs virtual machines on this host. Looked at once, since /dev/kvm is tried.
    ///
    /// # Errors
    /// Where nothing does, with what to install.
    pub async fn engine(&self) -> Result<Arc<Engine>> {
        self.engine.get_or_try_init(|| async { self.programs.engine().await.map(Arc::new) }).await.cloned()
    }

    /// The engine, if it was needed and found already.
    pub fn known_engine(&self) -> Option<Arc<Engine>> {
        self.engine.get().cloned()
    }
}

/// The size of a machine's root disk in bytes.
pub fn disk_size(wanted: Option<u64>) -> u64 {
    wanted.unwrap_or(DEFAULT_DISK)
}

/// The failure where a program is missing.
fn missing(what: &str, package: &str) -> Error {
    Error::invalid(format!("virtual machines need {what}, which is not installed: install the package {package}"))
}
