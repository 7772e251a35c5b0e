//! The description of a virtual machine that the daemon gives its monitor. Files come as descriptors beside it, so that
//! neither the monitor nor the machine needs a path.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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
    /// Memory in bytes.
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
