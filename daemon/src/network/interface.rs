//! Links and addresses as values: what a netlink message says, reduced to what Duet shows and decides on.

use std::net::IpAddr;

use duet_client::api;
use rtnetlink::packet_route::{
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressProtocol},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};

use super::mac::MacAddr;

/// Traffic through a link since it was made, as the link itself counts (`rtnl_link_stats64`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bad packets received.
    pub rx_errors: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
    /// Packets dropped on receipt.
    pub rx_dropped: u64,
    /// Packets dropped on sending.
    pub tx_dropped: u64,
}

/// One address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The address itself.
    pub address: IpAddr,
    /// Length of the subnet's prefix, bits.
    pub prefix_len: u8,
    /// Not usable yet, or never: duplicate address detection runs or has failed (RFC 4862, 5.4).
    pub tentative: bool,
    /// Who put it there (IFA_PROTO, since Linux 5.18); 0 if nobody said.
    pub protocol: u8,
}

/// How far an address reaches, in the API's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Anywhere its routing goes.
    Global,
    /// The link only.
    Link,
    /// This host only.
    Local,
}

impl Scope {
    /// The word in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Global => "global",
            Scope::Link => "link",
            Scope::Local => "local",
        }
    }
}

impl Address {
    /// The scope by the address's own value, as Incus tells it: a 169.254/16 address counts as link-local although the
    /// kernel gives it whatever scope its creator chose.
    pub fn scope(&self) -> Scope {
        match self.address {
            ip if ip.is_loopback() => Scope::Local,
            IpAddr::V4(v4) if v4.is_link_local() => Scope::Link,
            IpAddr::V6(v6) if v6.is_unicast_link_local() => Scope::Link,
            _ => Scope::Global,
        }
    }

    /// `inet` or `inet6`.
    pub fn family(&self) -> &'static str {
        if self.address.is_ipv4() { "inet" } else { "inet6" }
    }

    /// The link's index and the address that a message is about.
    pub(super) fn parse(message: &AddressMessage) -> Option<(u32, Address)> {
        let mut local = None;
        let mut address = None;
        let mut protocol = 0;
        let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Address(ip) => address = Some(*ip),
                AddressAttribute::Flags(all) => flags = *all,
                AddressAttribute::Protocol(p) => protocol = u8::from(*p),
                _ => {}
            }
        }
        // On a point-to-point link IFA_ADDRESS is the peer and IFA_LOCAL our end (rtnetlink(7)).
        let address = local.or(address)?;
        let tentative = flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed);
        let prefix_len = message.header.prefix_len;
        Some((message.header.index, Address { address, prefix_len, tentative, protocol }))
    }
}

/// One link with its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Interface {
    /// The kernel's index, unique in its namespace.
    pub index: u32,
    /// The name.
    pub name: String,
    /// The hardware address; loopback has none to show.
    pub hwaddr: Option<MacAddr>,
    /// Largest packet, bytes.
    pub mtu: u32,
    /// Whether it was raised (IFF_UP).
    pub up: bool,
    /// Whether it is a loopback link.
    pub loopback: bool,
    /// Whether it is a broadcast link, as Ethernet.
    pub broadcast: bool,
    /// Whether it is a point-to-point link.
    pub point_to_point: bool,
    /// The kind of a virtual link (`bridge`, `veth`, ...); physical ones have none.
    pub kind: Option<String>,
    /// Index of the bridge or bond that it is a port of.
    pub controller: Option<u32>,
    /// Index of the other end (veth) or of the link below (vlan), in that link's own namespace.
    pub peer_index: Option<u32>,
    /// The alias (`ip link set ... alias`).
    pub alias: Option<String>,
    /// Traffic.
    pub counters: Counters,
    /// Addresses, in the kernel's order.
    pub addresses: Vec<Address>,
}

impl Interface {
    /// The link that a message describes, without its addresses.
    pub(super) fn parse(message: &LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut interface = Interface {
            index: message.header.index,
            up: flags.contains(LinkFlags::Up),
            loopback: flags.contains(LinkFlags::Loopback),
            broadcast: flags.contains(LinkFlags::Broadcast),
            point_to_point: flags.contains(LinkFlags::Pointopoint),
            ..Interface::default()
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name.clone_from(name),
                LinkAttribute::Address(bytes) if !interface.loopback => interface.hwaddr = MacAddr::from_slice(bytes),
                LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
                LinkAttribute::Controller(index) => interface.controller = Some(*index),
                LinkAttribute::Link(index) if *index != 0 => interface.peer_index = Some(*index),
                LinkAttribute::IfAlias(alias) => interface.alias = Some(alias.clone()),
                LinkAttribute::LinkInfo(infos) => interface.kind = kind_of(infos).map(InfoKind::to_string),
                LinkAttribute::Stats64(s) => {
                    interface.counters = Counters {
                        rx_bytes: s.rx_bytes,
                        tx_bytes: s.tx_bytes,
                        rx_packets: s.rx_packets,
                        tx_packets: s.tx_packets,
                        rx_errors: s.rx_errors,
                        tx_errors: s.tx_errors,
                        rx_dropped: s.rx_dropped,
                        tx_dropped: s.tx_dropped,
                    };
                }
                _ => {}
            }
        }
        interface
    }

    /// The API's word for the kind of medium.
    pub fn medium(&self) -> &'static str {
        if self.loopback {
            "loopback"
        } else if self.broadcast {
            "broadcast"
        } else if self.point_to_point {
            "point-to-point"
        } else {
            "unknown"
        }
    }

    /// `up` or `down`.
    pub fn state(&self) -> &'static str {
        if self.up { "up" } else { "down" }
    }

    /// Whether both describe the same link with the same addresses; traffic doesn't count.
    pub fn same_but_counters(&self, other: &Interface) -> bool {
        let still = |i: &Interface| Interface { counters: Counters::default(), ..i.clone() };
        still(self) == still(other)
    }

    /// This link as part of an instance's state. `host_name` is the other end's name on the host.
    pub fn to_instance_state(&self, host_name: String) -> api::InstanceStateNetwork {
        let c = &self.counters;
        let addresses = self.addresses.iter().map(|a| api::InstanceStateNetworkAddress {
            family: a.family().to_owned(),
            address: a.address.to_string(),
            netmask: a.prefix_len.to_string(),
            scope: a.scope().as_str().to_owned(),
        });
        api::InstanceStateNetwork {
            addresses: addresses.collect(),
            counters: api::InstanceStateNetworkCounters {
                bytes_received: signed(c.rx_bytes),
                bytes_sent: signed(c.tx_bytes),
                packets_received: signed(c.rx_packets),
                packets_sent: signed(c.tx_packets),
                errors_received: signed(c.rx_errors),
                errors_sent: signed(c.tx_errors),
                packets_dropped_outbound: signed(c.tx_dropped),
                packets_dropped_inbound: signed(c.rx_dropped),
            },
            hwaddr: self.hwaddr.map(|mac| mac.to_string()).unwrap_or_default(),
            host_name,
            mtu: i64::from(self.mtu),
            state: self.state().to_owned(),
            kind: self.medium().to_owned(),
        }
    }
}

/// The API's counters are signed; none reaches 2^63 in earnest.
pub(super) fn signed(counter: u64) -> i64 {
    i64::try_from(counter).unwrap_or(i64::MAX)
}

fn kind_of(infos: &[LinkInfo]) -> Option<&InfoKind> {
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    })
}

/// The mark in IFA_PROTO of addresses that we put on a bridge. The kernel uses 1 to 3 itself (IFAPROT_* in
/// linux/if_addr.h) and leaves the rest to user space.
pub(super) const ADDRESS_PROTOCOL: u8 = 0xd2;

/// [`ADDRESS_PROTOCOL`] as an attribute.
pub(super) fn our_protocol() -> AddressAttribute {
    AddressAttribute::Protocol(AddressProtocol::Other(ADDRESS_PROTOCOL))
}
