//! The network device (virtio 1.2, 5.1) on a tap, with checksums and segmentation left to whoever does them best. With
//! vhost-net the host's kernel moves the packets; without, a thread here does.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::Arc;

use duet_sys::ioctl;
use rustix::event::PollFlags;

use super::queue::{Head, Queue, Served};
use super::vhost::VhostNet;
use super::{Device, Driver, Stop, Thread, Worker};
use crate::events::borrow;
use crate::memory::Memory;

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
}

impl Net {
    /// A network device on a tap that was made with `IFF_TAP`, `IFF_NO_PI` and `IFF_VNET_HDR`, and maybe an open
    /// /dev/vhost-net.
    ///
    /// # Errors
    /// If the tap is something else, or the kernel refuses to serve.
    pub fn new(tap: File, mac: [u8; 6], mtu: u16, vhost: Option<File>) -> io::Result<Self> {
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
        Ok(Self { tap: Arc::new(tap), mac, mtu, vhost })
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

    fn start(&mut self, driver: Driver) -> io::Result<Box<dyn Worker>> {
        let Driver { memory, features, queues, .. } = driver;
        // SAFETY: TUNSETOFFLOAD takes a number.
        unsafe { ioctl::with_number(&*self.tap, TUNSETOFFLOAD, offloads(features)) }?;
        if let Some(vhost) = &self.vhost {
            vhost.start(&memory, features & (MRG_RXBUF | super::feature::ALL), &queues, &*self.tap)?;
            return Ok(Box::new(InKernel { vhost: Arc::clone(vhost), _memory: memory, _queues: queues }));
        }
        let tap = Arc::clone(&self.tap);
        Thread::spawn("net", move |stop| {
            if let Ok([receive, transmit]) = <[Queue; 2]>::try_from(queues) {
                let merge = features & MRG_RXBUF != 0;
                Running { memory, receive, transmit, tap, merge, packet: vec![0; LONGEST], waiting: 0 }.run(&stop);
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
    /// Whether a packet may take several chains.
    merge: bool,
    packet: Vec<u8>,
    /// How much of `packet` is one that waits for chains.
    waiting: usize,
}

impl Running {
    fn run(mut self, stop: &Stop) {
        let mut receiving = true;
        loop {
            let tap = if receiving { PollFlags::IN } else { PollFlags::empty() };
            let fds = [
                (borrow(&self.transmit.kick), PollFlags::IN),
                (borrow(&self.receive.kick), PollFlags::IN),
                (self.tap.as_fd(), tap),
            ];
            let Some([transmit, _, _]) = stop.wait(fds) else { return };
            if transmit {
                let tap = &self.tap;
                self.transmit.drain(&self.memory, |chain| {
                    // A packet that the tap does not take is lost, as packets are.
                    let _ = chain.readable.send(tap);
                    Served::Done(0)
                });
            }
            receiving = self.receive();
        }
    }

    /// Hands packets to the driver. `false`: it has no room, and will kick when it has.
    fn receive(&mut self) -> bool {
        let _ = self.receive.kick.read();
        self.receive.listen(&self.memory, false);
        let mut room = true;
        for _ in 0..BURST {
            if self.waiting == 0 {
                match (&*self.tap).read(&mut self.packet) {
                    Ok(len) => self.waiting = len,
                    Err(_) => break,
                }
            }
            // A driver that makes room just now may not kick for it.
            room = self.deliver() || (self.receive.listen(&self.memory, true) && self.deliver());
            if !room {
                break;
            }
            self.waiting = 0;
        }
        self.receive.notify(&self.memory);
        room
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
