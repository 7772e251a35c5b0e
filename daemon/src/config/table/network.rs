//! The keys of managed bridges.

use super::{Key, Kind};

const BRIDGE: &str = "common";

/// In the order of their documentation.
pub(super) const NETWORK: &[Key] = &[
    Key::new("bridge.driver", BRIDGE, Kind::Enum(&["native"]), "What the bridge is made of").default("native"),
    Key::new("bridge.external_interfaces", BRIDGE, Kind::Links, "Links of the host that become ports of the bridge")
        .long("A comma list. The links must exist and must not have addresses of their own."),
    Key::new("bridge.hwaddr", BRIDGE, Kind::Mac, "The bridge's MAC address").default("made from the bridge's name"),
    // An Ethernet frame carries at most 65535 bytes; below 68 IPv4 cannot work (RFC 791).
    Key::new("bridge.mtu", BRIDGE, Kind::Int(68, 65_535), "The largest packet that the bridge passes on")
        .default("1500")
        .long("In bytes. IPv6 needs at least 1280."),
    Key::new("dns.domain", BRIDGE, Kind::Domain, "The domain in which instances have their names").default("duet"),
    Key::new("dns.mode", BRIDGE, Kind::Enum(&["managed", "dynamic", "none"]), "Where instances' names come from")
        .default("managed")
        .long(
            "With managed, the daemon gives each instance its own name; with dynamic, instances \
                choose it in DHCP; with none there is no DNS.",
        ),
    Key::new("dns.search", BRIDGE, Kind::Domains, "The domains that instances search for short names")
        .default("the value of dns.domain")
        .long("A comma list."),
    Key::new("ipv4.address", BRIDGE, Kind::Subnet4, "The host's IPv4 address on the bridge, with its subnet")
        .default("auto when the network is made")
        .long("An address such as 10.17.0.1/24; none for no IPv4; auto to choose a free subnet."),
    Key::new("ipv4.dhcp", BRIDGE, Kind::Bool, "Whether IPv4 addresses are given out by DHCP").default("true"),
    Key::new("ipv4.dhcp.expiry", BRIDGE, Kind::LeaseTime, "How long an IPv4 lease lasts").default("1h"),
    Key::new("ipv4.dhcp.ranges", BRIDGE, Kind::Ranges4, "The IPv4 addresses that DHCP gives out")
        .default("the whole subnet")
        .long("A comma list of first-last."),
    Key::new("ipv4.firewall", BRIDGE, Kind::Bool, "Whether the host's IPv4 traffic rules for this bridge are made")
        .default("true"),
    Key::new("ipv4.nat", BRIDGE, Kind::Bool, "Whether IPv4 packets leave the host under its own address")
        .default("false, or true when ipv4.address is chosen by auto"),
    Key::new("ipv4.routing", BRIDGE, Kind::Bool, "Whether IPv4 packets go in and out of the bridge").default("true"),
    Key::new("ipv6.address", BRIDGE, Kind::Subnet6, "The host's IPv6 address on the bridge, with its subnet")
        .default("auto when the network is made")
        .long(
            "An address such as fd42:1:2:3::1/64; none for no IPv6; auto to choose a unique local \
                subnet.",
        ),
    Key::new("ipv6.dhcp", BRIDGE, Kind::Bool, "Whether DHCPv6 tells instances more than the router does")
        .default("true"),
    Key::new("ipv6.dhcp.expiry", BRIDGE, Kind::LeaseTime, "How long an IPv6 lease lasts").default("1h"),
    Key::new("ipv6.dhcp.ranges", BRIDGE, Kind::Ranges6, "The IPv6 addresses that DHCPv6 gives out")
        .default("the whole subnet")
        .long("A comma list of first-last; used with ipv6.dhcp.stateful."),
    Key::new("ipv6.dhcp.stateful", BRIDGE, Kind::Bool, "Whether IPv6 addresses are given out by DHCPv6")
        .default("false")
        .long("Otherwise instances make their own from the router's announcement."),
    Key::new("ipv6.firewall", BRIDGE, Kind::Bool, "Whether the host's IPv6 traffic rules for this bridge are made")
        .default("true"),
    Key::new("ipv6.nat", BRIDGE, Kind::Bool, "Whether IPv6 packets leave the host under its own address")
        .default("false, or true when ipv6.address is chosen by auto"),
    Key::new("ipv6.routing", BRIDGE, Kind::Bool, "Whether IPv6 packets go in and out of the bridge").default("true"),
    Key::new("raw.dnsmasq", BRIDGE, Kind::Text, "Further lines for dnsmasq's configuration")
        .long("Taken as they are; a mistake in them keeps the network's DHCP and DNS from starting."),
    Key::new("volatile.bridge.hwaddr", BRIDGE, Kind::Mac, "The MAC address that the bridge was given").by_server(),
    Key::new("user.*", BRIDGE, Kind::Text, "Free values of the user's own"),
];
