//! Hardware addresses.
//!
//! Generated ones begin `10:66:6a`, the prefix that Incus gives its instances (Zabbly's block in the IEEE registry),
//! so that tools which recognise instances by it recognise ours. The other three octets are random: among 1000 links
//! on one segment the chance of any two being equal is about 3 %, so whoever hands them out checks them against
//! those in use.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use ipnet::Ipv6Net;
use rand::Rng;

/// The first three octets of generated addresses.
pub const MAC_PREFIX: [u8; 3] = [0x10, 0x66, 0x6a];

/// An Ethernet hardware address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// A new address with our prefix.
    pub fn random(rng: &mut impl Rng) -> Self {
        let [a, b, c, _] = rng.next_u32().to_be_bytes();
        let [p, q, r] = MAC_PREFIX;
        MacAddr([p, q, r, a, b, c])
    }

    /// A new address with our prefix that `taken` does not claim.
    pub fn random_free(rng: &mut impl Rng, mut taken: impl FnMut(MacAddr) -> bool) -> Self {
        loop {
            let mac = Self::random(rng);
            if !taken(mac) {
                return mac;
            }
        }
    }

    /// Whether it names one station, as a link's own address must: group bit clear (IEEE 802, octet 0 bit 0) and not
    /// all zeroes.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }

    /// The modified EUI-64 interface identifier (RFC 4291, appendix A) under `prefix`: the address a host gives
    /// itself by SLAAC when it uses no privacy extension. The prefix must be a /64 or shorter.
    pub fn eui64(self, prefix: Ipv6Net) -> Ipv6Addr {
        let m = self.0;
        let id = u64::from_be_bytes([m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]]);
        let high = u128::from(prefix.network()) & !u128::from(u64::MAX);
        Ipv6Addr::from(high | u128::from(id))
    }

    /// The link-local address the kernel gives a link with this address by default.
    pub fn link_local(self) -> Ipv6Addr {
        self.eui64(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 64))
    }

    pub(super) fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(MacAddr)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Not six two-digit hexadecimal octets parted by colons.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a hardware address such as 10:66:6a:12:34:56")]
pub struct MacParseError(String);

impl FromStr for MacAddr {
    type Err = MacParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || MacParseError(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or_else(fail)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(fail());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| fail())?;
        }
        if parts.next().is_some() {
            return Err(fail());
        }
        Ok(MacAddr(octets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints() {
        let mac: MacAddr = "10:66:6A:6f:04:f9".parse().unwrap();
        assert_eq!(mac.to_string(), "10:66:6a:6f:04:f9");
        for bad in ["", "10:66:6a:6f:04", "10:66:6a:6f:04:f9:00", "10:66:6a:6f:04:+9", "10-66-6a-6f-04-f9"] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn derives_the_addresses_that_the_kernel_derives() {
        let mac: MacAddr = "10:66:6a:6f:04:f9".parse().unwrap();
        assert_eq!(mac.link_local().to_string(), "fe80::1266:6aff:fe6f:4f9");
        assert_eq!(mac.eui64("fd42:1:2:3::1/64".parse().unwrap()).to_string(), "fd42:1:2:3:1266:6aff:fe6f:4f9");
    }

    #[test]
    fn random_ones_are_unicast_with_our_prefix() {
        let mut rng = rand::rng();
        for _ in 0..100 {
            let mac = MacAddr::random(&mut rng);
            assert!(mac.is_unicast());
            assert_eq!(mac.0[..3], MAC_PREFIX);
        }
    }
}
