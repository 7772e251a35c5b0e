//! The kinds of values, and the check of each.

use super::super::values::{
    self, CpuAllowance, CpuLimit, DiskRate, Expiry, MacAddress, MemoryLimit, Schedule, SnapshotPattern, SwapLimit,
};
use super::super::{ValueError, names};

/// What values a key takes. Each kind is also its validator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`, in the spellings of [`values::parse_bool`].
    Bool,
    /// A whole number between two bounds, both included.
    Int(i64, i64),
    /// One of these words.
    Enum(&'static [&'static str]),
    /// Any text, several lines included; only NUL is not text.
    Text,
    /// Text that parses as YAML.
    Yaml,
    /// A UUID in its usual form.
    Uuid,
    /// Bytes or a percentage: [`MemoryLimit`].
    Memory,
    /// `true`, `false` or bytes: [`SwapLimit`].
    Swap,
    /// Bytes or operations in a second: [`DiskRate`].
    DiskRate,
    /// A number of bytes, with or without a unit.
    Size,
    /// A number or set of CPUs: [`CpuLimit`].
    Cpu,
    /// [`CpuAllowance`].
    CpuAllowance,
    /// A cron expression or aliases: [`Schedule`].
    Schedule,
    /// [`Expiry`].
    Expiry,
    /// [`SnapshotPattern`].
    Pattern,
    /// [`MacAddress`].
    Mac,
    /// `auto`, `none`, or an IPv4 address with its subnet.
    Subnet4,
    /// `auto`, `none`, or an IPv6 address with its subnet.
    Subnet6,
    /// An IPv4 address without subnet.
    Address4,
    /// An IPv6 address without subnet.
    Address6,
    /// A comma list of IPv4 ranges.
    Ranges4,
    /// A comma list of IPv6 ranges.
    Ranges6,
    /// A DHCP lease time.
    LeaseTime,
    /// One DNS domain.
    Domain,
    /// A comma list of DNS domains.
    Domains,
    /// The name of a network link.
    Link,
    /// A comma list of links.
    Links,
    /// An absolute path without `..`.
    Path,
    /// An absolute path, or the name of a ZFS dataset.
    Source,
    /// The name of a ZFS pool or dataset.
    Dataset,
    /// File permissions in octal.
    Mode,
    /// The name of a storage pool.
    Pool,
}

impl Kind {
    /// Checks one value. An empty value means "unset" for every kind and is fine.
    ///
    /// # Errors
    /// [`ValueError`], whose text is the sentence for the user.
    pub fn check(self, value: &str) -> Result<(), ValueError> {
        if value.is_empty() {
            return Ok(());
        }
        match self {
            Self::Bool => values::parse_bool(value).map(drop),
            Self::Int(min, max) => values::parse_int(value, min, max).map(drop),
            Self::Enum(allowed) => one_of(value, allowed),
            Self::Text => text(value),
            Self::Yaml => yaml(value),
            Self::Uuid => uuid(value),
            Self::Size => values::parse_size(value).map(drop),
            Self::Memory => value.parse::<MemoryLimit>().map(drop),
            Self::Swap => value.parse::<SwapLimit>().map(drop),
            Self::DiskRate => value.parse::<DiskRate>().map(drop),
            Self::Cpu => value.parse::<CpuLimit>().map(drop),
            Self::CpuAllowance => value.parse::<CpuAllowance>().map(drop),
            Self::Schedule => value.parse::<Schedule>().map(drop),
            Self::Expiry => value.parse::<Expiry>().map(drop),
            Self::Pattern => value.parse::<SnapshotPattern>().map(drop),
            Self::Mac => value.parse::<MacAddress>().map(drop),
            Self::Subnet4 if matches!(value, "auto" | "none") => Ok(()),
            Self::Subnet4 => values::parse_cidr4(value).map(drop),
            Self::Subnet6 if matches!(value, "auto" | "none") => Ok(()),
            Self::Subnet6 => values::parse_cidr6(value).map(drop),
            Self::Address4 => address::<std::net::Ipv4Addr>(value, "an IPv4 address", "write one such as 10.17.0.20"),
            Self::Address6 => address::<std::net::Ipv6Addr>(value, "an IPv6 address", "write one such as fd42::20"),
            Self::Ranges4 => values::parse_ranges4(value).map(drop),
            Self::Ranges6 => values::parse_ranges6(value).map(drop),
            Self::LeaseTime => values::parse_dhcp_expiry(value).map(drop),
            Self::Domain => values::parse_domain(value).map(drop),
            Self::Domains => value.split(',').try_for_each(|one| values::parse_domain(one.trim()).map(drop)),
            Self::Link => link(value),
            Self::Links => value.split(',').try_for_each(|one| link(one.trim())),
            Self::Path => path(value),
            Self::Source if value.starts_with('/') => path(value),
            Self::Source => dataset(value, "an absolute path or a ZFS dataset"),
            Self::Dataset => dataset(value, "the name of a ZFS pool or dataset"),
            Self::Mode => values::parse_mode(value).map(drop),
            Self::Pool => names::validate_name(names::NameKind::Pool, value).map_err(|_| {
                ValueError::malformed(
                    value,
                    "a storage pool name",
                    "write letters, digits, dots, dashes or underscores",
                )
            }),
        }
    }

    /// The name of the kind in the documentation, in the words that Incus uses.
    #[must_use]
    pub fn type_name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Int(..) => "integer",
            Self::Text | Self::Yaml | Self::Uuid | Self::Size | Self::Memory | Self::Cpu | Self::CpuAllowance => {
                "string"
            }
            Self::Swap | Self::DiskRate => "string",
            Self::Enum(_) | Self::Schedule | Self::Expiry | Self::Pattern | Self::Mac => "string",
            Self::Subnet4 | Self::Subnet6 | Self::Address4 | Self::Address6 | Self::Ranges4 | Self::Ranges6 => "string",
            Self::LeaseTime | Self::Domain | Self::Domains | Self::Link | Self::Links => "string",
            Self::Path | Self::Source | Self::Dataset | Self::Mode | Self::Pool => "string",
        }
    }
}

fn one_of(value: &str, allowed: &'static [&'static str]) -> Result<(), ValueError> {
    match allowed.contains(&value) {
        true => Ok(()),
        false => Err(ValueError::NotOneOf { value: value.to_owned(), allowed }),
    }
}

fn text(value: &str) -> Result<(), ValueError> {
    match value.contains('\0') {
        false => Ok(()),
        true => Err(ValueError::malformed(value, "text", "leave out the NUL characters")),
    }
}

fn yaml(value: &str) -> Result<(), ValueError> {
    text(value)?;
    match serde_saphyr::from_str::<serde_json::Value>(value) {
        Ok(_) => Ok(()),
        Err(_) => Err(ValueError::malformed(value, "YAML", "check its indentation and quotes")),
    }
}

fn uuid(value: &str) -> Result<(), ValueError> {
    let form = |(i, b): (usize, u8)| {
        if matches!(i, 8 | 13 | 18 | 23) { b == b'-' } else { b.is_ascii_hexdigit() }
    };
    match value.len() == 36 && value.bytes().enumerate().all(form) {
        true => Ok(()),
        false => Err(ValueError::malformed(value, "a UUID", "write one such as 2d8e1af4-6ffd-496a-a1bd-125ed9653452")),
    }
}

fn address<A: std::str::FromStr>(value: &str, what: &'static str, hint: &'static str) -> Result<(), ValueError> {
    match value.parse::<A>() {
        Ok(_) => Ok(()),
        Err(_) => Err(ValueError::malformed(value, what, hint)),
    }
}

fn link(value: &str) -> Result<(), ValueError> {
    names::link_name(value).map_err(|reason| ValueError::senseless(value, reason))
}

fn dataset(value: &str, what: &'static str) -> Result<(), ValueError> {
    crate::storage::check_dataset(value).map_err(|why| ValueError::malformed(value, what, why))
}

fn path(value: &str) -> Result<(), ValueError> {
    if !value.starts_with('/') || value.contains('\0') {
        return Err(ValueError::malformed(
            value,
            "an absolute path",
            "write one that begins with a slash, such as /srv/data",
        ));
    }
    match value.split('/').any(|part| part == "..") {
        false => Ok(()),
        true => Err(ValueError::senseless(value, "write the path without \"..\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Kind; 28] = [
        Kind::Bool,
        Kind::Int(0, 10),
        Kind::Enum(&["a", "b"]),
        Kind::Text,
        Kind::Yaml,
        Kind::Uuid,
        Kind::Memory,
        Kind::Size,
        Kind::Cpu,
        Kind::CpuAllowance,
        Kind::Schedule,
        Kind::Expiry,
        Kind::Pattern,
        Kind::Mac,
        Kind::Subnet4,
        Kind::Subnet6,
        Kind::Address4,
        Kind::Address6,
        Kind::Ranges4,
        Kind::Ranges6,
        Kind::LeaseTime,
        Kind::Domain,
        Kind::Domains,
        Kind::Link,
        Kind::Links,
        Kind::Path,
        Kind::Mode,
        Kind::Pool,
    ];

    #[test]
    fn empty_is_unset() {
        for kind in ALL {
            assert_eq!(kind.check(""), Ok(()), "{kind:?}");
        }
    }

    #[test]
    fn sentences_say_what_would_be_right() {
        let say = |kind: Kind, value: &str| kind.check(value).unwrap_err().to_string();
        assert_eq!(say(Kind::Bool, "maybe"), "\"maybe\" is not a boolean; write true or false");
        assert_eq!(say(Kind::Int(0, 10), "11"), "\"11\" is out of range; write a number from 0 to 10");
        assert_eq!(
            say(Kind::Enum(&["none", "managed", "dynamic"]), "x"),
            "\"x\" is not known here; write \"none\", \"managed\" or \"dynamic\""
        );
        assert_eq!(
            say(Kind::Path, "a/b"),
            "\"a/b\" is not an absolute path; write one that begins with a slash, such as /srv/data"
        );
        assert!(say(Kind::Text, &format!("{}\0", "x".repeat(500))).len() < 150, "long values are shortened");
    }

    #[test]
    fn yaml_and_uuid_are_what_they_say() {
        assert!(Kind::Yaml.check("#cloud-config\npackages: [vim]\n").is_ok());
        assert!(Kind::Yaml.check("a: [1").is_err());
        assert!(Kind::Uuid.check("2d8e1af4-6ffd-496a-a1bd-125ed9653452").is_ok());
        assert!(Kind::Uuid.check("2d8e1af4-6ffd-496a-a1bd_125ed9653452").is_err());
    }

    proptest! {
        #[test]
        fn no_input_panics(text in "\\PC{0,40}|[\\x00-\\x7f]{0,40}") {
            for kind in ALL {
                if let Err(error) = kind.check(&text) {
                    let sentence = error.to_string();
                    prop_assert!(!sentence.contains('\n'), "one line: {}", sentence);
                }
            }
        }
    }
}
