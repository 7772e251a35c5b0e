//! The description of a virtual machine that the daemon gives its monitor. Files come as descriptors beside it, so that
//! neither the monitor nor the machine needs a path.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The index of a descriptor among those that were passed along with the specification. Each is named once.
pub type FdIndex = usize;

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VmSpec {
    /// The instance's name.
    pub name: String,
    /// The run directory: `monitor.sock` and `exit.json` are made in it. It exists.
    pub run_dir: PathBuf,
    /// The file that takes what the guest writes to its console, with bounds.
    pub console_log: PathBuf,
    /// What runs the machine.
    pub accelerator: Accelerator,
    /// Its program: duet-vmm or qemu-system-x86_64.
    pub program: PathBuf,
    /// How many CPUs, from 1 on.
    pub cpus: u8,
    /// Memory in bytes, of which the machine has whole mebibytes.
    pub memory: u64,
    /// The kernel: a bzImage.
    pub kernel: FdIndex,
    /// The initramfs, whole.
    pub initrd: FdIndex,
    /// The kernel's command line, but for the console's words, which the accelerator knows.
    pub command_line: String,
    /// The disks, in this order.
    pub disks: Vec<DiskSpec>,
    /// The network interfaces, in this order.
    pub nics: Vec<NicSpec>,
    /// The user that the machine's process becomes, with nothing of the host's within reach.
    pub user: UserSpec,
    /// The payload's directories of the control groups, which the machine's process joins before anything else.
    pub cgroups: Vec<PathBuf>,
    /// What the daemon wants back with the status.
    #[serde(default)]
    pub notes: BTreeMap<String, Option<String>>,
}

/// What runs a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// duet-vmm on /dev/kvm.
    Kvm,
    /// QEMU's software emulation.
    Emulation,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// What it is made of: the layer that is written to (unless the disk is read-only) first, what lies below it after.
    pub layers: Vec<LayerSpec>,
    /// Whether the guest may only read.
    #[serde(default)]
    pub read_only: bool,
    /// The serial number, by which the guest finds it: at most 20 bytes.
    pub serial: String,
}

/// A layer of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerSpec {
    /// The file, open for reading, and for writing where it is written to.
    pub file: FdIndex,
    /// How it is to be read.
    pub format: LayerFormat,
}

/// The format of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerFormat {
    /// The bytes of the disk.
    Raw,
    /// qcow2, whose backing file's name is never followed.
    Qcow2,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicSpec {
    /// A tap, made with `IFF_TAP`, `IFF_NO_PI` and `IFF_VNET_HDR`, and on its bridge already.
    pub tap: FdIndex,
    /// The guest's address on it.
    pub mac: [u8; 6],
    /// The largest packet in bytes, without its Ethernet header.
    pub mtu: u16,
}

/// A user of the host that owns nothing and is nobody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserSpec {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
}

/// The most bytes of the kernel's command line here: what duet-vmm takes, less the console's words.
pub const COMMAND_LINE_MAX: usize = 2000;
/// The most layers of a disk.
pub const LAYERS_MAX: usize = duet_vmm::image::MAX_LAYERS;
/// The most disks and network interfaces together: the slots of a PCI bus, less those of the devices that each machine has.
pub const DEVICES_MAX: usize = 24;
/// The most CPUs.
pub const CPUS_MAX: u8 = duet_vmm::spec::MAX_CPUS;
/// Bytes of memory that a machine has a number of: it is a multiple of everything that either program asks for.
pub const MEMORY_UNIT: u64 = 1 << 20;
/// The most bytes of a disk's serial number (virtio 1.2, 5.2.6).
pub const SERIAL_MAX: usize = 20;

/// Why a specification is no virtual machine.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SpecError {
    /// A text that would mean something else where it ends up.
    #[error("the virtual machine's {what} is missing, too long or contains characters that cannot be in it")]
    Text {
        /// Which.
        what: &'static str,
    },
    /// Paths are resolved from another directory.
    #[error("the virtual machine's {what} is not an absolute path")]
    Path {
        /// Which.
        what: &'static str,
    },
    /// Too many CPUs, or none.
    #[error("a virtual machine has 1 to {CPUS_MAX} CPUs, not {0}")]
    Cpus(u8),
    /// Too little memory, or more than there are addresses for.
    #[error("a virtual machine has 16 MiB to 64 TiB of memory, not {0} bytes")]
    Memory(u64),
    /// Too many disks and network interfaces.
    #[error("a virtual machine has at most {DEVICES_MAX} disks and network interfaces together, not {0}")]
    Devices(usize),
    /// A disk of nothing, or of too much.
    #[error("a disk has 1 to {LAYERS_MAX} layers, not {0}")]
    Layers(usize),
    /// Nothing of what lies below could be seen.
    #[error("a raw layer of a disk can only be its last one")]
    RawAbove,
    /// The machine's process must not be root.
    #[error("the user of a virtual machine's process is not root")]
    Root,
    /// A descriptor that did not come along, or that is named twice.
    #[error("descriptor {0} of the virtual machine did not come along, or is named twice")]
    Descriptor(FdIndex),
}

impl VmSpec {
    /// The memory that the machine has: whole mebibytes.
    pub(crate) fn whole_memory(&self) -> u64 {
        self.memory / MEMORY_UNIT * MEMORY_UNIT
    }

    /// Checks what the types do not say. `fds` is how many descriptors came along.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, fds: usize) -> Result<(), SpecError> {
        text("name", &self.name, 255, |byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))?;
        if self.name.is_empty() {
            return Err(SpecError::Text { what: "name" });
        }
        text("command line", &self.command_line, COMMAND_LINE_MAX, |byte| byte != 0 && byte != b'\n')?;
        for (what, path) in
            [("run directory", &self.run_dir), ("console log", &self.console_log), ("program", &self.program)]
        {
            if !path.is_absolute() {
                return Err(SpecError::Path { what });
            }
        }
        if self.cpus == 0 || self.cpus > CPUS_MAX {
            return Err(SpecError::Cpus(self.cpus));
        }
        if self.memory < 16 * MEMORY_UNIT || self.memory > 1 << 46 {
            return Err(SpecError::Memory(self.memory));
        }
        if self.user.uid == 0 || self.user.gid == 0 {
            return Err(SpecError::Root);
        }
        let devices = self.disks.len() + self.nics.len();
        if devices > DEVICES_MAX {
            return Err(SpecError::Devices(devices));
        }
        self.disks.iter().try_for_each(DiskSpec::check)?;
        let mut named = vec![false; fds];
        for fd in self.descriptors() {
            match named.get_mut(fd) {
                Some(named) if !*named => *named = true,
                _ => return Err(SpecError::Descriptor(fd)),
            }
        }
        Ok(())
    }

    fn descriptors(&self) -> impl Iterator<Item = FdIndex> + '_ {
        let layers = self.disks.iter().flat_map(|disk| disk.layers.iter().map(|layer| layer.file));
        [self.kernel, self.initrd].into_iter().chain(layers).chain(self.nics.iter().map(|nic| nic.tap))
    }
}

impl DiskSpec {
    fn check(&self) -> Result<(), SpecError> {
        text("disk's serial number", &self.serial, SERIAL_MAX, |byte| byte.is_ascii_graphic())?;
        let above = match self.layers.split_last() {
            Some((_, above)) if above.len() < LAYERS_MAX => above,
            _ => return Err(SpecError::Layers(self.layers.len())),
        };
        if above.iter().any(|layer| layer.format == LayerFormat::Raw) { Err(SpecError::RawAbove) } else { Ok(()) }
    }
}

fn text(what: &'static str, text: &str, most: usize, allowed: impl Fn(u8) -> bool) -> Result<(), SpecError> {
    let fits = text.len() <= most && text.bytes().all(allowed);
    if fits { Ok(()) } else { Err(SpecError::Text { what }) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A machine with two disks and an interface: seven descriptors.
    pub(crate) fn example() -> VmSpec {
        let layer = |file, format| LayerSpec { file, format };
        VmSpec {
            name: "web-1".into(),
            run_dir: "/run/web-1".into(),
            console_log: "/log/console.log".into(),
            accelerator: Accelerator::Emulation,
            program: "/usr/bin/qemu-system-x86_64".into(),
            cpus: 2,
            memory: 512 << 20,
            kernel: 0,
            initrd: 1,
            command_line: "duet.root=serial:root, rw".into(),
            disks: vec![
                DiskSpec {
                    layers: vec![layer(2, LayerFormat::Qcow2), layer(3, LayerFormat::Raw)],
                    read_only: false,
                    serial: "root,=\"x".into(),
                },
                DiskSpec { layers: vec![layer(4, LayerFormat::Raw)], read_only: true, serial: "data".into() },
            ],
            nics: vec![NicSpec { tap: 5, mac: [2, 0, 0, 0, 0, 0xab], mtu: 1450 }],
            user: UserSpec { uid: 1000, gid: 1001 },
            cgroups: Vec::new(),
            notes: BTreeMap::new(),
        }
    }

    #[test]
    fn what_is_no_machine_is_refused() {
        type Change = fn(&mut VmSpec);
        let wrong = |change: Change| {
            let mut spec = example();
            change(&mut spec);
            spec.check(6).unwrap_err()
        };
        assert_eq!(example().check(6), Ok(()));
        assert_eq!(example().check(5), Err(SpecError::Descriptor(5)));
        assert_eq!(wrong(|spec| spec.initrd = 0), SpecError::Descriptor(0));
        assert_eq!(wrong(|spec| spec.name = "a,b".into()), SpecError::Text { what: "name" });
        assert_eq!(wrong(|spec| spec.command_line = "a\0".into()), SpecError::Text { what: "command line" });
        assert_eq!(wrong(|spec| spec.program = "qemu".into()), SpecError::Path { what: "program" });
        assert_eq!(wrong(|spec| spec.cpus = 0), SpecError::Cpus(0));
        assert_eq!(wrong(|spec| spec.memory = 4096), SpecError::Memory(4096));
        assert_eq!(wrong(|spec| spec.user.gid = 0), SpecError::Root);
        assert_eq!(wrong(|spec| spec.disks[0].layers.clear()), SpecError::Layers(0));
        assert_eq!(wrong(|spec| spec.disks[0].layers[0].format = LayerFormat::Raw), SpecError::RawAbove);
        assert_eq!(
            wrong(|spec| spec.disks[0].serial = "s".repeat(21)),
            SpecError::Text { what: "disk's serial number" }
        );
        assert_eq!(wrong(|spec| spec.nics = vec![spec.nics[0].clone(); 23]), SpecError::Devices(25));
    }
}
