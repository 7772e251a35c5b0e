//! Whether the daemon's answers are what Incus' own description of its API says: `tests/data/incus-rest-api.yaml`, in
//! OpenAPI 2.0.
//!
//! Each JSON answer that a test gets is held against the schema of its path, method and status: every member is known
//! and of its type, or an addition of ours. What the description leaves open is open here: members may be missing, and
//! null stands for an empty list or object, as Go writes them.

use std::sync::OnceLock;

use serde_json::{Map, Value};

/// Where the description and Incus 6.0.4 part, and we go with the program: the target's beginning, and what a fault says.
const PARTED: &[(&str, &str)] = &[
    // Operations are listed by status.
    ("/1.0/operations?recursion=", "should be of the type \"array\""),
    // Keys of devices say whether they are required.
    ("/1.0/metadata/configuration", "/required is not known"),
];

/// What every answer's envelope may have; the description shows for each kind only what it has besides.
const ENVELOPE: [&str; 7] = ["type", "status", "status_code", "operation", "error", "error_code", "metadata"];

/// What members begin with that are additions of ours, by a name that is one of `api_extensions` too.
const ADDITION: &str = "duet_";

/// Asserts that an answer conforms.
///
/// # Panics
/// With what does not, and where.
#[track_caller]
pub fn assert_conforms(method: &str, target: &str, status: u16, body: &Value) {
    let Some(schema) = schema(method, target, status) else { return };
    let mut faults = Vec::new();
    check(schema, body, &mut String::new(), &mut faults);
    faults.retain(|fault| !PARTED.iter().any(|(path, says)| target.starts_with(path) && fault.contains(says)));
    assert!(
        faults.is_empty(),
        "{method} {target} ({status}) is not as Incus describes it:\n  {}\n{body:#}",
        faults.join("\n  ")
    );
}

fn document() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(|| {
        let text = include_str!("../data/incus-rest-api.yaml");
        serde_saphyr::from_str(text).expect("the API's description is YAML")
    })
}

/// The schema of an answer. None: it has no JSON body of a known form.
fn schema(method: &str, target: &str, status: u16) -> Option<&'static Value> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let responses = &operation(method, path, query)?["responses"];
    // The description knows no 201, which Incus answers where something was made.
    let status = if status == 201 { 200 } else { status };
    let response = &responses[status.to_string().as_str()];
    let response = response["$ref"].as_str().map_or(Some(response), resolve)?;
    response.get("schema")
}

/// What the description says of a method of a path, in the variant that suits the query.
fn operation(method: &str, path: &str, query: &str) -> Option<&'static Value> {
    let paths = document()["paths"].as_object()?;
    let recursion = query.split('&').find_map(|pair| pair.strip_prefix("recursion=")).filter(|level| *level != "0");
    let variants = match recursion {
        Some(level) => vec![Some(format!("recursion={level}")), Some("recursion=1".to_owned()), None],
        None => vec![None],
    };
    variants.into_iter().find_map(|variant| {
        let suits = |key: &str| {
            let (template, of) = key.split_once('?').unwrap_or((key, ""));
            of == variant.as_deref().unwrap_or("") && matches(template, path)
        };
        paths.iter().find(|(key, _)| suits(key))?.1.get(method.to_lowercase())
    })
}

/// Whether a path is one of a template such as `/1.0/instances/{name}`.
fn matches(template: &str, path: &str) -> bool {
    let (template, path) = (template.split('/'), path.trim_end_matches('/').split('/'));
    template.clone().count() == path.clone().count()
        && template.zip(path).all(|(wanted, part)| (wanted.starts_with('{') && !part.is_empty()) || wanted == part)
}

fn resolve(reference: &str) -> Option<&'static Value> {
    document().pointer(reference.strip_prefix('#')?)
}

fn check(schema: &Value, value: &Value, place: &mut String, faults: &mut Vec<String>) {
    if let Some(referred) = schema["$ref"].as_str() {
        return match resolve(referred) {
            Some(schema) => check(schema, value, place, faults),
            None => faults.push(format!("{place}: the description refers to {referred}, which is not there")),
        };
    }
    let fits = match (schema["type"].as_str(), value) {
        (Some("array"), Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                within(place, &index.to_string(), |place| check(&schema["items"], item, place, faults));
            }
            true
        }
        (Some("object") | None, Value::Object(members)) => {
            check_members(schema, members, place, faults);
            true
        }
        (Some("array" | "object"), Value::Null) | (None, _) => true,
        (Some("string"), Value::String(_)) | (Some("boolean"), Value::Bool(_)) => true,
        (Some("number"), Value::Number(_)) => true,
        (Some("integer"), Value::Number(number)) => number.is_i64() || number.is_u64(),
        _ => false,
    };
    if !fits {
        faults.push(format!("{place} is {value}, and should be of the type {}", schema["type"]));
    }
}

fn check_members(schema: &Value, members: &Map<String, Value>, place: &mut String, faults: &mut Vec<String>) {
    let mut known = Map::new();
    gather(schema, &mut known);
    let others = &schema["additionalProperties"];
    for (name, value) in members {
        let envelope = place.is_empty() && ENVELOPE.contains(&name.as_str());
        match known.get(name) {
            Some(schema) => within(place, name, |place| check(schema, value, place, faults)),
            None if others.is_object() => within(place, name, |place| check(others, value, place, faults)),
            None if known.is_empty() || envelope || name.starts_with(ADDITION) => {}
            None => faults.push(format!("{place}/{name} is not known")),
        }
    }
}

/// The members of an object, its own and those of what it is made of.
fn gather(schema: &Value, known: &mut Map<String, Value>) {
    if let Some(schema) = schema["$ref"].as_str().and_then(resolve) {
        gather(schema, known);
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        gather(part, known);
    }
    known.extend(schema["properties"].as_object().cloned().into_iter().flatten());
}

fn within(place: &mut String, name: &str, work: impl FnOnce(&mut String)) {
    let length = place.len();
    place.push('/');
    place.push_str(name);
    work(place);
    place.truncate(length);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(method: &str, target: &str, body: &Value) -> Vec<String> {
        let mut faults = Vec::new();
        check(schema(method, target, 200).expect("a schema"), body, &mut String::new(), &mut faults);
        faults
    }

    #[test]
    fn what_does_not_conform_is_found() {
        let answer =
            |metadata: Value| json!({"type": "sync", "status": "Success", "status_code": 200, "metadata": metadata});
        assert_eq!(faults("GET", "/1.0/instances/c1", &answer(json!({"name": "c1", "config": {"a": "b"}}))), [""; 0]);
        assert_eq!(faults("GET", "/1.0/instances/c1", &answer(json!({"name": 1}))).len(), 1);
        assert_eq!(faults("GET", "/1.0/instances/c1", &answer(json!({"nosuch": 1}))).len(), 1);
        assert_eq!(faults("GET", "/1.0/instances", &answer(json!(["/1.0/instances/c1"]))), [""; 0]);
        assert_eq!(faults("GET", "/1.0/instances?recursion=1", &answer(json!([{"name": "c1"}]))), [""; 0]);
        assert_eq!(faults("GET", "/1.0/instances?recursion=1", &answer(json!(["c1"]))).len(), 1);
        assert!(schema("GET", "/internal/ready", 200).is_none());
    }
}
