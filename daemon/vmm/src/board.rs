//! What the CPUs reach by ports and by addresses that are not memory. Whatever a guest does there has an answer: what is
//! not there reads as all ones, and what is written to it is lost.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::limit::Limiter;
use crate::power::Power;
use crate::serial;
use crate::virtio::balloon;
use crate::{layout, pci};

/// The devices of a machine that are not memory or CPUs.
pub struct Board {
    /// The serial port.
    pub serial: Mutex<serial::Port>,
    /// The power registers.
    pub power: Power,
    /// How much memory the guest is to give back.
    pub balloon: Arc<balloon::Target>,
    /// The limits of devices, by their slot on the PCI bus less one.
    pub limits: Vec<Limits>,
    /// The PCI bus.
    pub pci: pci::Bus,
}

/// What limits a device.
pub enum Limits {
    /// Nothing: it cannot be limited.
    No,
    /// A disk's.
    Disk(Arc<Limiter>),
    /// A network interface's.
    Nic(Arc<Limiter>),
}

/// Locks what no thread can have left half done: nothing panics while it holds one of these.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    /// The guest wrote to a port. Several bytes are a repeated write, or a wide one, which no device here knows.
    pub fn port_write(&self, port: u16, bytes: &[u8]) {
        if let Some(offset) = serial_register(port) {
            let mut serial = lock(&self.serial);
            for byte in bytes {
                // The interrupt's counter is full at worst, and then the interrupt is pending.
                let _ = serial.write(offset, *byte);
            }
        } else if let Some(byte) = bytes.first() {
            self.power.write(port, *byte);
        }
    }

    /// The guest reads a port.
    pub fn port_read(&self, port: u16, bytes: &mut [u8]) {
        bytes.fill(0xff);
        if let Some(offset) = serial_register(port) {
            let mut serial = lock(&self.serial);
            bytes.fill_with(|| serial.read(offset));
        } else if let (Some(byte), Some(value)) = (bytes.first_mut(), self.power.read(port)) {
            *byte = value;
        }
    }

    /// The guest wrote to an address without memory.
    pub fn memory_write(&self, address: u64, bytes: &[u8]) {
        match address {
            layout::BARS..layout::BARS_END => self.pci.window_write(address - layout::BARS, bytes),
            layout::ECAM..ECAM_END => self.pci.config_write(address - layout::ECAM, bytes),
            _ => {}
        }
    }

    /// The guest reads an address without memory.
    pub fn memory_read(&self, address: u64, bytes: &mut [u8]) {
        match address {
            layout::BARS..layout::BARS_END => self.pci.window_read(address - layout::BARS, bytes),
            layout::ECAM..ECAM_END => self.pci.config_read(address - layout::ECAM, bytes),
            _ => bytes.fill(0xff),
        }
    }
}

const ECAM_END: u64 = layout::ECAM + layout::ECAM_SIZE;

fn serial_register(port: u16) -> Option<u8> {
    port.checked_sub(layout::SERIAL_PORT).filter(|offset| *offset < 8).and_then(|offset| u8::try_from(offset).ok())
}
