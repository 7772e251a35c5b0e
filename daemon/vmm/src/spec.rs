//! The description of a machine that `duet-vmm` is given: one JSON object. Files come as descriptors that the process
//! inherited, so that it needs no path and may open none.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::image::Format;
use crate::layout;
use crate::limit::Rate;

/// A descriptor that the process inherited, but not the standard error.
pub type Fd = i32;

/// The most CPUs of a machine.
pub const MAX_CPUS: u8 = 64;
/// The least memory of a machine in bytes.
pub const MIN_MEMORY: u64 = 16 << 20;
/// The most devices of a machine: the slots of a PCI bus, without the host bridge's.
pub const MAX_DEVICES: usize = 31;

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The kernel: a Linux bzImage, or an ELF file with a PVH entry.
    pub kernel: Fd,
    /// The initial RAM disk.
    #[serde(default)]
    pub initrd: Option<Fd>,
    /// The kernel's command line.
    #[serde(default)]
    pub command_line: String,
    /// How many CPUs: 1 to [`MAX_CPUS`].
    #[serde(default = "one")]
    pub cpus: u8,
    /// Memory in bytes: a multiple of 4096, at least [`MIN_MEMORY`].
    pub memory: u64,
    /// The serial port.
    #[serde(default)]
    pub serial: Option<SerialSpec>,
    /// The devices, in the order of their slots on the PCI bus, from 1 on; at most [`MAX_DEVICES`].
    #[serde(default)]
    pub devices: Vec<DeviceSpec>,
    /// The user that the process becomes, with nothing of the host's within reach. It has to start as root for that.
    #[serde(default)]
    pub jail: Option<JailSpec>,
    /// The control socket, listening: see [`crate::control`].
    #[serde(default)]
    pub control: Option<Fd>,
}

/// The user of a machine's process: one that owns nothing and is nobody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailSpec {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
}

fn one() -> u8 {
    1
}

/// The two directions of a serial port or console. They may be one descriptor, such as a terminal's or a socket's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialSpec {
    /// What the guest reads comes from here.
    #[serde(default)]
    pub input: Option<Fd>,
    /// What the guest writes goes here. What does not fit at once is lost: a guest never waits for its console.
    pub output: Fd,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum DeviceSpec {
    /// A disk.
    Disk {
        /// A file or block device with the disk's contents, open for reading and, unless `read_only`, for writing.
        file: Fd,
        /// How the file is to be read.
        #[serde(default)]
        format: Format,
        /// What lies below a qcow2 file, if it has a backing file: from there on down, each open for reading. All of
        /// the disk has at most [`MAX_LAYERS`](crate::image::MAX_LAYERS) layers.
        #[serde(default)]
        backing: Vec<LayerSpec>,
        /// Whether the guest may only read.
        #[serde(default)]
        read_only: bool,
        /// What the guest has in /dev/disk/by-id after "virtio-": the first 20 bytes of it.
        #[serde(default)]
        name: String,
        /// How much it does in a second.
        #[serde(default)]
        limits: DiskLimits,
    },
    /// A network interface.
    Nic {
        /// A tap, made with `IFF_TAP`, `IFF_NO_PI` and `IFF_VNET_HDR`.
        tap: Fd,
        /// The guest's address on it.
        mac: [u8; 6],
        /// The largest packet in bytes, without its Ethernet header.
        #[serde(default = "ethernet")]
        mtu: u16,
        /// An open /dev/vhost-net, by which the host's kernel moves the packets.
        #[serde(default)]
        vhost: Option<Fd>,
        /// How much it moves in a second. Not with `vhost`: what the host's kernel moves is not counted here.
        #[serde(default)]
        limits: NicLimits,
    },
    /// A console: /dev/hvc0 of the guest.
    Console(SerialSpec),
    /// Random numbers.
    Rng,
    /// Streams from the host to what listens in the guest: see [`crate::virtio::vsock`].
    Vsock {
        /// The guest's number, 3 or more. It means nothing on the host.
        cid: u32,
        /// The host's side: a unix stream socket that listens.
        socket: Fd,
    },
    /// A balloon, by which the guest gives back memory: what it is asked for, and what is free.
    Balloon,
}

/// How much a disk does in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskLimits {
    /// What is read.
    #[serde(default)]
    pub read: Rate,
    /// What is written; to discard and to write zeroes are operations without bytes.
    #[serde(default)]
    pub write: Rate,
}

/// How much a network interface moves in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicLimits {
    /// What the guest receives.
    #[serde(default)]
    pub ingress: Rate,
    /// What it sends.
    #[serde(default)]
    pub egress: Rate,
}

/// A layer of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerSpec {
    /// A file or block device.
    pub file: Fd,
    /// How it is to be read.
    pub format: Format,
}

fn ethernet() -> u16 {
    1500
}

/// Why a description is no machine.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SpecError {
    /// Too many CPUs, or none.
    #[error("a machine has 1 to {MAX_CPUS} CPUs, not {0}")]
    Cpus(u8),
    /// Too little memory, or half a page.
    #[error("a machine has at least {MIN_MEMORY} bytes of memory, a multiple of 4096, not {0}")]
    Memory(u64),
    /// Too many devices.
    #[error("a machine has at most {MAX_DEVICES} devices, not {0}")]
    Devices(usize),
    /// A command line that no kernel takes.
    #[error("a kernel's command line has less than {} bytes and no zero among them", layout::COMMAND_LINE_MAX)]
    CommandLine,
    /// A limit of what does not go through this process.
    #[error("a network interface with vhost cannot have limits here: the host's kernel moves its packets")]
    VhostLimits,
}

impl SerialSpec {
    /// The descriptors: both, or the one that is both.
    fn descriptors(&self) -> impl Iterator<Item = Fd> {
        self.input.filter(|input| *input != self.output).into_iter().chain([self.output])
    }
}

impl DeviceSpec {
    fn descriptors(&self) -> Vec<Fd> {
        match self {
            Self::Disk { file, backing, .. } => {
                [*file].into_iter().chain(backing.iter().map(|layer| layer.file)).collect()
            }
            Self::Nic { tap, vhost, .. } => vhost.iter().chain([tap]).copied().collect(),
            Self::Console(ends) => ends.descriptors().collect(),
            Self::Vsock { socket, .. } => vec![*socket],
            Self::Rng | Self::Balloon => Vec::new(),
        }
    }
}

impl Spec {
    /// All descriptors that the description names.
    #[must_use]
    pub fn descriptors(&self) -> Vec<Fd> {
        let mut all = vec![self.kernel];
        all.extend(self.initrd.iter().chain(&self.control));
        all.extend(self.serial.iter().flat_map(SerialSpec::descriptors));
        all.extend(self.devices.iter().flat_map(DeviceSpec::descriptors));
        all
    }

    /// Checks what the types do not say.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), SpecError> {
        if self.cpus == 0 || self.cpus > MAX_CPUS {
            return Err(SpecError::Cpus(self.cpus));
        }
        // A mapping's length must fit this process's own address space with all else in it: 46 bits are plenty.
        if self.memory < MIN_MEMORY || !self.memory.is_multiple_of(layout::PAGE) || self.memory > 1 << 46 {
            return Err(SpecError::Memory(self.memory));
        }
        if self.devices.len() > MAX_DEVICES {
            return Err(SpecError::Devices(self.devices.len()));
        }
        if self.command_line.len() >= layout::COMMAND_LINE_MAX || self.command_line.contains('\0') {
            return Err(SpecError::CommandLine);
        }
        let unlimited = NicLimits::default();
        if self
            .devices
            .iter()
            .any(|device| matches!(device, DeviceSpec::Nic { vhost: Some(_), limits, .. } if *limits != unlimited))
        {
            return Err(SpecError::VhostLimits);
        }
        Ok(())
    }
}
