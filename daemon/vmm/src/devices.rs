//! From descriptions of devices to functions on the bus.

use std::io;
use std::sync::Arc;

use kvm_ioctls::VmFd;

use crate::board::Limits;
use crate::image::Layer;
use crate::layout;
use crate::machine::{Inherited, MachineError, host_failed};
use crate::memory::Memory;
use crate::pci::msix::Msix;
use crate::pci::{Bus, window};
use crate::routes::Routes;
use crate::spec::{DeviceSpec, LayerSpec};
use crate::virtio::Device;
use crate::virtio::balloon::{self, Balloon};
use crate::virtio::block::Block;
use crate::virtio::console::Console;
use crate::virtio::net::Net;
use crate::virtio::rng::Rng;
use crate::virtio::transport::{Host, Transport};
use crate::virtio::vsock::Vsock;

/// Makes a device of what was inherited for it. `balloon` is by what all balloons are set, and `cpus`
/// how many CPUs the machine has.
///
/// # Errors
/// If a descriptor is not open, or not what it should be.
pub fn make(
    spec: &DeviceSpec,
    inherited: &mut Inherited,
    balloon: &Arc<balloon::Target>,
    cpus: u8,
) -> Result<Box<dyn Device>, MachineError> {
    Ok(match spec {
        DeviceSpec::Disk { file, format, backing, read_only, name, limits } => {
            let top = LayerSpec { file: *file, format: *format };
            let layers = std::iter::once(&top)
                .chain(backing)
                .map(|layer| Ok(Layer { file: inherited.take(layer.file)?, format: layer.format }));
            Box::new(Block::new(layers.collect::<Result<_, MachineError>>()?, *read_only, name, *limits, cpus)?)
        }
        DeviceSpec::Nic { tap, mac, mtu, vhost, limits } => {
            let vhost = vhost.map(|fd| inherited.take(fd)).transpose()?;
            Box::new(Net::new(inherited.take(*tap)?, *mac, *mtu, vhost, *limits).map_err(host_failed("use a tap"))?)
        }
        DeviceSpec::Console(ends) => {
            let (input, output) = inherited.ends(ends)?;
            Box::new(Console::new(input, output))
        }
        DeviceSpec::Rng => Box::new(Rng),
        DeviceSpec::Vsock { cid, socket } => {
            Box::new(Vsock::new(*cid, inherited.take(*socket)?).map_err(host_failed("use a socket"))?)
        }
        DeviceSpec::Balloon => Box::new(Balloon(Arc::clone(balloon))),
    })
}

/// What limits a device.
#[must_use]
pub fn limits(device: &dyn Device) -> Limits {
    match (device.kind(), device.limiter()) {
        (1, Some(limiter)) => Limits::Nic(limiter),
        (2, Some(limiter)) => Limits::Disk(limiter),
        _ => Limits::No,
    }
}

/// Plugs devices into the bus's slots, from 1 on.
///
/// # Errors
/// If the process has no descriptors left.
pub fn plug(devices: Vec<Box<dyn Device>>, vm: &Arc<VmFd>, memory: &Memory) -> io::Result<Bus> {
    let routes = Arc::new(Routes::new(Arc::clone(vm)));
    let mut gsi = layout::IO_APIC_PINS;
    let mut functions = Vec::new();
    for (slot, device) in (1..).zip(devices) {
        // One for each queue, and one for changes of the configuration.
        let vectors = device.queues().len() + 1;
        let msix = Msix::new(Arc::clone(&routes), gsi, vectors)?;
        gsi += vectors as u32;
        let host = Host { vm: Arc::clone(vm), memory: memory.clone() };
        functions.push(Transport::new(host, device, window(slot), msix)?);
    }
    Ok(Bus::new(functions))
}
