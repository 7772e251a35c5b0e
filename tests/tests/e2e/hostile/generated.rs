//! Requests made by schemathesis from a description of the API: Incus' own, or the one that `DUET_TEST_OPENAPI` names.

use std::path::PathBuf;
use std::time::Duration;

use duet_tests::{Host, clients};
use serde_json::{Map, Value, json};

use super::{Before, outcome};

/// What stands for a thing that is there: the beginning of a template, and the same with a name.
const THERE: &[(&str, &str)] = &[
    ("/1.0/instances/{name}/snapshots/{snapshot}", "/1.0/instances/c1/snapshots/s1"),
    ("/1.0/instances/{name}", "/1.0/instances/c1"),
    ("/1.0/profiles/{name}", "/1.0/profiles/p1"),
    ("/1.0/networks/{name}", "/1.0/networks/duetbr0"),
    ("/1.0/networks/{networkName}", "/1.0/networks/duetbr0"),
    ("/1.0/storage-pools/{name}", "/1.0/storage-pools/default"),
    ("/1.0/storage-pools/{poolName}", "/1.0/storage-pools/default"),
    ("/1.0/images/aliases/{name}", "/1.0/images/aliases/busybox"),
    ("/1.0/projects/{name}", "/1.0/projects/default"),
];

/// How many requests are made of each operation, of those with sense and of those without.
const EXAMPLES: &str = "6";

#[test]
fn generated_requests_are_served_or_refused() {
    let host = Host::new();
    host.ok("launch busybox c1");
    host.ok("snapshot create c1 s1");
    host.ok("profile create p1");
    let before = Before::of(&host);
    let source = std::env::var_os("DUET_TEST_OPENAPI")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/data/incus-rest-api.yaml")), PathBuf::from);
    let text = std::fs::read_to_string(&source).expect("the description");
    let described: Value = serde_saphyr::from_str(&text).expect("a description in YAML or JSON");
    let image = host.get("/1.0/images")[0].as_str().expect("an image").to_owned();
    let there: Vec<(&str, &str)> =
        THERE.iter().copied().chain([("/1.0/images/{fingerprint}", image.as_str())]).collect();
    let served = served(&host, &described, &there);
    let description = host.tmp().join("api.json");
    std::fs::write(&description, served.to_string()).unwrap();
    let address = host.over_tcp();
    let tested = host
        .command(
            clients().join("python/bin/schemathesis").to_str().expect("a plain path"),
            &[
                "run",
                description.to_str().expect("a plain path"),
                "--url",
                &format!("http://{address}"),
                "--checks",
                "served_or_refused",
                "--phases",
                "coverage,fuzzing",
                "--max-examples",
                EXAMPLES,
                "--seed",
                "1",
                "--generation-database",
                "none",
                "--request-timeout",
                "20",
                "--continue-on-failure",
                "--no-shrink",
                "--suppress-health-check",
                "all",
                // What it uses to describe its own functions fails between threads with Python 3.11.
                "--workers",
                "1",
                "--no-color",
            ],
        )
        .env("SCHEMATHESIS_HOOKS", "generated_checks")
        .env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/hostile"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .within(Duration::from_secs(240))
        .run();
    let said = tested.text();
    let shown: String = said.chars().take(20_000).collect();
    assert!(tested.code() == Some(0), "{shown}\n{}", tested.errors());
    println!("{said}");
    before.unharmed(&host);
}

/// Of a description what the daemon serves, once with names that are made up and once with those of things that are
/// there.
fn served(host: &Host, described: &Value, things: &[(&str, &str)]) -> Value {
    let mut paths = Map::new();
    for (template, operations) in described["paths"].as_object().expect("paths") {
        // A query in a path is another description of the same request.
        if template.contains('?') {
            continue;
        }
        let allowed = methods(host, template);
        let operations = operations.as_object().expect("operations");
        let of = |method: &str| allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(method));
        let mut kept: Map<String, Value> =
            operations.iter().filter(|(method, _)| of(method)).map(|(m, o)| (m.clone(), o.clone())).collect();
        if kept.is_empty() {
            continue;
        }
        paths.insert(template.clone(), Value::Object(kept.clone()));
        let there = things.iter().find_map(|(start, name)| Some((*name, template.strip_prefix(start)?)));
        if let Some((name, rest)) = there {
            if rest.is_empty() {
                // What is deleted or has another name is not there for what comes after.
                kept.remove("delete");
                kept.remove("post");
            }
            let path = format!("{name}{rest}");
            let there = kept.into_iter().map(|operation| at(&path, operation)).collect();
            paths.insert(path, Value::Object(there));
        }
    }
    assert!(paths.len() > 60, "{} paths are served: {:?}", paths.len(), paths.keys());
    let mut served = described.clone();
    served["paths"] = Value::Object(paths);
    served
}

/// Of an operation the parameters that this path still has.
fn at(path: &str, (method, mut operation): (String, Value)) -> (String, Value) {
    if let Some(parameters) = operation["parameters"].as_array_mut() {
        let named =
            |parameter: &Value| path.contains(&format!("{{{}}}", parameter["name"].as_str().unwrap_or_default()));
        parameters.retain(|parameter| parameter["in"] != "path" || named(parameter));
    }
    if let Some(id) = operation["operationId"].as_str() {
        operation["operationId"] = json!(format!("{id}_there"));
    }
    (method, operation)
}

/// The methods that are served at a path.
fn methods(host: &Host, template: &str) -> Vec<String> {
    let part = |part| if str::starts_with(part, "{") { "x" } else { part };
    let path = template.split('/').map(part).collect::<Vec<_>>().join("/");
    let answer = outcome(host, "PROBE", &path, "");
    let allowed = answer.header("allow").unwrap_or_default();
    allowed.split(',').map(|method| method.trim().to_owned()).filter(|method| !method.is_empty()).collect()
}
