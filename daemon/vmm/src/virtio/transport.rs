//! A virtio device as a PCI function (virtio 1.2, 4.1), without its legacy interface.
//!
//! The register window holds the five structures, each in a page or more of its own, and the MSI-X table. Registers of a
//! guest's that make no sense are ignored, so that the worst that a driver gets is a device that needs a reset.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use virtio_queue::{Queue as Ring, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::queue::Queue;
use super::{Device, Driver, Notifier, Worker, feature};
use crate::layout;
use crate::memory::Memory;
use crate::pci::config::Config;
use crate::pci::msix::Msix;

/// Red Hat's number, and the number of the first device (virtio 1.2, 4.1.2).
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;

// Places in the register window.
const COMMON: u64 = 0;
const COMMON_SIZE: u64 = 0x38;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const TABLE: u64 = 0x3000;
const PENDING: u64 = 0x4000;
const NOTIFY: u64 = 0x5000;
const PLACE_SIZE: u64 = 0x1000;
/// Bytes between the queues' notification registers.
const NOTIFY_STEP: u64 = 4;

/// Capabilities.
const CAPABILITY_VENDOR: u8 = 0x09;
const CAPABILITY_MSIX: u8 = 0x11;
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;

/// Bits of the device's status (virtio 1.2, 2.1).
mod status {
    pub const FEATURES_OK: u8 = 8;
    pub const DRIVER_OK: u8 = 4;
    pub const NEEDS_RESET: u8 = 64;
}

/// No vector.
const NO_VECTOR: u16 = 0xffff;

/// A queue as the driver sets it up.
struct Setup {
    ring: Ring,
    kick: EventFd,
    vector: u16,
}

/// What a device is made with.
pub struct Host {
    /// The machine.
    pub vm: Arc<VmFd>,
    /// Its memory.
    pub memory: Memory,
}

/// A device on the bus.
pub struct Transport {
    host: Host,
    device: Box<dyn Device>,
    config: Config,
    /// Where the MSI-X capability is.
    msix_at: usize,
    msix: Arc<Msix>,
    window: u64,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    config_vector: Arc<AtomicU16>,
    generation: Arc<AtomicU8>,
    status: u8,
    selected: u16,
    queues: Vec<Setup>,
    worker: Option<Box<dyn Worker>>,
}

impl Transport {
    /// A function with the register window at `window`. `msix` has one vector more than the device has queues.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn new(host: Host, device: Box<dyn Device>, window: u64, msix: Msix) -> io::Result<Self> {
        let queues = device.queues().iter().map(|size| {
            let ring = Ring::new(*size).map_err(|error| io::Error::other(format!("{error:?}")))?;
            Ok(Setup { ring, kick: EventFd::new(EFD_NONBLOCK)?, vector: NO_VECTOR })
        });
        let queues = queues.collect::<io::Result<Vec<_>>>()?;
        let (config, msix_at) = describe(device.as_ref(), window, msix.count());
        Ok(Self {
            host,
            device,
            config,
            msix_at,
            msix: Arc::new(msix),
            window,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            config_vector: Arc::new(AtomicU16::new(NO_VECTOR)),
            generation: Arc::default(),
            status: 0,
            selected: 0,
            queues,
            worker: None,
        })
    }

    /// Configuration space.
    pub fn config_read(&self, register: usize, bytes: &mut [u8]) {
        self.config.read(register, bytes);
    }

    /// Configuration space.
    pub fn config_write(&mut self, register: usize, bytes: &[u8]) {
        let before = self.config.word(self.msix_at + 2);
        self.config.write(register, bytes);
        let after = self.config.word(self.msix_at + 2);
        if after != before {
            self.msix.set_control(after);
        }
    }

    /// Reads the register window; `bytes` are ones before.
    pub fn read(&mut self, at: u64, bytes: &mut [u8]) {
        let offset = (at % PLACE_SIZE) as usize;
        match at - at % PLACE_SIZE {
            COMMON => copy(&self.common(), offset, bytes),
            // Without INTx there is nothing to be told here.
            ISR => bytes.fill(0),
            DEVICE => copy(&self.device.config(), offset, bytes),
            TABLE => self.msix.read_table(offset, bytes),
            PENDING => self.msix.read_pending(offset, bytes),
            NOTIFY => bytes.fill(0),
            _ => {}
        }
    }

    /// Writes the register window.
    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        match at - at % PLACE_SIZE {
            COMMON => self.set_common(at, bytes),
            DEVICE => self.device.write_config((at % PLACE_SIZE) as usize, bytes),
            TABLE => self.msix.write_table((at % PLACE_SIZE) as usize, bytes),
            // Comes here only from before the device has a driver: then KVM signals the queue itself.
            _ => {}
        }
    }

    fn features(&self) -> u64 {
        self.device.features() | feature::ALL
    }

    /// `struct virtio_pci_common_cfg` (virtio 1.2, 4.1.4.3).
    fn common(&self) -> [u8; COMMON_SIZE as usize] {
        let mut bytes = [0; COMMON_SIZE as usize];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0x00, &self.device_features_select.to_le_bytes());
        put(0x04, &half(self.features(), self.device_features_select).to_le_bytes());
        put(0x08, &self.driver_features_select.to_le_bytes());
        put(0x0c, &half(self.driver_features, self.driver_features_select).to_le_bytes());
        put(0x10, &self.config_vector.load(Ordering::Acquire).to_le_bytes());
        put(0x12, &(self.queues.len() as u16).to_le_bytes());
        put(0x14, &[self.status, self.generation.load(Ordering::Acquire)]);
        put(0x16, &self.selected.to_le_bytes());
        // A queue that is not there has no size.
        if let Some(queue) = self.queues.get(usize::from(self.selected)) {
            put(0x18, &queue.ring.size().to_le_bytes());
            put(0x1a, &queue.vector.to_le_bytes());
            put(0x1c, &u16::from(queue.ring.ready()).to_le_bytes());
            put(0x1e, &self.selected.to_le_bytes());
            put(0x20, &queue.ring.desc_table().to_le_bytes());
            put(0x28, &queue.ring.avail_ring().to_le_bytes());
            put(0x30, &queue.ring.used_ring().to_le_bytes());
        }
        bytes
    }

    fn set_common(&mut self, at: u64, bytes: &[u8]) {
        // A driver may write a 64-bit field in one (virtio 1.2, 4.1.3.1).
        if let (0x20 | 0x28 | 0x30, [_, _, _, _, _, _, _, _]) = (at, bytes) {
            self.set_common(at, &bytes[..4]);
            self.set_common(at + 4, &bytes[4..]);
            return;
        }
        match (at, bytes) {
            (0x14, [value]) => self.set_status(*value),
            (_, [a, b]) => self.set_word(at, u16::from_le_bytes([*a, *b])),
            (_, [a, b, c, d]) => self.set_double_word(at, u32::from_le_bytes([*a, *b, *c, *d])),
            _ => {}
        }
    }

    fn set_word(&mut self, at: u64, value: u16) {
        let vector = if usize::from(value) < self.msix.count() { value } else { NO_VECTOR };
        match at {
            0x10 => self.config_vector.store(vector, Ordering::Release),
            0x16 => self.selected = value,
            _ => {}
        }
        let Some(queue) = self.setup() else { return };
        match at {
            0x18 => drop(queue.ring.try_set_size(value)),
            0x1a => queue.vector = vector,
            0x1c if value == 1 => queue.ring.set_ready(true),
            _ => {}
        }
    }

    fn set_double_word(&mut self, at: u64, value: u32) {
        match at {
            0x00 => self.device_features_select = value,
            0x08 => self.driver_features_select = value,
            0x0c if self.status & status::FEATURES_OK == 0 => {
                let shift = match self.driver_features_select {
                    0 => 0,
                    1 => 32,
                    _ => return,
                };
                self.driver_features = self.driver_features & !(0xffff_ffff << shift) | u64::from(value) << shift;
            }
            _ => {}
        }
        let Some(queue) = self.setup() else { return };
        match at {
            0x20 => queue.ring.set_desc_table_address(Some(value), None),
            0x24 => queue.ring.set_desc_table_address(None, Some(value)),
            0x28 => queue.ring.set_avail_ring_address(Some(value), None),
            0x2c => queue.ring.set_avail_ring_address(None, Some(value)),
            0x30 => queue.ring.set_used_ring_address(Some(value), None),
            0x34 => queue.ring.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    /// The selected queue, while it can still be set up.
    fn setup(&mut self) -> Option<&mut Setup> {
        if self.status & status::DRIVER_OK != 0 {
            return None;
        }
        self.queues.get_mut(usize::from(self.selected)).filter(|queue| !queue.ring.ready())
    }

    fn set_status(&mut self, value: u8) {
        if value == 0 {
            self.reset();
            return;
        }
        // The driver sets bits; only a reset takes any away (virtio 1.2, 2.1.1).
        let new = value & !self.status & !status::NEEDS_RESET;
        self.status |= new;
        if new & status::FEATURES_OK != 0
            && (self.driver_features & !self.features() != 0 || self.driver_features & feature::VERSION_1 == 0)
        {
            self.status &= !status::FEATURES_OK;
        }
        if new & status::DRIVER_OK != 0
            && self.status & status::NEEDS_RESET == 0
            && (self.status & status::FEATURES_OK == 0 || self.start().is_err())
        {
            self.stop();
            self.status |= status::NEEDS_RESET;
            self.notifier().notify();
        }
    }

    fn notifier(&self) -> Notifier {
        Notifier {
            msix: Arc::clone(&self.msix),
            vector: Arc::clone(&self.config_vector),
            generation: Arc::clone(&self.generation),
        }
    }

    /// Hands the queues to a worker.
    fn start(&mut self) -> io::Result<()> {
        let mut queues = Vec::new();
        for (index, setup) in self.queues.iter().enumerate() {
            let mut ring =
                Ring::try_from(setup.ring.state()).map_err(|error| io::Error::other(format!("{error:?}")))?;
            if ring.ready() && !ring.is_valid(&self.host.memory) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            ring.set_event_idx(self.driver_features & feature::EVENT_IDX != 0);
            // What was signalled to a driver before this one is over.
            let _ = setup.kick.read();
            self.host.vm.register_ioevent(&setup.kick, &self.notify_address(index), NoDatamatch)?;
            let interrupt = self.msix.event(setup.vector).map(EventFd::try_clone).transpose()?;
            queues.push(Queue::new(ring, setup.kick.try_clone()?, interrupt));
        }
        self.worker = Some(self.device.start(Driver {
            memory: self.host.memory.clone(),
            features: self.driver_features,
            queues,
            notifier: self.notifier(),
        })?);
        Ok(())
    }

    fn notify_address(&self, queue: usize) -> IoEventAddress {
        IoEventAddress::Mmio(self.window + NOTIFY + queue as u64 * NOTIFY_STEP)
    }

    /// Ends the worker.
    pub fn stop(&mut self) {
        self.worker = None;
        for (index, setup) in self.queues.iter().enumerate() {
            // It may not be registered.
            let _ = self.host.vm.unregister_ioevent(&setup.kick, &self.notify_address(index), NoDatamatch);
        }
    }

    fn reset(&mut self) {
        if self.status & status::DRIVER_OK != 0 {
            self.stop();
        }
        self.status = 0;
        self.driver_features = 0;
        (self.device_features_select, self.driver_features_select, self.selected) = (0, 0, 0);
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        for setup in &mut self.queues {
            setup.ring.reset();
            setup.vector = NO_VECTOR;
        }
    }
}

/// One of the halves of 64 bits; there are no more than two.
fn half(bits: u64, select: u32) -> u32 {
    match select {
        0 => bits as u32,
        1 => (bits >> 32) as u32,
        _ => 0,
    }
}

/// What of `from` lies at an offset; what lies beyond reads as zero.
fn copy(from: &[u8], offset: usize, bytes: &mut [u8]) {
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = from.get(offset + index).copied().unwrap_or(0);
    }
}

/// The configuration space, and where the MSI-X capability is in it.
fn describe(device: &dyn Device, window: u64, vectors: usize) -> (Config, usize) {
    // The class is for people; drivers go by the device's number.
    let class = match device.kind() {
        1 => 0x02_0000,
        2 => 0x01_8000,
        3 => 0x07_8000,
        _ => 0x08_8000,
    };
    let mut config = Config::new(VENDOR, FIRST_DEVICE + device.kind(), class, device.kind());
    config.set_window(window as u32, layout::BAR_SIZE as u32);
    let places = [(COMMON_CFG, COMMON, COMMON_SIZE), (ISR_CFG, ISR, 1), (DEVICE_CFG, DEVICE, PLACE_SIZE)];
    for (kind, offset, size) in places {
        config.add_capability(CAPABILITY_VENDOR, &place(kind, offset, size));
    }
    let mut notify = place(NOTIFY_CFG, NOTIFY, PLACE_SIZE);
    notify[0] += 4;
    notify.extend((NOTIFY_STEP as u32).to_le_bytes());
    config.add_capability(CAPABILITY_VENDOR, &notify);

    let mut msix = Vec::new();
    msix.extend((vectors as u16 - 1).to_le_bytes());
    msix.extend((TABLE as u32).to_le_bytes());
    msix.extend((PENDING as u32).to_le_bytes());
    let at = config.add_capability(CAPABILITY_MSIX, &msix);
    config.allow(at + 2, &[0, 0xc0]);
    (config, at)
}

/// `struct virtio_pci_cap` from its length on.
fn place(kind: u8, offset: u64, size: u64) -> Vec<u8> {
    let mut body = vec![16, kind, 0, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((size as u32).to_le_bytes());
    body
}
