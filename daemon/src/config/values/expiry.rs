//! `snapshots.expiry`: how long a snapshot lives.

use std::fmt;
use std::str::FromStr;

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

use super::super::ValueError;

/// A span in calendar units: `3d 4H`. Units, as Incus has them: `S` seconds, `M` minutes, `H` hours, `d` days,
/// `w` weeks, `m` months, `y` years, each at most once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expiry {
    // In the order of UNITS.
    amounts: [u32; 7],
}

const UNITS: [char; 7] = ['S', 'M', 'H', 'd', 'w', 'm', 'y'];

/// Keeps every span far inside the years that jiff represents (-9999 to 9999).
const MAX_AMOUNT: u32 = 1_000_000;

impl Expiry {
    /// When something made at `from` ends. Months and years are those of the calendar in UTC; a day that the
    /// month does not have becomes its last one. `None` for a span of nothing (it never ends) and for a date
    /// beyond the year 9999.
    #[must_use]
    pub fn after(&self, from: Timestamp) -> Option<Timestamp> {
        if self.amounts == [0; 7] {
            return None;
        }
        let [seconds, minutes, hours, days, weeks, months, years] = self.amounts.map(i64::from);
        // The fallible setters refuse what exceeds jiff's own bounds; such a date is beyond 9999 as well.
        let calendar =
            Span::new().try_years(years).ok()?.try_months(months).ok()?.try_weeks(weeks).ok()?.try_days(days).ok()?;
        let clock = Span::new().try_hours(hours).ok()?.try_minutes(minutes).ok()?.try_seconds(seconds).ok()?;
        let date = from.to_zoned(TimeZone::UTC).checked_add(calendar).ok()?;
        Some(date.checked_add(clock).ok()?.timestamp())
    }
}

impl FromStr for Expiry {
    type Err = ValueError;

    fn from_str(value: &str) -> Result<Self, ValueError> {
        let wrong = || {
            ValueError::malformed(
                value,
                "an expiry",
                "write spans such as 12H or \"2w 3d\" (S seconds, M minutes, H hours, d days, w weeks, m \
                months, y years)",
            )
        };
        let mut expiry = Self::default();
        let mut seen = [false; 7];
        for part in value.split_whitespace() {
            let unit = part.chars().next_back().ok_or_else(wrong)?;
            let index = UNITS.iter().position(|known| *known == unit).ok_or_else(wrong)?;
            let digits = &part[..part.len() - unit.len_utf8()];
            let amount = super::parse_int(digits, 0, i64::from(MAX_AMOUNT)).map_err(|_| wrong())?;
            if digits.starts_with('-') || seen[index] {
                return Err(wrong());
            }
            seen[index] = true;
            expiry.amounts[index] = u32::try_from(amount).map_err(|_| wrong())?;
        }
        match seen.contains(&true) {
            true => Ok(expiry),
            false => Err(wrong()),
        }
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (amount, unit) in self.amounts.iter().zip(UNITS).rev().filter(|(amount, _)| **amount > 0) {
            write!(f, "{separator}{amount}{unit}")?;
            separator = " ";
        }
        match separator {
            "" => f.write_str("0S"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn after(span: &str, from: &str) -> String {
        let span: Expiry = span.parse().unwrap();
        span.after(from.parse().unwrap()).unwrap().to_string()
    }

    #[test]
    fn units_are_told_apart_by_case() {
        assert_eq!(after("1M", "2026-01-01T00:00:00Z"), "2026-01-01T00:01:00Z");
        assert_eq!(after("1m", "2026-01-01T00:00:00Z"), "2026-02-01T00:00:00Z");
        assert_eq!(after("1M 2H 3d 4w 5m 6y", "2026-01-01T00:00:00Z"), "2032-07-02T02:01:00Z");
        assert_eq!(after("90S", "2026-01-01T00:00:00Z"), "2026-01-01T00:01:30Z");
        assert_eq!(after("1m", "2026-01-31T12:00:00Z"), "2026-02-28T12:00:00Z");
    }

    #[test]
    fn other_forms_are_refused() {
        for text in ["", " ", "1", "d", "1D", "1h", "1d 2d", "-1d", "1.5d", "1d,2H", "tomorrow", "9999999999d", "1é"] {
            assert!(text.parse::<Expiry>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn far_futures_never_come() {
        let from: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!("1000000y".parse::<Expiry>().unwrap().after(from), None);
        assert_eq!("0d".parse::<Expiry>().unwrap().after(from), None);
    }

    proptest! {
        #[test]
        fn no_input_panics(text in "[0-9SMHdwmy -]{0,32}|\\PC{0,16}", at in -377705023201i64..253402207200) {
            if let Ok(expiry) = text.parse::<Expiry>() {
                let _ = expiry.after(Timestamp::from_second(at).unwrap());
            }
        }

        #[test]
        fn what_is_written_is_read_back_and_lies_ahead(amounts in proptest::array::uniform7(0u32..1000), at in 0i64..4_000_000_000) {
            let expiry = Expiry { amounts };
            prop_assert_eq!(expiry.to_string().parse::<Expiry>(), Ok(expiry));
            let from = Timestamp::from_second(at).unwrap();
            prop_assert!(expiry.after(from).is_none_or(|end| end > from));
        }
    }
}
