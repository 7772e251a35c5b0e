//! Whether an answer is what the recorded one was.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::api;
use crate::traces::{Body, Response};

/// Headers that clients read. Of the rest, such as `Date`, nothing depends.
const HEADERS: &[&str] = &[
    "content-type",
    "content-disposition",
    "etag",
    "location",
    "upgrade",
    "x-incus-type",
    "x-lxd-gid",
    "x-lxd-mode",
    "x-lxd-modified",
    "x-lxd-type",
    "x-lxd-uid",
];

/// Headers that only have to be there: what they say differs from answer to answer.
const ANY_VALUE: &[&str] = &["etag", "x-lxd-modified", "content-disposition"];

/// Members that clients decide by: their value counts, not only its type.
const DECIDING: &[&str] = &[
    "action",
    "architecture",
    "class",
    "description",
    "ephemeral",
    "err",
    "error",
    "error_code",
    "interactive",
    "location",
    "managed",
    "may_cancel",
    "name",
    "profiles",
    "project",
    "public",
    "return",
    "server",
    "server_version",
    "stateful",
    "status",
    "status_code",
    "type",
];

/// How a fault begins that is about a value of the right type.
const OTHER: &str = "has the value";

/// What is noted of an answer: a place and what is wrong there.
pub type Faults = Vec<(String, String)>;

/// Holds an answer against the recorded one. What `expected` has in ids is already ours.
pub fn answer(expected: &Response, got: &api::Response, faults: &mut Faults) {
    if expected.status != got.status {
        faults.push(("status".to_owned(), format!("is {} instead of {}", got.status, expected.status)));
    }
    headers(&expected.headers, got, faults);
    match &expected.body {
        Some(Body::Json(expected)) => match serde_json::from_slice(&got.body) {
            Ok(got) => json(expected, &got, faults),
            Err(error) => faults.push(("body".to_owned(), format!("is not JSON: {error}"))),
        },
        Some(Body::Text(expected)) => {
            if expected.trim_end().as_bytes() != got.body.trim_ascii_end() {
                let got = String::from_utf8_lossy(&got.body);
                faults.push(("body".to_owned(), format!("is {got:?} instead of {expected:?}")));
            }
        }
        Some(Body::Binary(_)) => {
            if got.body.is_empty() {
                faults.push(("body".to_owned(), "is empty".to_owned()));
            }
        }
        None => {
            if !got.body.is_empty() {
                faults.push(("body".to_owned(), "is there instead of none".to_owned()));
            }
        }
    }
}

fn headers(expected: &BTreeMap<String, String>, got: &api::Response, faults: &mut Faults) {
    for (name, value) in expected {
        let name = name.to_lowercase();
        if !HEADERS.contains(&name.as_str()) {
            continue;
        }
        // A multipart body's boundary is its own.
        let plain = |value: &str| value.split(';').next().unwrap_or_default().to_owned();
        match got.header(&name) {
            None => faults.push((name, "is missing".to_owned())),
            Some(_) if ANY_VALUE.contains(&name.as_str()) => {}
            Some(got) if plain(got).eq_ignore_ascii_case(&plain(value)) => {}
            Some(got) => faults.push((name, format!("is {got:?} instead of {value:?}"))),
        }
    }
}

/// Holds a value against the recorded one.
pub fn json(expected: &Value, got: &Value, faults: &mut Faults) {
    // Of an operation that still ran, how far it was is a matter of time.
    let running = expected.pointer("/metadata/status_code").is_some_and(|code| code == 103 || code == 105);
    let before = faults.len();
    check("", expected, got, faults);
    if running {
        let timed = |place: &str| matches!(place, "/metadata/status" | "/metadata/status_code" | "/metadata/err");
        let mut index = 0;
        faults.retain(|(place, _)| {
            index += 1;
            index <= before || !timed(place)
        });
    }
}

fn check(place: &str, expected: &Value, got: &Value, faults: &mut Faults) {
    match (expected, got) {
        (Value::Object(expected), Value::Object(got)) => {
            for (name, expected) in expected {
                let place = format!("{place}/{name}");
                match got.get(name) {
                    None => faults.push((place, format!("is missing; it was {expected}"))),
                    Some(got) => check(&place, expected, got, faults),
                }
            }
        }
        (Value::Array(expected), Value::Array(got)) => {
            if got.is_empty() && !expected.is_empty() {
                faults.push((format!("{place}/*"), "is missing: the list is empty".to_owned()));
            }
            let place = format!("{place}/*");
            for (index, expected) in expected.iter().enumerate() {
                match counterpart(expected, got) {
                    Some(got) => check(&place, expected, got, faults),
                    // Another thing: of its members the types count.
                    None => {
                        if let Some(got) = got.get(index).or_else(|| got.first()) {
                            let mut found = Faults::new();
                            check(&place, expected, got, &mut found);
                            faults.extend(found.into_iter().filter(|(_, says)| !says.starts_with(OTHER)));
                        }
                    }
                }
            }
        }
        (expected, got) if kind(expected) != kind(got) => {
            let shown: String = got.to_string().chars().take(80).collect();
            faults.push((place.to_owned(), format!("is {shown} instead of {expected}")));
        }
        (expected, got) => {
            let name = place.trim_end_matches("/*").rsplit('/').next().unwrap_or_default();
            // What users chose and what operations report has no fixed meaning.
            let free = place.contains("/config/") || place.contains("/properties/") || place.contains("/environment/");
            if DECIDING.contains(&name) && !free && expected != got {
                faults.push((place.to_owned(), format!("{OTHER} {got} instead of {expected}")));
            }
        }
    }
}

/// The item of a list that is what the recorded one is: of the same name or, without names, of the same type.
fn counterpart<'a>(expected: &Value, got: &'a [Value]) -> Option<&'a Value> {
    if !expected.is_object() {
        return None;
    }
    let key = ["name", "type"].into_iter().find(|key| expected[key].is_string())?;
    got.iter().find(|got| got[key] == expected[key])
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn places(expected: &Value, got: &Value) -> Vec<String> {
        let mut faults = Vec::new();
        super::json(expected, got, &mut faults);
        faults.into_iter().map(|(place, _)| place).collect()
    }

    #[test]
    fn shapes_are_compared_and_deciding_values() {
        let expected = json!({"status": "Success", "metadata": [{"name": "a", "size": 1, "note": "x"}]});
        assert_eq!(places(&expected, &expected), [""; 0]);
        let other = json!({"status": "Success", "metadata": [{"name": "a", "size": 7, "note": "y", "more": 1}]});
        assert_eq!(places(&expected, &other), [""; 0]);
        let wrong = json!({"status": "No", "metadata": [{"name": "a", "size": "1"}]});
        assert_eq!(places(&expected, &wrong), ["/metadata/*/note", "/metadata/*/size", "/status"]);
        let unlike = json!({"status": "Success", "metadata": [{"name": "b", "size": "1", "note": ""}]});
        assert_eq!(places(&expected, &unlike), ["/metadata/*/size"]);
        assert_eq!(places(&expected, &json!({"status": "Success", "metadata": []})), ["/metadata/*"]);
        let running = json!({"metadata": {"status": "Running", "status_code": 103}});
        assert_eq!(places(&running, &json!({"metadata": {"status": "Success", "status_code": 200}})), [""; 0]);
    }
}
