//! Sizes, dates and truth values for people.

use jiff::tz::TimeZone;

use crate::api::Timestamp;

fn scaled(bytes: u64, base: f64, units: [&str; 6]) -> String {
    let mut value = bytes as f64;
    if value < base {
        return format!("{bytes}B");
    }
    let mut unit = "";
    for next in units {
        value /= base;
        unit = next;
        if value < base {
            break;
        }
    }
    format!("{value:.2}{unit}")
}

/// "1.49MiB".
pub(crate) fn bytes_iec(bytes: u64) -> String {
    scaled(bytes, 1024.0, ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// "1.24kB".
pub(crate) fn bytes_si(bytes: u64) -> String {
    scaled(bytes, 1000.0, ["kB", "MB", "GB", "TB", "PB", "EB"])
}

/// "2026/11/23 17:17 UTC" in the local time zone; empty for "never".
pub(crate) fn date(time: Timestamp) -> String {
    if !time.is_set() {
        return String::new();
    }
    time.0.to_zoned(TimeZone::system()).strftime("%Y/%m/%d %H:%M %Z").to_string()
}

/// "YES" or "NO".
pub(crate) fn yes_no(value: bool) -> String {
    if value { "YES".into() } else { "NO".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_incus_prints_them() {
        assert_eq!(bytes_iec(622_592), "608.00KiB");
        assert_eq!(bytes_iec(1_564_672), "1.49MiB");
        assert_eq!(bytes_iec(512), "512B");
        assert_eq!(bytes_iec(49_402_105), "47.11MiB");
        assert_eq!(bytes_si(732), "732B");
        assert_eq!(bytes_si(1242), "1.24kB");
        assert_eq!(bytes_si(10276), "10.28kB");
        assert_eq!(bytes_iec(u64::MAX), "16.00EiB");
    }

    #[test]
    fn never_is_empty() {
        assert_eq!(date(Timestamp::ZERO), "");
        assert_eq!(date(Timestamp::EPOCH), "");
    }
}
