//! The values that keys take, each a type that is parsed from text and written back as the same meaning.
//!
//! Nothing here touches the machine: `limits.memory=10%` stays a percentage until somebody who knows how much
//! memory there is asks for bytes. No parser panics on any input.

mod cpu;
mod disk;
mod expiry;
mod net;
mod pattern;
mod schedule;
mod size;

pub use cpu::{CpuAllowance, CpuLimit, CpuSet};
pub use disk::DiskRate;
pub use expiry::Expiry;
pub use net::{DhcpRange, MacAddress, parse_dhcp_expiry};
pub use pattern::SnapshotPattern;
pub use schedule::Schedule;
pub use size::{MemoryLimit, SwapLimit, parse_size};

pub(super) use net::{parse_cidr4, parse_cidr6, parse_domain, parse_ranges4, parse_ranges6};

use super::ValueError;

/// Reads a boolean: `true`, `1`, `yes`, `on` and `false`, `0`, `no`, `off`, in any case.
///
/// # Errors
/// [`ValueError::Malformed`] for anything else.
pub fn parse_bool(value: &str) -> Result<bool, ValueError> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(ValueError::malformed(value, "a boolean", "write true or false")),
    }
}

/// Reads a whole number between two bounds, both included.
///
/// # Errors
/// [`ValueError::Malformed`] when it is no number, [`ValueError::OutOfRange`] when it lies outside.
pub fn parse_int(value: &str, min: i64, max: i64) -> Result<i64, ValueError> {
    let digits = value.strip_prefix('-').unwrap_or(value);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ValueError::malformed(value, "a whole number", "write digits only, such as 10"));
    }
    match value.parse::<i64>() {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(ValueError::out_of_range(value, min, max)),
    }
}

/// Reads file permissions in octal, `0660` or `660`.
///
/// # Errors
/// [`ValueError::Malformed`] when it is not octal or larger than 7777.
pub fn parse_mode(value: &str) -> Result<u32, ValueError> {
    let wrong = || ValueError::malformed(value, "a file mode", "write it in octal, such as 0660");
    if value.is_empty() || value.len() > 5 || !value.bytes().all(|b| (b'0'..=b'7').contains(&b)) {
        return Err(wrong());
    }
    u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_are_those_of_incus() {
        for yes in ["true", "True", "1", "yes", "on", "ON"] {
            assert_eq!(parse_bool(yes), Ok(true));
        }
        for no in ["false", "0", "no", "off"] {
            assert_eq!(parse_bool(no), Ok(false));
        }
        for wrong in ["", "y", "2", " true", "tru"] {
            assert!(parse_bool(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn integers_keep_their_bounds() {
        assert_eq!(parse_int("-5", -10, 10), Ok(-5));
        assert_eq!(parse_int("007", 0, 10), Ok(7));
        assert!(parse_int("11", 0, 10).is_err());
        assert!(parse_int("99999999999999999999", 0, i64::MAX).is_err());
        for wrong in ["", "-", "+1", "1.5", "1 ", "0x10", "--1"] {
            assert!(parse_int(wrong, i64::MIN, i64::MAX).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(parse_mode("0660"), Ok(0o660));
        assert_eq!(parse_mode("660"), Ok(0o660));
        assert_eq!(parse_mode("7777"), Ok(0o7777));
        for wrong in ["", "0o660", "888", "17777", "rw-rw----", "-1"] {
            assert!(parse_mode(wrong).is_err(), "{wrong:?}");
        }
    }
}
