//! The network interfaces of the guest.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;

use crate::protocol::message::{Address, Counters, Interface, MAX_ADDRESSES, MAX_INTERFACES};

/// All of them, with what getifaddrs(3) and sysfs tell.
pub(super) fn interfaces() -> BTreeMap<String, Interface> {
    let mut all: BTreeMap<String, Interface> = BTreeMap::new();
    let Ok(entries) = getifaddrs() else { return all };
    let mut addresses = 0;
    for entry in entries {
        if !all.contains_key(&entry.interface_name) && all.len() >= MAX_INTERFACES {
            continue;
        }
        let interface = all
            .entry(entry.interface_name.clone())
            .or_insert_with(|| look_at(&Path::new("/sys/class/net").join(&entry.interface_name), entry.flags));
        let address = entry.address.as_ref().and_then(ip);
        let prefix = entry.netmask.as_ref().and_then(ip).map_or(0, prefix_length);
        if let Some(address) = address.filter(|_| addresses < MAX_ADDRESSES) {
            interface.addresses.push(Address { address, prefix });
            addresses += 1;
        }
    }
    all
}

fn look_at(dir: &Path, flags: InterfaceFlags) -> Interface {
    let text = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default().trim().to_owned();
    let counter = |name: &str| text(&format!("statistics/{name}")).parse().unwrap_or(0);
    Interface {
        addresses: Vec::new(),
        hwaddr: text("address"),
        mtu: text("mtu").parse().unwrap_or(0),
        up: flags.contains(InterfaceFlags::IFF_UP),
        loopback: flags.contains(InterfaceFlags::IFF_LOOPBACK),
        point_to_point: flags.contains(InterfaceFlags::IFF_POINTOPOINT),
        broadcast: flags.contains(InterfaceFlags::IFF_BROADCAST),
        counters: Counters {
            bytes_received: counter("rx_bytes"),
            bytes_sent: counter("tx_bytes"),
            packets_received: counter("rx_packets"),
            packets_sent: counter("tx_packets"),
            errors_received: counter("rx_errors"),
            errors_sent: counter("tx_errors"),
            packets_dropped_inbound: counter("rx_dropped"),
            packets_dropped_outbound: counter("tx_dropped"),
        },
    }
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => Some(v4.ip().into()),
        (None, Some(v6)) => Some(v6.ip().into()),
        (None, None) => None,
    }
}

fn prefix_length(mask: IpAddr) -> u8 {
    let ones = match mask {
        IpAddr::V4(mask) => mask.to_bits().leading_ones(),
        IpAddr::V6(mask) => mask.to_bits().leading_ones(),
    };
    u8::try_from(ones).unwrap_or(0)
}
