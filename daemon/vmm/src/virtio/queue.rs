//! A virtqueue as a worker uses it: chains come out, are used, and are given back.
//!
//! The available half is virtio-queue's. The used half is here, because a packet that takes several chains has to be
//! given back at once, and because a driver without event indices says by a flag that it wants no interrupts.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue as Ring, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::buffers::Buffers;
use crate::memory::Memory;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`
const NO_INTERRUPT: u16 = 1;

/// A queue that belongs to a worker.
pub struct Queue {
    ring: Ring,
    /// Readable once the driver says that there is something.
    pub kick: EventFd,
    interrupt: Option<EventFd>,
    /// How many chains were given back, and how many of them the driver was asked about an interrupt for. They wrap.
    used: u16,
    told: u16,
}

/// A descriptor chain: what the device reads, then what it writes.
pub struct Chain<'m> {
    head: u16,
    /// From the driver.
    pub readable: Buffers<'m>,
    /// To the driver.
    pub writable: Buffers<'m>,
}

/// What a chain is given back by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head(u16);

/// What became of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// It is done, and so many bytes were written to it.
    Done(u32),
    /// It has to wait; so have those after it.
    Later,
}

impl Chain<'_> {
    /// What the chain is given back by.
    #[must_use]
    pub fn head(&self) -> Head {
        Head(self.head)
    }
}

impl Queue {
    /// A queue whose addresses were checked, what the driver kicks and what interrupts it.
    #[must_use]
    pub fn new(ring: Ring, kick: EventFd, interrupt: Option<EventFd>) -> Self {
        Self { ring, kick, interrupt, used: 0, told: 0 }
    }

    /// What the driver set up.
    #[must_use]
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// What interrupts the driver, if it wants that.
    #[must_use]
    pub fn interrupt(&self) -> Option<&EventFd> {
        self.interrupt.as_ref()
    }

    /// The next chain that the driver has made available, if there is one. A chain that no driver may make is an empty
    /// one.
    pub fn take<'m>(&mut self, memory: &'m Memory) -> Option<Chain<'m>> {
        if !self.ring.ready() {
            return None;
        }
        // An index further ahead than the queue is long is a lie: there would be no end of it.
        let ahead = self.ring.avail_idx(memory, Ordering::Acquire).ok()?.0;
        if ahead.wrapping_sub(self.ring.next_avail()) > self.ring.size() {
            return None;
        }
        let chain = self.ring.pop_descriptor_chain(memory)?;
        let head = chain.head_index();
        let (readable, writable) = Buffers::of(memory, chain).unwrap_or_default();
        Some(Chain { head, readable, writable })
    }

    /// Puts back the so many chains that were taken last.
    pub fn untake(&mut self, count: u16) {
        self.ring.set_next_avail(self.ring.next_avail().wrapping_sub(count));
    }

    /// Gives chains back, of each of whose writable part so many bytes were written: the driver sees all or none.
    pub fn give(&mut self, memory: &Memory, chains: &[(Head, u32)]) {
        let (ring, size) = (self.ring.used_ring(), self.ring.size());
        for (head, written) in chains {
            let entry = u64::from(u16::to_le(head.0)) | u64::from(written.to_le()) << 32;
            let at = ring.wrapping_add(4 + u64::from(self.used % size) * 8);
            self.used = self.used.wrapping_add(1);
            // The whole ring was memory when the queue was made, and memory does not go.
            let _ = memory.write_obj(entry, GuestAddress(at));
        }
        let _ = memory.store(self.used.to_le(), GuestAddress(ring.wrapping_add(2)), Ordering::Release);
    }

    /// Interrupts the driver, if it wants that for what was given back since the last time.
    pub fn notify(&mut self, memory: &Memory) {
        if self.used == self.told || !self.ring.ready() {
            return;
        }
        let (before, now) = (std::mem::replace(&mut self.told, self.used), self.used);
        // What was given back is seen before what is read here was written (virtio 1.2, 2.7.10).
        fence(Ordering::SeqCst);
        let read =
            |offset| memory.load::<u16>(GuestAddress(self.ring.avail_ring().wrapping_add(offset)), Ordering::Relaxed);
        let wanted = if self.ring.event_idx_enabled() {
            let event = read(4 + 2 * u64::from(self.ring.size())).map(u16::from_le);
            // `vring_need_event` of virtio 1.2, 2.7.10.1.
            event.map_or(true, |event| now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before))
        } else {
            read(0).map_or(true, |flags| u16::from_le(flags) & NO_INTERRUPT == 0)
        };
        if wanted && let Some(interrupt) = &self.interrupt {
            // A full counter is a pending interrupt.
            let _ = interrupt.write(1);
        }
    }

    /// Has the driver kick for new chains, or not. Says whether there are some already.
    pub fn listen(&mut self, memory: &Memory, listen: bool) -> bool {
        if !self.ring.ready() {
            false
        } else if listen {
            self.ring.enable_notification(memory).unwrap_or(false)
        } else {
            let _ = self.ring.disable_notification(memory);
            false
        }
    }

    /// Serves what there is: `serve` is given each chain and says whether to go on. Then the driver is interrupted. After
    /// a queue's length the worker looks at its other business first, and is kicked to come back.
    pub fn drain(&mut self, memory: &Memory, mut serve: impl FnMut(Chain<'_>) -> Served) {
        let _ = self.kick.read();
        let mut budget = self.ring.size();
        let mut more = true;
        while more {
            self.listen(memory, false);
            while more && let Some(chain) = self.take(memory) {
                if budget == 0 {
                    self.untake(1);
                    let _ = self.kick.write(1);
                    more = false;
                    break;
                }
                budget -= 1;
                let head = chain.head();
                match serve(chain) {
                    Served::Done(written) => self.give(memory, &[(head, written)]),
                    Served::Later => {
                        self.untake(1);
                        more = false;
                    }
                }
            }
            // A ring that says that it has more, and has not, is not listened to for ever.
            budget = budget.saturating_sub(1);
            more = more && budget > 0 && self.listen(memory, true);
        }
        self.notify(memory);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::driver::{SIZE, TestDriver};
    use super::*;

    #[test]
    fn chains_come_out_in_order_and_go_back_with_one_interrupt() {
        let (mut driver, mut queue) = TestDriver::new();
        driver.send(&[b"one"], &[4]);
        driver.send(&[b"two", b"three"], &[]);
        let mut seen = Vec::new();
        let memory = driver.memory.clone();
        queue.drain(&memory, |mut chain| {
            let mut bytes = vec![0; chain.readable.len()];
            chain.readable.read(&mut bytes);
            seen.push(String::from_utf8(bytes).unwrap());
            Served::Done(chain.writable.write(b"longer") as u32)
        });
        assert_eq!(seen, ["one", "twothree"]);
        assert_eq!((driver.given(), driver.given(), driver.given()), (Some((0, 4)), Some((2, 0)), None));
        assert_eq!(driver.interrupt.read().unwrap(), 1);
    }

    #[test]
    fn what_has_to_wait_comes_again() {
        let (mut driver, mut queue) = TestDriver::new();
        driver.send(&[b"one"], &[]);
        driver.send(&[b"two"], &[]);
        let memory = driver.memory.clone();
        let mut left = 1;
        let mut serve = |queue: &mut Queue| {
            queue.drain(&memory, |_| {
                left -= 1;
                if left < 0 { Served::Later } else { Served::Done(0) }
            });
            left = 1;
        };
        serve(&mut queue);
        assert_eq!((driver.given(), driver.given()), (Some((0, 0)), None));
        serve(&mut queue);
        assert_eq!((driver.given(), driver.given()), (Some((1, 0)), None));
    }

    #[test]
    fn a_chain_that_bites_its_tail_ends() {
        let (mut driver, mut queue) = TestDriver::new();
        driver.describe(0, 0x1_0000, 16, 1, 1);
        driver.describe(1, 0x1_0000, 16, 1, 0);
        driver.offer(0);
        let memory = driver.memory.clone();
        queue.drain(&memory, |chain| {
            assert!(chain.readable.len() <= 16 * usize::from(SIZE));
            Served::Done(0)
        });
        assert_eq!(driver.given(), Some((0, 0)));
    }

    proptest! {
        /// Whatever is in the table and the ring: what comes out is memory, and there is an end of it.
        #[test]
        fn nonsense_is_taken_calmly(
            table in prop::collection::vec((any::<u64>(), 0u32..(40 << 20), 0u16..8, 0u16..80), 1..usize::from(SIZE)),
            ring in prop::collection::vec(0u16..80, 0..usize::from(SIZE)),
        ) {
            let (mut driver, mut queue) = TestDriver::new();
            for (index, (address, len, flags, next)) in (0..).zip(table) {
                // Half of them near memory.
                let address = if address % 2 == 0 { address % (20 << 20) } else { address };
                driver.describe(index, address, len, flags, next);
            }
            ring.iter().for_each(|head| driver.offer(*head));
            let memory = driver.memory.clone();
            let mut count = 0;
            queue.drain(&memory, |mut chain| {
                count += 1;
                let taken = chain.readable.take(1000).len();
                assert!(taken <= 1000);
                Served::Done(chain.writable.write(&[1; 64]) as u32)
            });
            prop_assert_eq!(count, ring.len());
        }

        /// The split halves of buffers are the whole.
        #[test]
        fn buffers_split_as_bytes_do(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 1..8), at in 0usize..300,
        ) {
            let (mut driver, mut queue) = TestDriver::new();
            let slices: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            driver.send(&slices, &[]);
            let whole = pieces.concat();
            let memory = driver.memory.clone();
            let mut chain = queue.take(&memory).unwrap();
            let mut end = chain.readable.clone();
            let mut first = chain.readable.take(at);
            let mut bytes = vec![0; whole.len()];
            let len = first.read(&mut bytes);
            prop_assert_eq!(len, at.min(whole.len()));
            chain.readable.read(&mut bytes[len..]);
            prop_assert_eq!(&bytes, &whole);
            match end.take_end(at) {
                Some(mut last) => {
                    let mut bytes = vec![0; at];
                    prop_assert_eq!(last.read(&mut bytes), at);
                    prop_assert_eq!(&bytes[..], &whole[whole.len() - at..]);
                    prop_assert_eq!(end.len(), whole.len() - at);
                }
                None => prop_assert!(at > whole.len()),
            }
        }
    }
}
