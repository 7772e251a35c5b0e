//! What the API tells of networks as they are: a link's state, and the host's links that Duet doesn't manage.

use duet_client::api;
use rtnetlink::packet_route::link::{
    BridgeStpState, InfoBond, InfoBridge, InfoData, InfoVlan, LinkAttribute, LinkInfo, LinkMessage,
};

use super::{
    error::{Error, Result},
    interface::{Address, Interface, signed},
    nic::is_host_name,
    rtnl::Rtnl,
};

/// A link of the host, for the list of networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostInterface {
    /// Its name.
    pub name: String,
    /// The API's network type: `bridge`, `physical`, `loopback`, `bond`, `vlan` or `unknown`.
    pub kind: &'static str,
}

/// The host's links, but for instances' and others' virtual ones that are no network to plug into: as Incus, without
/// anybody's veths.
pub(super) async fn host_interfaces(rtnl: &Rtnl) -> Result<Vec<HostInterface>> {
    let links = rtnl.links().await?;
    let mut interfaces: Vec<HostInterface> = links
        .iter()
        .map(Interface::parse)
        .filter(|link| link.kind.as_deref() != Some("veth") && !is_host_name(&link.name))
        .map(|link| HostInterface { kind: network_kind(&link), name: link.name })
        .collect();
    interfaces.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(interfaces)
}

fn network_kind(link: &Interface) -> &'static str {
    match link.kind.as_deref() {
        _ if link.loopback => "loopback",
        Some("bridge") => "bridge",
        Some("bond") => "bond",
        Some("vlan") => "vlan",
        None if link.broadcast => "physical",
        _ => "unknown",
    }
}

/// The state of a link of the host.
pub(super) async fn network_state(rtnl: &Rtnl, name: &str) -> Result<api::NetworkState> {
    let message = rtnl.link_by_name(name).await?.ok_or_else(|| Error::NoSuchLink { name: name.to_owned() })?;
    let link = Interface::parse(&message);
    let addresses = rtnl.addresses().await?;
    let addresses = addresses.iter().filter_map(Address::parse).filter(|(index, _)| *index == link.index);
    let data = info_data(&message);
    // Who is in it, or below it, needs all links; most kinds need none.
    let others = match data {
        Some(InfoData::Bridge(_) | InfoData::Bond(_) | InfoData::Vlan(_)) => {
            rtnl.links().await?.iter().map(Interface::parse).collect()
        }
        _ => Vec::new(),
    };
    let ports = || {
        let mut names: Vec<String> =
            others.iter().filter(|o| o.controller == Some(link.index)).map(|o| o.name.clone()).collect();
        names.sort();
        names
    };
    Ok(api::NetworkState {
        addresses: addresses.map(|(_, address)| state_address(&address)).collect(),
        counters: api::NetworkStateCounters {
            bytes_received: signed(link.counters.rx_bytes),
            bytes_sent: signed(link.counters.tx_bytes),
            packets_received: signed(link.counters.rx_packets),
            packets_sent: signed(link.counters.tx_packets),
        },
        hwaddr: link.hwaddr.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: i64::from(link.mtu),
        state: link.state().to_owned(),
        kind: link.medium().to_owned(),
        bond: match data {
            Some(InfoData::Bond(infos)) => Some(bond_state(infos, ports())),
            _ => None,
        },
        bridge: match data {
            Some(InfoData::Bridge(infos)) => Some(bridge_state(infos, ports())),
            _ => None,
        },
        vlan: match data {
            Some(InfoData::Vlan(infos)) => {
                let lower = others.iter().find(|o| Some(o.index) == link.peer_index);
                Some(vlan_state(infos, lower.map(|o| o.name.clone()).unwrap_or_default()))
            }
            _ => None,
        },
        ovn: None,
    })
}

fn info_data(message: &LinkMessage) -> Option<&InfoData> {
    let infos = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    infos.iter().find_map(|info| match info {
        LinkInfo::Data(data) => Some(data),
        _ => None,
    })
}

fn state_address(address: &Address) -> api::NetworkStateAddress {
    api::NetworkStateAddress {
        family: address.family().to_owned(),
        address: address.address.to_string(),
        netmask: address.prefix_len.to_string(),
        scope: address.scope().as_str().to_owned(),
    }
}

fn bridge_state(infos: &[InfoBridge], ports: Vec<String>) -> api::NetworkStateBridge {
    let mut state = api::NetworkStateBridge { upper_devices: ports, ..Default::default() };
    for info in infos {
        match info {
            InfoBridge::BridgeId(id) => {
                let mac: String = id.address.iter().map(|octet| format!("{octet:02x}")).collect();
                state.id = format!("{:04x}.{mac}", id.priority);
            }
            InfoBridge::StpState(stp) => state.stp = *stp != BridgeStpState::Disabled,
            // Hundredths of a second, as sysfs shows it.
            InfoBridge::ForwardDelay(delay) => state.forward_delay = u64::from(*delay),
            InfoBridge::VlanDefaultPvid(vid) => state.vlan_default = u64::from(*vid),
            InfoBridge::VlanFiltering(on) => state.vlan_filtering = *on,
            _ => {}
        }
    }
    state
}

fn bond_state(infos: &[InfoBond], ports: Vec<String>) -> api::NetworkStateBond {
    let mut state = api::NetworkStateBond { lower_devices: ports, ..Default::default() };
    for info in infos {
        match info {
            InfoBond::Mode(mode) => state.mode = mode.to_string(),
            InfoBond::XmitHashPolicy(policy) => state.transmit_policy = policy.to_string(),
            InfoBond::UpDelay(delay) => state.up_delay = u64::from(*delay),
            InfoBond::DownDelay(delay) => state.down_delay = u64::from(*delay),
            InfoBond::MiiMon(interval) => state.mii_frequency = u64::from(*interval),
            _ => {}
        }
    }
    state
}

fn vlan_state(infos: &[InfoVlan], lower_device: String) -> api::NetworkStateVlan {
    let vid = infos.iter().find_map(|info| match info {
        InfoVlan::Id(id) => Some(u64::from(*id)),
        _ => None,
    });
    api::NetworkStateVlan { lower_device, vid: vid.unwrap_or_default() }
}
