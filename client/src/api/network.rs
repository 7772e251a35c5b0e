//! Networks.

use std::collections::BTreeMap;

wire! {
    /// `GET /1.0/networks/{name}`.
    pub struct Network {
        /// Its keys.
        pub config: BTreeMap<String, String>,
        /// Words for people.
        pub description: String,
        /// Its name, and the link's.
        pub name: String,
        /// "bridge", "physical", "loopback", ...
        #[serde(rename = "type")]
        pub kind: String,
        /// The URLs of the instances and profiles that use it.
        pub used_by: Vec<String>,
        /// Whether the daemon made it.
        pub managed: bool,
        /// "Created", "Errored", ...; empty for what the daemon did not make.
        pub status: String,
        /// The cluster members it is on: `["none"]` without a cluster, `null` for what the daemon did not make.
        pub locations: Option<Vec<String>>,
        /// The project it is in.
        pub project: String,
    }

    /// `POST /1.0/networks`.
    pub struct NetworksPost {
        /// Its keys.
        pub config: BTreeMap<String, String>,
        /// Words for people.
        pub description: String,
        /// Its name.
        pub name: String,
        /// "bridge", also when empty.
        #[serde(rename = "type")]
        pub kind: String,
    }

    /// `PUT /1.0/networks/{name}`.
    pub struct NetworkPut {
        /// Its keys.
        pub config: BTreeMap<String, String>,
        /// Words for people.
        pub description: String,
    }

    /// `PATCH /1.0/networks/{name}`: only what is present changes; keys are merged.
    pub struct NetworkPatch {
        /// Keys to add or change.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub config: Option<BTreeMap<String, String>>,
        /// Words for people.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub description: Option<String>,
    }

    /// `POST /1.0/networks/{name}`: rename.
    pub struct NetworkPost {
        /// The new name.
        pub name: String,
    }

    /// `GET /1.0/networks/{name}/state`.
    pub struct NetworkState {
        /// Its addresses on the host.
        pub addresses: Vec<NetworkStateAddress>,
        /// What went through it.
        pub counters: NetworkStateCounters,
        /// Its MAC address.
        pub hwaddr: String,
        /// The largest packet, in bytes.
        pub mtu: i64,
        /// "up" or "down".
        pub state: String,
        /// "broadcast", "loopback", ...
        #[serde(rename = "type")]
        pub kind: String,
        /// For a bond.
        pub bond: Option<NetworkStateBond>,
        /// For a bridge.
        pub bridge: Option<NetworkStateBridge>,
        /// For a VLAN.
        pub vlan: Option<NetworkStateVlan>,
        /// For an OVN network.
        pub ovn: Option<serde_json::Value>,
    }

    /// One address of a network.
    pub struct NetworkStateAddress {
        /// "inet" or "inet6".
        pub family: String,
        /// The address.
        pub address: String,
        /// The prefix length as text.
        pub netmask: String,
        /// "global", "link" or "local".
        pub scope: String,
    }

    /// What went through a network.
    pub struct NetworkStateCounters {
        /// Bytes in.
        pub bytes_received: i64,
        /// Bytes out.
        pub bytes_sent: i64,
        /// Packets in.
        pub packets_received: i64,
        /// Packets out.
        pub packets_sent: i64,
    }

    /// What is particular to a bond.
    pub struct NetworkStateBond {
        /// Its mode.
        pub mode: String,
        /// How it spreads packets.
        pub transmit_policy: String,
        /// Milliseconds before a link counts as up.
        pub up_delay: u64,
        /// Milliseconds before a link counts as down.
        pub down_delay: u64,
        /// How often links are looked at, in milliseconds.
        pub mii_frequency: u64,
        /// What was seen.
        pub mii_state: String,
        /// Its links.
        pub lower_devices: Vec<String>,
    }

    /// What is particular to a bridge.
    pub struct NetworkStateBridge {
        /// Its bridge id.
        pub id: String,
        /// Whether it speaks the spanning tree protocol.
        pub stp: bool,
        /// In centiseconds.
        pub forward_delay: u64,
        /// The VLAN of untagged packets.
        pub vlan_default: u64,
        /// Whether VLANs are told apart.
        pub vlan_filtering: bool,
        /// The links in it.
        pub upper_devices: Vec<String>,
    }

    /// What is particular to a VLAN.
    #[cfg_attr(feature = "openapi", schema(as = NetworkStateVLAN))]
    pub struct NetworkStateVlan {
        /// The link under it.
        pub lower_device: String,
        /// Its number.
        pub vid: u64,
    }

    /// One element of `GET /1.0/networks/{name}/leases`.
    pub struct NetworkLease {
        /// The name it is known by.
        pub hostname: String,
        /// The MAC address; empty for the gateway.
        pub hwaddr: String,
        /// The address.
        pub address: String,
        /// "static", "dynamic" or "gateway".
        #[serde(rename = "type")]
        pub kind: String,
        /// The cluster member: "none" without a cluster, empty for the gateway.
        pub location: String,
    }
}
