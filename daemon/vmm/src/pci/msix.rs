//! The message-signalled interrupts of a function (PCI 3.0, 6.8.2).
//!
//! Each vector is an eventfd. A vector that is not masked is connected to KVM, so that whoever signals, a thread here or
//! the host's kernel, raises the interrupt without this code; a masked one is not, so that what is signalled stays in
//! the eventfd, which is the pending bit, and is raised by KVM when the vector is connected again.

use std::io;
use std::sync::{Arc, Mutex};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::board::lock;
use crate::events::borrow;
use crate::routes::{Message, Routes};

/// Bytes of a vector in the table.
const ENTRY: usize = 16;
/// The mask bit of a vector's control word.
const MASKED: u32 = 1;
/// Bits of the message control register.
const ENABLED: u16 = 1 << 15;
const ALL_MASKED: u16 = 1 << 14;

/// A vector as the guest has set it, and as KVM knows it.
#[derive(Debug, Clone, Copy)]
struct Vector {
    message: Message,
    control: u32,
    led: Option<Message>,
    connected: bool,
}

#[derive(Debug)]
struct Table {
    control: u16,
    vectors: Vec<Vector>,
}

/// The vectors of a function.
pub struct Msix {
    routes: Arc<Routes>,
    first_gsi: u32,
    events: Vec<EventFd>,
    table: Mutex<Table>,
}

impl Msix {
    /// As many vectors, masked, whose interrupts have the numbers from `first_gsi` on.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn new(routes: Arc<Routes>, first_gsi: u32, count: usize) -> io::Result<Self> {
        let masked = Vector { message: Message::default(), control: MASKED, led: None, connected: false };
        Ok(Self {
            routes,
            first_gsi,
            events: (0..count).map(|_| EventFd::new(EFD_NONBLOCK)).collect::<Result<_, _>>()?,
            table: Mutex::new(Table { control: 0, vectors: vec![masked; count] }),
        })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.events.len()
    }

    /// What raises a vector's interrupt, if there is such a vector.
    #[must_use]
    pub fn event(&self, vector: u16) -> Option<&EventFd> {
        self.events.get(usize::from(vector))
    }

    /// The guest has set the message control register.
    pub fn set_control(&self, control: u16) {
        let mut table = lock(&self.table);
        table.control = control;
        (0..self.events.len()).for_each(|index| self.apply(&mut table, index));
    }

    /// The guest reads the table.
    pub fn read_table(&self, offset: usize, bytes: &mut [u8]) {
        let table = lock(&self.table);
        if let Some(vector) = table.vectors.get(offset / ENTRY) {
            let mut entry = [0; ENTRY];
            entry[..8].copy_from_slice(&vector.message.address.to_le_bytes());
            entry[8..12].copy_from_slice(&vector.message.data.to_le_bytes());
            entry[12..].copy_from_slice(&vector.control.to_le_bytes());
            bytes.fill(0);
            for (byte, value) in bytes.iter_mut().zip(&entry[offset % ENTRY..]) {
                *byte = *value;
            }
        }
    }

    /// The guest writes the table: 4 or 8 bytes at a time, as PCI has it.
    pub fn write_table(&self, offset: usize, bytes: &[u8]) {
        let (index, register) = (offset / ENTRY, offset % ENTRY);
        let mut table = lock(&self.table);
        let Some(vector) = table.vectors.get_mut(index) else { return };
        let words: Vec<u32> =
            bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
        for (at, word) in (register..ENTRY).step_by(4).zip(words) {
            let (address, word_64) = (vector.message.address, u64::from(word));
            match at {
                0 => vector.message.address = address & !0xffff_ffff | word_64,
                4 => vector.message.address = address & 0xffff_ffff | word_64 << 32,
                8 => vector.message.data = word,
                12 => vector.control = word & MASKED,
                _ => {}
            }
        }
        self.apply(&mut table, index);
    }

    /// The guest reads the pending bits.
    pub fn read_pending(&self, offset: usize, bytes: &mut [u8]) {
        let table = lock(&self.table);
        bytes.fill(0);
        for (index, (vector, event)) in table.vectors.iter().zip(&self.events).enumerate() {
            if !vector.connected
                && let Some(byte) = (index / 8).checked_sub(offset).and_then(|at| bytes.get_mut(at))
                && is_signalled(event)
            {
                *byte |= 1 << (index % 8);
            }
        }
    }

    /// Has KVM know a vector as the guest has set it.
    fn apply(&self, table: &mut Table, index: usize) {
        let (vector, event) = (&mut table.vectors[index], &self.events[index]);
        let open = table.control & (ENABLED | ALL_MASKED) == ENABLED && vector.control & MASKED == 0;
        let gsi = self.first_gsi + index as u32;
        if open && vector.led != Some(vector.message) {
            // A message that KVM refuses leads nowhere, as on a machine.
            vector.led = self.routes.lead(gsi, vector.message).is_ok().then_some(vector.message);
        }
        let wanted = open && vector.led.is_some();
        if wanted != vector.connected {
            let done =
                if wanted { self.routes.connect(event, gsi) } else { self.routes.disconnect(event, gsi) }.is_ok();
            if done {
                vector.connected = wanted;
            }
        }
    }
}

fn is_signalled(event: &EventFd) -> bool {
    let fd = borrow(event);
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&Timespec::default())).unwrap_or(0) > 0
}
