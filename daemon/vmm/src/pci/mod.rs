//! The PCI bus: one, with the host bridge in slot 0 and a virtio function in each further slot.
//!
//! Configuration space is reached by the memory window of PCI Express alone, which costs a guest one exit per access
//! where the old ports cost two. Each function has one window of registers, at an address that follows from its slot and
//! that a guest cannot change; so nothing has to be moved, and nothing can be moved over something else.

use std::sync::Mutex;

use crate::board::lock;
use crate::layout;
use crate::virtio::transport::Transport;

pub mod config;
pub mod msix;

use config::Config;

/// The host bridge's identity: one that no driver claims (Intel, and the number that Cloud Hypervisor uses too).
const BRIDGE_VENDOR: u16 = 0x8086;
const BRIDGE_DEVICE: u16 = 0x0d57;
/// Class, subclass and interface of a host bridge.
const BRIDGE_CLASS: u32 = 0x06_0000;

/// The bus.
pub struct Bus {
    bridge: Mutex<Config>,
    /// Those from slot 1 on.
    functions: Vec<Mutex<Transport>>,
}

/// The address of the register window of the function in a slot.
#[must_use]
pub const fn window(slot: usize) -> u64 {
    layout::BARS + slot as u64 * layout::BAR_SIZE
}

impl Bus {
    /// A bus with these functions, from slot 1 on.
    #[must_use]
    pub fn new(functions: Vec<Transport>) -> Self {
        let bridge = Config::new(BRIDGE_VENDOR, BRIDGE_DEVICE, BRIDGE_CLASS, 0);
        Self { bridge: Mutex::new(bridge), functions: functions.into_iter().map(Mutex::new).collect() }
    }

    /// Reads configuration space at an offset from its beginning. What is not there reads as ones.
    pub fn config_read(&self, offset: u64, bytes: &mut [u8]) {
        bytes.fill(0xff);
        let (slot, register) = place(offset);
        match slot {
            Some(0) => lock(&self.bridge).read(register, bytes),
            Some(slot) => {
                if let Some(function) = self.functions.get(slot - 1) {
                    lock(function).config_read(register, bytes);
                }
            }
            None => {}
        }
    }

    /// Writes configuration space.
    pub fn config_write(&self, offset: u64, bytes: &[u8]) {
        let (slot, register) = place(offset);
        match slot {
            Some(0) => lock(&self.bridge).write(register, bytes),
            Some(slot) => {
                if let Some(function) = self.functions.get(slot - 1) {
                    lock(function).config_write(register, bytes);
                }
            }
            None => {}
        }
    }

    /// Reads registers at an offset from the first window.
    pub fn window_read(&self, offset: u64, bytes: &mut [u8]) {
        bytes.fill(0xff);
        if let Some((function, register)) = self.function(offset) {
            lock(function).read(register, bytes);
        }
    }

    /// Writes registers.
    pub fn window_write(&self, offset: u64, bytes: &[u8]) {
        if let Some((function, register)) = self.function(offset) {
            lock(function).write(register, bytes);
        }
    }

    fn function(&self, offset: u64) -> Option<(&Mutex<Transport>, u64)> {
        let slot = usize::try_from(offset / layout::BAR_SIZE).ok()?.checked_sub(1)?;
        Some((self.functions.get(slot)?, offset % layout::BAR_SIZE))
    }

    /// Ends what the functions have running.
    pub fn stop(&self) {
        self.functions.iter().for_each(|function| lock(function).stop());
    }
}

/// The slot, if it is its function 0 that is meant, and the register (PCI Express 5.0, 7.2.2).
fn place(offset: u64) -> (Option<usize>, usize) {
    let (slot, function, register) = (offset >> 15 & 0x1f, offset >> 12 & 7, offset & 0xfff);
    ((function == 0).then_some(slot as usize), register as usize)
}
