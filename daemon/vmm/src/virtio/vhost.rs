//! The host kernel's own virtio network backend, vhost-net: it serves a device's queues itself (include/uapi/linux/
//! vhost.h). It is given the device's eventfds, so that neither a packet nor an interrupt goes through this process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use duet_sys::ioctl;
use virtio_queue::QueueT;
use vm_memory::GuestAddress;

use super::queue::Queue;
use crate::memory::{self, Memory};

/// `VHOST_VIRTIO`, the kind of the requests below.
const KIND: u8 = 0xaf;

const fn request(number: u8, size: usize) -> u32 {
    ioctl::request(ioctl::WRITE, KIND, number, size)
}

const SET_FEATURES: u32 = request(0x00, 8);
const SET_OWNER: u32 = ioctl::request(0, KIND, 0x01, 0);
const SET_MEM_TABLE: u32 = request(0x03, 8);
const SET_VRING_NUM: u32 = request(0x10, 8);
const SET_VRING_ADDR: u32 = request(0x11, size_of::<RingAddress>());
const SET_VRING_BASE: u32 = request(0x12, 8);
const SET_VRING_KICK: u32 = request(0x20, 8);
const SET_VRING_CALL: u32 = request(0x21, 8);
const NET_SET_BACKEND: u32 = request(0x30, 8);

/// All that are made of it while a machine runs.
pub const REQUESTS: [u32; 8] = [
    SET_FEATURES,
    SET_MEM_TABLE,
    SET_VRING_NUM,
    SET_VRING_ADDR,
    SET_VRING_BASE,
    SET_VRING_KICK,
    SET_VRING_CALL,
    NET_SET_BACKEND,
];

/// `struct vhost_vring_state` and `struct vhost_vring_file`.
#[repr(C)]
struct RingNumber {
    index: u32,
    number: i32,
}

/// `struct vhost_vring_addr`.
#[repr(C)]
struct RingAddress {
    index: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

/// `struct vhost_memory_region`.
#[repr(C)]
struct Region {
    guest: u64,
    len: u64,
    here: u64,
    flags: u64,
}

/// `struct vhost_memory`, with as many regions as a machine has at most.
#[repr(C)]
struct Regions {
    count: u32,
    padding: u32,
    regions: [Region; 2],
}

/// An open /dev/vhost-net.
#[derive(Debug)]
pub struct VhostNet(File);

impl VhostNet {
    /// Takes possession of it.
    ///
    /// # Errors
    /// If it is something else, or somebody else's.
    pub fn new(file: File) -> io::Result<Self> {
        let vhost = Self(file);
        // SAFETY: it takes no argument.
        unsafe { ioctl::with_number(&vhost.0, SET_OWNER, 0) }?;
        Ok(vhost)
    }

    fn number(&self, request: u32, index: u32, number: i32) -> io::Result<()> {
        // SAFETY: all requests that this is called with take such a structure.
        unsafe { ioctl::with(&self.0, request, &mut RingNumber { index, number }) }.map(drop)
    }

    /// Serves two queues, receive and transmit, towards a tap.
    ///
    /// # Errors
    /// If the kernel refuses. Nothing is served then.
    pub fn start(&self, memory: &Memory, mut features: u64, queues: &[Queue], tap: impl AsFd) -> io::Result<()> {
        // SAFETY: it takes 64 bits.
        unsafe { ioctl::with(&self.0, SET_FEATURES, &mut features) }?;
        let mut table =
            Regions { count: 0, padding: 0, regions: [0, 1].map(|_| Region { guest: 0, len: 0, here: 0, flags: 0 }) };
        for (slot, (guest, len, here)) in table.regions.iter_mut().zip(memory::regions(memory)) {
            *slot = Region { guest, len, here, flags: 0 };
            table.count += 1;
        }
        // SAFETY: it takes a count and as many regions. Each is a mapping that the caller keeps until `stop`.
        unsafe { ioctl::with(&self.0, SET_MEM_TABLE, &mut table) }?;
        for (index, queue) in (0..).zip(queues) {
            self.set_up(memory, index, queue)?;
        }
        for index in 0..2 {
            self.number(NET_SET_BACKEND, index, tap.as_fd().as_raw_fd()).inspect_err(|_| self.stop())?;
        }
        Ok(())
    }

    fn set_up(&self, memory: &Memory, index: u32, queue: &Queue) -> io::Result<()> {
        let ring = queue.ring();
        let here = |guest: u64| {
            memory::place(memory, GuestAddress(guest), 1).ok_or(io::Error::from(io::ErrorKind::InvalidInput))
        };
        self.number(SET_VRING_NUM, index, ring.size().into())?;
        self.number(SET_VRING_BASE, index, 0)?;
        let mut address = RingAddress {
            index,
            flags: 0,
            descriptors: here(ring.desc_table())?,
            used: here(ring.used_ring())?,
            available: here(ring.avail_ring())?,
            log: 0,
        };
        // SAFETY: it takes such a structure. The kernel checks each address that it uses.
        unsafe { ioctl::with(&self.0, SET_VRING_ADDR, &mut address) }?;
        self.number(SET_VRING_KICK, index, queue.kick.as_raw_fd())?;
        self.number(SET_VRING_CALL, index, queue.interrupt().map_or(-1, AsRawFd::as_raw_fd))
    }

    /// Serves no more; when this returns, the kernel does not touch the guest's memory.
    pub fn stop(&self) {
        for index in 0..2 {
            // Without a backend there is nothing to be taken away.
            let _ = self.number(NET_SET_BACKEND, index, -1);
        }
    }
}
