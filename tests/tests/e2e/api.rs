//! The API's manners: envelope, errors, recursion, ETag, operations, events.

use std::time::Duration;

use duet_tests::Host;
use duet_tests::api::Request;
use duet_tests::websocket::Socket;
use serde_json::{Value, json};

/// Creates `c1` from the busybox image without starting it.
fn create(host: &Host, name: &str) {
    let body = json!({"name": name, "source": {"type": "image", "alias": "busybox"}});
    host.done("POST", "/1.0/instances", &body);
}

#[test]
fn every_answer_is_in_the_envelope() {
    let host = Host::empty();
    let answer = host.request("GET", "/", None);
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").is_some_and(|value| value.starts_with("application/json")));
    assert_eq!(
        answer.json(),
        json!({"type": "sync", "status": "Success", "status_code": 200, "operation": "", "error_code": 0,
               "error": "", "metadata": ["/1.0"]})
    );
    let missing = host.request("GET", "/1.0/instances/none", None);
    assert_eq!(missing.status, 404);
    assert_eq!(missing.json()["type"], "error");
    assert_eq!(missing.json()["error_code"], 404);
    assert!(!missing.json()["error"].as_str().unwrap().is_empty());
}

#[test]
fn the_server_describes_itself() {
    let host = Host::empty();
    let server = host.get("/1.0");
    assert_eq!(server["api_version"], "1.0");
    assert_eq!(server["auth"], "trusted");
    assert_eq!(server["environment"]["server_pid"].as_i64(), Some(i64::from(host.daemon_pid())));
    assert_eq!(server["environment"]["kernel"], "Linux");
    assert!(server["environment"]["storage"].as_str().unwrap().contains("overlay"), "{server:#}");
    let extensions = server["api_extensions"].as_array().unwrap();
    assert!(extensions.iter().any(|name| name == "etag"), "{extensions:?}");
}

#[test]
fn what_is_not_there_is_404_and_what_is_not_understood_is_400() {
    let host = Host::empty();
    for path in [
        "/1.0/nothing",
        "/1.0/instances/c1",
        "/1.0/instances/c1/state",
        "/1.0/instances/c1/snapshots/s",
        "/1.0/images/0123456789ab",
        "/1.0/images/aliases/none",
        "/1.0/profiles/none",
        "/1.0/networks/none",
        "/1.0/storage-pools/none",
        "/1.0/operations/11111111-2222-3333-4444-555555555555",
    ] {
        host.request("GET", path, None).refused(404, "");
    }
    let socket = host.socket();
    for body in ["", "{", "[]", "{\"name\": 5}", "\u{1}"] {
        let answer = Request::new(&socket, "POST", "/1.0/instances")
            .header("Content-Type", "application/json")
            .body(body)
            .send();
        answer.refused(400, "");
    }
    let wrong = host.request("DELETE", "/1.0", None);
    // As Incus answers where a path is known and the method is not.
    wrong.refused(501, "DELETE");
}

#[test]
fn only_the_default_project_exists() {
    let host = Host::empty();
    assert_eq!(host.get("/1.0/instances?project=default"), json!([]));
    host.request("GET", "/1.0/instances?project=other", None).refused(404, "project");
    assert_eq!(host.get("/1.0/projects"), json!(["/1.0/projects/default"]));
    assert_eq!(host.get("/1.0/projects?recursion=1")[0]["name"], "default");
}

#[test]
fn recursion_gives_objects_and_then_their_state() {
    let host = Host::new();
    create(&host, "c1");
    assert_eq!(host.get("/1.0/instances"), json!(["/1.0/instances/c1"]));
    let listed = host.get("/1.0/instances?recursion=1");
    assert_eq!(listed[0]["name"], "c1");
    assert_eq!(listed[0]["status"], "Stopped");
    assert!(listed[0].get("state").is_none_or(Value::is_null), "{listed:#}");
    let full = host.get("/1.0/instances?recursion=2");
    assert_eq!(full[0]["state"]["status"], "Stopped", "{full:#}");
    assert!(full[0]["snapshots"].is_null() || full[0]["snapshots"] == json!([]), "{full:#}");
    for kind in ["images", "profiles", "networks", "storage-pools"] {
        let names = host.get(&format!("/1.0/{kind}"));
        assert!(names[0].as_str().is_some_and(|name| name.starts_with(&format!("/1.0/{kind}/"))), "{names:#}");
        let objects = host.get(&format!("/1.0/{kind}?recursion=1"));
        assert!(objects[0].is_object(), "{objects:#}");
    }
}

/// Holds the lists of all instances against the instances by themselves.
#[track_caller]
fn assert_lists_agree(host: &Host, after: &str) {
    // What is measured moves on between two requests.
    let at_rest = |mut instance: Value| {
        if let Some(state) = instance["state"].as_object_mut() {
            state.retain(|key, _| ["status", "status_code", "pid"].contains(&key.as_str()));
        }
        instance
    };
    let names = host.get("/1.0/instances");
    let one_by_one = |query: &str| -> Vec<Value> {
        let names = names.as_array().unwrap().iter();
        names.map(|name| at_rest(host.get(&format!("{}{query}", name.as_str().unwrap())))).collect()
    };
    let list = |query: &str| -> Vec<Value> {
        host.get(&format!("/1.0/instances?{query}")).as_array().unwrap().iter().cloned().map(at_rest).collect()
    };
    assert_eq!(list("recursion=1"), one_by_one(""), "{after}");
    assert_eq!(list("recursion=2"), one_by_one("?recursion=1"), "{after}");
    assert_eq!(list("recursion=1&filter=name+ne+nobody"), one_by_one(""), "{after}");
    assert_eq!(list("recursion=2&filter=name+ne+nobody"), one_by_one("?recursion=1"), "{after}");
}

#[test]
fn lists_show_what_was_changed_a_moment_ago() {
    let host = Host::new();
    assert_lists_agree(&host, "nothing");
    let steps = [
        "init busybox c1",
        "launch busybox c2",
        "pause c2",
        "resume c2",
        "config set c1 user.word='a quoted one'",
        "profile set default user.all=1",
        "snapshot create c1 s1",
        "snapshot create c2 s1",
        "snapshot delete c1 s1",
        "rename c1 c3",
        "copy c2 c4",
        "stop c2 --force",
        "start c3",
        "delete c4",
        "delete c2 c3 --force",
    ];
    for step in steps {
        host.ok(step);
        assert_lists_agree(&host, step);
    }
    assert_eq!(host.get("/1.0/instances?recursion=2"), json!([]));
}

#[test]
fn operations_can_be_listed_and_waited_for() {
    let host = Host::new();
    let body = json!({"name": "c1", "source": {"type": "image", "alias": "busybox"}});
    let answer = host.request("POST", "/1.0/instances", Some(&body));
    assert_eq!(answer.status, 202);
    let envelope = answer.json();
    let operation = envelope["operation"].as_str().unwrap();
    assert_eq!(envelope["status_code"], 100);
    assert_eq!(envelope["metadata"]["class"], "task");
    assert_eq!(envelope["metadata"]["description"], "Creating instance");
    assert_eq!(answer.header("location"), Some(operation));
    let ended = host.get(&format!("{operation}/wait?timeout=60"));
    assert_eq!(ended["status"], "Success");
    assert_eq!(ended["status_code"], 200);
    assert_eq!(ended["resources"]["instances"], json!(["/1.0/instances/c1"]));
}

#[test]
fn a_failed_operation_says_why() {
    let host = Host::new();
    create(&host, "c1");
    let stop = host.operate("PUT", "/1.0/instances/c1/state", &json!({"action": "stop", "timeout": 5}));
    assert_eq!(stop["status"], "Failure", "{stop:#}");
    assert_eq!(stop["status_code"], 400);
    let said = stop["err"].as_str().unwrap();
    assert!(said.contains("already stopped") || said.contains("not running"), "{said}");
}

#[test]
fn waiting_with_a_timeout_returns_what_still_runs() {
    let host = Host::new();
    host.ok("launch busybox c1");
    let body = json!({"command": ["sleep", "600"], "wait-for-websocket": false, "interactive": false});
    let started = host.request("POST", "/1.0/instances/c1/exec", Some(&body)).json();
    let operation = started["operation"].as_str().unwrap();
    let waited = host.get(&format!("{operation}/wait?timeout=1"));
    assert_eq!(waited["status"], "Running", "{waited:#}");
    let listed = host.get("/1.0/operations?recursion=1");
    assert!(listed["running"].as_array().is_some_and(|running| !running.is_empty()), "{listed:#}");
    host.ok("stop c1 --force");
    let ended = host.get(&format!("{operation}/wait?timeout=30"));
    assert_ne!(ended["status"], "Running", "{ended:#}");
}

#[test]
fn what_cannot_be_cancelled_says_so() {
    let host = Host::new();
    host.ok("launch busybox c1");
    let body = json!({"command": ["sleep", "600"], "wait-for-websocket": false, "interactive": false});
    let started = host.request("POST", "/1.0/instances/c1/exec", Some(&body)).json();
    let operation = started["operation"].as_str().unwrap();
    if started["metadata"]["may_cancel"] == false {
        host.request("DELETE", operation, None).refused(400, "cancel");
    } else {
        host.request("DELETE", operation, None).metadata();
        assert_eq!(host.get(&format!("{operation}/wait?timeout=30"))["status"], "Cancelled");
    }
}

#[test]
fn an_operation_whose_client_never_comes_ends_and_can_be_cancelled() {
    let host = Host::new();
    host.ok("launch busybox c1");
    let body = json!({"command": ["cat"], "wait-for-websocket": true, "interactive": false});
    let started = host.request("POST", "/1.0/instances/c1/exec", Some(&body)).json();
    let operation = started["operation"].as_str().unwrap();
    let secrets = &started["metadata"]["metadata"]["fds"];
    for stream in ["0", "1", "2", "control"] {
        assert!(secrets[stream].as_str().is_some_and(|secret| secret.len() >= 32), "{started:#}");
    }
    // A wrong secret opens nothing.
    let wrong = Request::new(&host.socket(), "GET", &format!("{operation}/websocket?secret=00"))
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", "9CEYyPMAifb1ox8rwnb+EA==")
        .send();
    assert!(matches!(wrong.status, 400 | 403 | 404), "{wrong:?}");
    host.ok("stop c1 --force");
}

#[test]
fn events_tell_what_happens() {
    let host = Host::new();
    let mut events = host.events("lifecycle,operation");
    create(&host, "c1");
    let created = events.lifecycle("instance-created", "c1");
    assert_eq!(created["metadata"]["source"], "/1.0/instances/c1");
    assert_eq!(created["project"], "default");
    let done = events.event("the creation's end", |event| {
        event["type"] == "operation"
            && event["metadata"]["description"] == "Creating instance"
            && event["metadata"]["status"] == "Success"
    });
    assert_eq!(done["metadata"]["resources"]["instances"], json!(["/1.0/instances/c1"]));
    host.ok("start c1");
    events.lifecycle("instance-started", "c1");
    host.ok("exec c1 -- true");
    events.lifecycle("instance-exec", "c1");
    host.ok("pause c1");
    events.lifecycle("instance-paused", "c1");
    host.ok("resume c1");
    events.lifecycle("instance-resumed", "c1");
    host.ok("snapshot create c1 s");
    events.lifecycle("instance-snapshot-created", "c1");
    host.ok("snapshot delete c1 s");
    events.lifecycle("instance-snapshot-deleted", "c1");
    host.ok("config set c1 user.x=y");
    events.lifecycle("instance-updated", "c1");
    host.ok("stop c1 --force");
    events.lifecycle("instance-stopped", "c1");
    host.ok("rename c1 c2");
    events.lifecycle("instance-renamed", "c2");
    host.ok("delete c2");
    events.lifecycle("instance-deleted", "c2");
}

#[test]
fn an_event_stream_holds_what_was_asked_for() {
    let host = Host::new();
    let mut lifecycle = host.events("lifecycle");
    let mut all = Socket::open(&host.socket(), "/1.0/events");
    create(&host, "c1");
    host.done("DELETE", "/1.0/instances/c1", &json!({}));
    let mut seen = Vec::new();
    loop {
        let message = lifecycle.next(Duration::from_secs(30)).expect("the deletion's event");
        let event: Value = serde_json::from_slice(&message.into_data()).unwrap();
        seen.push(event["type"].as_str().unwrap().to_owned());
        if event["metadata"]["action"] == "instance-deleted" {
            break;
        }
    }
    assert!(seen.iter().all(|kind| kind == "lifecycle"), "{seen:?}");
    all.event("an operation", |event| event["type"] == "operation");
}

#[test]
fn the_document_describes_what_is_served() {
    let host = Host::empty();
    let answer = host.request("GET", "/1.0/openapi.json", None);
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    let document = answer.json();
    let spec: oas3::Spec = serde_json::from_value(document.clone()).unwrap();
    let version = spec.validate_version().unwrap();
    assert_eq!((version.major, version.minor), (3, 1));
    assert!(spec.operations().count() > 90, "only {} operations", spec.operations().count());
    for (path, method, _) in spec.operations() {
        let (method, at) = (method.to_string(), path.replace('{', "no-").replace('}', ""));
        // What would bring the daemon down is no question.
        if at == "/internal/shutdown" {
            continue;
        }
        let answer = Request::new(&host.socket(), &method, &at).send();
        // Whatever is wrong with the request, it is for this path and method.
        let body = String::from_utf8_lossy(&answer.body);
        let unknown = body.contains("there is nothing at") || body.contains("is not served at");
        assert!(!unknown, "{method} {at}: {body}");
        if method == "GET" && !path.contains('{') && path != "/1.0/events" {
            assert_eq!(answer.status, 200, "GET {path}: {body}");
            host.request("GET", &format!("{path}?recursion=2"), None);
        }
    }
}

#[test]
fn what_cannot_be_read_of_a_request_is_refused_in_the_envelope() {
    let host = Host::empty();
    for target in [
        "/1.0/instances/c1/wait?for=running&timeout=soon",
        "/1.0/instances?recursion=1&recursion=2",
        "/1.0/instances/%ff",
        "/1.0/images/aliases/%ff",
    ] {
        host.request("GET", target, None).refused(400, "");
    }
}

#[test]
fn the_configuration_keys_are_described() {
    let host = Host::empty();
    let described = host.get("/1.0/metadata/configuration");
    let text = described.to_string();
    for key in [
        "limits.cpu",
        "limits.cpu.allowance",
        "limits.memory",
        "limits.processes",
        "security.privileged",
        "security.nesting",
        "security.idmap.isolated",
        "boot.autostart",
        "boot.autostart.priority",
        "boot.autostart.delay",
        "snapshots.schedule",
        "snapshots.expiry",
    ] {
        assert!(text.contains(&format!("\"{key}\"")), "{key} is not described");
    }
    // Every described key has a sentence and a type.
    let mut seen = 0;
    for_each_key(&described, &mut |name, key| {
        seen += 1;
        assert!(key["type"].is_string(), "{name} has no type: {key:#}");
        assert!(
            key["shortdesc"].as_str().is_some_and(|text| !text.is_empty())
                || key["longdesc"].as_str().is_some_and(|text| !text.is_empty()),
            "{name} has no description: {key:#}"
        );
    });
    assert!(seen > 30, "only {seen} keys are described");
}

/// Calls `each` for every key below a `keys` list.
fn for_each_key(value: &Value, each: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                if name == "keys" {
                    for (name, key) in value.as_array().into_iter().flatten().filter_map(Value::as_object).flatten() {
                        each(name, key);
                    }
                } else {
                    for_each_key(value, each);
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| for_each_key(value, each)),
        _ => {}
    }
}

#[test]
fn unknown_and_invalid_keys_are_refused() {
    let host = Host::new();
    create(&host, "c1");
    for (key, value) in [
        ("limits.cpus", "1"),
        ("limits.cpu", "many"),
        ("limits.memory", "-5MiB"),
        ("limits.memory", "5 bananas"),
        ("limits.processes", "some"),
        ("security.privileged", "maybe"),
        ("boot.autostart.delay", "soon"),
        ("volatile.eth0.hwaddr", "not a mac"),
        ("nonsense", "1"),
    ] {
        let patch = json!({"config": {key: value}});
        host.request("PATCH", "/1.0/instances/c1", Some(&patch)).refused(400, key.split('.').next_back().unwrap());
        let created = host.request(
            "POST",
            "/1.0/instances",
            Some(&json!({"name": "c2", "source": {"type": "image", "alias": "busybox"}, "config": {key: value}})),
        );
        created.refused(400, "");
    }
    for (name, device) in [
        ("d", json!({"type": "nonsense"})),
        ("d", json!({"type": "disk", "path": "/mnt"})),
        ("d", json!({"type": "disk", "path": "../mnt", "source": "/etc"})),
        ("d", json!({"type": "nic", "network": "none"})),
        ("d", json!({"type": "unix-char", "colour": "red"})),
    ] {
        let patch = json!({"devices": {name: device}});
        host.request("PATCH", "/1.0/instances/c1", Some(&patch)).refused(400, "");
    }
    assert_eq!(host.get("/1.0/instances/c1")["devices"], json!({}));
    assert_eq!(host.get("/1.0/instances"), json!(["/1.0/instances/c1"]));
}

#[test]
fn names_are_checked() {
    let host = Host::new();
    for name in ["", "-a", "a-", "9lives", "a b", "a/b", "..", "ä", "a_b", &"x".repeat(64)] {
        let body = json!({"name": name, "source": {"type": "image", "alias": "busybox"}});
        let answer = host.request("POST", "/1.0/instances", Some(&body));
        // An empty name asks for one to be made up.
        if name.is_empty() {
            assert_eq!(answer.status, 202);
            let operation = answer.json()["operation"].as_str().unwrap().to_owned();
            let ended = host.get(&format!("{operation}/wait"));
            assert_eq!(ended["status_code"], 200, "{ended:#}");
        } else {
            answer.refused(400, "");
        }
    }
    create(&host, &"x".repeat(63));
    let twice = json!({"name": "x".repeat(63), "source": {"type": "image", "alias": "busybox"}});
    host.request("POST", "/1.0/instances", Some(&twice)).refused(409, "already");
}

#[test]
fn the_query_command_reaches_the_api() {
    let host = Host::new();
    let server: Value = serde_json::from_str(&host.ok("query /1.0")).unwrap();
    assert_eq!(server["api_version"], "1.0");
    host.duet("query -X POST --wait /1.0/instances -d")
        .arg(r#"{"name": "c1", "source": {"type": "image", "alias": "busybox"}}"#)
        .run()
        .succeeded();
    assert_eq!(host.status("c1"), "Stopped");
    host.fails("query /1.0/instances/none", "not found");
    // What is in no envelope comes as it is.
    let document: Value = serde_json::from_str(&host.ok("query /1.0/openapi.json")).unwrap();
    assert_eq!(document["info"]["title"], "Duet");
    let names = host.ok("query /1.0/instances/c1/files?path=/etc/hostname");
    assert_eq!(names, host.ok("file pull c1/etc/hostname -"));
}
