//! Addresses, ranges, names and times of networks and NICs.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};

use super::super::ValueError;

/// A unicast Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddress(pub [u8; 6]);

impl FromStr for MacAddress {
    type Err = ValueError;

    fn from_str(value: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError::malformed(value, "a MAC address", "write six bytes such as 10:66:6a:01:02:03");
        let mut bytes = [0; 6];
        let mut parts = value.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(wrong)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        if bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Err(ValueError::senseless(
                value,
                "a link needs a unicast address (the first byte even, not all zero)",
            ));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A range of addresses that DHCP hands out, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DhcpRange<A> {
    /// The first address.
    pub first: A,
    /// The last address, not below the first.
    pub last: A,
}

impl<A: fmt::Display> fmt::Display for DhcpRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// An address with its subnet, for the host's end of a bridge: `10.17.0.1/24`.
pub(in super::super) fn parse_cidr4(value: &str) -> Result<Ipv4Net, ValueError> {
    let net: Ipv4Net = value.parse().map_err(|_| {
        ValueError::malformed(
            value,
            "an IPv4 address with its subnet",
            "write one such as 10.17.0.1/24, or auto or none",
        )
    })?;
    if !(8..=30).contains(&net.prefix_len()) {
        return Err(ValueError::senseless(value, "the subnet must be between /8 and /30 to have room for instances"));
    }
    if net.addr() == net.network() || net.addr() == net.broadcast() {
        return Err(ValueError::senseless(
            value,
            "this is the subnet itself or its broadcast address; give the host's own address in it, \
                such as 10.17.0.1/24",
        ));
    }
    if net.addr().is_loopback() || net.addr().is_multicast() || net.addr().is_unspecified() {
        return Err(ValueError::senseless(value, "a bridge needs a unicast address"));
    }
    Ok(net)
}

/// As [`parse_cidr4`], for IPv6: `fd42:1:2:3::1/64`.
pub(in super::super) fn parse_cidr6(value: &str) -> Result<Ipv6Net, ValueError> {
    let net: Ipv6Net = value.parse().map_err(|_| {
        ValueError::malformed(
            value,
            "an IPv6 address with its subnet",
            "write one such as fd42:1:2:3::1/64, or auto or none",
        )
    })?;
    if !(16..=126).contains(&net.prefix_len()) {
        return Err(ValueError::senseless(value, "the subnet must be between /16 and /126; /64 is the usual size"));
    }
    if net.addr() == net.network() {
        return Err(ValueError::senseless(
            value,
            "this is the subnet itself; give the host's own address in it, such as fd42:1:2:3::1/64",
        ));
    }
    if net.addr().is_loopback() || net.addr().is_multicast() || net.addr().is_unicast_link_local() {
        return Err(ValueError::senseless(value, "a bridge needs a global or unique local address"));
    }
    Ok(net)
}

/// A comma list of `first-last`.
pub(in super::super) fn parse_ranges4(value: &str) -> Result<Vec<DhcpRange<Ipv4Addr>>, ValueError> {
    parse_ranges(value, "write first and last address, such as 10.17.0.50-10.17.0.99")
}

/// A comma list of `first-last`.
pub(in super::super) fn parse_ranges6(value: &str) -> Result<Vec<DhcpRange<Ipv6Addr>>, ValueError> {
    parse_ranges(value, "write first and last address, such as fd42::100-fd42::1ff")
}

fn parse_ranges<A: FromStr + Ord + Copy>(value: &str, hint: &'static str) -> Result<Vec<DhcpRange<A>>, ValueError> {
    let wrong = || ValueError::malformed(value, "a list of address ranges", hint);
    let mut ranges: Vec<DhcpRange<A>> = Vec::new();
    for part in value.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').ok_or_else(wrong)?;
        let parse = |text: &str| text.trim().parse::<A>().map_err(|_| wrong());
        let range = DhcpRange { first: parse(first)?, last: parse(last)? };
        if range.first > range.last {
            return Err(ValueError::senseless(value, "a range must not run backwards"));
        }
        if ranges.iter().any(|other| range.first <= other.last && other.first <= range.last) {
            return Err(ValueError::senseless(value, "its ranges overlap"));
        }
        ranges.push(range);
    }
    Ok(ranges)
}

/// A DNS domain: labels of RFC 1123, `duet` or `lab.example.org`.
pub(in super::super) fn parse_domain(value: &str) -> Result<&str, ValueError> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match value.len() <= 253 && value.split('.').all(label) {
        true => Ok(value),
        false => Err(ValueError::malformed(value, "a DNS domain", "write one such as duet or lab.example.org")),
    }
}

/// A lease time as dnsmasq writes it: seconds, or a number with `m`, `h`, `d` or `w`; `None` for `infinite`.
/// dnsmasq itself raises anything below two minutes, so that is the least.
///
/// # Errors
/// [`ValueError`] when it is of another form or below two minutes.
pub fn parse_dhcp_expiry(value: &str) -> Result<Option<Duration>, ValueError> {
    if value == "infinite" {
        return Ok(None);
    }
    let wrong = || ValueError::malformed(value, "a lease time", "write one such as 45m, 1h or 2d, or infinite");
    let (digits, factor) = match value.chars().next_back().ok_or_else(wrong)? {
        's' => (&value[..value.len() - 1], 1),
        'm' => (&value[..value.len() - 1], 60),
        'h' => (&value[..value.len() - 1], 3600),
        'd' => (&value[..value.len() - 1], 86_400),
        'w' => (&value[..value.len() - 1], 604_800),
        _ => (value, 1),
    };
    let amount = super::parse_int(digits, 0, 1_000_000_000).map_err(|_| wrong())?;
    let seconds = amount.unsigned_abs() * factor;
    // The lease time is 32 bits on the wire (RFC 2132 section 9.2), all ones being infinite.
    match seconds {
        0..120 => Err(ValueError::senseless(value, "the least is 2m")),
        120..0xffff_ffff => Ok(Some(Duration::from_secs(seconds))),
        _ => Err(ValueError::senseless(value, "that is too long for DHCP; write infinite")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn mac_addresses_are_unicast() {
        assert_eq!("10:66:6A:01:02:03".parse::<MacAddress>().unwrap().to_string(), "10:66:6a:01:02:03");
        for text in [
            "",
            "10:66:6a:01:02",
            "10:66:6a:01:02:03:04",
            "1:2:3:4:5:6",
            "g0:66:6a:01:02:03",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "ff:ff:ff:ff:ff:ff",
            "10-66-6a-01-02-03",
            "+1:66:6a:01:02:03",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn subnets_have_a_host_in_them() {
        assert!(parse_cidr4("10.17.0.1/24").is_ok());
        assert!(parse_cidr6("fd42:1:2:3::1/64").is_ok());
        for text in [
            "",
            "10.17.0.1",
            "10.17.0.0/24",
            "10.17.0.255/24",
            "10.17.0.1/31",
            "10.17.0.1/33",
            "127.0.0.1/8",
            "224.0.0.1/24",
            "fd42::1/64",
            "10.17.1/24",
        ] {
            assert!(parse_cidr4(text).is_err(), "{text:?}");
        }
        for text in ["", "fd42::/64", "fd42::1", "fd42::1/128", "fe80::1/64", "ff02::1/64", "10.0.0.1/24"] {
            assert!(parse_cidr6(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn ranges_run_forwards_and_apart() {
        let ranges = parse_ranges4("10.0.0.2-10.0.0.9, 10.0.0.20-10.0.0.20").unwrap();
        assert_eq!(ranges.len(), 2);
        assert_eq!(ranges[0].to_string(), "10.0.0.2-10.0.0.9");
        for text in ["", "10.0.0.2", "10.0.0.9-10.0.0.2", "10.0.0.1-10.0.0.9,10.0.0.9-10.0.0.12", "10.0.0.1-", ","] {
            assert!(parse_ranges4(text).is_err(), "{text:?}");
        }
        assert!(parse_ranges6("fd42::2-fd42::ff").is_ok());
    }

    #[test]
    fn lease_times_are_those_of_dnsmasq() {
        assert_eq!(parse_dhcp_expiry("1h"), Ok(Some(Duration::from_secs(3600))));
        assert_eq!(parse_dhcp_expiry("120"), Ok(Some(Duration::from_secs(120))));
        assert_eq!(parse_dhcp_expiry("infinite"), Ok(None));
        for text in ["", "h", "1", "1m", "1y", "-1h", "5000000000", "9999999999999w", "1é"] {
            assert!(parse_dhcp_expiry(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn domains_are_made_of_labels() {
        assert!(parse_domain("duet").is_ok());
        assert!(parse_domain("a.b-c.example").is_ok());
        for text in ["", ".", "a..b", "-a", "a-", "a b", "é", "a,b", "a\nb"] {
            assert!(parse_domain(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_input_panics(text in "[0-9a-f:./,-]{0,40}|\\PC{0,20}") {
            let _ = text.parse::<MacAddress>();
            let _ = parse_cidr4(&text);
            let _ = parse_cidr6(&text);
            let _ = parse_ranges4(&text);
            let _ = parse_ranges6(&text);
            let _ = parse_domain(&text);
            let _ = parse_dhcp_expiry(&text);
        }

        #[test]
        fn mac_addresses_round_trip(mut bytes in proptest::array::uniform6(any::<u8>())) {
            bytes[0] = bytes[0] & 0xfe | 2;
            let mac = MacAddress(bytes);
            prop_assert_eq!(mac.to_string().parse::<MacAddress>(), Ok(mac));
        }
    }
}
