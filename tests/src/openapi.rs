//! Whether the daemon's answers are what its own description says: `daemon/openapi.json`, in OpenAPI 3.1.
//!
//! Each answer that a test gets has a status, a content type and a body that are described for its path and method.

use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::api::Response;

/// Asserts that an answer is one that the document describes.
///
/// # Panics
/// With what it does not describe.
#[track_caller]
pub fn assert_described(method: &str, target: &str, response: &Response) {
    if let Err(fault) = check(method, target, response) {
        let body = String::from_utf8_lossy(&response.body);
        panic!("{method} {target} ({}) is not as daemon/openapi.json describes it: {fault}\n{body}", response.status);
    }
}

fn document() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(|| {
        serde_json::from_str(include_str!("../../daemon/openapi.json")).expect("the API's description is JSON")
    })
}

fn check(method: &str, target: &str, response: &Response) -> Result<(), String> {
    let path = target.split('?').next().unwrap_or(target).trim_end_matches('/');
    let Some(operation) = operation(method, path) else {
        // What is not described is not served.
        let refused = matches!(response.status, 404 | 501);
        return if refused { Ok(()) } else { Err("there is no such path and method".into()) };
    };
    let described = &operation["responses"][response.status.to_string().as_str()];
    let described = described["$ref"].as_str().map_or(Some(described), resolve).filter(|found| found.is_object());
    let described = described.ok_or("this status is not described")?;
    let Some(types) = described["content"].as_object() else {
        return if response.body.is_empty() { Ok(()) } else { Err("no body is described".into()) };
    };
    if method == "HEAD" {
        return Ok(());
    }
    let kind = response.header("content-type").and_then(|kind| kind.split(';').next()).unwrap_or("none");
    let content = types.get(kind).ok_or_else(|| format!("the content type {kind} is not described"))?;
    if kind != "application/json" {
        return Ok(());
    }
    let schema = json!({"allOf": [content["schema"]], "components": document()["components"]});
    let validator = jsonschema::draft202012::new(&schema).map_err(|error| error.to_string())?;
    let body = serde_json::from_slice(&response.body).map_err(|error| error.to_string())?;
    let faults: Vec<String> =
        validator.iter_errors(&body).map(|fault| format!("{}: {fault}", fault.instance_path())).collect();
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n  ")) }
}

fn resolve(reference: &str) -> Option<&'static Value> {
    document().pointer(reference.strip_prefix('#')?)
}

/// What is described for a method of a path: of the templates that fit, the one with the fewest parameters.
fn operation(method: &str, path: &str) -> Option<&'static Value> {
    let paths = document()["paths"].as_object()?;
    let fitting = paths.iter().filter(|(template, _)| fits(template.trim_end_matches('/'), path));
    let (_, item) = fitting.min_by_key(|(template, _)| template.matches('{').count())?;
    item.get(method.to_lowercase())
}

/// Whether a path is one of a template. Aliases of images may hold slashes.
fn fits(template: &str, path: &str) -> bool {
    if let Some(prefix) = template.strip_suffix("aliases/{name}") {
        return path.strip_prefix(prefix).and_then(|rest| rest.strip_prefix("aliases/")).is_some_and(|n| !n.is_empty());
    }
    let (template, path) = (template.split('/'), path.split('/'));
    template.clone().count() == path.clone().count()
        && template.zip(path).all(|(wanted, part)| (wanted.starts_with('{') && !part.is_empty()) || wanted == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, kind: &str, body: &Value) -> Response {
        let headers = vec![("content-type".to_owned(), kind.to_owned())];
        Response { status, headers, body: body.to_string().into_bytes() }
    }

    #[test]
    fn what_is_not_described_is_found() {
        let envelope = |metadata: Value| {
            json!({"type": "sync", "status": "Success", "status_code": 200, "operation": "", "error_code": 0,
                "error": "", "metadata": metadata})
        };
        let state = |metadata: Value| answer(200, "application/json", &envelope(metadata));
        let check = |method: &str, target: &str, response: &Response| check(method, target, response).is_ok();
        assert!(check("GET", "/1.0/instances/c1/state", &state(json!({"pid": 1, "network": null}))));
        assert!(!check("GET", "/1.0/instances/c1/state", &state(json!({"pid": "1"}))));
        assert!(!check("GET", "/1.0/instances/c1/state", &state(json!({"cpu": {"usage": "much"}}))));
        assert!(!check("GET", "/1.0/instances/c1/state", &state(json!(null))));
        assert!(check("GET", "/1.0/instances?recursion=1", &state(json!([{"name": "c1", "status_code": 103}]))));
        assert!(!check("GET", "/1.0/instances?recursion=1", &state(json!([{"status_code": 99}]))));
        assert!(!check("GET", "/1.0/instances/c1", &answer(418, "application/json", &envelope(json!({})))));
        assert!(!check("GET", "/1.0/instances/c1", &answer(200, "text/plain", &json!("c1"))));
        assert!(!check("GET", "/1.0/nothing", &answer(200, "application/json", &envelope(json!({})))));
        assert!(check("GET", "/1.0/nothing", &answer(404, "application/json", &envelope(json!({})))));
        assert!(operation("PUT", "/1.0/images/aliases/debian/13").is_some());
        assert_eq!(operation("GET", "/1.0/images/aliases").unwrap()["operationId"], "images_aliases_get");
    }
}
