//! Amounts of bytes.

use std::fmt;

use super::super::ValueError;

/// The units that Incus takes (doc/reference/instance_units): decimal ones are powers of 1000, those with an
/// `i` powers of 1024. No unit and `B` both mean bytes.
const UNITS: [(&str, u64); 15] = [
    ("", 1),
    ("B", 1),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("PB", 1_000_000_000_000_000),
    ("EB", 1_000_000_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("PiB", 1 << 50),
    ("EiB", 1 << 60),
];

/// Reads a size into bytes: `512MiB`, `2GB`, `1048576`.
///
/// # Errors
/// [`ValueError::Malformed`] for another form; [`ValueError::Senseless`] when it does not fit a signed 64-bit
/// number of bytes, which is what the kernel's limits and the API's clients hold.
pub fn parse_size(value: &str) -> Result<u64, ValueError> {
    let wrong =
        || ValueError::malformed(value, "a size", "write a number of bytes or one with a unit, such as 512MiB or 2GB");
    let digits = value.len() - value.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = value.split_at(digits);
    if number.is_empty() {
        return Err(wrong());
    }
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit.trim_start_matches(' ')).ok_or_else(wrong)?;
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(*factor))
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or_else(|| ValueError::senseless(value, "it is larger than any machine; the most is 7EiB"))
}

/// `limits.memory`: so many bytes, or a share of the host's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryLimit {
    /// Bytes, never 0.
    Bytes(u64),
    /// Per cent of the host's memory, 1 to 100.
    Percent(u8),
}

impl MemoryLimit {
    /// The limit in bytes on a host with `total` bytes of memory.
    #[must_use]
    pub fn bytes(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            // At most 100, so it fits again.
            Self::Percent(percent) => (u128::from(total) * u128::from(percent) / 100) as u64,
        }
    }
}

impl std::str::FromStr for MemoryLimit {
    type Err = ValueError;

    fn from_str(value: &str) -> Result<Self, ValueError> {
        let limit = match value.strip_suffix('%') {
            Some(percent) => {
                let percent = super::parse_int(percent, 1, 100).map_err(|_| {
                    ValueError::malformed(value, "a share of the memory", "write a percentage from 1% to 100%")
                })?;
                Self::Percent(u8::try_from(percent).unwrap_or(100))
            }
            None => Self::Bytes(parse_size(value)?),
        };
        if limit == Self::Bytes(0) {
            return Err(ValueError::senseless(value, "nothing runs without memory; unset the key for no limit"));
        }
        Ok(limit)
    }
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// `limits.memory.swap`: whether memory may be swapped out, or how much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SwapLimit {
    /// As the kernel likes.
    #[default]
    Allowed,
    /// Not at all.
    Denied,
    /// This many bytes, beside `limits.memory`.
    Bytes(u64),
}

impl std::str::FromStr for SwapLimit {
    type Err = ValueError;

    fn from_str(value: &str) -> Result<Self, ValueError> {
        match super::parse_bool(value) {
            Ok(true) => return Ok(Self::Allowed),
            Ok(false) => return Ok(Self::Denied),
            Err(_) => {}
        }
        parse_size(value)
            .map(Self::Bytes)
            .map_err(|_| ValueError::malformed(value, "a limit of swap", "write true, false, or a size such as 512MiB"))
    }
}

impl fmt::Display for SwapLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allowed => f.write_str("true"),
            Self::Denied => f.write_str("false"),
            Self::Bytes(bytes) => write!(f, "{bytes}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_powers_of_1000_or_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("1024", 1024),
            ("1B", 1),
            ("1kB", 1000),
            ("1MB", 1_000_000),
            ("1GiB", 1 << 30),
            ("512MiB", 512 << 20),
            ("2 GiB", 2 << 30),
            ("7EiB", 7 << 60),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "",
            "GiB",
            "1.5GiB",
            "-1",
            "+1",
            "1gib",
            "1Gi",
            "1G",
            "10%",
            "8EiB",
            "99999999999999999999",
            "١KiB",
            "1GiB ",
        ] {
            assert!(parse_size(text).is_err(), "{text:?}");
        }
        for text in ["0", "0%", "101%", "%", "-5%", "5 %", "0MiB"] {
            assert!(text.parse::<MemoryLimit>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_percentage_waits_for_the_host() {
        assert_eq!("50%".parse::<MemoryLimit>().unwrap().bytes(8 << 30), 4 << 30);
        assert_eq!("1GiB".parse::<MemoryLimit>().unwrap().bytes(0), 1 << 30);
    }

    proptest! {
        #[test]
        fn no_input_panics(text in "\\PC{0,24}") {
            let _ = parse_size(&text);
            let _ = text.parse::<MemoryLimit>();
        }

        #[test]
        fn what_is_written_is_read_back(bytes in 1..=i64::MAX as u64, percent in 1u8..=100) {
            for limit in [MemoryLimit::Bytes(bytes), MemoryLimit::Percent(percent)] {
                prop_assert_eq!(limit.to_string().parse::<MemoryLimit>(), Ok(limit));
            }
        }
    }
}
