//! Holds the committed document to the code, and the code to itself.

use std::collections::BTreeSet;

use serde_json::Value;

use super::document::document;

/// The variable that has the committed document written anew.
const RENEW: &str = "DUET_RENEW_OPENAPI";

fn text() -> String {
    document().to_pretty_json().unwrap() + "\n"
}

fn value() -> Value {
    serde_json::from_str(&text()).unwrap()
}

#[test]
fn the_committed_document_is_that_of_the_code() {
    let made = text();
    if std::env::var_os(RENEW).is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json"), &made).unwrap();
        return;
    }
    let differing = made.lines().zip(super::DOCUMENT.lines()).position(|(made, committed)| made != committed);
    assert!(
        made == super::DOCUMENT,
        "daemon/openapi.json is not what the code says, from line {} on: renew it with\n\n    \
         {RENEW}=1 cargo test -p duetd --lib openapi\n",
        differing.map_or_else(|| "the last".to_owned(), |line| (line + 1).to_string())
    );
}

/// Calls `each` with every object of a document.
fn for_each_object<'a>(value: &'a Value, each: &mut impl FnMut(&'a serde_json::Map<String, Value>)) {
    match value {
        Value::Object(map) => {
            each(map);
            map.values().for_each(|value| for_each_object(value, each));
        }
        Value::Array(list) => list.iter().for_each(|value| for_each_object(value, each)),
        _ => {}
    }
}

#[test]
fn every_reference_leads_somewhere() {
    let document = value();
    let mut seen = 0;
    for_each_object(&document, &mut |object| {
        if let Some(reference) = object.get("$ref") {
            let reference = reference.as_str().unwrap();
            let found = reference.strip_prefix('#').and_then(|pointer| document.pointer(pointer));
            assert!(found.is_some(), "{reference} leads nowhere: list the type in Frame's schemas");
            seen += 1;
        }
    });
    assert!(seen > 100, "only {seen} references");
}

/// The operations of the document with their names, `GET /1.0`.
fn operations(document: &Value) -> Vec<(String, &str, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    let mut operations = Vec::new();
    for (path, item) in paths {
        for (method, operation) in item.as_object().unwrap() {
            operations.push((format!("{} {path}", method.to_uppercase()), path.as_str(), operation));
        }
    }
    operations
}

#[test]
fn path_parameters_are_those_of_the_path() {
    let document = value();
    for (name, path, operation) in operations(&document) {
        let in_path: BTreeSet<&str> =
            path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}')).collect();
        let parameters = operation["parameters"].as_array().unwrap();
        let described: BTreeSet<&str> =
            parameters.iter().filter(|p| p["in"] == "path").map(|p| p["name"].as_str().unwrap()).collect();
        assert_eq!(described, in_path, "{name}");
    }
}

#[test]
fn every_operation_is_described() {
    let document = value();
    let operations = operations(&document);
    let mut ids = BTreeSet::new();
    for (name, _, operation) in &operations {
        assert!(operation["summary"].as_str().is_some_and(|text| text.ends_with('.')), "{name} has no summary");
        assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{name} has another's id");
        assert_eq!(operation["tags"].as_array().map(Vec::len), Some(1), "{name}");
        for parameter in operation["parameters"].as_array().unwrap() {
            assert!(parameter["$ref"].is_string() || parameter["description"].is_string(), "{name}: {parameter:#}");
        }
        let body = &operation["requestBody"];
        assert!(body.is_null() || body["content"].as_object().is_some_and(|types| !types.is_empty()), "{name}");
        let responses = operation["responses"].as_object().unwrap();
        let own = responses.keys().any(|status| !["400", "404", "412", "413", "500"].contains(&status.as_str()));
        assert!(own, "{name} gives no answer of its own");
    }
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        for (property, schema) in schema["properties"].as_object().into_iter().flatten() {
            // Where there may be `null` instead, what is described is the other.
            let described = schema["description"].is_string() || schema["oneOf"][0]["description"].is_string();
            assert!(described, "{name}.{property} has no description: {schema:#}");
        }
    }
}
