//! The balloon (virtio 1.2, 5.5): memory that the guest gives back, because it is asked to, or because it is free.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use rustix::event::PollFlags;
use vm_memory::GuestAddress;

use super::buffers::Buffers;
use super::queue::{Queue, Served};
use super::{Device, Driver, Notifier, Thread, Worker};
use crate::board::lock;
use crate::events::borrow;
use crate::memory::{self, Memory};

/// Bytes of the pages of which all numbers here speak, whatever the guest's are.
const PAGE: u64 = 4096;
/// The most page numbers that are taken from one chain; Linux sends 256.
const MOST: usize = 4096;

/// Features (virtio 1.2, 5.5.3): the guest takes memory back before it kills processes; it reports what is free.
const DEFLATE_ON_OOM: u64 = 1 << 2;
const REPORTING: u64 = 1 << 5;

/// How large the balloon should be and is, in pages.
#[derive(Default)]
pub struct Target {
    wanted: AtomicU32,
    actual: AtomicU32,
    notifier: Mutex<Option<Notifier>>,
}

impl Target {
    /// Asks the guest to give so many bytes back, all in all.
    pub fn set(&self, bytes: u64) {
        self.wanted.store(u32::try_from(bytes / PAGE).unwrap_or(u32::MAX), Ordering::Release);
        if let Some(notifier) = &*lock(&self.notifier) {
            notifier.notify();
        }
    }

    /// How many bytes the guest says that it has given back.
    #[must_use]
    pub fn actual(&self) -> u64 {
        u64::from(self.actual.load(Ordering::Acquire)) * PAGE
    }
}

/// The device.
pub struct Balloon(pub Arc<Target>);

impl Device for Balloon {
    fn kind(&self) -> u16 {
        5
    }

    fn features(&self) -> u64 {
        DEFLATE_ON_OOM | REPORTING
    }

    /// Inflate, deflate, and reports: those between are not offered, and so have no number.
    fn queues(&self) -> &[u16] {
        &[64, 64, 64]
    }

    /// `num_pages` and `actual`.
    fn config(&self) -> Vec<u8> {
        let numbers = [&self.0.wanted, &self.0.actual];
        numbers.iter().flat_map(|number| number.load(Ordering::Acquire).to_le_bytes()).collect()
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        if let (4, Ok(bytes)) = (offset, bytes.try_into()) {
            self.0.actual.store(u32::from_le_bytes(bytes), Ordering::Release);
        }
    }

    fn start(&mut self, driver: Driver) -> io::Result<Box<dyn Worker>> {
        let Driver { memory, queues, notifier, .. } = driver;
        *lock(&self.0.notifier) = Some(notifier);
        Thread::spawn("balloon", move |stop| {
            let Ok([mut inflate, mut deflate, mut reports]) = <[Queue; 3]>::try_from(queues) else { return };
            while stop.wait([&inflate, &deflate, &reports].map(|queue| (borrow(&queue.kick), PollFlags::IN))).is_some()
            {
                inflate.drain(&memory, |chain| {
                    give_back_pages(&memory, chain.readable);
                    Served::Done(0)
                });
                // What the guest takes back is there when it touches it.
                deflate.drain(&memory, |_| Served::Done(0));
                reports.drain(&memory, |chain| {
                    chain.writable.ranges().for_each(|(here, len)| give_back(here, len));
                    Served::Done(0)
                });
            }
        })
    }
}

/// Gives pages back whose numbers these are, each run of them at once.
fn give_back_pages(memory: &Memory, mut numbers: Buffers<'_>) {
    let mut run: Option<(u64, u64)> = None;
    for _ in 0..MOST {
        let Some(number) = numbers.array::<4>() else { break };
        let address = u64::from(u32::from_le_bytes(number)) * PAGE;
        run = match run {
            Some((start, len)) if start + len == address => Some((start, len + PAGE)),
            before => {
                before.into_iter().for_each(|(start, len)| give_back_range(memory, start, len));
                Some((address, PAGE))
            }
        };
    }
    run.into_iter().for_each(|(start, len)| give_back_range(memory, start, len));
}

fn give_back_range(memory: &Memory, start: u64, len: u64) {
    if let Ok(len) = usize::try_from(len)
        && let Some(here) = memory::place(memory, GuestAddress(start), len)
    {
        give_back(here, len);
    }
}

/// Gives guest memory at an address of this process back to the host; the guest reads zeroes there from then on. What
/// is less than a page stays.
fn give_back(here: u64, len: usize) {
    let start = here.next_multiple_of(PAGE);
    let end = (here + len as u64) & !(PAGE - 1);
    if start < end {
        // SAFETY: the range is within the guest's memory, of which nobody here holds a reference. A guest that gives back
        // what it still uses sees zeroes. A refusal costs the host memory and nothing else.
        unsafe { libc::madvise(start as *mut libc::c_void, (end - start) as usize, libc::MADV_DONTNEED) };
    }
}
