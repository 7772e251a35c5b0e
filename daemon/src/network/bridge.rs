//! The bridge link itself: made, mended and removed, through rtnetlink.
//!
//! [`up`] takes the bridge from any state to the wanted one and changes only what differs, so it serves creation,
//! a changed configuration, a daemon's restart and a host's reboot alike.
//!
//! A link of that name is ours if it bears our alias (`duet:<state directory>`), or, where a crash came between making
//! it and naming it so, if it is a bridge with the hardware address that we had generated and stored for it. Any other
//! is left alone and reported. Addresses that we add are marked by IFA_PROTO, so that an address which the
//! configuration no longer names is removed, and one that the admin added by hand stays.
//!
//! The hardware address is generated once and kept in `networks/<name>/hwaddr`: a bridge without a fixed one takes the
//! smallest of its ports' and changes it as instances come and go, which instances see as a gateway that moves.
//!
//! IPv6 is made usable at once: a bridge without ports has no carrier, so duplicate address detection would not even
//! start before the first instance runs, and would then delay it. The subnet is freshly made and the link is ours, so
//! detection is off (`accept_dad=0`), and the link-local address, which the kernel adds only with a carrier, is added
//! by us, since router advertisements are sent from it.
//!
//! The bridge asks who listens to which multicast group, for only where somebody asks does it know, and send no more
//! to a port than is listened to there (Documentation/networking/bridge.rst, "Multicast"). IPv6's neighbour discovery
//! and its reports are multicast: sent to everyone, each new instance would cost every other one a dozen packets.

use std::{fs, net::IpAddr};

use ipnet::IpNet;
use rtnetlink::packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{InfoBridge, InfoData, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};

use super::{
    config::BridgeConfig,
    dnsmasq::NetworkDir,
    error::{Error, Result},
    interface::{ADDRESS_PROTOCOL, Address, Interface, our_protocol},
    mac::MacAddr,
    rtnl::Rtnl,
    sysctl,
};

/// MTU of a bridge whose configuration names none: Ethernet's.
pub(super) const DEFAULT_MTU: u32 = 1500;

/// Who owns links: an alias `duet:<state directory>`.
#[derive(Debug, Clone)]
pub(super) struct Owner(String);

impl Owner {
    /// The owner that keeps its state in `dir`. An alias has at most 255 bytes (IFALIASZ); a longer path is cut at its
    /// front, where paths differ least.
    pub fn new(dir: &std::path::Path) -> Self {
        let path = dir.display().to_string();
        let excess = path.len().saturating_sub(240);
        let start = (excess..path.len()).find(|at| path.is_char_boundary(*at)).unwrap_or(path.len());
        Owner(format!("duet:{}", &path[start..]))
    }

    /// Whether a link bears our alias.
    pub fn owns(&self, link: &Interface) -> bool {
        link.alias.as_deref() == Some(self.0.as_str())
    }
}

/// What [`up`] found out and did.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    /// The link was not there before.
    pub created: bool,
}

/// Makes the bridge exist as configured. `before` is the configuration that was last applied, if known: interfaces
/// that it made ports and the new one doesn't are released.
pub(super) async fn up(
    rtnl: &Rtnl,
    owner: &Owner,
    dir: &NetworkDir,
    name: &str,
    config: &BridgeConfig,
    before: Option<&BridgeConfig>,
) -> Result<Outcome> {
    let stored = stored_hwaddr(dir);
    let existing = rtnl.link_by_name(name).await?.map(|link| Interface::parse(&link));
    if let Some(link) = &existing {
        let bridge = link.kind.as_deref() == Some("bridge");
        if !(bridge && (owner.owns(link) || link.hwaddr.is_some() && link.hwaddr == stored)) {
            let kind = link.kind.clone().unwrap_or_else(|| "a physical interface".to_owned());
            return Err(Error::LinkTaken { name: name.to_owned(), kind });
        }
    }
    let hwaddr = match (config.hwaddr, stored) {
        (Some(fixed), _) => fixed,
        (None, Some(stored)) if stored.is_unicast() => stored,
        (None, _) => MacAddr::random(&mut rand::rng()),
    };
    if stored != Some(hwaddr) {
        dir.write(&hwaddr_file(dir), &format!("{hwaddr}\n"))?;
    }
    let created = existing.is_none();
    if created {
        rtnl.add_link(new_bridge(name, hwaddr), name).await?;
    }
    settings_before_up(name, config)?;
    let link = match existing {
        Some(link) => link,
        None => Interface { index: rtnl.link_index(name).await?, hwaddr: Some(hwaddr), ..Interface::default() },
    };
    apply_link(rtnl, owner, name, &link, hwaddr, config.mtu).await?;
    apply_addresses(rtnl, link.index, hwaddr, config).await?;
    settings_after_up(name, config)?;
    // A network beyond the host has its own routers to ask.
    let querier = InfoData::Bridge(vec![InfoBridge::MulticastQuerier(config.external_interfaces.is_empty())]);
    rtnl.set_kind_data(name, InfoKind::Bridge, querier).await?;
    apply_ports(rtnl, link.index, config, before).await?;
    Ok(Outcome { created })
}

/// Removes the bridge if it is ours. Its ports are released by the kernel.
pub(super) async fn down(rtnl: &Rtnl, owner: &Owner, dir: &NetworkDir, name: &str) -> Result<()> {
    let Some(link) = rtnl.link_by_name(name).await?.map(|link| Interface::parse(&link)) else {
        return Ok(());
    };
    let stored = stored_hwaddr(dir);
    if owner.owns(&link) || (link.kind.as_deref() == Some("bridge") && stored.is_some() && link.hwaddr == stored) {
        rtnl.delete_link(name).await?;
    }
    Ok(())
}

fn hwaddr_file(dir: &NetworkDir) -> std::path::PathBuf {
    dir.path().join("hwaddr")
}

fn stored_hwaddr(dir: &NetworkDir) -> Option<MacAddr> {
    fs::read_to_string(hwaddr_file(dir)).ok()?.trim().parse().ok()
}

fn new_bridge(name: &str, hwaddr: MacAddr) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(hwaddr.0.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    link
}

/// What the kernel must know before the link is raised and gets its addresses.
fn settings_before_up(name: &str, config: &BridgeConfig) -> Result<()> {
    if !sysctl::has_ipv6() {
        return Ok(());
    }
    // Nobody behind the bridge may give the host routes or addresses.
    sysctl::set_ipv6(name, "accept_ra", "0")?;
    sysctl::set_ipv6(name, "autoconf", "0")?;
    sysctl::set_ipv6(name, "accept_dad", "0")?;
    sysctl::set_ipv6(name, "disable_ipv6", if config.ipv6.is_some() { "0" } else { "1" })
}

/// Forwarding, which `all` resets on every link when it is switched.
fn settings_after_up(name: &str, config: &BridgeConfig) -> Result<()> {
    if config.ipv4.as_ref().is_some_and(|v4| v4.routing) {
        sysctl::forward_ipv4()?;
        sysctl::set_ipv4(name, "forwarding", "1")?;
    }
    if config.ipv6.as_ref().is_some_and(|v6| v6.routing) {
        sysctl::forward_ipv6()?;
        sysctl::set_ipv6(name, "forwarding", "1")?;
    }
    Ok(())
}

/// Alias, hardware address, MTU and the up flag, in one request that holds only what differs.
async fn apply_link(
    rtnl: &Rtnl,
    owner: &Owner,
    name: &str,
    link: &Interface,
    hwaddr: MacAddr,
    mtu: Option<u32>,
) -> Result<()> {
    let mut attributes = Vec::new();
    if !owner.owns(link) {
        attributes.push(LinkAttribute::IfAlias(owner.0.clone()));
    }
    if link.hwaddr != Some(hwaddr) {
        attributes.push(LinkAttribute::Address(hwaddr.0.to_vec()));
    }
    // Set on the existing link and not at creation: only so does the kernel take it for the user's choice and stop
    // following the smallest of the ports (br_change_mtu in net/bridge/br_device.c). A new link's MTU is not known
    // here, so it always is.
    let mtu = mtu.unwrap_or(DEFAULT_MTU);
    if link.mtu != mtu {
        attributes.push(LinkAttribute::Mtu(mtu));
    }
    if attributes.is_empty() && link.up {
        return Ok(());
    }
    rtnl.set_attributes(link.index, name, true, attributes).await
}

/// The addresses that the bridge must have.
fn wanted_addresses(config: &BridgeConfig, hwaddr: MacAddr) -> Vec<IpNet> {
    let mut wanted = Vec::new();
    if let Some(v4) = &config.ipv4 {
        wanted.push(IpNet::V4(v4.address));
    }
    if let Some(v6) = &config.ipv6 {
        wanted.push(IpNet::V6(v6.address));
        wanted.push(IpNet::new_assert(IpAddr::V6(hwaddr.link_local()), 64));
    }
    wanted
}

async fn apply_addresses(rtnl: &Rtnl, index: u32, hwaddr: MacAddr, config: &BridgeConfig) -> Result<()> {
    let wanted = wanted_addresses(config, hwaddr);
    let mut present = Vec::new();
    for message in rtnl.addresses().await? {
        let Some((_, address)) = Address::parse(&message).filter(|(i, _)| *i == index) else {
            continue;
        };
        let net = IpNet::new_assert(address.address, address.prefix_len);
        if wanted.contains(&net) {
            present.push(net);
        } else if address.protocol == ADDRESS_PROTOCOL {
            rtnl.delete_address(message, &net.to_string()).await?;
        }
    }
    for net in wanted.into_iter().filter(|net| !present.contains(net)) {
        rtnl.add_address(address_message(index, net), &net.to_string()).await?;
    }
    Ok(())
}

fn address_message(index: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = net.prefix_len();
    message.attributes =
        vec![AddressAttribute::Local(net.addr()), AddressAttribute::Address(net.addr()), our_protocol()];
    match net {
        IpNet::V4(v4) => {
            message.header.family = AddressFamily::Inet;
            message.attributes.push(AddressAttribute::Broadcast(v4.broadcast()));
        }
        IpNet::V6(v6) => {
            message.header.family = AddressFamily::Inet6;
            message.header.flags = AddressHeaderFlags::Nodad;
            if v6.addr().is_unicast_link_local() {
                message.header.scope = AddressScope::Link;
            }
        }
    }
    message
}

/// Makes the external interfaces ports of the bridge. One that has addresses of its own is refused, as Incus does: as
/// a port it would lose its connections, often the very one over which the admin is logged in.
async fn apply_ports(rtnl: &Rtnl, bridge: u32, config: &BridgeConfig, before: Option<&BridgeConfig>) -> Result<()> {
    let key = "bridge.external_interfaces";
    for name in &config.external_interfaces {
        let link = rtnl.link_by_name(name).await?.map(|link| Interface::parse(&link));
        let Some(link) = link else {
            return Err(Error::NoSuchLink { name: name.clone() });
        };
        if link.controller == Some(bridge) && link.up {
            continue;
        }
        if link.controller.is_some_and(|other| other != bridge) {
            return Err(Error::config(key, format!("{name} is a port of another bridge or bond")));
        }
        let addresses = rtnl.addresses().await?;
        let configured = addresses
            .iter()
            .filter_map(Address::parse)
            .any(|(index, address)| index == link.index && address.scope() == super::interface::Scope::Global);
        if configured && link.controller.is_none() {
            return Err(Error::config(
                key,
                format!("{name} has addresses of its own; only bare interfaces can be added"),
            ));
        }
        rtnl.set_attributes(link.index, name, true, vec![LinkAttribute::Controller(bridge)]).await?;
    }
    let released = before.map(|before| before.external_interfaces.as_slice()).unwrap_or_default();
    for name in released.iter().filter(|name| !config.external_interfaces.contains(name)) {
        let link = rtnl.link_by_name(name).await?.map(|link| Interface::parse(&link));
        if let Some(link) = link.filter(|link| link.controller == Some(bridge)) {
            rtnl.set_attributes(link.index, name, false, vec![LinkAttribute::Controller(0)]).await?;
        }
    }
    Ok(())
}

/// The attributes of a link that is created raised.
pub(super) fn raise(link: &mut LinkMessage) {
    link.header.flags |= LinkFlags::Up;
    link.header.change_mask |= LinkFlags::Up;
}
