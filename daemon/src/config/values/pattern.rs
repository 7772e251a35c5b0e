//! `snapshots.pattern`: what snapshots are called.
//!
//! Incus renders the pattern as a pongo2 template with one variable, `creation_date`, and then puts the next
//! free number in the place of `%d`. What people write is `snap%d`, `{{ creation_date }}` and
//! `{{ creation_date|date:'2006-01-02_15-04-05' }}`; these are what is understood here, the layout being Go's.

use std::fmt;
use std::str::FromStr;

use jiff::Zoned;

use super::super::ValueError;
use super::super::names::{NameKind, validate_name};

/// How a bare `{{ creation_date }}` is written: it sorts, and needs no quoting anywhere.
const BARE_LAYOUT: &str = "2006-01-02_15-04-05";

/// A parsed pattern. The default is `snap%d`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotPattern {
    text: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Index,
    /// The time of creation, in a Go layout.
    Date(String),
}

impl Default for SnapshotPattern {
    fn default() -> Self {
        Self { text: "snap%d".to_owned(), parts: vec![Part::Text("snap".to_owned()), Part::Index] }
    }
}

impl SnapshotPattern {
    /// The name of a snapshot made at `now`, given the names that are taken. `%d` becomes one more than the
    /// highest number in use. A pattern without it that renders to a taken name gets `-0`, `-1` and so on.
    pub fn next_name<'a>(&self, now: &Zoned, taken: impl IntoIterator<Item = &'a str> + Clone) -> String {
        let (before, after) = self.render(now);
        match after {
            Some(after) => format!("{before}{}{after}", next_index(&before, &after, taken)),
            None if !taken.clone().into_iter().any(|name| name == before) => before,
            None => {
                let stem = format!("{before}-");
                let index = next_index(&stem, "", taken);
                format!("{stem}{index}")
            }
        }
    }

    /// The text before the index and, when there is one, the text after it.
    fn render(&self, now: &Zoned) -> (String, Option<String>) {
        let (mut before, mut after) = (String::new(), None);
        for part in &self.parts {
            let target = after.as_mut().unwrap_or(&mut before);
            match part {
                Part::Text(text) => target.push_str(text),
                Part::Date(layout) => target.push_str(&format_go(now, layout)),
                Part::Index => after = Some(String::new()),
            }
        }
        (before, after)
    }
}

/// One more than the highest number that stands between the two texts in a taken name.
fn next_index<'a>(before: &str, after: &str, taken: impl IntoIterator<Item = &'a str>) -> u64 {
    taken
        .into_iter()
        .filter_map(|name| name.strip_prefix(before)?.strip_suffix(after))
        .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
        .filter_map(|digits| digits.parse::<u64>().ok())
        .map(|index| index.saturating_add(1))
        .max()
        .unwrap_or(0)
}

impl FromStr for SnapshotPattern {
    type Err = ValueError;

    fn from_str(value: &str) -> Result<Self, ValueError> {
        let wrong = || {
            ValueError::malformed(
                value,
                "a snapshot name pattern",
                "write a name with %d for a number, or with {{ creation_date|date:'2006-01-02_15-04' }} \
                for the time",
            )
        };
        let mut parts = Vec::new();
        let mut rest = value;
        while let Some(at) = rest.find("{{") {
            push_text(&mut parts, &rest[..at]);
            let (inside, tail) = rest[at + 2..].split_once("}}").ok_or_else(wrong)?;
            parts.push(Part::Date(date_layout(inside).ok_or_else(wrong)?));
            rest = tail;
        }
        push_text(&mut parts, rest);
        if parts.iter().filter(|part| **part == Part::Index).count() > 1 {
            return Err(ValueError::senseless(value, "%d may stand in it once only"));
        }
        let pattern = Self { text: value.to_owned(), parts };
        // The rendered name must be one that a snapshot may have; any instant shows it.
        let sample = pattern.next_name(&jiff::Timestamp::UNIX_EPOCH.to_zoned(jiff::tz::TimeZone::UTC), []);
        if validate_name(NameKind::Snapshot, &sample).is_err() {
            return Err(ValueError::senseless(
                value,
                "snapshot names must not be empty, begin with a dash, or contain spaces or slashes",
            ));
        }
        Ok(pattern)
    }
}

fn push_text(parts: &mut Vec<Part>, text: &str) {
    for (i, piece) in text.split("%d").enumerate() {
        if i > 0 {
            parts.push(Part::Index);
        }
        if !piece.is_empty() {
            parts.push(Part::Text(piece.to_owned()));
        }
    }
}

/// The layout in ` creation_date|date:'…' `, or the bare one.
fn date_layout(inside: &str) -> Option<String> {
    let inside = inside.trim();
    let rest = inside.strip_prefix("creation_date")?.trim_start();
    if rest.is_empty() {
        return Some(BARE_LAYOUT.to_owned());
    }
    let quoted = rest.strip_prefix('|')?.trim_start().strip_prefix("date")?.trim_start().strip_prefix(':')?.trim();
    let layout = quoted
        .strip_prefix('\'')
        .and_then(|text| text.strip_suffix('\''))
        .or_else(|| quoted.strip_prefix('"').and_then(|text| text.strip_suffix('"')))?;
    (!layout.is_empty()).then(|| layout.to_owned())
}

/// Go's reference date and the strftime conversion of each of its parts (package time, constants `Layout` and
/// following), longer forms before their own beginnings.
const GO_LAYOUT: [(&str, &str); 24] = [
    ("January", "%B"),
    ("Jan", "%b"),
    ("Monday", "%A"),
    ("Mon", "%a"),
    ("MST", "%Z"),
    ("2006", "%Y"),
    ("-07:00", "%:z"),
    ("-0700", "%z"),
    ("Z07:00", "%:z"),
    ("002", "%j"),
    ("01", "%m"),
    ("02", "%d"),
    ("03", "%I"),
    ("04", "%M"),
    ("05", "%S"),
    ("06", "%y"),
    ("15", "%H"),
    ("PM", "%p"),
    ("pm", "%P"),
    ("1", "%-m"),
    ("2", "%-d"),
    ("3", "%-I"),
    ("4", "%-M"),
    ("5", "%-S"),
];

/// Writes a time in a Go layout; what is no part of the reference date stays as it is.
fn format_go(time: &Zoned, layout: &str) -> String {
    let mut out = String::new();
    let mut rest = layout;
    'next: while let Some(first) = rest.chars().next() {
        for (part, conversion) in GO_LAYOUT {
            if let Some(tail) = rest.strip_prefix(part) {
                out.push_str(&time.strftime(conversion).to_string());
                rest = tail;
                continue 'next;
            }
        }
        out.push(first);
        rest = &rest[first.len_utf8()..];
    }
    out
}

impl fmt::Display for SnapshotPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(pattern: &str, taken: &[&str]) -> String {
        let pattern: SnapshotPattern = pattern.parse().unwrap();
        pattern.next_name(&"2026-11-23T07:08:09[UTC]".parse().unwrap(), taken.iter().copied())
    }

    #[test]
    fn numbers_go_on_from_the_highest() {
        assert_eq!(name("snap%d", &[]), "snap0");
        assert_eq!(name("snap%d", &["snap0", "snap7", "snapper", "snap8x", "other9"]), "snap8");
        assert_eq!(name("a%db", &["a3b", "a4"]), "a4b");
        assert_eq!(SnapshotPattern::default(), "snap%d".parse().unwrap());
    }

    #[test]
    fn dates_are_in_go_layouts() {
        assert_eq!(name("{{ creation_date }}", &[]), "2026-11-23_07-08-09");
        assert_eq!(name("{{creation_date|date:'2006-01-02_15-04-05'}}", &[]), "2026-11-23_07-08-09");
        assert_eq!(name("d-{{ creation_date | date:\"Jan2-06-3:04pm\" }}-x", &[]), "d-Nov23-26-7:08am-x");
        assert_eq!(name("{{ creation_date|date:'2006' }}-%d", &["2026-4"]), "2026-5");
        assert_eq!(name("Mon", &[]), "Mon", "text outside a layout stays");
    }

    #[test]
    fn a_taken_name_gets_a_number() {
        assert_eq!(name("daily", &["daily"]), "daily-0");
        assert_eq!(name("daily", &["daily", "daily-0"]), "daily-1");
    }

    #[test]
    fn patterns_that_make_no_names_are_refused() {
        for text in [
            "",
            "a b",
            "a/b",
            "%d%d",
            "{{",
            "{{ creation_date",
            "{{ uuid }}",
            "{{ creation_date|upper }}",
            "{{ creation_date|date:'15 04' }}",
            "{{ creation_date|date:'2006/01' }}",
            "-x",
            "..",
        ] {
            assert!(text.parse::<SnapshotPattern>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_input_panics(text in "[a-z%d{}|:' 0-9]{0,32}|\\PC{0,24}|\\{\\{ creation_date\\|date:'[a-zA-Z0-9:-]{0,20}' \\}\\}") {
            if let Ok(pattern) = text.parse::<SnapshotPattern>() {
                let now: Zoned = "2026-11-23T07:08:09[UTC]".parse().unwrap();
                let first = pattern.next_name(&now, []);
                let second = pattern.next_name(&now, [first.as_str()]);
                prop_assert_ne!(&first, &second, "a name is never given twice");
                prop_assert_eq!(pattern.to_string().parse::<SnapshotPattern>(), Ok(pattern));
            }
        }
    }
}
