//! The programs that run virtual machines, and which of them this host can use.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use duet_vm::spec::Accelerator;
use tokio::process::Command;

use super::missing;
use crate::error::{Error, Result};
use crate::program::Program;

/// QEMU's software emulation.
const QEMU: Program = Program { name: "qemu-system-x86_64", package: "qemu-system-x86" };
/// How long the probe of /dev/kvm may take: its own deadline is a tenth of this.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// Where our own programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    dir: PathBuf,
}

/// What runs virtual machines.
#[derive(Clone, Debug)]
pub struct Engine {
    /// Its kind.
    pub accelerator: Accelerator,
    /// Its program.
    pub program: PathBuf,
    /// Why it is not KVM, where it is not.
    pub reason: Option<String>,
}

impl Engine {
    /// As `volatile.vm.engine` has it.
    pub fn name(&self) -> &'static str {
        match self.accelerator {
            Accelerator::Kvm => "kvm",
            Accelerator::Emulation => "emulation",
        }
    }
}

impl Programs {
    /// The programs in the directory of this one.
    pub fn beside(monitor: &Path) -> Self {
        Self { dir: monitor.parent().unwrap_or(Path::new("/")).to_owned() }
    }

    /// The monitor of a virtual machine.
    ///
    /// # Errors
    /// Where it is not installed.
    pub fn monitor(&self) -> Result<PathBuf> {
        self.own("duet-vm-monitor")
    }

    /// The agent, as the initramfs has it: linked statically.
    ///
    /// # Errors
    /// Where it is not installed.
    pub fn agent(&self) -> Result<PathBuf> {
        self.own("duet-agent.static").or_else(|_| self.own("duet-agent"))
    }

    fn own(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        if path.is_file() {
            return Ok(path);
        }
        let dir = self.dir.display();
        Err(Error::invalid(format!(
            "virtual machines need {name}, which is not in {dir}: install all of Duet's programs"
        )))
    }

    /// Finds out what runs virtual machines here: KVM if it works, else QEMU.
    pub(super) async fn engine(&self) -> Result<Engine> {
        let reason = match self.own("duet-vmm") {
            Ok(program) => match probe(&program).await {
                Ok(()) => return Ok(Engine { accelerator: Accelerator::Kvm, program, reason: None }),
                Err(reason) => reason,
            },
            Err(error) => error.message,
        };
        let program = QEMU.find().map_err(|_| {
            Error::invalid(format!(
                "{}. ({reason})",
                missing("QEMU, since KVM does not serve here", QEMU.package).message
            ))
        })?;
        tracing::warn!(reason, "virtual machines are emulated by QEMU, which is slow");
        Ok(Engine { accelerator: Accelerator::Emulation, program, reason: Some(reason) })
    }
}

/// Has the VMM run a few million instructions of a guest; the error is one sentence.
async fn probe(program: &Path) -> std::result::Result<(), String> {
    let mut command = Command::new(program);
    command.arg("probe").stdin(Stdio::null()).kill_on_drop(true);
    let run = tokio::time::timeout(PROBE_DEADLINE, command.output()).await;
    let output = run
        .map_err(|_| "/dev/kvm does not run a guest in time".to_owned())?
        .map_err(|error| format!("{} cannot be run: {error}", program.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().last().unwrap_or("duet-vmm probe failed without a word");
    Err(line.strip_prefix("duet-vmm: ").unwrap_or(line).to_owned())
}
