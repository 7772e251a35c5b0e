//! Watching a container's network from outside.
//!
//! The container's monitor opens a routing netlink socket *inside* the container's network namespace and hands it to
//! the daemon; a socket stays in the namespace it was made in. On it [`NetnsWatcher`] keeps a copy of the namespace's
//! links and addresses that is always current: one dump at the start, then the kernel's notifications. Whoever waits
//! for an address waits on a [`watch`] channel, and nothing ever polls. A watcher costs one socket and one task.
//!
//! ```text
//!             +--------- multicast: new/del link, new/del address ---------+
//!  kernel ----+                                                            +--> model --> watch channel
//!             +--------- replies to our dump (our port, our sequence) -----+
//! ```
//!
//! Both kinds of messages come through one queue and in the kernel's order, so each is applied to the model as it comes,
//! and to the model that a running dump is building too: a change that the kernel queued before a part of the dump is
//! contained in that part, one that it queued after is newer than it. Replies are told from notifications by port and
//! sequence number. A dump that the kernel marks as inconsistent, and a queue that overflowed (ENOBUFS) and was
//! emptied, are answered by another dump.
//!
//! The container is not trusted. Its root may send netlink messages to our port, so only what comes from port 0, the
//! kernel, is read. It may flood us with changes, so after each batch the task rests a little and lets the queue
//! overflow. It may make addresses by the million, so the model holds a limited number.
//!
//! The socket keeps the namespace alive, with all links in it: a watcher must be dropped when its container stops.

use std::{collections::BTreeMap, io, os::fd::OwnedFd, sync::Arc, time::Duration};

use duet_client::api;
use rtnetlink::{
    packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload},
    packet_route::{AddressFamily, RouteNetlinkMessage, address::AddressMessage, link::LinkMessage},
};
use rustix::net::{
    AddressFamily as Domain, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice::index_to_name,
    netlink::SocketAddrNetlink,
};
use tokio::{
    io::unix::{AsyncFd, AsyncFdReadyGuard},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::sleep,
};

use super::{
    error::{Error, Result},
    interface::{Address, Interface},
    nic::is_host_name,
    readable,
};

/// RTMGRP_LINK, RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR (linux/rtnetlink.h).
const GROUPS: u32 = 0x1 | 0x10 | 0x100;
/// A datagram is never larger: the kernel's dumps are cut at 32 KiB (netlink_dump in net/netlink/af_netlink.c).
const BUFFER: usize = 64 * 1024;
/// Datagrams read before the task rests.
const BATCH: usize = 64;
/// The rest after a full batch, and after an overflow.
const REST: Duration = Duration::from_millis(20);
/// What the model holds at most; no sane container comes near.
const MAX_INTERFACES: usize = 1024;
const MAX_ADDRESSES: usize = 256;

/// The network of a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetnsState {
    /// Its links by index.
    pub interfaces: BTreeMap<u32, Interface>,
}

impl NetnsState {
    /// Whether it has a global IPv4 address on something other than loopback.
    pub fn has_ipv4(&self) -> bool {
        self.global_addresses().any(|address| address.address.is_ipv4())
    }

    /// Whether it has a usable global IPv6 address on something other than loopback.
    pub fn has_ipv6(&self) -> bool {
        self.global_addresses().any(|address| address.address.is_ipv6())
    }

    /// Its usable global addresses but for those on loopback links.
    pub fn global_addresses(&self) -> impl Iterator<Item = &Address> {
        let links = self.interfaces.values().filter(|interface| !interface.loopback);
        let addresses = links.flat_map(|interface| &interface.addresses);
        addresses.filter(|address| !address.tentative && address.scope() == super::interface::Scope::Global)
    }

    /// The link of that name.
    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.values().find(|interface| interface.name == name)
    }

    /// As the API shows it, by link name. The host's ends of the veths are looked up in the caller's namespace.
    pub fn to_api(&self) -> BTreeMap<String, api::InstanceStateNetwork> {
        let lookup = rustix::net::socket_with(Domain::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).ok();
        // An index says nothing of the namespace it is in; only a name of our form is one of ours.
        let host_name = |index: u32| index_to_name(lookup.as_ref()?, index).ok().filter(|name| is_host_name(name));
        let interfaces = self.interfaces.values();
        interfaces
            .map(|i| (i.name.clone(), i.to_instance_state(i.peer_index.and_then(host_name).unwrap_or_default())))
            .collect()
    }

    /// Whether both have the same links with the same addresses; traffic doesn't count.
    pub fn same_but_counters(&self, other: &Self) -> bool {
        self.interfaces.len() == other.interfaces.len()
            && self.interfaces.values().zip(other.interfaces.values()).all(|(a, b)| a.same_but_counters(b))
    }

    fn apply(&mut self, message: &RouteNetlinkMessage) {
        match message {
            // Bridges tell of their ports in messages of their own family, whose "deleted" means "left the bridge".
            RouteNetlinkMessage::NewLink(link) if link.header.interface_family == AddressFamily::Unspec => {
                let full = self.interfaces.len() >= MAX_INTERFACES;
                let mut new = Interface::parse(link);
                if let Some(old) = self.interfaces.get_mut(&new.index) {
                    new.addresses = std::mem::take(&mut old.addresses);
                    *old = new;
                } else if !full {
                    self.interfaces.insert(new.index, new);
                }
            }
            RouteNetlinkMessage::DelLink(link) if link.header.interface_family == AddressFamily::Unspec => {
                self.interfaces.remove(&link.header.index);
            }
            RouteNetlinkMessage::NewAddress(message) => {
                if let Some((addresses, new)) = self.addresses_of(message) {
                    if let Some(old) = addresses.iter_mut().find(|old| same_address(old, &new)) {
                        *old = new;
                    } else if addresses.len() < MAX_ADDRESSES {
                        addresses.push(new);
                    }
                }
            }
            RouteNetlinkMessage::DelAddress(message) => {
                if let Some((addresses, gone)) = self.addresses_of(message) {
                    addresses.retain(|old| !same_address(old, &gone));
                }
            }
            _ => {}
        }
    }

    fn addresses_of(&mut self, message: &AddressMessage) -> Option<(&mut Vec<Address>, Address)> {
        let (index, address) = Address::parse(message)?;
        Some((&mut self.interfaces.get_mut(&index)?.addresses, address))
    }
}

fn same_address(a: &Address, b: &Address) -> bool {
    a.address == b.address && a.prefix_len == b.prefix_len
}

type Reply = oneshot::Sender<NetnsState>;

/// Watches one container's network; see the module's documentation. Dropping it ends the watch and closes the socket.
#[derive(Debug)]
pub struct NetnsWatcher {
    states: watch::Receiver<Arc<NetnsState>>,
    requests: mpsc::UnboundedSender<Reply>,
    task: JoinHandle<()>,
}

impl Drop for NetnsWatcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl NetnsWatcher {
    /// Begins to watch through `socket`, a NETLINK_ROUTE socket made in the namespace. It joins the multicast groups
    /// itself, whether or not the socket is bound already. Needs a tokio runtime.
    pub fn spawn(socket: OwnedFd) -> Result<Self> {
        let fail = |e: rustix::io::Errno| Error::system("cannot use the container's netlink socket", e);
        let flags = rustix::fs::fcntl_getfl(&socket).map_err(fail)?;
        rustix::fs::fcntl_setfl(&socket, flags | rustix::fs::OFlags::NONBLOCK).map_err(fail)?;
        let port = || -> rustix::io::Result<u32> {
            Ok(SocketAddrNetlink::try_from(rustix::net::getsockname(&socket)?)?.pid())
        };
        // Binding again to the same port (0 if there is none yet: the kernel chooses one) sets the groups.
        rustix::net::bind(&socket, &SocketAddrNetlink::new(port().map_err(fail)?, GROUPS)).map_err(fail)?;
        let port = port().map_err(fail)?;
        let socket =
            readable::register(socket).map_err(|e| Error::system("cannot watch the container's netlink socket", e))?;

        let (publish, states) = watch::channel(Arc::default());
        let (requests, received) = mpsc::unbounded_channel();
        let watch = Watch {
            socket: Arc::new(socket),
            port,
            sequence: 0,
            model: NetnsState::default(),
            publish,
            requests: received,
            waiting: Vec::new(),
            dump: None,
            stale: true,
            overflowed: false,
            settled: false,
        };
        Ok(NetnsWatcher { states, requests, task: tokio::spawn(watch.run()) })
    }

    /// The state as last heard of; empty until the first dump is in. Counters are as old as the last change.
    pub fn current(&self) -> Arc<NetnsState> {
        self.states.borrow().clone()
    }

    /// Changes of links and addresses, not of counters. The channel closes when the watcher ends.
    pub fn subscribe(&self) -> watch::Receiver<Arc<NetnsState>> {
        self.states.clone()
    }

    /// A fresh dump, with current counters. Requests that arrive while one is under way share the next.
    pub async fn snapshot(&self) -> Result<NetnsState> {
        let gone = || Error::WatcherGone { message: "its socket was closed".to_owned() };
        let (reply, answer) = oneshot::channel();
        self.requests.send(reply).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}

/// A dump under way: links first, then addresses.
struct Dump {
    sequence: u32,
    links_done: bool,
    interrupted: bool,
    building: NetnsState,
    replies: Vec<Reply>,
}

/// The watching task.
struct Watch {
    socket: Arc<AsyncFd<OwnedFd>>,
    port: u32,
    sequence: u32,
    model: NetnsState,
    publish: watch::Sender<Arc<NetnsState>>,
    requests: mpsc::UnboundedReceiver<Reply>,
    waiting: Vec<Reply>,
    dump: Option<Dump>,
    /// The model may have missed something.
    stale: bool,
    /// The queue overflowed and was not empty since. The kernel says so once and then drops all notifications until it
    /// is (NETLINK_S_CONGESTED in net/netlink/af_netlink.c), so a dump would be of no use before.
    overflowed: bool,
    /// A first dump is in, so that the model is worth publishing.
    settled: bool,
}

impl Watch {
    async fn run(mut self) {
        loop {
            if let Err(error) = self.step().await {
                tracing::debug!(%error, "stopped watching a container's network");
                return;
            }
        }
    }

    async fn step(&mut self) -> io::Result<()> {
        if self.dump.is_none() && !self.overflowed && (self.stale || !self.waiting.is_empty()) {
            self.start_dump()?;
        }
        let socket = Arc::clone(&self.socket);
        tokio::select! {
            request = self.requests.recv() => match request {
                Some(reply) => self.waiting.push(reply),
                None => return Err(io::Error::other("nobody watches")),
            },
            ready = socket.readable() => {
                if self.drain(&mut ready?)? {
                    sleep(REST).await;
                }
            }
        }
        Ok(())
    }

    fn start_dump(&mut self) -> io::Result<()> {
        self.stale = false;
        let replies = std::mem::take(&mut self.waiting);
        let sequence = self.send_dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        let building = NetnsState::default();
        self.dump = Some(Dump { sequence, links_done: false, interrupted: false, building, replies });
        Ok(())
    }

    fn send_dump(&mut self, message: RouteNetlinkMessage) -> io::Result<u32> {
        // Notifications that nobody asked for have sequence number 0.
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        rustix::net::send(self.socket.get_ref(), &bytes, SendFlags::empty())?;
        Ok(self.sequence)
    }

    /// Reads what has arrived, and tells whether the task should rest before it reads more. Only a read that finds
    /// nothing ends the readiness that `ready` stands for, and only if nothing has come since it was taken.
    fn drain(&mut self, ready: &mut AsyncFdReadyGuard<'_, OwnedFd>) -> io::Result<bool> {
        let mut buffer = Vec::with_capacity(BUFFER);
        let mut rest = true;
        for _ in 0..BATCH {
            buffer.clear();
            let received = ready.try_io(|socket| {
                let spare = rustix::buffer::spare_capacity(&mut buffer);
                let (_, _, from) = rustix::net::recvfrom(socket, spare, RecvFlags::DONTWAIT)?;
                Ok(from.and_then(|any| SocketAddrNetlink::try_from(any).ok()))
            });
            match received {
                Ok(Ok(Some(from))) if from.pid() == 0 => self.read(&buffer)?,
                Ok(Ok(_)) => {}
                Ok(Err(e)) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.overflowed = true;
                    break;
                }
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Err(e),
                Err(_would_block) => {
                    self.stale |= std::mem::take(&mut self.overflowed);
                    rest = false;
                    break;
                }
            }
        }
        self.publish();
        Ok(rest)
    }

    /// Reads all messages of one datagram.
    fn read(&mut self, mut datagram: &[u8]) -> io::Result<()> {
        while let Ok(header) = NetlinkBuffer::new_checked(datagram) {
            let length = usize::try_from(header.length()).unwrap_or(usize::MAX).min(datagram.len());
            let ours = header.port_number() == self.port
                && self.dump.as_ref().is_some_and(|dump| dump.sequence == header.sequence_number());
            // A message that the parser doesn't know is none that we asked for.
            if let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&datagram[..length]) {
                self.take(message, ours)?;
            }
            // Messages are aligned to four bytes (netlink(7), NLMSG_ALIGN).
            datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }

    fn take(&mut self, message: NetlinkMessage<RouteNetlinkMessage>, ours: bool) -> io::Result<()> {
        match message.payload {
            NetlinkPayload::InnerMessage(inner) => {
                if let Some(dump) = &mut self.dump {
                    dump.building.apply(&inner);
                    dump.interrupted |= ours && message.header.flags & NLM_F_DUMP_INTR != 0;
                }
                if !ours {
                    self.model.apply(&inner);
                }
            }
            NetlinkPayload::Done(_) if ours => {
                if let Some(dump) = &mut self.dump {
                    dump.interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                }
                self.advance()?;
            }
            // A queue that is full when the dump begins only delays it (netlink_recvmsg goes on with it), though the
            // kernel complains. Any other refusal means that it can't be said what the namespace holds.
            NetlinkPayload::Error(error) if ours && error.code.is_some() => {
                let error = error.to_io();
                if error.raw_os_error() != Some(libc::ENOBUFS) {
                    return Err(error);
                }
            }
            NetlinkPayload::Overrun(_) => self.overflowed = true,
            _ => {}
        }
        Ok(())
    }

    /// Takes the dump to its next stage, or to its end.
    fn advance(&mut self) -> io::Result<()> {
        let Some(mut dump) = self.dump.take() else {
            return Ok(());
        };
        if !dump.links_done {
            dump.links_done = true;
            dump.sequence = self.send_dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
            self.dump = Some(dump);
            return Ok(());
        }
        self.model = dump.building;
        if dump.interrupted {
            self.stale = true;
            self.waiting.append(&mut dump.replies);
        } else {
            self.settled = true;
            for reply in dump.replies {
                // Whoever asked may have stopped waiting.
                let _ = reply.send(self.model.clone());
            }
        }
        Ok(())
    }

    fn publish(&mut self) {
        if !self.settled {
            return;
        }
        let model = &self.model;
        self.publish.send_if_modified(|published| {
            let changed = !published.same_but_counters(model);
            if changed {
                *published = Arc::new(model.clone());
            }
            changed
        });
    }
}
