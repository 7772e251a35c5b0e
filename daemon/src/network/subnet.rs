//! Choosing subnets that nothing else uses.
//!
//! What counts as used: every address of the host, every destination of its routes in every table (VPNs like to use
//! tables of their own), and the other networks' subnets even while they are down. Routes that stand for "the rest of
//! the world" say nothing: a default route, and the halves (0.0.0.0/1, 128.0.0.0/1 and the like) into which VPNs
//! split it so as to win over it.
//!
//! A subnet of the host's neighbours that the host has no route of its own to can't be seen that way, so a candidate's
//! first address is pinged, briefly. A network where everything answers (some captive portals do) must not keep us
//! from choosing at all: after [`PING_TRIES`] answers the next candidate is taken unasked.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rand::{Rng, RngExt};
use rtnetlink::packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};
use rustix::net::{AddressFamily as Domain, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};
use tokio::io::Interest;

use super::{
    config::{BridgeConfig, ConfigMap, fill_defaults},
    error::{Error, Result},
    interface::Address,
    readable,
    rtnl::Rtnl,
};

/// Random picks before all candidates are gone through in order.
const RANDOM_TRIES: usize = 200;
/// Candidates that may answer a ping before the answers are held to mean nothing.
const PING_TRIES: usize = 4;
/// How long an answer may take. A neighbour answers within a few milliseconds.
const PING_DEADLINE: Duration = Duration::from_millis(150);
/// Routes with shorter prefixes than these stand for the world and not for a subnet in use.
const WORLD_V4: u8 = 8;
const WORLD_V6: u8 = 16;

/// Subnets that are in use.
#[derive(Debug, Clone, Default)]
pub struct Occupied {
    nets: Vec<(IpNet, String)>,
}

impl Occupied {
    /// Adds a subnet and what uses it, in words that complete "overlaps ...".
    pub fn add(&mut self, net: IpNet, what: impl Into<String>) {
        self.nets.push((net.trunc(), what.into()));
    }

    /// Adds another network's subnets.
    pub fn add_network(&mut self, config: &BridgeConfig) {
        for net in config.subnets() {
            self.add(net, format!("another network's {net}"));
        }
    }

    /// What uses some of `net`, if anything does.
    pub fn conflict(&self, net: IpNet) -> Option<&str> {
        let overlaps = |used: &IpNet| used.contains(&net) || net.contains(used);
        self.nets.iter().find(|(used, _)| overlaps(used)).map(|(_, what)| what.as_str())
    }

    /// Adds all that the host's kernel knows of, but for what belongs to the link with index `but`.
    pub(super) async fn add_host(&mut self, rtnl: &Rtnl, but: Option<u32>) -> Result<()> {
        for message in rtnl.addresses().await? {
            let Some((index, address)) = Address::parse(&message) else {
                continue;
            };
            let net = IpNet::new(address.address, address.prefix_len);
            if let (Ok(net), false) = (net, Some(index) == but) {
                self.add(net, format!("the host's address {net}"));
            }
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for route in rtnl.routes(family).await? {
                if let Some(net) = route_subnet(&route, but) {
                    self.add(net, format!("the host's route to {net}"));
                }
            }
        }
        Ok(())
    }
}

/// The subnet that a route shows to be in use.
fn route_subnet(route: &RouteMessage, but: Option<u32>) -> Option<IpNet> {
    if route.header.kind == RouteType::Multicast {
        return None;
    }
    let mut destination = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => destination = Some(IpAddr::V4(*ip)),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => destination = Some(IpAddr::V6(*ip)),
            RouteAttribute::Oif(index) if Some(*index) == but => return None,
            _ => {}
        }
    }
    let net = IpNet::new(destination?, route.header.destination_prefix_length).ok()?;
    let world = match net {
        IpNet::V4(v4) => v4.prefix_len() < WORLD_V4,
        IpNet::V6(v6) => v6.prefix_len() < WORLD_V6,
    };
    (!world).then_some(net)
}

/// Picks a free IPv4 /24 and returns the bridge's address in it: at random in 10/8, then whatever is left in 10/8,
/// 172.16/12 and 192.168/16 (RFC 1918), each begun at a random place so that two hosts seldom choose alike.
pub fn choose_ipv4(occupied: &Occupied, rng: &mut impl Rng) -> Result<Ipv4Net> {
    let bridge = |base: u32| Ipv4Net::new_assert(Ipv4Addr::from(base | 1), 24);
    let free = |net: &Ipv4Net| occupied.conflict(IpNet::V4(*net)).is_none();
    let random = (0..RANDOM_TRIES).map(|_| bridge(0x0a00_0000 | rng.random_range(0..0x1_0000_u32) << 8)).find(free);
    if let Some(net) = random {
        return Ok(net);
    }
    for (base, count) in [(0x0a00_0000, 0x1_0000_u32), (0xac10_0000, 0x1000), (0xc0a8_0000, 0x100)] {
        let start = rng.random_range(0..count);
        if let Some(net) = (0..count).map(|i| bridge(base | ((start + i) % count) << 8)).find(free) {
            return Ok(net);
        }
    }
    Err(Error::NoFreeSubnet { family: "IPv4", key: "ipv4.address" })
}

/// Picks a free IPv6 /64 with 48 random bits under fd42::/16, a unique local prefix (RFC 4193) that people know from
/// Incus, and returns the bridge's address in it.
pub fn choose_ipv6(occupied: &Occupied, rng: &mut impl Rng) -> Result<Ipv6Net> {
    (0..RANDOM_TRIES)
        .map(|_| {
            let random = u128::from(rng.random::<u64>() >> 16) << 64;
            Ipv6Net::new_assert(Ipv6Addr::from(0xfd42_u128 << 112 | random | 1), 64)
        })
        .find(|net| occupied.conflict(IpNet::V6(*net)).is_none())
        .ok_or(Error::NoFreeSubnet { family: "IPv6", key: "ipv6.address" })
}

/// [`fill_defaults`] with pings: while the IPv4 subnet chosen has an answering first address, another is chosen.
pub(super) async fn fill_defaults_pinging(
    config: &mut ConfigMap,
    occupied: &mut Occupied,
    has_ipv6: bool,
    rng: &mut impl Rng,
) -> Result<()> {
    for attempt in 0.. {
        let mut trial = config.clone();
        fill_defaults(&mut trial, occupied, has_ipv6, rng)?;
        let chosen = trial.get("ipv4.address").filter(|new| Some(*new) != config.get("ipv4.address"));
        let chosen = chosen.and_then(|text| text.parse::<Ipv4Net>().ok());
        if let Some(net) = chosen
            && attempt < PING_TRIES
            && answers_ping(net.addr()).await
        {
            occupied.add(IpNet::V4(net), format!("a neighbour's {net}"));
            continue;
        }
        *config = trial;
        break;
    }
    Ok(())
}

/// Whether anyone answers an ICMP echo to this address within [`PING_DEADLINE`]. Failing to ask (no route, no
/// permission) counts as no answer.
pub(super) async fn answers_ping(address: Ipv4Addr) -> bool {
    tokio::time::timeout(PING_DEADLINE, ping(address)).await.is_ok_and(|asked| asked.is_ok())
}

async fn ping(address: Ipv4Addr) -> std::io::Result<()> {
    // Echo request: type 8, code 0, checksum, identifier, sequence number (RFC 792). On a raw socket the checksum is
    // ours to make and the answer comes with its IP header.
    let id = std::process::id().to_be_bytes();
    let mut request = [8, 0, 0, 0, id[2], id[3], 0xd0, 0xe7];
    let sum: u32 = request.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0);
    request[2..4].copy_from_slice(&checksum.to_be_bytes());

    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(Domain::INET, SocketType::RAW, flags, Some(ipproto::ICMP))?;
    let target = SocketAddr::V4(SocketAddrV4::new(address, 0));
    rustix::net::sendto(&socket, &request, SendFlags::empty(), &target)?;
    let socket = readable::register(socket)?;
    let mut buffer = [0; 256];
    loop {
        let received = socket
            .async_io(Interest::READABLE, |fd| Ok(rustix::net::recvfrom(fd, &mut buffer, RecvFlags::empty())?))
            .await?;
        let (_, length, from) = received;
        let from = from.and_then(|any| SocketAddr::try_from(any).ok()).map(|from| from.ip());
        let header = usize::from(buffer[0] & 15) * 4;
        let reply = buffer.get(header..length).unwrap_or_default();
        if from == Some(IpAddr::V4(address)) && reply.first() == Some(&0) && reply.get(4..8) == Some(&request[4..8]) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn private_net() -> impl Strategy<Value = IpNet> {
        let base = prop_oneof![Just(0x0a00_0000_u32), Just(0xac10_0000), Just(0xc0a8_0000), any::<u32>()];
        (base, any::<u32>(), 9_u8..=32).prop_map(|(base, random, length)| {
            let host_bits = if base == 0x0a00_0000 { 24 } else { 20 };
            let address = base | (random & ((1 << host_bits) - 1));
            IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from(address), length))
        })
    }

    fn overlap(a: IpNet, b: IpNet) -> bool {
        a.trunc().contains(&b.trunc()) || b.trunc().contains(&a.trunc())
    }

    proptest! {
        // Where 10/8 is covered a case goes through all that is left.
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn what_is_chosen_is_free(nets in prop::collection::vec(private_net(), 0..60), seed: u64) {
            let mut occupied = Occupied::default();
            nets.iter().for_each(|net| occupied.add(*net, "it"));
            let mut rng = StdRng::seed_from_u64(seed);
            match choose_ipv4(&occupied, &mut rng) {
                Ok(chosen) => {
                    prop_assert_eq!(chosen.prefix_len(), 24);
                    prop_assert!(chosen.addr().is_private() && chosen.addr().octets()[3] == 1);
                    prop_assert!(nets.iter().all(|net| !overlap(*net, IpNet::V4(chosen))), "{}", chosen);
                }
                // 60 subnets of /9 and smaller can cover 10/8, but hardly all three private ranges.
                Err(error) => prop_assert!(occupied.conflict("10.0.0.0/8".parse().unwrap()).is_some(), "{}", error),
            }
        }

        #[test]
        fn ipv6_is_unique_local_and_free(seed: u64) {
            let mut occupied = Occupied::default();
            let first = choose_ipv6(&occupied, &mut StdRng::seed_from_u64(seed)).unwrap();
            prop_assert!(first.addr().is_unique_local() && first.prefix_len() == 64);
            // The same generator chooses the same.
            prop_assert_eq!(first, choose_ipv6(&occupied, &mut StdRng::seed_from_u64(seed)).unwrap());
            occupied.add(IpNet::V6(first), "it");
            let second = choose_ipv6(&occupied, &mut StdRng::seed_from_u64(seed)).unwrap();
            prop_assert!(!overlap(IpNet::V6(first), IpNet::V6(second)));
        }
    }

    #[test]
    fn the_last_free_subnet_is_found() {
        let mut occupied = Occupied::default();
        for net in ["10.0.0.0/8", "172.16.0.0/12"] {
            occupied.add(net.parse().unwrap(), "it");
        }
        for third in (0..=255).filter(|third| *third != 77) {
            occupied.add(format!("192.168.{third}.0/24").parse().unwrap(), "it");
        }
        let chosen = choose_ipv4(&occupied, &mut rand::rng()).unwrap();
        assert_eq!(chosen.to_string(), "192.168.77.1/24");
        occupied.add("192.168.77.128/32".parse().unwrap(), "it");
        let error = choose_ipv4(&occupied, &mut rand::rng()).unwrap_err().to_string();
        assert!(error.contains("no free IPv4 subnet") && error.contains("ipv4.address"), "{error}");
    }
}
