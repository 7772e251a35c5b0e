//! PUT and PATCH of everything that can be changed: what each leaves alone, ETags, and changes made at the same time.
//!
//! PUT replaces what may be written, PATCH changes what it names and merges maps by key; with `If-Match` either is
//! refused once somebody else has changed the object.

use duet_tests::Host;
use duet_tests::api::Request;
use serde_json::{Value, json};

/// How many clients change one object at the same time.
const CLIENTS: usize = 12;

/// What can be changed: its path, and where in its JSON the tests write.
struct Object {
    path: String,
    place: &'static str,
    /// Two values that may stand there.
    values: [Value; 2],
}

fn object(path: &str, place: &'static str) -> Object {
    Object { path: path.to_owned(), place, values: [json!("1"), json!("2")] }
}

/// One of each kind, made on `host`.
fn objects(host: &Host) -> Vec<Object> {
    host.ok("init busybox c1");
    host.ok("snapshot create c1 s");
    host.ok("profile create p1");
    let image = host.get("/1.0/images/aliases/busybox")["target"].as_str().unwrap().to_owned();
    let dates = [json!("2100-01-02T03:04:05Z"), json!("2101-01-02T03:04:05Z")];
    vec![
        object("/1.0", "/config/user.first"),
        object("/1.0/instances/c1", "/config/user.first"),
        Object { path: "/1.0/instances/c1/snapshots/s".into(), place: "/expires_at", values: dates },
        object("/1.0/instances/c1/metadata", "/properties/first"),
        object("/1.0/profiles/p1", "/config/user.first"),
        object("/1.0/networks/duetbr0", "/config/user.first"),
        object("/1.0/storage-pools/default", "/config/user.first"),
        object(&format!("/1.0/images/{image}"), "/properties/first"),
        object("/1.0/images/aliases/busybox", "/description"),
    ]
}

/// `value` at `place`, below the objects that it takes to get there.
fn set(body: &mut Value, place: &str, value: &Value) {
    let (above, name) = place.rsplit_once('/').unwrap();
    let parent = body.pointer_mut(above).unwrap_or_else(|| panic!("there is no {above}"));
    if parent.is_null() {
        *parent = json!({});
    }
    parent[name] = value.clone();
}

/// A body that names nothing but `place`.
fn only(place: &str, value: &Value) -> Value {
    place.rsplit('/').filter(|name| !name.is_empty()).fold(value.clone(), |inner, name| json!({ name: inner }))
}

/// Sends a change and waits for it where it is made in the background: how it ended, and the sentence of a refusal.
fn change(host: &Host, method: &str, path: &str, etag: Option<&str>, body: &Value) -> (u64, String) {
    let socket = host.socket();
    let mut request = Request::new(&socket, method, path).json(body);
    if let Some(etag) = etag {
        request = request.header("If-Match", etag);
    }
    let mut answer = request.send().json();
    if answer["type"] == "async" {
        let operation = answer["operation"].as_str().unwrap().to_owned();
        answer = host.get(&format!("{operation}/wait"));
    }
    let (status, said) = match answer["type"].as_str() {
        Some("error") => (&answer["error_code"], &answer["error"]),
        _ => (&answer["status_code"], &answer["err"]),
    };
    (status.as_u64().unwrap(), said.as_str().unwrap_or_default().to_owned())
}

#[track_caller]
fn made(host: &Host, method: &str, path: &str, etag: Option<&str>, body: &Value) {
    let (status, said) = change(host, method, path, etag, body);
    assert!(status < 300, "{method} {path}: {status} {said}");
}

fn tag(host: &Host, path: &str) -> String {
    let socket = host.socket();
    let seen = Request::new(&socket, "GET", path).send();
    seen.header("etag").unwrap_or_else(|| panic!("{path} has no ETag")).to_owned()
}

/// What an object itself holds, without what its profiles add.
fn own(host: &Host, path: &str) -> Value {
    let mut object = host.get(path);
    object.as_object_mut().unwrap().remove("expanded_config");
    object
}

#[test]
fn a_change_against_an_older_state_is_refused() {
    let host = Host::new();
    for Object { path, place, values: [first, second] } in objects(&host) {
        let old = tag(&host, &path);
        let mut body = host.get(&path);
        set(&mut body, place, &first);
        made(&host, "PUT", &path, Some(&old), &body);
        assert_eq!(host.get(&path).pointer(place), Some(&first), "{path}");
        assert_ne!(tag(&host, &path), old, "{path}");
        for (method, body) in [("PUT", body.clone()), ("PATCH", only(place, &second))] {
            let (status, said) = change(&host, method, &path, Some(&old), &body);
            assert!(status == 412 && said.contains("ETag"), "{method} {path}: {status} {said}");
            assert_eq!(host.get(&path).pointer(place), Some(&first), "{method} {path}");
        }
        made(&host, "PATCH", &path, Some(&tag(&host, &path)), &only(place, &second));
        assert_eq!(host.get(&path).pointer(place), Some(&second), "{path}");
    }
}

#[test]
fn patch_changes_what_it_names_and_put_all_that_may_be_written() {
    let host = Host::new();
    for Object { path, place, values: [first, _] } in objects(&host) {
        let before = own(&host, &path);
        made(&host, "PATCH", &path, None, &only(place, &first));
        let mut expected = before.clone();
        set(&mut expected, place, &first);
        assert_eq!(own(&host, &path), expected, "PATCH {path}");
        made(&host, "PATCH", &path, None, &json!({}));
        assert_eq!(own(&host, &path), expected, "PATCH of nothing, {path}");
        made(&host, "PUT", &path, None, &before);
        assert_eq!(own(&host, &path), before, "PUT {path}");
    }
}

#[test]
fn what_is_set_to_nothing_is_gone() {
    let host = Host::new();
    for Object { path, place, values: [first, _] } in objects(&host) {
        // Neither a moment nor an image's own metadata are keys that can be unset.
        if place == "/expires_at" || path.ends_with("/metadata") {
            continue;
        }
        made(&host, "PATCH", &path, None, &only(place, &first));
        let mut body = own(&host, &path);
        set(&mut body, place, &json!(""));
        made(&host, "PUT", &path, None, &body);
        let left = own(&host, &path);
        assert!(left.pointer(place).is_none_or(|value| place == "/description" && value == ""), "{path}: {left:#}");
    }
    let config = json!({"ipv4.address": "10.99.7.1/24", "ipv6.address": "none", "user.x": ""});
    host.send("POST", "/1.0/networks", &json!({"name": "br7", "config": config}));
    assert_eq!(host.get("/1.0/networks/br7")["config"].get("user.x"), None);
    let disk = json!({"type": "disk", "source": "/etc", "path": "/mnt", "readonly": ""});
    for path in ["/1.0/instances/c1", "/1.0/profiles/p1"] {
        made(&host, "PATCH", path, None, &json!({"devices": {"d": disk}}));
        assert_eq!(
            own(&host, path)["devices"]["d"],
            json!({"type": "disk", "source": "/etc", "path": "/mnt"}),
            "{path}"
        );
    }
}

#[test]
fn of_changes_made_at_once_none_is_lost() {
    let host = Host::new();
    for Object { path, place, .. } in objects(&host).iter().filter(|object| object.place.ends_with("/first")) {
        let (parent, _) = place.rsplit_once('/').unwrap();
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (host, path) = (&host, path.as_str());
                scope.spawn(move || {
                    let body = only(&format!("{parent}/user.c{client}"), &json!("1"));
                    // An instance has one change at a time, and says so to the others.
                    duet_tests::eventually("the change is made", || {
                        let (status, said) = change(host, "PATCH", path, None, &body);
                        let busy = said.contains("busy");
                        assert!(busy || status < 300, "{path}: {status} {said}");
                        (!busy).then_some(())
                    });
                });
            }
        });
        let after = host.get(path);
        for client in 0..CLIENTS {
            assert_eq!(after.pointer(&format!("{parent}/user.c{client}")), Some(&json!("1")), "{path}: {after:#}");
        }
    }
}

#[test]
fn of_changes_against_the_same_state_one_is_made() {
    let host = Host::new();
    for Object { path, place, values: [first, second] } in objects(&host) {
        let old = tag(&host, &path);
        let before = host.get(&path);
        let made: Vec<bool> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|client| {
                    let mut body = before.clone();
                    set(&mut body, place, if client.is_multiple_of(2) { &first } else { &second });
                    let (host, path, old) = (&host, path.as_str(), old.as_str());
                    scope.spawn(move || {
                        let (status, said) = change(host, "PUT", path, Some(old), &body);
                        let refused = said.contains("ETag") || said.contains("busy");
                        assert!(refused || status < 300, "{path}: {status} {said}");
                        !refused
                    })
                })
                .collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        assert_eq!(made.iter().filter(|made| **made).count(), 1, "{path}: {made:?}");
    }
}
