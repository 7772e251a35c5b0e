//! `snapshots.schedule`: when snapshots are taken.

use std::fmt;
use std::str::FromStr;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Zoned;

use super::super::ValueError;

/// The short forms and what they stand for. `@startup` has no time: it means each start of the instance;
/// `@never` overrides a profile's schedule.
const ALIASES: [(&str, Option<&str>); 9] = [
    ("@hourly", Some("0 * * * *")),
    ("@daily", Some("0 0 * * *")),
    ("@midnight", Some("0 0 * * *")),
    ("@weekly", Some("0 0 * * 0")),
    ("@monthly", Some("0 0 1 * *")),
    ("@annually", Some("0 0 1 1 *")),
    ("@yearly", Some("0 0 1 1 *")),
    ("@startup", None),
    ("@never", None),
];

/// A schedule: one cron expression of five fields (minute, hour, day of month, month, day of week), or a comma
/// list of aliases such as `@daily, @startup`.
#[derive(Debug, Clone)]
pub struct Schedule {
    text: String,
    times: Vec<Cron>,
    at_startup: bool,
}

impl Schedule {
    /// The first time strictly after `after`, in its time zone. `None` when there is none: a schedule of
    /// `@startup` or `@never` alone, or a date that never comes (30 February).
    #[must_use]
    pub fn next_after(&self, after: &Zoned) -> Option<Zoned> {
        self.times.iter().filter_map(|cron| cron.find_next_occurrence(after, false).ok()).min()
    }

    /// Whether a snapshot is due each time that the instance starts.
    #[must_use]
    pub fn at_startup(&self) -> bool {
        self.at_startup
    }
}

impl FromStr for Schedule {
    type Err = ValueError;

    fn from_str(value: &str) -> Result<Self, ValueError> {
        let wrong = || {
            ValueError::malformed(
                value,
                "a schedule",
                "write five cron fields such as \"0 6 * * *\" (every day at 6:00), or aliases such as \
                @daily or @hourly",
            )
        };
        let mut schedule = Self { text: value.trim().to_owned(), times: Vec::new(), at_startup: false };
        if schedule.text.starts_with('@') {
            for alias in schedule.text.split(',').map(str::trim) {
                let (name, cron) = ALIASES.iter().find(|(name, _)| *name == alias).ok_or_else(wrong)?;
                schedule.at_startup |= *name == "@startup";
                if let Some(cron) = cron {
                    schedule.times.push(parse_cron(cron).ok_or_else(wrong)?);
                }
            }
        } else {
            schedule.times.push(parse_cron(&schedule.text).ok_or_else(wrong)?);
        }
        Ok(schedule)
    }
}

/// Five fields of plain cron. The characters are checked first: the parser also knows nicknames, Quartz marks
/// (`L`, `W`, `#`) and more, which other implementations of this API would not take.
fn parse_cron(text: &str) -> Option<Cron> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '*' | ',' | '-' | '/' | ' ' | '\t');
    if !text.chars().all(plain) {
        return None;
    }
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    // Words occur as month (jan) and day (mon) only; three letters each.
    let words_fit = |(index, field): (usize, &&str)| {
        field.split(|c: char| !c.is_ascii_alphabetic()).all(|w| w.is_empty() || (index >= 3 && w.len() == 3))
    };
    if fields.len() != 5 || !fields.iter().enumerate().all(words_fit) {
        return None;
    }
    CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build().parse(text).ok()
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Schedule {}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::ToSpan;
    use proptest::prelude::*;

    fn next(schedule: &str, after: &str) -> Option<String> {
        let schedule: Schedule = schedule.parse().unwrap();
        schedule.next_after(&after.parse().unwrap()).map(|at| at.datetime().to_string())
    }

    #[test]
    fn the_next_time_lies_strictly_ahead() {
        let now = "2026-11-23T17:17:30[UTC]";
        assert_eq!(next("@hourly", now).unwrap(), "2026-11-23T18:00:00");
        assert_eq!(next("@daily", now).unwrap(), "2026-11-24T00:00:00");
        assert_eq!(next("@weekly", now).unwrap(), "2026-11-29T00:00:00");
        assert_eq!(next("@monthly", now).unwrap(), "2026-12-01T00:00:00");
        assert_eq!(next("@yearly", now).unwrap(), "2027-01-01T00:00:00");
        assert_eq!(next("@daily, @hourly", now).unwrap(), "2026-11-23T18:00:00");
        assert_eq!(next("*/15 * * * *", now).unwrap(), "2026-11-23T17:30:00");
        assert_eq!(next("0 6 * * 1,3", now).unwrap(), "2026-11-25T06:00:00");
        assert_eq!(next("0 6 1 jan *", now).unwrap(), "2027-01-01T06:00:00");
        assert_eq!(next("0 0 * * 7", now).unwrap(), "2026-11-29T00:00:00");
        assert_eq!(next("17 17 * * *", "2026-11-23T17:17:00[UTC]").unwrap(), "2026-11-24T17:17:00");
    }

    #[test]
    fn some_schedules_have_no_time() {
        let now = "2026-11-23T17:17:30[UTC]";
        assert_eq!(next("@startup", now), None);
        assert_eq!(next("@never", now), None);
        assert_eq!(next("0 0 30 2 *", now), None);
        assert!("@startup,@daily".parse::<Schedule>().unwrap().at_startup());
    }

    #[test]
    fn a_skipped_hour_does_not_stop_the_clock() {
        // 2026-03-29: 02:00 becomes 03:00 in Berlin.
        let at = next("30 2 * * *", "2026-03-28T12:00:00[Europe/Berlin]").unwrap();
        assert!(at.as_str() >= "2026-03-29T03:00:00" && at.as_str() < "2026-03-31", "{at}");
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "",
            "@",
            "@sometimes",
            "@daily @hourly",
            "@daily,",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "a * * * *",
            "0 0 L * *",
            "0 0 * * 1#2",
            "0 0 1W * *",
            "5-1 * * * *",
            "*/0 * * * *",
            "0 0 * * 8",
            "? * * * *",
            "0 6 * * *, @daily",
        ] {
            assert!(text.parse::<Schedule>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_input_panics(text in "[0-9*,/@a-zA-Z -]{0,24}|([0-9*]{1,2}(/[0-9]{1,2})? ){4}[0-9*]|\\PC{0,24}") {
            if let Ok(schedule) = text.parse::<Schedule>() {
                let now: Zoned = "2026-11-23T17:17:30[UTC]".parse().unwrap();
                if let Some(at) = schedule.next_after(&now) {
                    prop_assert!(at > now);
                    prop_assert_eq!(at.second(), 0);
                }
                prop_assert_eq!(schedule.to_string().parse::<Schedule>(), Ok(schedule));
            }
        }

        #[test]
        fn a_minute_and_hour_come_every_day(minute in 0i8..60, hour in 0i8..24, at in 0i64..4_000_000_000) {
            let now = jiff::Timestamp::from_second(at).unwrap().to_zoned(jiff::tz::TimeZone::UTC);
            let schedule: Schedule = format!("{minute} {hour} * * *").parse().unwrap();
            let next = schedule.next_after(&now).unwrap();
            prop_assert_eq!((next.minute(), next.hour()), (minute, hour));
            prop_assert!(next > now && next <= now.checked_add(24.hours()).unwrap());
        }
    }
}
