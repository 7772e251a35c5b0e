//! Limits of reading from and writing to disks.

use std::fmt;
use std::str::FromStr;

use super::super::ValueError;
use super::parse_size;

/// `limits.read`, `limits.write`, `limits.max` of a disk: so much in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskRate {
    /// Bytes, never 0.
    Bytes(u64),
    /// Operations, never 0.
    Operations(u64),
}

impl FromStr for DiskRate {
    type Err = ValueError;

    /// `10MB` or `500iops`, as Incus has it (doc/reference/devices_disk).
    fn from_str(value: &str) -> Result<Self, ValueError> {
        let wrong = || {
            ValueError::malformed(
                value,
                "a disk limit",
                "write bytes in a second such as 10MiB, or operations such as 500iops",
            )
        };
        let rate = match value.strip_suffix("iops") {
            Some(number) if number.bytes().all(|byte| byte.is_ascii_digit()) => {
                Self::Operations(number.parse().map_err(|_| wrong())?)
            }
            Some(_) => return Err(wrong()),
            None => Self::Bytes(parse_size(value).map_err(|_| wrong())?),
        };
        match rate {
            Self::Bytes(0) | Self::Operations(0) => {
                Err(ValueError::senseless(value, "nothing could be read or written; unset the option for no limit"))
            }
            rate => Ok(rate),
        }
    }
}

impl fmt::Display for DiskRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes}"),
            Self::Operations(operations) => write!(f, "{operations}iops"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::DiskRate;

    #[test]
    fn rates() {
        assert_eq!("10MB".parse(), Ok(DiskRate::Bytes(10_000_000)));
        assert_eq!("500iops".parse(), Ok(DiskRate::Operations(500)));
        for bad in
            ["", "0", "0iops", "iops", "-1iops", "+5iops", "5 iops", "1.5MB", "10MB/s", "99999999999999999999iops"]
        {
            assert!(bad.parse::<DiskRate>().is_err(), "{bad}");
        }
    }
}
