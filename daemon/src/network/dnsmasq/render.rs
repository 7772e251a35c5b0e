//! dnsmasq's configuration, from a network's.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::fs::MetadataExt,
    path::Path,
};

use ipnet::{Ipv4Net, Ipv6Net};
use nix::unistd::{Group, User};

use super::{
    super::config::{BridgeConfig, DnsMode, Ipv4Config, Ipv6Config},
    NetworkDir,
};

/// Users that dnsmasq may run as, by preference.
const USERS: [&str; 2] = ["dnsmasq", "nobody"];
/// Lease limit; dnsmasq's own default of 1000 is less than one /22 of instances.
const LEASE_MAX: u32 = 100_000;

/// The configuration of a network's dnsmasq; none if the bridge has no address and hence nothing to serve.
pub(in crate::network) fn render(dir: &NetworkDir, config: &BridgeConfig) -> Option<String> {
    if config.ipv4.is_none() && config.ipv6.is_none() {
        return None;
    }
    let mut text = String::from("# Made by duetd; changed only through the network's configuration.\n");
    let name = &dir.name;
    let mut add = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    // Only this bridge, and no wildcard socket that would keep the host's own DNS server from its port.
    add(format!("interface={name}\nexcept-interface=lo\nbind-interfaces"));
    add(format!("pid-file={}", dir.pid_file().display()));
    add(format!("dhcp-leasefile={}", dir.leases().display()));
    add(format!("dhcp-hostsdir={}", dir.hosts().display()));
    for line in identity(&dir.hosts()) {
        add(line);
    }
    // The host's /etc/hosts often says that its name is 127.0.1.1, which is no use to an instance.
    add("no-hosts\nno-negcache".to_owned());
    // No ping before an offer (it costs a client three seconds) and one exchange less for those who can.
    add("no-ping\ndhcp-rapid-commit\ndhcp-authoritative\ndhcp-no-override".to_owned());
    add(format!("dhcp-lease-max={LEASE_MAX}\nquiet-dhcp\nquiet-dhcp6\nquiet-ra"));
    dns_lines(name, config, &mut add);
    if let Some(v4) = &config.ipv4 {
        ipv4_lines(v4, config, &mut add);
    }
    if let Some(v6) = &config.ipv6 {
        ipv6_lines(name, v6, config, &mut add);
    }
    if !config.raw_dnsmasq.trim().is_empty() {
        add(format!("# raw.dnsmasq\n{}", config.raw_dnsmasq.trim_end()));
    }
    Some(text)
}

fn dns_lines(name: &str, config: &BridgeConfig, add: &mut impl FnMut(String)) {
    if config.dns_mode != DnsMode::Dynamic {
        // Names come from the host files alone; a client can't claim another's.
        add("dhcp-ignore-names".to_owned());
    }
    if config.dns_mode == DnsMode::None {
        return;
    }
    let domain = &config.dns_domain;
    add(format!("domain={domain}\nlocal=/{domain}/\ninterface-name=_gateway.{domain},{name}"));
    // Questions about our own addresses never go upstream either.
    let zones = config.ipv4.as_ref().and_then(|v4| reverse_zone_v4(v4.address));
    for zone in zones.into_iter().chain(config.ipv6.as_ref().and_then(|v6| reverse_zone_v6(v6.address))) {
        add(format!("local=/{zone}/"));
    }
}

fn ipv4_lines(v4: &Ipv4Config, config: &BridgeConfig, add: &mut impl FnMut(String)) {
    if !v4.dhcp {
        return;
    }
    let mask = v4.address.netmask();
    for (first, last) in ipv4_ranges(v4) {
        add(format!("dhcp-range={first},{last},{mask},{}", v4.expiry));
    }
    if !config.dns_search.is_empty() {
        add(format!("dhcp-option-force=option:domain-search,{}", config.dns_search.join(",")));
    }
    if let Some(mtu) = config.mtu.filter(|mtu| *mtu != 1500) {
        add(format!("dhcp-option-force=option:mtu,{mtu}"));
    }
}

fn ipv6_lines(name: &str, v6: &Ipv6Config, config: &BridgeConfig, add: &mut impl FnMut(String)) {
    if !v6.dhcp {
        return;
    }
    add("enable-ra".to_owned());
    if v6.stateful {
        for (first, last) in ipv6_ranges(v6) {
            add(format!("dhcp-range={first},{last},{},{}", v6.address.prefix_len(), v6.expiry));
        }
    } else {
        // Hosts make their own addresses; DHCPv6 answers only about DNS, and names are guessed from the hardware
        // address of the same host's IPv4 lease.
        add(format!("dhcp-range=::,constructor:{name},ra-stateless,ra-names"));
    }
    if !config.dns_search.is_empty() {
        add(format!("dhcp-option-force=option6:domain-search,{}", config.dns_search.join(",")));
    }
}

/// What DHCP hands out: the configured ranges, or all hosts of the subnet around the bridge's own address.
fn ipv4_ranges(v4: &Ipv4Config) -> Vec<(Ipv4Addr, Ipv4Addr)> {
    if !v4.ranges.is_empty() {
        return v4.ranges.iter().map(|range| (range.first, range.last)).collect();
    }
    let own = u32::from(v4.address.addr());
    let first = u32::from(v4.address.network()) + 1;
    let last = u32::from(v4.address.broadcast()) - 1;
    [(first, own - 1), (own + 1, last)]
        .into_iter()
        .filter(|(from, to)| from <= to)
        .map(|(from, to)| (Ipv4Addr::from(from), Ipv4Addr::from(to)))
        .collect()
}

fn ipv6_ranges(v6: &Ipv6Config) -> Vec<(Ipv6Addr, Ipv6Addr)> {
    if !v6.ranges.is_empty() {
        return v6.ranges.iter().map(|range| (range.first, range.last)).collect();
    }
    // The part of the subnet above the bridge's own address, which is ::1 wherever it was chosen by us; below it
    // there is at most a sliver not worth a second range.
    let own = u128::from(v6.address.addr());
    let last = u128::from(v6.address.broadcast());
    let first = if own < last { own + 1 } else { u128::from(v6.address.network()) + 1 };
    let last = if own < last { last } else { own - 1 };
    vec![(Ipv6Addr::from(first), Ipv6Addr::from(last))]
}

/// The `in-addr.arpa` zone of a subnet whose prefix ends between octets (RFC 1035, 3.5).
fn reverse_zone_v4(net: Ipv4Net) -> Option<String> {
    if net.prefix_len() == 0 || !net.prefix_len().is_multiple_of(8) {
        return None;
    }
    let octets = net.network().octets();
    let used = &octets[..usize::from(net.prefix_len() / 8)];
    let labels: Vec<String> = used.iter().rev().map(u8::to_string).collect();
    Some(format!("{}.in-addr.arpa", labels.join(".")))
}

/// The `ip6.arpa` zone of a subnet whose prefix ends between nibbles (RFC 3596, 2.5).
fn reverse_zone_v6(net: Ipv6Net) -> Option<String> {
    if net.prefix_len() == 0 || !net.prefix_len().is_multiple_of(4) {
        return None;
    }
    let digits: Vec<char> = format!("{:032x}", u128::from(net.network())).chars().collect();
    let used = &digits[..usize::from(net.prefix_len() / 4)];
    let labels: Vec<String> = used.iter().rev().map(char::to_string).collect();
    Some(format!("{}.ip6.arpa", labels.join(".")))
}

/// The `user=` and `group=` lines.
fn identity(hosts: &Path) -> Vec<String> {
    for name in USERS {
        let Ok(Some(user)) = User::from_name(name) else {
            continue;
        };
        let Ok(Some(group)) = Group::from_gid(user.gid) else {
            continue;
        };
        if may_read(hosts, user.uid.as_raw(), user.gid.as_raw()) {
            return vec![format!("user={name}"), format!("group={}", group.name)];
        }
    }
    vec!["user=root".to_owned()]
}

/// Whether a user can list this directory, by the mode bits of it and all above it.
fn may_read(dir: &Path, uid: u32, gid: u32) -> bool {
    let allowed = |path: &Path, bits: u32| {
        let Ok(meta) = fs::metadata(path) else {
            return false;
        };
        let mode = meta.mode();
        let granted = if meta.uid() == uid {
            mode >> 6
        } else if meta.gid() == gid {
            mode >> 3
        } else {
            mode
        };
        granted & bits == bits
    };
    allowed(dir, 0o5) && dir.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).all(|p| allowed(p, 0o1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reverse_zones_end_where_labels_do() {
        let v4 = |net: &str| reverse_zone_v4(net.parse().unwrap());
        assert_eq!(v4("10.1.2.1/24").as_deref(), Some("2.1.10.in-addr.arpa"));
        assert_eq!(v4("10.1.2.1/16").as_deref(), Some("1.10.in-addr.arpa"));
        assert_eq!(v4("10.1.2.1/20"), None);
        let v6 = |net: &str| reverse_zone_v6(net.parse().unwrap());
        let expected = "3.0.0.0.2.0.0.0.1.0.0.0.2.4.d.f.ip6.arpa";
        assert_eq!(v6("fd42:1:2:3::1/64").as_deref(), Some(expected));
        assert_eq!(v6("fd42::1/65"), None);
    }

    #[test]
    fn the_bridges_own_address_is_never_leased() {
        let ranges = |address: &str| {
            let map = [("ipv4.address".to_owned(), address.to_owned())].into();
            ipv4_ranges(&BridgeConfig::parse(&map).unwrap().ipv4.unwrap())
        };
        let ip = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        assert_eq!(ranges("10.1.2.1/24"), [(ip("10.1.2.2"), ip("10.1.2.254"))]);
        assert_eq!(ranges("10.1.2.254/24"), [(ip("10.1.2.1"), ip("10.1.2.253"))]);
        let both = [(ip("10.1.2.1"), ip("10.1.2.8")), (ip("10.1.2.10"), ip("10.1.2.254"))];
        assert_eq!(ranges("10.1.2.9/24"), both);
        assert_eq!(ranges("10.1.2.1/30"), [(ip("10.1.2.2"), ip("10.1.2.2"))]);
    }
}
