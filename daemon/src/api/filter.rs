//! `?filter=` of collections, in Incus' form of OData (its doc/rest-api.md, "Filtering"):
//! `name eq c1 and not status eq Running or config.image.os eq debian`.
//!
//! - `eq` and `ne` compare a field with a value; fields of fields are joined by dots, and keys of maps may have dots.
//! - Text is compared without regard to case, as a regular expression that has to match the whole, unless it has an
//!   anchor of its own; what is no regular expression is compared as it is.
//! - `and` and `or` are worked off from left to right, neither before the other; there are no parentheses.
//! - Words are parted by spaces; in double quotes they may hold some.

use regex::{Regex, RegexBuilder};
use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};

/// The largest compiled expression, in bytes.
const LARGEST_REGEX: usize = 256 << 10;

/// Keeps what the filter, if there is one, lets through.
///
/// # Errors
/// A filter that cannot be understood.
pub fn keep<T: Serialize>(filter: Option<&str>, items: Vec<T>) -> Result<Vec<T>> {
    let Some(filter) = filter else { return Ok(items) };
    let filter = Filter::parse(filter)?;
    let mut kept = Vec::new();
    for item in items {
        if filter.matches(&serde_json::to_value(&item).map_err(Error::internal)?) {
            kept.push(item);
        }
    }
    Ok(kept)
}

/// A filter that was understood.
#[derive(Debug)]
struct Filter(Vec<Clause>);

#[derive(Debug)]
struct Clause {
    /// How it is joined to what comes before.
    join: Join,
    not: bool,
    field: String,
    equal: bool,
    value: String,
    pattern: Option<Regex>,
}

#[derive(Debug, Clone, Copy)]
enum Join {
    And,
    Or,
}

impl Filter {
    fn parse(text: &str) -> Result<Self> {
        let bad = |what: String| {
            Error::invalid(format!("Invalid filter: {what}; write for example: name eq c1 and status ne Running"))
        };
        let mut words = split(text).ok_or_else(|| bad("a double quote is not closed".into()))?.into_iter();
        let mut clauses = Vec::new();
        let mut join = Join::And;
        loop {
            let mut field = words.next().ok_or_else(|| bad("a condition is missing at its end".into()))?;
            let not = field.eq_ignore_ascii_case("not");
            if not {
                field = words.next().ok_or_else(|| bad("\"not\" is followed by nothing".into()))?;
            }
            let operator = words.next().ok_or_else(|| bad(format!("{field:?} is compared with nothing")))?;
            let equal = match operator.to_ascii_lowercase().as_str() {
                "eq" => true,
                "ne" => false,
                _ => return Err(bad(format!("{operator:?} is neither eq nor ne"))),
            };
            let value = words
                .next()
                .ok_or_else(|| bad(format!("{:?} is followed by nothing", format!("{field} {operator}"))))?;
            clauses.push(Clause { join, not, field, equal, pattern: pattern(&value), value });
            join = match words.next() {
                None => return Ok(Self(clauses)),
                Some(word) if word.eq_ignore_ascii_case("and") => Join::And,
                Some(word) if word.eq_ignore_ascii_case("or") => Join::Or,
                Some(word) => return Err(bad(format!("{word:?} is neither and nor or"))),
            };
        }
    }

    fn matches(&self, object: &Value) -> bool {
        self.0.iter().fold(true, |so_far, clause| match clause.join {
            Join::And => so_far && clause.matches(object),
            Join::Or => so_far || clause.matches(object),
        })
    }
}

impl Clause {
    fn matches(&self, object: &Value) -> bool {
        let is = lookup(object, &self.field).is_some_and(|found| self.is(found));
        (is == self.equal) != self.not
    }

    fn is(&self, found: &Value) -> bool {
        match found {
            Value::String(text) => match &self.pattern {
                Some(pattern) => pattern.is_match(text),
                None => text.to_lowercase() == self.value.to_lowercase(),
            },
            Value::Bool(flag) => self.value.parse() == Ok(*flag),
            Value::Number(number) => number.to_string() == self.value,
            Value::Array(items) => items.iter().any(|item| self.is(item)),
            Value::Null | Value::Object(_) => false,
        }
    }
}

fn pattern(value: &str) -> Option<Regex> {
    let anchored = if value.contains(['^', '$']) { value.to_owned() } else { format!("^(?:{value})$") };
    RegexBuilder::new(&anchored).case_insensitive(true).size_limit(LARGEST_REGEX).build().ok()
}

/// Follows a path of names joined by dots. A name may have dots itself: the longest that fits is taken.
fn lookup<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let map = object.as_object()?;
    if let Some(found) = map.get(path) {
        return Some(found);
    }
    let ends = path.match_indices('.').map(|(at, _)| at).rev();
    ends.filter_map(|end| lookup(map.get(&path[..end])?, &path[end + 1..])).next()
}

/// Words, without their quotes. None: a quote is not closed.
fn split(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    (!quoted).then_some(words)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn filters_say_what_they_let_through() {
        let object = json!({
            "name": "web-1", "status": "Running", "ephemeral": false, "config": {"image.os": "Debian", "limits.cpu": "2"},
            "devices": {"eth0": {"type": "nic"}}, "profiles": ["default", "big"], "size": 12,
        });
        let table = [
            ("name eq web-1", true),
            ("name eq WEB-1", true),
            ("name eq web", false),
            ("name eq web-.*", true),
            ("name eq ^web", true),
            ("name ne web-2", true),
            ("not name eq web-1", false),
            ("not name ne web-1", true),
            ("name eq x or status eq running", true),
            ("status eq running and name eq x", false),
            ("name eq x and status eq running or size eq 12", true),
            ("config.image.os eq debian", true),
            ("config.limits.cpu eq 2", true),
            ("devices.eth0.type eq nic", true),
            ("ephemeral eq false", true),
            ("ephemeral eq true", false),
            ("profiles eq big", true),
            ("nosuch eq x", false),
            ("nosuch ne x", true),
            ("name eq \"web-1\"", true),
            ("name eq \"(\"", false),
        ];
        for (text, expected) in table {
            assert_eq!(Filter::parse(text).unwrap().matches(&object), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_filter_is_said_so() {
        for text in
            ["name", "name eq", "name is x", "name eq x and", "name eq x name eq y", "not", "name eq \"x", "a\n b"]
        {
            let error = Filter::parse(text).unwrap_err().to_string();
            assert!(error.starts_with("Invalid filter: "), "{text}: {error}");
            assert!(!error.contains('\n'), "{text}: {error}");
        }
    }
}
