//! A driver for unit tests: a queue in real guest memory, and chains of buffers in it.

use virtio_queue::{Queue as Ring, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::queue::Queue;
use crate::memory::{Memory, allocate};

const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x3000;
const USED: u64 = 0x4000;
/// Where chains' buffers lie, one after the other.
const BUFFERS: u64 = 0x1_0000;
/// The queue's length.
pub const SIZE: u16 = 64;

/// The driver's side of a queue.
pub struct TestDriver {
    pub memory: Memory,
    pub interrupt: EventFd,
    descriptors: u16,
    available: u16,
    seen: u16,
    next: u64,
}

impl TestDriver {
    /// A driver, and the queue for the device.
    pub fn new() -> (Self, Queue) {
        let memory = allocate(16 << 20).unwrap();
        let mut ring = Ring::new(SIZE).unwrap();
        ring.set_desc_table_address(Some(TABLE as u32), None);
        ring.set_avail_ring_address(Some(AVAILABLE as u32), None);
        ring.set_used_ring_address(Some(USED as u32), None);
        ring.set_ready(true);
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let queue = Queue::new(ring, EventFd::new(EFD_NONBLOCK).unwrap(), Some(interrupt.try_clone().unwrap()));
        (Self { memory, interrupt, descriptors: 0, available: 0, seen: 0, next: BUFFERS }, queue)
    }

    /// Puts a descriptor into the table.
    pub fn describe(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = TABLE + u64::from(index) * 16;
        let low = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        self.memory.write_obj(address, GuestAddress(at)).unwrap();
        self.memory.write_obj(low, GuestAddress(at + 8)).unwrap();
    }

    /// Makes a chain available by its first descriptor.
    pub fn offer(&mut self, head: u16) {
        let at = AVAILABLE + 4 + u64::from(self.available % SIZE) * 2;
        self.memory.write_obj(head, GuestAddress(at)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.memory.write_obj(self.available, GuestAddress(AVAILABLE + 2)).unwrap();
    }

    /// Offers a chain of these bytes to be read by the device, and of room for so many to be written. Gives where the
    /// room is.
    pub fn send(&mut self, readable: &[&[u8]], writable: &[usize]) -> Vec<u64> {
        let head = self.descriptors % SIZE;
        let count = readable.len() + writable.len();
        let mut places = Vec::new();
        for index in 0..count {
            let address = self.next;
            let (len, write) = match readable.get(index) {
                Some(bytes) => {
                    self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
                    (bytes.len(), 0)
                }
                None => {
                    places.push(address);
                    (writable[index - readable.len()], 2)
                }
            };
            self.next += len as u64;
            let (at, next) = (self.descriptors % SIZE, (self.descriptors + 1) % SIZE);
            let more = u16::from(index + 1 < count);
            self.describe(at, address, u32::try_from(len).unwrap(), write | more, next);
            self.descriptors += 1;
        }
        self.offer(head);
        places
    }

    /// The next chain that was given back: its head and how much was written.
    pub fn given(&mut self) -> Option<(u32, u32)> {
        let now: u16 = self.memory.read_obj(GuestAddress(USED + 2)).unwrap();
        if now == self.seen {
            return None;
        }
        let at = USED + 4 + u64::from(self.seen % SIZE) * 8;
        self.seen = self.seen.wrapping_add(1);
        let entry: u64 = self.memory.read_obj(GuestAddress(at)).unwrap();
        Some((entry as u32, (entry >> 32) as u32))
    }

    /// What lies in the guest's memory.
    pub fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}
