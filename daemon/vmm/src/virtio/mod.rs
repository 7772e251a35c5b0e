//! Virtio devices (OASIS virtio 1.2).
//!
//! [`transport`] is the PCI side that all share; each device says what it is ([`Device`]) and, when a driver is there,
//! starts a worker: a thread that owns the queues, or the host's kernel. The CPUs' threads never touch a queue, so a slow
//! disk holds up nobody but its own device.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::confine;
use crate::events::borrow;
use crate::limit::Limiter;
use crate::memory::Memory;
use crate::pci::msix::Msix;

pub mod balloon;
pub mod block;
pub mod buffers;
pub mod console;
#[cfg(test)]
mod driver;
pub mod net;
pub mod queue;
pub mod rng;
pub mod transport;
pub mod vhost;
pub mod vsock;

use queue::Queue;

/// Feature bits that belong to no device (virtio 1.2, 6).
pub mod feature {
    /// `VIRTIO_F_INDIRECT_DESC`
    pub const INDIRECT: u64 = 1 << 28;
    /// `VIRTIO_F_EVENT_IDX`
    pub const EVENT_IDX: u64 = 1 << 29;
    /// `VIRTIO_F_VERSION_1`
    pub const VERSION_1: u64 = 1 << 32;
    /// What every device here can do.
    pub const ALL: u64 = INDIRECT | EVENT_IDX | VERSION_1;
}

/// A kind of device.
pub trait Device: Send {
    /// Its number (virtio 1.2, 5).
    fn kind(&self) -> u16;

    /// Its features, without [`feature::ALL`].
    fn features(&self) -> u64 {
        0
    }

    /// The largest size of each of its queues, a power of two.
    fn queues(&self) -> &[u16];

    /// Its configuration.
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    /// The driver writes its configuration.
    fn write_config(&mut self, _offset: usize, _bytes: &[u8]) {}

    /// What limits it, if it can be limited.
    fn limiter(&self) -> Option<Arc<Limiter>> {
        None
    }

    /// Serves a driver until the worker is dropped.
    ///
    /// # Errors
    /// If that cannot be started: the driver then sees a device that needs a reset.
    fn start(&mut self, driver: Driver) -> io::Result<Box<dyn Worker>>;
}

/// What serves a driver. It ends with it, and has let go of the guest's memory then.
pub trait Worker: Send {}

/// Several together.
impl Worker for Vec<Box<dyn Worker>> {}

/// A driver that is ready.
pub struct Driver {
    /// The guest's memory.
    pub memory: Memory,
    /// The features that it took.
    pub features: u64,
    /// The device's queues. Those that the driver does not use are not ready.
    pub queues: Vec<Queue>,
    /// Tells it of a changed configuration.
    pub notifier: Notifier,
}

/// Tells a driver that its device's configuration changed.
#[derive(Clone)]
pub struct Notifier {
    msix: Arc<Msix>,
    vector: Arc<AtomicU16>,
    generation: Arc<AtomicU8>,
}

impl Notifier {
    /// Tells it.
    pub fn notify(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        if let Some(event) = self.msix.event(self.vector.load(Ordering::Acquire)) {
            // A full counter is a pending interrupt.
            let _ = event.write(1);
        }
    }
}

/// A worker that is a thread here.
pub struct Thread {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Thread {
    /// Starts it. `run` is to return soon once `stop` is readable.
    ///
    /// # Errors
    /// If there is no room for a thread.
    pub fn spawn(name: &str, run: impl FnOnce(Stop) + Send + 'static) -> io::Result<Box<dyn Worker>> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let seen = Stop(stop.try_clone()?);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Where a thread cannot be confined it does not serve.
            if confine::enter_worker().is_ok() {
                run(seen);
            }
        })?;
        Ok(Box::new(Self { stop, thread: Some(thread) }))
    }
}

impl Worker for Thread {}

impl Drop for Thread {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // One that panicked has let go of everything too.
            let _ = thread.join();
        }
    }
}

/// A thread's side of its end.
pub struct Stop(EventFd);

impl Stop {
    /// Waits until one of the descriptors has what it is to be watched for, or an error. Says which have; `None`: the
    /// thread is to end.
    #[must_use]
    pub fn wait<const N: usize>(&self, fds: [(BorrowedFd<'_>, PollFlags); N]) -> Option<[bool; N]> {
        self.wait_for(fds, None)
    }

    /// The same, but no longer than a time: then none of them may have anything.
    #[must_use]
    pub fn wait_for<const N: usize>(
        &self,
        fds: [(BorrowedFd<'_>, PollFlags); N],
        time: Option<Duration>,
    ) -> Option<[bool; N]> {
        let ready = self.wait_some(&fds, time)?;
        Some(std::array::from_fn(|index| ready[index]))
    }

    /// Waits for any number of descriptors.
    #[must_use]
    pub fn wait_all(&self, fds: &[(BorrowedFd<'_>, PollFlags)]) -> Option<Vec<bool>> {
        self.wait_some(fds, None)
    }

    fn wait_some(&self, fds: &[(BorrowedFd<'_>, PollFlags)], time: Option<Duration>) -> Option<Vec<bool>> {
        // What the kernel cannot count is for ever.
        let time = time.and_then(|time| Timespec::try_from(time).ok());
        let stop = borrow(&self.0);
        let mut wanted = vec![PollFd::new(&stop, PollFlags::IN)];
        wanted.extend(fds.iter().map(|(fd, flags)| PollFd::new(fd, *flags)));
        retry_on_intr(|| poll(&mut wanted, time.as_ref())).ok()?;
        let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        (!ready(&wanted[0])).then(|| wanted[1..].iter().map(ready).collect())
    }
}
