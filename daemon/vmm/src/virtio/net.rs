//! The network device (virtio 1.2, 5.1) on a tap, with checksums and segmentation left to whoever does them best. With
//! vhost-net the host's kernel moves the packets; without, a thread here does.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use duet_sys::ioctl;
use rustix::event::PollFlags;

use super::queue::{Head, Queue, Served};
use super::vhost::VhostNet;
use super::{Device, Driver, Stop, Thread, Worker};
use crate::events::borrow;
use crate::limit::{Direction, Limiter};
use crate::memory::Memory;
use crate::spec::NicLimits;

/// Features (virtio 1.2, 5.1.3).
const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const GUEST_ECN: u64 = 1 << 9;
const HOST_TSO4: u64 = 1 << 11;
const HOST_TSO6: u64 = 1 << 12;
const HOST_ECN: u64 = 1 << 13;
const MRG_RXBUF: u64 = 1 << 15;

/// Bytes of `struct virtio_net_hdr_v1`, and where in it the number of buffers is.
const HEADER: usize = 12;
const BUFFERS_AT: usize = 10;
/// The longest packet: 64 KiB, its Ethernet header and that before it.
const LONGEST: usize = HEADER + 14 + 65535;
/// How many packets are received before the other direction is looked at.
const BURST: usize = 64;

/// Requests to a tap (include/uapi/linux/if_tun.h).
pub(crate) const TUNSETOFFLOAD: u32 = ioctl::request(ioctl::WRITE, b'T', 208, 4);
const TUNGETIFF: u32 = ioctl::request(ioctl::READ, b'T', 210, 4);
const TUNSETVNETHDRSZ: u32 = ioctl::request(ioctl::WRITE, b'T', 216, 4);
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
/// What the guest takes: checksums to be made, segments of TCP to be cut.
const TUN_F_CSUM: u64 = 1;
const TUN_F_TSO4: u64 = 2;
const TUN_F_TSO6: u64 = 4;
const TUN_F_TSO_ECN: u64 = 8;

/// The device.
#[derive(Debug)]
pub struct Net {
    tap: Arc<File>,
    mac: [u8; 6],
    mtu: u16,
    vhost: Option<Arc<VhostNet>>,
    limiter: Arc<Limiter>,
}

impl Net {
    /// A network device on a tap that was made with `IFF_TAP`, `IFF_NO_PI` and `IFF_VNET_HDR`, and maybe an open
    /// /dev/vhost-net.
    ///
    /// # Errors
    /// If the tap is something else, or the kernel refuses to serve.
    pub fn new(tap: File, mac: [u8; 6], mtu: u16, vhost: Option<File>, limits: NicLimits) -> io::Result<Self> {
        duet_sys::socket::set_nonblocking(&tap, true)?;
        // `struct ifreq`: a name of 16 bytes, then the flags.
        let mut request = [0u8; 40];
        // SAFETY: TUNGETIFF fills in a `struct ifreq`, which has 40 bytes.
        unsafe { ioctl::with(&tap, TUNGETIFF, &mut request) }?;
        let needed = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        if u16::from_le_bytes([request[16], request[17]]) & needed != needed {
            return Err(io::Error::other("a tap has to be made with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR"));
        }
        // SAFETY: TUNSETVNETHDRSZ reads an int.
        unsafe { ioctl::with(&tap, TUNSETVNETHDRSZ, &mut (HEADER as libc::c_int)) }?;
        let vhost = vhost.map(VhostNet::new).transpose()?.map(Arc::new);
        let limiter = Arc::new(Limiter::new(limits.ingress, limits.egress, 1)?);
        Ok(Self { tap: Arc::new(tap), mac, mtu, vhost, limiter })
    }
}

/// What a tap is to leave to a driver that took these features.
fn offloads(features: u64) -> u64 {
    let pairs =
        [(GUEST_CSUM, TUN_F_CSUM), (GUEST_TSO4, TUN_F_TSO4), (GUEST_TSO6, TUN_F_TSO6), (GUEST_ECN, TUN_F_TSO_ECN)];
    let all = pairs.iter().filter(|(feature, _)| features & feature != 0).fold(0, |all, (_, offload)| all | offload);
    // Without checksums there is nothing else (tun_set_offload, drivers/net/tun.c).
    if all & TUN_F_CSUM == 0 { 0 } else { all }
}

impl Device for Net {
    fn kind(&self) -> u16 {
        1
    }

    fn features(&self) -> u64 {
        let guest = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN;
        CSUM | guest | MTU | MAC | HOST_TSO4 | HOST_TSO6 | HOST_ECN | MRG_RXBUF
    }

    fn queues(&self) -> &[u16] {
        &[256, 256]
    }

    /// `struct virtio_net_config` up to the MTU; status and number of queues are not offered.
    fn config(&self) -> Vec<u8> {
        let mut config = self.mac.to_vec();
        config.extend([0, 0, 1, 0]);
        config.extend(self.mtu.to_le_bytes());
        config
    }

    /// With vhost the packets do not come by here.
    fn limiter(&self) -> Option<Arc<Limiter>> {
        self.vhost.is_none().then(|| Arc::clone(&self.limiter))
    }

    fn start(&mut self, driver: Driver) -> io::Result<Box<dyn Worker>> {
        let Driver { memory, features, queues, .. } = driver;
        // SAFETY: TUNSETOFFLOAD takes a number.
        unsafe { ioctl::with_number(&*self.tap, TUNSETOFFLOAD, offloads(features)) }?;
        if let Some(vhost) = &self.vhost {
            vhost.start(&memory, features & (MRG_RXBUF | super::feature::ALL), &queues, &*self.tap)?;
            return Ok(Box::new(InKernel { vhost: Arc::clone(vhost), _memory: memory, _queues: queues }));
        }
        let (tap, limiter) = (Arc::clone(&self.tap), Arc::clone(&self.limiter));
        Thread::spawn("net", move |stop| {
            if let Ok([receive, transmit]) = <[Queue; 2]>::try_from(queues) {
                let merge = features & MRG_RXBUF != 0;
                let packet = vec![0; LONGEST];
                let waiting = 0;
                Running { memory, receive, transmit, tap, limiter, merge, packet, waiting, counted: false }.run(&stop);
            }
        })
    }
}

/// The host's kernel serves, with what it needs for that.
struct InKernel {
    vhost: Arc<VhostNet>,
    _memory: Memory,
    _queues: Vec<Queue>,
}

impl Worker for InKernel {}

impl Drop for InKernel {
    fn drop(&mut self) {
        self.vhost.stop();
    }
}

struct Running {
    memory: Memory,
    receive: Queue,
    transmit: Queue,
    tap: Arc<File>,
    limiter: Arc<Limiter>,
    /// Whether a packet may take several chains.
    merge: bool,
    packet: Vec<u8>,
    /// How much of `packet` is one that waits for chains.
    waiting: usize,
    /// Whether the limits have counted that one.
    counted: bool,
}

/// What a direction waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// Packets.
    Packets,
    /// The driver, to make room.
    Room,
    /// A limit.
    Limit(Instant),
}

impl Wait {
    /// What is watched for if `events` are packets.
    fn flags(self, events: PollFlags) -> PollFlags {
        if self == Self::Packets { events } else { PollFlags::empty() }
    }

    /// Whether a limit still holds up packets now.
    fn holds(self, now: Instant) -> bool {
        matches!(self, Self::Limit(end) if end > now)
    }

    /// A limit that holds for a time, if it ends at all.
    fn limit(time: std::time::Duration) -> Self {
        let now = Instant::now();
        Self::Limit(now.checked_add(time).unwrap_or(now + FOREVER))
    }
}

/// Longer than any machine runs.
const FOREVER: std::time::Duration = std::time::Duration::from_secs(1 << 32);

impl Running {
    fn run(mut self, stop: &Stop) {
        let limiter = Arc::clone(&self.limiter);
        let Some(wake) = limiter.wake(0) else { return };
        let (mut receiving, mut sending) = (Wait::Packets, Wait::Packets);
        loop {
            let fds = [
                (borrow(&self.transmit.kick), sending.flags(PollFlags::IN)),
                (borrow(&self.receive.kick), PollFlags::IN),
                (self.tap.as_fd(), receiving.flags(PollFlags::IN)),
                (borrow(wake), PollFlags::IN),
            ];
            let now = Instant::now();
            let end = [receiving, sending].into_iter().filter_map(|wait| match wait {
                Wait::Limit(end) => Some(end.saturating_duration_since(now)),
                Wait::Packets | Wait::Room => None,
            });
            let Some([transmit, _, _, changed]) = stop.wait_for(fds, end.min()) else { return };
            if changed {
                let _ = wake.read();
            }
            let now = Instant::now();
            if transmit || (sending != Wait::Packets && (changed || !sending.holds(now))) {
                sending = self.send();
            }
            if changed || !receiving.holds(now) {
                receiving = self.receive();
            } else {
                // The driver has made room: there is nothing to be put there yet.
                let _ = self.receive.kick.read();
            }
        }
    }

    /// Sends the driver's packets.
    fn send(&mut self) -> Wait {
        let (tap, limiter) = (&self.tap, &self.limiter);
        let mut wait = Wait::Packets;
        self.transmit.drain(&self.memory, |chain| {
            // The header before each packet is none of it.
            let len = chain.readable.len().clamp(HEADER, LONGEST) - HEADER;
            if let Err(time) = limiter.take(Direction::Out, len as u64) {
                wait = Wait::limit(time);
                return Served::Later;
            }
            // A packet that the tap does not take is lost, as packets are.
            let _ = chain.readable.send(tap);
            Served::Done(0)
        });
        wait
    }

    /// Hands packets to the driver.
    fn receive(&mut self) -> Wait {
        let _ = self.receive.kick.read();
        self.receive.listen(&self.memory, false);
        let mut wait = Wait::Packets;
        for _ in 0..BURST {
            if self.waiting == 0 {
                match (&*self.tap).read(&mut self.packet) {
                    Ok(len) => (self.waiting, self.counted) = (len, false),
                    Err(_) => break,
                }
            }
            // What is not fetched from the tap waits there, and is lost where its queue is full.
            if !self.counted
                && let Err(time) = self.limiter.take(Direction::In, self.waiting.saturating_sub(HEADER) as u64)
            {
                wait = Wait::limit(time);
                break;
            }
            self.counted = true;
            // A driver that makes room just now may not kick for it.
            if !(self.deliver() || (self.receive.listen(&self.memory, true) && self.deliver())) {
                wait = Wait::Room;
                break;
            }
            self.waiting = 0;
        }
        self.receive.notify(&self.memory);
        wait
    }

    /// Puts the packet into chains. `false`: there are not enough, and nothing happened.
    fn deliver(&mut self) -> bool {
        let mut rest = &self.packet[..self.waiting];
        let mut chains: Vec<(Head, u32)> = Vec::new();
        let mut first = None;
        while !rest.is_empty() {
            let Some(mut chain) = self.receive.take(&self.memory) else {
                self.receive.untake(chains.len() as u16);
                return false;
            };
            if chains.is_empty() {
                first = Some(chain.writable.clone());
            }
            let written = chain.writable.write(rest);
            rest = &rest[written..];
            chains.push((chain.head(), written as u32));
            // Without merging, what does not fit is lost. A chain without room would have no end, and neither would a
            // packet of as many chains as the queue has.
            if !self.merge || written == 0 || chains.len() >= usize::from(u16::MAX) {
                break;
            }
        }
        if let Some(mut first) = first {
            drop(first.take(BUFFERS_AT));
            first.write(&(chains.len() as u16).to_le_bytes());
        }
        self.receive.give(&self.memory, &chains);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;
    use std::time::Duration;

    use super::super::driver::TestDriver;
    use super::*;
    use crate::limit::Rate;

    fn packets(count: u64) -> Rate {
        Rate { operations: NonZeroU64::new(count), ..Rate::default() }
    }

    /// A device between a driver and a socket that stands for a tap: it keeps packets apart as that does.
    fn running(ingress: Rate, egress: Rate) -> (TestDriver, TestDriver, UnixDatagram, Running) {
        let (tap, wire) = UnixDatagram::pair().unwrap();
        tap.set_nonblocking(true).unwrap();
        wire.set_nonblocking(true).unwrap();
        let ((receiver, receive), (sender, transmit)) = (TestDriver::new(), TestDriver::new());
        let limiter = Arc::new(Limiter::new(ingress, egress, 1).unwrap());
        let tap = Arc::new(File::from(OwnedFd::from(tap)));
        let packet = vec![0; LONGEST];
        // Each of the two queues is in a memory of its own here.
        let memory = sender.memory.clone();
        let running =
            Running { memory, receive, transmit, tap, limiter, merge: false, packet, waiting: 0, counted: false };
        (receiver, sender, wire, running)
    }

    #[test]
    fn what_is_sent_too_fast_waits_and_nothing_is_lost() {
        let (_, mut sender, wire, mut running) = running(Rate::default(), packets(2));
        for number in 0..5u8 {
            sender.send(&[&[number; HEADER + 60]], &[]);
        }
        let Wait::Limit(end) = running.send() else { panic!("five packets went through a limit of two") };
        assert!(end <= Instant::now() + Duration::from_millis(501));
        let mut bytes = [0; 100];
        let arrived = |bytes: &mut [u8]| (0..).take_while(|_| wire.recv(bytes).is_ok()).count();
        let first = arrived(&mut bytes);
        assert!((2..5).contains(&first), "{first}");
        assert!(Wait::Limit(end).holds(end - Duration::from_millis(1)) && !Wait::Limit(end).holds(end));
        // Without limits the rest goes, in order.
        running.limiter.set(Rate::default(), Rate::default());
        assert_eq!(running.send(), Wait::Packets);
        assert_eq!(first + arrived(&mut bytes), 5);
        assert_eq!(bytes[..HEADER + 60], [4; HEADER + 60]);
    }

    #[test]
    fn what_is_received_too_fast_stays_in_the_tap() {
        let (mut receiver, _, wire, mut running) = running(packets(2), Rate::default());
        running.memory = receiver.memory.clone();
        for number in 0..5u8 {
            receiver.send(&[], &[2048]);
            wire.send(&[number; HEADER + 60]).unwrap();
        }
        assert!(matches!(running.receive(), Wait::Limit(_)));
        let first = (0..).take_while(|_| receiver.given().is_some()).count();
        assert!((2..5).contains(&first), "{first}");
        running.limiter.set(Rate::default(), Rate::default());
        assert_eq!(running.receive(), Wait::Packets);
        assert_eq!(first + (0..).take_while(|_| receiver.given().is_some()).count(), 5);
        // The last of them is the last.
        let last = receiver.bytes(0x1_0000 + 4 * 2048 + 20, 1);
        assert_eq!(last, [4]);
    }

    #[test]
    fn a_direction_that_waits_does_not_hold_up_the_other_or_the_end() {
        let (_receiver, mut sender, wire, running) = running(Rate::default(), packets(1));
        let limiter = Arc::clone(&running.limiter);
        // A debt of years.
        limiter.set(Rate::default(), Rate { bytes: NonZeroU64::new(1), ..Rate::default() });
        assert_eq!(limiter.take(Direction::Out, 1 << 40), Ok(()));
        sender.send(&[&[1; HEADER + 60]], &[]);
        // The driver's kick, which is what the thread waits for first.
        running.transmit.kick.write(1).unwrap();
        let (kick, done) = (running.transmit.kick.try_clone().unwrap(), std::sync::mpsc::channel());
        let worker = Thread::spawn("net", move |stop| {
            running.run(&stop);
            done.0.send(()).unwrap();
        })
        .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        // It has taken the kick and waits.
        while kick.read().is_ok() {
            kick.write(1).unwrap();
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        let mut bytes = [0; 100];
        assert!(wire.recv(&mut bytes).is_err());
        // Changed limits wake it.
        limiter.set(Rate::default(), Rate::default());
        while wire.recv(&mut bytes).is_err() {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        drop(worker);
        done.1.recv_timeout(Duration::from_secs(20)).unwrap();
    }
}
