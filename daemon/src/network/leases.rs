//! Who has which address.
//!
//! dnsmasq keeps its leases in a file (format: dnsmasq's src/lease.c), IPv4 first, then a line `duid ...` and IPv6:
//!
//! ```text
//! <expiry> <hardware address> <IPv4 address> <name or *> <client id or *>
//! duid <server's DUID>
//! <expiry> <IAID> <IPv6 address> <name or *> <client's DUID>
//! ```
//!
//! To these come what is not in it: the bridge itself, the fixed addresses, and the addresses that known NICs make for
//! themselves by SLAAC.
//!
//! [`release`] gives a deleted instance's IPv4 lease back, in its name. Otherwise 250 launches within the lease time
//! would exhaust a /24, and the deleted instance's name would go on resolving.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    path::Path,
};

use duet_client::api;
use rand::RngExt;
use tokio::net::UdpSocket;

use super::{
    config::BridgeConfig,
    dnsmasq::StaticHost,
    error::{Error, Result},
    mac::MacAddr,
};

/// How an address came to its holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseKind {
    /// Fixed by the instance's configuration.
    Static,
    /// Leased by DHCP or made by SLAAC.
    Dynamic,
    /// The bridge's own.
    Gateway,
}

/// One address in a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The holder's name; empty if it told none.
    pub hostname: String,
    /// The holder's hardware address, where known.
    pub hwaddr: Option<MacAddr>,
    /// The address.
    pub address: IpAddr,
    /// How it came to its holder.
    pub kind: LeaseKind,
}

impl From<Lease> for api::NetworkLease {
    fn from(lease: Lease) -> Self {
        let (kind, location) = match lease.kind {
            LeaseKind::Static => ("static", "none"),
            LeaseKind::Dynamic => ("dynamic", "none"),
            LeaseKind::Gateway => ("gateway", ""),
        };
        api::NetworkLease {
            hostname: lease.hostname,
            hwaddr: lease.hwaddr.map(|mac| mac.to_string()).unwrap_or_default(),
            address: lease.address.to_string(),
            kind: kind.to_owned(),
            location: location.to_owned(),
        }
    }
}

/// One line of dnsmasq's file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    hwaddr: Option<MacAddr>,
    address: IpAddr,
    hostname: Option<String>,
    /// Client identifier (IPv4) or DUID (IPv6).
    client: Option<Vec<u8>>,
}

/// Reads dnsmasq's file. Lines that make no sense are passed over: the file may be read while it is being written.
fn parse(text: &str) -> Vec<Record> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Record> {
    let mut fields = line.split_ascii_whitespace();
    let _expiry: u64 = fields.next()?.parse().ok()?;
    let second = fields.next()?;
    let address: IpAddr = fields.next()?.parse().ok()?;
    let hostname = fields.next().filter(|name| *name != "*").map(str::to_owned);
    let client = fields.next().and_then(parse_hex);
    let hwaddr = match address {
        // Other hardware than Ethernet has its ARP type in front, as in `06-01:02:...`.
        IpAddr::V4(_) => second.parse().ok(),
        IpAddr::V6(_) => client.as_deref().and_then(duid_hwaddr),
    };
    Some(Record { hwaddr, address, hostname, client })
}

fn parse_hex(text: &str) -> Option<Vec<u8>> {
    text.split(':').map(|octet| u8::from_str_radix(octet, 16).ok()).collect()
}

/// The Ethernet address in a DUID: type 1 (with time) or 3 (without), hardware type 1 (RFC 8415, 11.2 and 11.4).
fn duid_hwaddr(duid: &[u8]) -> Option<MacAddr> {
    match duid {
        [0, 1, 0, 1, _, _, _, _, mac @ ..] | [0, 3, 0, 1, mac @ ..] => MacAddr::from_slice(mac),
        _ => None,
    }
}

fn read(file: &Path) -> Result<Vec<Record>> {
    match fs::read(file) {
        Ok(bytes) => Ok(parse(&String::from_utf8_lossy(&bytes))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::file("read", file, e)),
    }
}

/// All that is known of a network's addresses: the gateway, then fixed ones, then dynamic ones.
pub(super) fn list(name: &str, config: &BridgeConfig, hosts: &[StaticHost], file: &Path) -> Result<Vec<Lease>> {
    let mut leases = Vec::new();
    let gateways = config.ipv4.iter().map(|v4| IpAddr::V4(v4.address.addr()));
    for address in gateways.chain(config.ipv6.iter().map(|v6| IpAddr::V6(v6.address.addr()))) {
        leases.push(Lease { hostname: format!("{name}.gw"), hwaddr: None, address, kind: LeaseKind::Gateway });
    }
    let host_name = |host: &StaticHost| host.name.clone().unwrap_or_default();
    for host in hosts {
        let fixed = host.ipv4.map(IpAddr::V4).into_iter().chain(host.ipv6.map(IpAddr::V6));
        leases.extend(fixed.map(|address| Lease {
            hostname: host_name(host),
            hwaddr: Some(host.hwaddr),
            address,
            kind: LeaseKind::Static,
        }));
    }
    let slaac = config.ipv6.as_ref().filter(|v6| v6.dhcp && !v6.stateful && v6.address.prefix_len() <= 64);
    for (host, v6) in hosts.iter().filter_map(|host| slaac.map(|v6| (host, v6))) {
        leases.push(Lease {
            hostname: host_name(host),
            hwaddr: Some(host.hwaddr),
            address: IpAddr::V6(host.hwaddr.eui64(v6.address)),
            kind: LeaseKind::Dynamic,
        });
    }
    // DHCPv6 clients are often known by a DUID that says nothing of their hardware; their name tells.
    let by_name: HashMap<&str, MacAddr> =
        hosts.iter().filter_map(|host| Some((host.name.as_deref()?, host.hwaddr))).collect();
    for record in read(file)? {
        if leases.iter().any(|lease| lease.address == record.address) {
            continue;
        }
        let hostname = record.hostname.unwrap_or_default();
        let hwaddr = record.hwaddr.or_else(|| by_name.get(hostname.as_str()).copied());
        leases.push(Lease { hostname, hwaddr, address: record.address, kind: LeaseKind::Dynamic });
    }
    Ok(leases)
}

/// Tells dnsmasq, in the place of the client with this hardware address, that it gives up its IPv4 leases (DHCPRELEASE,
/// RFC 2131, 4.4.6). dnsmasq answers nothing; it has rewritten the file when it has read the packet.
pub(super) async fn release(bridge: &str, config: &BridgeConfig, hwaddr: MacAddr, file: &Path) -> Result<()> {
    let Some(server) = config.ipv4.as_ref().filter(|v4| v4.dhcp).map(|v4| v4.address.addr()) else {
        return Ok(());
    };
    for record in read(file)?.into_iter().filter(|record| record.hwaddr == Some(hwaddr)) {
        if let IpAddr::V4(address) = record.address {
            let packet = release_packet(hwaddr, address, server, record.client.as_deref());
            send(bridge, server, &packet)
                .await
                .map_err(|e| Error::system(format!("cannot release the lease of {address}"), e))?;
        }
    }
    Ok(())
}

/// dnsmasq's socket is bound to the bridge. A packet from the host itself travels over loopback, yet counts as having
/// come in by the bridge if the sending socket is bound to it too.
async fn send(bridge: &str, server: Ipv4Addr, packet: &[u8]) -> io::Result<()> {
    let socket = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.bind_device(Some(bridge.as_bytes()))?;
    socket.send_to(packet, SocketAddrV4::new(server, 67)).await.map(drop)
}

/// The packet, laid out as in RFC 2131, figure 1, with its options (RFC 2132).
fn release_packet(hwaddr: MacAddr, client: Ipv4Addr, server: Ipv4Addr, client_id: Option<&[u8]>) -> Vec<u8> {
    let mut packet = vec![0; 236];
    packet[0] = 1; // BOOTREQUEST
    packet[1] = 1; // Ethernet
    packet[2] = 6; // length of its addresses
    packet[4..8].copy_from_slice(&rand::rng().random::<[u8; 4]>());
    packet[12..16].copy_from_slice(&client.octets());
    packet[28..34].copy_from_slice(&hwaddr.0);
    packet.extend([99, 130, 83, 99]); // what marks the options as DHCP's
    packet.extend([53, 1, 7]); // DHCPRELEASE
    packet.extend([54, 4]);
    packet.extend(server.octets());
    if let Some((id, length)) = client_id.and_then(|id| Some((id, u8::try_from(id.len()).ok()?))) {
        packet.extend([61, length]);
        packet.extend(id);
    }
    packet.push(255);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::config::ConfigMap;

    const FILE: &str = "\
1795454279 10:66:6a:6f:04:f9 10.77.0.251 c1 ff:6a:6f:04:f9:00:01:00:01
1795454280 10:66:6a:00:00:02 10.77.0.7 * *
garbage
1795454280 10:66:6a:00:00:03
duid 00:01:00:01:2e:d3:7a:8c:10:66:6a:e0:92:7f
1795454281 7274745 fd42::5 c2 00:01:00:01:2e:d3:7a:8c:10:66:6a:00:00:05
1795454281 7274746 fd42::6 c1 00:02:00:00:ab:11:01:02
";

    fn config() -> BridgeConfig {
        let map = ConfigMap::from([
            ("ipv4.address".to_owned(), "10.77.0.1/24".to_owned()),
            ("ipv6.address".to_owned(), "fd42::1/64".to_owned()),
            ("ipv6.dhcp.stateful".to_owned(), "true".to_owned()),
        ]);
        BridgeConfig::parse(&map).unwrap()
    }

    #[test]
    fn reads_dnsmasqs_file() {
        let records = parse(FILE);
        assert_eq!(records.len(), 4);
        assert_eq!(records[0].hostname.as_deref(), Some("c1"));
        assert_eq!(records[0].client.as_ref().map(Vec::len), Some(9));
        assert_eq!(records[1].hostname, None);
        assert_eq!(records[2].hwaddr, Some("10:66:6a:00:00:05".parse().unwrap()));
        assert_eq!(records[3].hwaddr, None);
    }

    #[test]
    fn lists_gateway_static_and_dynamic() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("leases");
        fs::write(&file, FILE).unwrap();
        let host = StaticHost {
            id: "c1.eth0".to_owned(),
            hwaddr: "10:66:6a:6f:04:f9".parse().unwrap(),
            name: Some("c1".to_owned()),
            ipv4: Some(Ipv4Addr::new(10, 77, 0, 251)),
            ipv6: None,
        };
        let leases = list("br0", &config(), &[host], &file).unwrap();
        let kinds: Vec<_> = leases.iter().map(|l| (l.hostname.as_str(), l.address.to_string(), l.kind)).collect();
        assert_eq!(kinds[0], ("br0.gw", "10.77.0.1".to_owned(), LeaseKind::Gateway));
        assert_eq!(kinds[1], ("br0.gw", "fd42::1".to_owned(), LeaseKind::Gateway));
        assert_eq!(kinds[2], ("c1", "10.77.0.251".to_owned(), LeaseKind::Static));
        assert_eq!(kinds.len(), 6);
        // Known by its name although its DUID doesn't tell.
        assert_eq!(leases[5].hwaddr, Some("10:66:6a:6f:04:f9".parse().unwrap()));
        assert!(list("br0", &config(), &[], &directory.path().join("absent")).unwrap().len() == 2);
    }

    #[test]
    fn a_lease_as_the_api_shows_it() {
        let lease = Lease {
            hostname: "c1".to_owned(),
            hwaddr: Some("10:66:6a:6f:04:f9".parse().unwrap()),
            address: "10.77.0.251".parse().unwrap(),
            kind: LeaseKind::Dynamic,
        };
        let json = serde_json::to_value(api::NetworkLease::from(lease)).unwrap();
        let recorded = serde_json::json!({
            "hostname": "c1", "hwaddr": "10:66:6a:6f:04:f9", "address": "10.77.0.251", "type": "dynamic",
            "location": "none",
        });
        assert_eq!(json, recorded);
    }
}
