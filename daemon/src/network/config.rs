//! The meaning of a bridge network's configuration keys.
//!
//! The API and the inventory hold a network's configuration as the map of strings that Incus' clients send. Here it
//! becomes [`BridgeConfig`], on which everything else in this module works; a value that can't be used is refused
//! with the key's name. [`fill_defaults`] does what Incus does when a network is created: it writes the choices made
//! (subnets, NAT) back into the map, so that they stay the same for ever after.
//!
//! Keys unknown to this module (`user.*`, those of other network types) are passed over: the table of all keys is
//! the configuration module's.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rand::Rng;

use super::{
    error::{Error, Result},
    mac::MacAddr,
    subnet::{self, Occupied},
};

/// A network's configuration as the API carries it.
pub type ConfigMap = BTreeMap<String, String>;

/// The domain of a network that names none.
pub const DEFAULT_DOMAIN: &str = "duet";
/// How long a lease lasts where no expiry is configured, in dnsmasq's notation; Incus' default.
pub const DEFAULT_EXPIRY: &str = "1h";

/// Who may register names in the network's DNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DnsMode {
    /// Instances have their instance name, whatever name their DHCP client asks for.
    #[default]
    Managed,
    /// The name that a DHCP client asks for is registered.
    Dynamic,
    /// No names; queries are still forwarded.
    None,
}

/// An inclusive range of addresses handed out by DHCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range<A> {
    /// First address.
    pub first: A,
    /// Last address.
    pub last: A,
}

/// The IPv4 side of a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ipv4Config {
    /// The bridge's own address with the subnet's prefix length.
    pub address: Ipv4Net,
    /// Masquerade what leaves the subnet.
    pub nat: bool,
    /// Serve DHCP.
    pub dhcp: bool,
    /// What DHCP hands out; empty means the whole subnet but the bridge itself.
    pub ranges: Vec<Range<Ipv4Addr>>,
    /// Lease time in dnsmasq's notation (`1h`, `45m`, `infinite`).
    pub expiry: String,
    /// Render filter rules.
    pub firewall: bool,
    /// Route traffic in and out of the bridge.
    pub routing: bool,
}

/// The IPv6 side of a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ipv6Config {
    /// The bridge's own address with the subnet's prefix length.
    pub address: Ipv6Net,
    /// Masquerade what leaves the subnet.
    pub nat: bool,
    /// Serve router advertisements and DHCPv6.
    pub dhcp: bool,
    /// Hand out addresses by DHCPv6; otherwise hosts choose their own by SLAAC.
    pub stateful: bool,
    /// What stateful DHCPv6 hands out; empty means the whole subnet but the bridge itself.
    pub ranges: Vec<Range<Ipv6Addr>>,
    /// Lease time in dnsmasq's notation.
    pub expiry: String,
    /// Render filter rules.
    pub firewall: bool,
    /// Route traffic in and out of the bridge.
    pub routing: bool,
}

/// A managed bridge, parsed and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeConfig {
    /// IPv4, unless `ipv4.address` is `none`.
    pub ipv4: Option<Ipv4Config>,
    /// IPv6, unless `ipv6.address` is `none`.
    pub ipv6: Option<Ipv6Config>,
    /// The DNS domain of the instances.
    pub dns_domain: String,
    /// Who may register names.
    pub dns_mode: DnsMode,
    /// The search list given to instances; empty means the domain alone.
    pub dns_search: Vec<String>,
    /// Lines appended to dnsmasq's configuration.
    pub raw_dnsmasq: String,
    /// MTU of the bridge, bytes; `None` means 1500.
    pub mtu: Option<u32>,
    /// Fixed hardware address; `None` means a generated one that is kept.
    pub hwaddr: Option<MacAddr>,
    /// Host interfaces to make ports of the bridge.
    pub external_interfaces: Vec<String>,
}

impl BridgeConfig {
    /// Parses and checks a configuration whose `auto` values were already replaced by [`fill_defaults`].
    pub fn parse(config: &ConfigMap) -> Result<Self> {
        let get = |key: &str| config.get(key).map(String::as_str).filter(|v| !v.is_empty());
        let parsed = BridgeConfig {
            ipv4: parse_ipv4(config)?,
            ipv6: parse_ipv6(config)?,
            dns_domain: match get("dns.domain") {
                Some(domain) => check_domain("dns.domain", domain)?,
                None => DEFAULT_DOMAIN.to_owned(),
            },
            dns_mode: match get("dns.mode") {
                None | Some("managed") => DnsMode::Managed,
                Some("dynamic") => DnsMode::Dynamic,
                Some("none") => DnsMode::None,
                Some(other) => {
                    return Err(Error::config("dns.mode", format!("{other:?} is not managed, dynamic or none")));
                }
            },
            dns_search: list(get("dns.search")).map(|d| check_domain("dns.search", d)).collect::<Result<_>>()?,
            raw_dnsmasq: config.get("raw.dnsmasq").cloned().unwrap_or_default(),
            mtu: get("bridge.mtu").map(parse_mtu).transpose()?,
            hwaddr: get("bridge.hwaddr").map(parse_hwaddr).transpose()?,
            external_interfaces: list(get("bridge.external_interfaces")).map(check_link).collect::<Result<_>>()?,
        };
        if parsed.ipv6.is_some() && parsed.mtu.is_some_and(|mtu| mtu < 1280) {
            return Err(Error::config("bridge.mtu", "IPv6 needs an MTU of at least 1280 bytes (RFC 8200)"));
        }
        Ok(parsed)
    }

    /// The subnets of the bridge.
    pub fn subnets(&self) -> impl Iterator<Item = IpNet> + '_ {
        let v4 = self.ipv4.iter().map(|v4| IpNet::V4(v4.address.trunc()));
        v4.chain(self.ipv6.iter().map(|v6| IpNet::V6(v6.address.trunc())))
    }
}

/// Checks a configuration as a user may send it, in which the addresses may still be `auto` or absent.
pub fn validate(config: &ConfigMap) -> Result<()> {
    let mut trial = config.clone();
    for (key, stand_in) in [("ipv4.address", "10.0.0.1/24"), ("ipv6.address", "fd42::1/64")] {
        let open = trial.get(key).is_none_or(|v| v.is_empty() || v == "auto");
        if open {
            // Ranges are checked against the subnet once there is one.
            trial.remove(&key.replace("address", "dhcp.ranges"));
            trial.insert(key.to_owned(), stand_in.to_owned());
        }
    }
    BridgeConfig::parse(&trial).map(drop)
}

/// Completes the configuration of a network that is being created, as Incus does: an address that is absent or
/// `auto` becomes a free subnet with NAT unless that was set, `none` stays. `has_ipv6` tells whether the host's
/// kernel has IPv6 at all; without it the address becomes `none`.
pub fn fill_defaults(config: &mut ConfigMap, occupied: &Occupied, has_ipv6: bool, rng: &mut impl Rng) -> Result<()> {
    let open = |config: &ConfigMap, key: &str| config.get(key).is_none_or(|v| v.is_empty() || v == "auto");
    let set_if_absent = |config: &mut ConfigMap, key: &str| {
        if config.get(key).is_none_or(String::is_empty) {
            config.insert(key.to_owned(), "true".to_owned());
        }
    };
    if open(config, "ipv4.address") {
        config.insert("ipv4.address".to_owned(), subnet::choose_ipv4(occupied, rng)?.to_string());
        set_if_absent(config, "ipv4.nat");
    }
    if open(config, "ipv6.address") {
        if has_ipv6 {
            config.insert("ipv6.address".to_owned(), subnet::choose_ipv6(occupied, rng)?.to_string());
            set_if_absent(config, "ipv6.nat");
        } else {
            config.insert("ipv6.address".to_owned(), "none".to_owned());
        }
    }
    validate(config)
}

/// Checks that a network may bear this name: it becomes a link name (at most 15 bytes, no slash or blank;
/// `dev_valid_name` in the kernel's net/core/dev.c), a directory and a chain of names in the firewall.
pub fn validate_name(name: &str) -> Result<()> {
    let fail = |problem: &str| Err(Error::Name { name: name.to_owned(), problem: problem.to_owned() });
    if !(2..=15).contains(&name.len()) {
        return fail("it must have 2 to 15 characters");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return fail("it may hold letters, digits, '-', '_' and '.' only");
    }
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return fail("it must begin with a letter or a digit");
    }
    if name.contains("..") {
        return fail("it may not hold \"..\"");
    }
    if matches!(name, "lo" | "all" | "default") {
        return fail("the kernel uses that name itself");
    }
    if super::nic::is_host_name(name) {
        return fail("names of this form are given to the instances' interfaces");
    }
    Ok(())
}

fn list(value: Option<&str>) -> impl Iterator<Item = &str> {
    value.unwrap_or_default().split(',').map(str::trim).filter(|part| !part.is_empty())
}

fn parse_ipv4(config: &ConfigMap) -> Result<Option<Ipv4Config>> {
    let key = "ipv4.address";
    let Some(address) = parse_address::<Ipv4Net>(config, key, "10.1.2.1/24")? else {
        return Ok(None);
    };
    if address.prefix_len() > 30 {
        return Err(Error::config(key, format!("{address} leaves no room for instances; use a prefix of at most /30")));
    }
    let host = address.addr();
    if host == address.network() || host == address.broadcast() {
        let first = address.hosts().next().unwrap_or(host);
        let problem = format!("{address} has no address for the bridge itself; use {first}/{}", address.prefix_len());
        return Err(Error::config(key, problem));
    }
    if host.is_loopback() || host.is_multicast() || host.is_unspecified() {
        return Err(Error::config(key, format!("{host} is not an address for a bridge")));
    }
    Ok(Some(Ipv4Config {
        address,
        nat: parse_bool(config, "ipv4.nat", false)?,
        dhcp: parse_bool(config, "ipv4.dhcp", true)?,
        ranges: parse_ranges(config, "ipv4.dhcp.ranges", IpNet::V4(address))?,
        expiry: parse_expiry(config, "ipv4.dhcp.expiry")?,
        firewall: parse_bool(config, "ipv4.firewall", true)?,
        routing: parse_bool(config, "ipv4.routing", true)?,
    }))
}

fn parse_ipv6(config: &ConfigMap) -> Result<Option<Ipv6Config>> {
    let key = "ipv6.address";
    let Some(address) = parse_address::<Ipv6Net>(config, key, "fd42:1:2:3::1/64")? else {
        return Ok(None);
    };
    let host = address.addr();
    // All-zeroes in the interface part is the subnet-router anycast address (RFC 4291, 2.6.1).
    if host == address.network() {
        let problem = format!("{address} has no address for the bridge itself; use {host}1/{}", address.prefix_len());
        return Err(Error::config(key, problem));
    }
    if host.is_loopback() || host.is_multicast() || host.is_unicast_link_local() {
        return Err(Error::config(key, format!("{host} is not an address for a bridge")));
    }
    let dhcp = parse_bool(config, "ipv6.dhcp", true)?;
    let stateful = parse_bool(config, "ipv6.dhcp.stateful", false)?;
    let length = address.prefix_len();
    if dhcp && !stateful && length != 64 {
        let problem = format!("{address} must be a /64 unless ipv6.dhcp.stateful is true (SLAAC, RFC 4862)");
        return Err(Error::config(key, problem));
    }
    if dhcp && stateful && !(64..=120).contains(&length) {
        let problem = format!("{address} must be a /64 to /120 for DHCPv6");
        return Err(Error::config(key, problem));
    }
    Ok(Some(Ipv6Config {
        address,
        nat: parse_bool(config, "ipv6.nat", false)?,
        dhcp,
        stateful,
        ranges: parse_ranges(config, "ipv6.dhcp.ranges", IpNet::V6(address))?,
        expiry: parse_expiry(config, "ipv6.dhcp.expiry")?,
        firewall: parse_bool(config, "ipv6.firewall", true)?,
        routing: parse_bool(config, "ipv6.routing", true)?,
    }))
}

/// An absent address counts as `none`: creating fills it in, so it is absent only where a caller left it out.
fn parse_address<N: FromStr>(config: &ConfigMap, key: &str, example: &str) -> Result<Option<N>> {
    match config.get(key).map(String::as_str) {
        None | Some("" | "none") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| {
            Error::config(key, format!("{text:?} is not an address with a prefix length such as {example}, nor none"))
        }),
    }
}

/// Reads a boolean in the spellings that Incus takes.
fn parse_bool(config: &ConfigMap, key: &str, default: bool) -> Result<bool> {
    let Some(text) = config.get(key).filter(|v| !v.is_empty()) else {
        return Ok(default);
    };
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(Error::config(key, format!("{text:?} is neither true nor false"))),
    }
}

/// Reads `first-last[,first-last...]`; both ends must lie in the subnet.
fn parse_ranges<A>(config: &ConfigMap, key: &str, subnet: IpNet) -> Result<Vec<Range<A>>>
where
    A: FromStr + Copy + Ord + Into<IpAddr>,
{
    let value = config.get(key).map(String::as_str);
    list(value)
        .map(|text| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let parse = |part: &str| {
                let address: A = part
                    .trim()
                    .parse()
                    .map_err(|_| Error::config(key, format!("{text:?} is not a range such as FIRST-LAST")))?;
                let in_subnet = subnet.trunc().contains(&address.into());
                in_subnet.then_some(address).ok_or_else(|| {
                    Error::config(key, format!("{} lies outside the network's {}", address.into(), subnet.trunc()))
                })
            };
            let range = Range { first: parse(first)?, last: parse(last)? };
            if range.first > range.last {
                return Err(Error::config(key, format!("{text:?} ends before it begins")));
            }
            Ok(range)
        })
        .collect()
}

/// Lease times as dnsmasq(8) takes them: seconds, or a number with m, h, d or w, or `infinite`; two minutes at least.
fn parse_expiry(config: &ConfigMap, key: &str) -> Result<String> {
    let Some(text) = config.get(key).filter(|v| !v.is_empty()) else {
        return Ok(DEFAULT_EXPIRY.to_owned());
    };
    let fail = || Error::config(key, format!("{text:?} is not a time such as 45m, 1h, 7d or infinite"));
    if text == "infinite" {
        return Ok(text.clone());
    }
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        Some('w') => 604_800,
        _ => 0,
    };
    let (digits, unit) = if unit == 0 { (text.as_str(), 1) } else { (&text[..text.len() - 1], unit) };
    let seconds = digits.parse::<u32>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(fail)?;
    if seconds < 120 {
        return Err(Error::config(key, format!("{text:?} is too short; a lease lasts two minutes at least")));
    }
    Ok(if text.ends_with('s') { seconds.to_string() } else { text.clone() })
}

/// IPv4's smallest MTU is 68 bytes (RFC 791); the kernel's largest for a bridge is 65535.
fn parse_mtu(text: &str) -> Result<u32> {
    match text.parse() {
        Ok(mtu @ 68..=65535) => Ok(mtu),
        _ => Err(Error::config("bridge.mtu", format!("{text:?} is not a number from 68 to 65535"))),
    }
}

fn parse_hwaddr(text: &str) -> Result<MacAddr> {
    let mac: MacAddr = text.parse().map_err(|e| Error::config("bridge.hwaddr", format!("{e}")))?;
    if !mac.is_unicast() {
        return Err(Error::config("bridge.hwaddr", format!("{mac} is a group address")));
    }
    Ok(mac)
}

/// A DNS name: labels of letters, digits, `-` and `_`, each at most 63 bytes (RFC 1035, 2.3.4). It also goes into
/// dnsmasq's configuration, where a comma or a slash would mean something.
fn check_domain(key: &str, domain: &str) -> Result<String> {
    let label_ok = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if domain.len() <= 253 && domain.split('.').all(label_ok) {
        Ok(domain.to_owned())
    } else {
        Err(Error::config(key, format!("{domain:?} is not a domain name such as example.net")))
    }
}

fn check_link(name: &str) -> Result<String> {
    let bad = |c: char| c.is_whitespace() || matches!(c, '/' | ':');
    if name.len() > 15 || name == "." || name == ".." || name.contains(bad) {
        return Err(Error::config("bridge.external_interfaces", format!("{name:?} is not an interface name")));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests;
