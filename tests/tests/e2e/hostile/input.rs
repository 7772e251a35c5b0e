//! Bodies, names, keys, devices, paths and headers.

use duet_tests::Host;
use duet_tests::api::Request;
use serde_json::{Value, json};

use super::{Before, Faults, outcome};

/// A host with the stopped instance c1, a snapshot of it and a profile.
fn host() -> Host {
    let host = Host::new();
    host.ok("create busybox c1");
    host.ok("snapshot create c1 s1");
    host.ok("profile create p1");
    host
}

const LONG: usize = 300;

/// What is wrong only where the members are known.
const OF_MEMBERS: &[&str] = &["nested", "half a surrogate", "a name of another type", "a huge number", "members twice"];

#[test]
fn names_that_are_none_are_refused() {
    let host = host();
    let before = Before::of(&host);
    let mut faults = Faults::default();
    let long = "a".repeat(LONG);
    let names = [
        "",
        ".",
        "..",
        "a/b",
        "/",
        "../../etc",
        "a b",
        "-a",
        "a\u{0}b",
        "a\nb",
        "\u{202e}abc",
        "c%31",
        "käse",
        "a..b/",
        "\u{1F980}",
        &long,
    ];
    let source = json!({"type": "image", "alias": "busybox"});
    // Where a name goes, and which of the names above are allowed there.
    type Make = fn(&str, &Value) -> Value;
    let places: &[(&str, &str, Make, &[&str])] = &[
        ("POST", "/1.0/instances", |name, source| json!({"name": name, "source": source}), &[""]),
        ("POST", "/1.0/instances/c1", |name, _| json!({ "name": name }), &[]),
        (
            "POST",
            "/1.0/instances/c1/snapshots",
            |name, _| json!({ "name": name }),
            &["", "\u{202e}abc", "c%31", "käse", "\u{1F980}"],
        ),
        (
            "POST",
            "/1.0/instances/c1/snapshots/s1",
            |name, _| json!({ "name": name }),
            &["\u{202e}abc", "c%31", "käse", "\u{1F980}"],
        ),
        ("POST", "/1.0/profiles", |name, _| json!({ "name": name }), &["\u{202e}abc", "c%31", "käse", "\u{1F980}"]),
        ("POST", "/1.0/profiles/p1", |name, _| json!({ "name": name }), &["\u{202e}abc", "c%31", "käse", "\u{1F980}"]),
        ("POST", "/1.0/networks", |name, _| json!({ "name": name, "type": "bridge" }), &[]),
        ("POST", "/1.0/storage-pools", |name, _| json!({ "name": name, "driver": "dir" }), &[]),
        (
            "POST",
            "/1.0/images/aliases",
            |name, _| json!({ "name": name, "target": "0123456789ab" }),
            &["a/b", "\u{202e}abc", "c%31", "käse", "\u{1F980}"],
        ),
    ];
    for (method, path, make, allowed) in places {
        for name in names.iter().filter(|name| !allowed.contains(name)) {
            let what = format!("{method} {path} with the name {:?}", name.chars().take(20).collect::<String>());
            let answer = outcome(&host, method, path, make(name, &source).to_string());
            faults.refused(&what, &answer, "name|alias");
        }
    }
    for name in ["..", "%2e%2e", "a%2fb", "%00", "%ff", "%", "%zz", &long, "c1%20", "C1%0a"] {
        for path in [
            format!("/1.0/instances/{name}"),
            format!("/1.0/instances/{name}/state"),
            format!("/1.0/instances/{name}/logs"),
            format!("/1.0/instances/c1/snapshots/{name}"),
            format!("/1.0/instances/c1/logs/{name}"),
            format!("/1.0/instances/c1/logs/exec-output/{name}"),
            format!("/1.0/profiles/{name}"),
            format!("/1.0/networks/{name}"),
            format!("/1.0/storage-pools/{name}"),
            format!("/1.0/images/{name}"),
            format!("/1.0/images/aliases/{name}"),
            format!("/1.0/operations/{name}"),
            format!("/1.0/operations/{name}/wait"),
            format!("/1.0/warnings/{name}"),
            format!("/1.0/projects/{name}"),
        ] {
            for method in ["GET", "DELETE"] {
                let answer = outcome(&host, method, &path, "");
                faults.refused(&format!("{method} {path}"), &answer, "");
            }
        }
    }
    faults.none();
    before.unharmed(&host);
}

#[test]
fn configuration_that_is_none_is_refused() {
    let host = host();
    let before = Before::of(&host);
    let mut faults = Faults::default();
    let big = "x".repeat(3 << 20);
    let keys: &[(&str, &str)] = &[
        ("", "x"),
        ("nosuch", "1"),
        ("user.", "1"),
        ("user.a\u{0}b", "1"),
        ("limits", "1"),
        ("limits.memory", "-1"),
        ("limits.memory", "1e99"),
        ("limits.memory", "18446744073709551616EiB"),
        ("limits.memory", "18446744073709551615KiB"),
        ("limits.memory", "NaN"),
        ("limits.memory", "101%"),
        ("limits.memory", "0"),
        ("limits.memory", " "),
        ("limits.memory", "1MiB\u{0}"),
        ("limits.memory", "١MiB"),
        ("limits.memory.swap", "perhaps"),
        ("limits.cpu", "-1"),
        ("limits.cpu", "0-"),
        ("limits.cpu", "9999999999999999999999"),
        ("limits.cpu", "3-1"),
        ("limits.cpu.allowance", "0%"),
        ("limits.cpu.allowance", "10ms/0ms"),
        ("limits.cpu.allowance", "-5%"),
        ("limits.cpu.priority", "11"),
        ("limits.processes", "-1"),
        ("limits.processes", "1e3"),
        ("boot.autostart", "maybe"),
        ("boot.autostart.priority", "1.5"),
        ("boot.host_shutdown_timeout", "-3"),
        ("security.privileged", "si"),
        ("security.idmap.size", "0"),
        ("security.idmap.base", "-1"),
        ("raw.idmap", "both 0"),
        ("snapshots.schedule", "* * *"),
        ("snapshots.schedule", "61 0 0 0 0"),
        ("snapshots.expiry", "1 fortnight"),
        ("snapshots.pattern", "{{"),
        ("environment.", "x"),
        ("environment.A=B", "x"),
        ("environment.A", "x\u{0}y"),
        ("linux.sysctl.../../x", "1"),
        ("limits.kernel.nosuch", "1"),
        ("limits.kernel.nofile", "-5"),
        ("volatile.nosuch.thing", "x"),
    ];
    for (key, value) in keys {
        for (method, path) in [
            ("PATCH", "/1.0/instances/c1"),
            ("PATCH", "/1.0/profiles/p1"),
            ("POST", "/1.0/instances"),
            ("POST", "/1.0/profiles"),
        ] {
            let mut body = json!({"config": {*key: *value}});
            if method == "POST" {
                body["name"] = json!("new1");
                body["source"] = json!({"type": "none"});
            }
            let what = format!("{method} {path} with {key:?}={value:?}");
            let answer = outcome(&host, method, path, body.to_string());
            let family = key.split('.').next().unwrap_or_default();
            faults.refused(&what, &answer, &format!("{family}|key|value"));
        }
    }
    for (method, path) in
        [("PATCH", "/1.0"), ("PATCH", "/1.0/networks/duetbr0"), ("PATCH", "/1.0/storage-pools/default")]
    {
        for (key, value) in
            [("", "x"), ("nosuch", "1"), ("ipv4.address", "300.1.1.1/24"), ("ipv4.dhcp.ranges", "9-1"), ("size", "-1")]
        {
            let answer = outcome(&host, method, path, json!({"config": {key: value}}).to_string());
            faults.refused(&format!("{method} {path} with {key:?}={value:?}"), &answer, "");
        }
    }
    let answer = outcome(&host, "PATCH", "/1.0/instances/c1", json!({"config": {"limits.memory": big}}).to_string());
    faults.refused("a value of 3 MiB", &answer, "limits.memory");
    assert!(answer.body.len() < 4096, "the refusal repeats what was sent: {} bytes", answer.body.len());
    faults.none();
    assert_eq!(host.get("/1.0/instances"), json!(["/1.0/instances/c1"]));
    before.unharmed(&host);
}

#[test]
fn devices_that_are_none_are_refused() {
    let host = host();
    let before = Before::of(&host);
    let mut faults = Faults::default();
    let devices = [
        json!({}),
        json!({"type": ""}),
        json!({"type": "nosuch"}),
        json!({"type": "disk"}),
        json!({"type": "disk", "path": "/x"}),
        json!({"type": "disk", "path": "relative", "source": "/usr"}),
        json!({"type": "disk", "path": "/x/../../y", "source": "/usr"}),
        json!({"type": "disk", "path": "/x", "source": "../usr"}),
        json!({"type": "disk", "path": "/x", "source": "/usr\u{0}"}),
        json!({"type": "disk", "path": "/", "pool": "nosuch"}),
        json!({"type": "disk", "path": "/", "pool": "default", "size": "-1"}),
        json!({"type": "disk", "path": "/x", "source": "/usr", "nosuch": "1"}),
        json!({"type": "disk", "path": "/x", "source": "/usr", "readonly": "perhaps"}),
        json!({"type": "nic"}),
        json!({"type": "nic", "network": "nosuch"}),
        json!({"type": "nic", "network": "duetbr0", "hwaddr": "nonsense"}),
        json!({"type": "nic", "network": "duetbr0", "name": "a/b"}),
        json!({"type": "nic", "network": "duetbr0", "name": "averyveryverylongname"}),
        json!({"type": "nic", "network": "duetbr0", "ipv4.address": "999.0.0.1"}),
        json!({"type": "nic", "network": "duetbr0", "mtu": "-1"}),
        json!({"type": "unix-char"}),
        json!({"type": "unix-char", "path": "/dev/../etc"}),
        json!({"type": "proxy"}),
        json!({"type": "proxy", "listen": "tcp:1:99999", "connect": "x"}),
        json!({"type": "none", "path": "/x"}),
    ];
    for device in devices {
        for (method, path) in [("PATCH", "/1.0/instances/c1"), ("POST", "/1.0/instances")] {
            let mut body = json!({"devices": {"d1": device}});
            if method == "POST" {
                body["name"] = json!("new1");
                body["source"] = json!({"type": "image", "alias": "busybox"});
            }
            let answer = outcome(&host, method, path, body.to_string());
            faults.refused(&format!("{method} {path} with {device}"), &answer, "d1|device|network|pool|source");
        }
    }
    for name in ["", "..", "a/b", "x\u{0}", &"a".repeat(LONG)] {
        let body = json!({"devices": {name: {"type": "disk", "path": "/x", "source": "/usr"}}});
        faults.refused(
            &format!("a device named {name:?}"),
            &outcome(&host, "PATCH", "/1.0/instances/c1", body.to_string()),
            "name",
        );
    }
    faults.none();
    assert_eq!(host.get("/1.0/instances"), json!(["/1.0/instances/c1"]));
    before.unharmed(&host);
}

#[test]
fn bodies_that_are_none_are_refused() {
    let host = host();
    let before = Before::of(&host);
    let mut faults = Faults::default();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let nested = format!("{{\"config\": {}1{}}}", "{\"a\":".repeat(5000), "}".repeat(5000));
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("a blank", b" ".to_vec()),
        ("truncated", b"{\"name\": \"x".to_vec()),
        ("truncated in a key", b"{\"na".to_vec()),
        ("two values", b"{} {}".to_vec()),
        ("trailing garbage", b"{}x".to_vec()),
        ("a list", b"[]".to_vec()),
        ("null", b"null".to_vec()),
        ("a number", b"1".to_vec()),
        ("a string", b"\"x\"".to_vec()),
        ("deep", deep.into_bytes()),
        ("nested", nested.into_bytes()),
        ("not UTF-8", b"{\"name\": \"\xff\xfe\"}".to_vec()),
        ("half a surrogate", b"{\"name\": \"\\ud800\"}".to_vec()),
        ("a bare control character", b"{\"name\": \"\x01\"}".to_vec()),
        ("not a number", b"{\"name\": NaN}".to_vec()),
        ("a name of another type", b"{\"name\": 5, \"config\": 5, \"timeout\": \"x\", \"command\": \"x\", \"devices\": 1}".to_vec()),
        ("a huge number", b"{\"timeout\": 1e999, \"width\": 1e999, \"config\": 1e999, \"name\": 1e999, \"devices\": 0}".to_vec()),
        (
            "members twice",
            b"{\"name\": \"x\", \"name\": \"y\", \"config\": {}, \"config\": {}, \"action\": \"stop\", \"action\": \"start\", \
              \"command\": [\"a\"], \"command\": [\"b\"], \"source\": {}, \"source\": {}, \"target\": \"a\", \"target\": \"b\", \
              \"status\": \"new\", \"status\": \"new\", \"type\": \"a\", \"type\": \"b\"}".to_vec(),
        ),
        ("XML", b"<name>x</name>".to_vec()),
        ("bytes", (0..=255).collect()),
    ];
    for (method, path) in [
        ("PUT", "/1.0"),
        ("PATCH", "/1.0"),
        ("POST", "/1.0/instances"),
        ("PUT", "/1.0/instances"),
        ("PUT", "/1.0/instances/c1"),
        ("PATCH", "/1.0/instances/c1"),
        ("POST", "/1.0/instances/c1"),
        ("PUT", "/1.0/instances/c1/state"),
        ("POST", "/1.0/instances/c1/exec"),
        ("POST", "/1.0/instances/c1/console"),
        ("POST", "/1.0/instances/c1/snapshots"),
        ("PUT", "/1.0/instances/c1/snapshots/s1"),
        ("POST", "/1.0/instances/c1/snapshots/s1"),
        ("PUT", "/1.0/instances/c1/metadata"),
        ("POST", "/1.0/profiles"),
        ("PUT", "/1.0/profiles/p1"),
        ("PATCH", "/1.0/profiles/p1"),
        ("POST", "/1.0/profiles/p1"),
        ("POST", "/1.0/networks"),
        ("PUT", "/1.0/networks/duetbr0"),
        ("PATCH", "/1.0/networks/duetbr0"),
        ("POST", "/1.0/networks/duetbr0"),
        ("POST", "/1.0/storage-pools"),
        ("PUT", "/1.0/storage-pools/default"),
        ("PATCH", "/1.0/storage-pools/default"),
        ("POST", "/1.0/images"),
        ("POST", "/1.0/images/aliases"),
        ("PUT", "/1.0/images/aliases/busybox"),
        ("PATCH", "/1.0/images/aliases/busybox"),
        ("POST", "/1.0/images/aliases/busybox"),
        ("PUT", "/1.0/projects/default"),
    ] {
        for (what, body) in &bodies {
            let answer = outcome(&host, method, path, body.clone());
            // What a member says that is not known there is nobody's concern.
            if answer.status >= 300 || !OF_MEMBERS.contains(what) {
                faults.refused(&format!("{method} {path} with {what}"), &answer, "");
            }
        }
    }
    let image = host.get("/1.0/images")[0].as_str().unwrap().to_owned();
    for (what, body) in bodies.iter().filter(|(what, _)| !OF_MEMBERS.contains(what)) {
        for method in ["PUT", "PATCH"] {
            faults.refused(
                &format!("{method} of an image with {what}"),
                &outcome(&host, method, &image, body.clone()),
                "",
            );
        }
    }
    // Larger than anybody's description of anything.
    let huge = format!("{{\"name\": \"{}\"}}", "x".repeat(100 << 20));
    let answer = outcome(&host, "POST", "/1.0/profiles", huge);
    assert_eq!(answer.status, 413, "{}", String::from_utf8_lossy(&answer.body));
    faults.refused("100 MiB", &answer, "larger than 4 MiB");
    assert_eq!(host.get("/1.0/profiles"), json!(["/1.0/profiles/default", "/1.0/profiles/p1"]));
    faults.none();
    before.unharmed(&host);
}

#[test]
fn paths_and_headers_of_files_that_are_none_are_refused() {
    let host = host();
    host.ok("start c1");
    let before = Before::of(&host);
    let mut faults = Faults::default();
    let socket = host.socket();
    let long = "a/".repeat(3000);
    let longer = "a".repeat(LONG);
    for query in [
        "",
        "path=",
        "path",
        "nopath=/x",
        "path=%00",
        "path=/etc/%00passwd",
        "path=%ff%fe",
        "path=/nosuch",
        "path=nosuch/..",
        "path=/etc/passwd/x",
        "path=/etc/passwd/..",
        &format!("path=/{long}"),
        &format!("path=/{longer}"),
        "path=..%2f..%2fnosuch",
        "path=/proc/self/root/nosuch",
        "path=/dev/null",
    ] {
        for method in ["GET", "HEAD", "DELETE"] {
            let answer = Request::new(&socket, method, &format!("/1.0/instances/c1/files?{query}")).try_send();
            if query == "path=/dev/null" && method == "DELETE" {
                continue;
            }
            // What follows a HEAD is its answer's head only.
            if method == "HEAD" {
                continue;
            }
            faults.refused(&format!("{method} {query:.60}"), &answer.unwrap(), "");
        }
    }
    for (header, value, needle) in [
        ("X-Incus-uid", "abc", "uid"),
        ("X-Incus-uid", "-2", "uid"),
        ("X-Incus-uid", "4294967296", "uid"),
        ("X-Incus-uid", "4294967295", "id"),
        ("X-Incus-uid", "0x10", "uid"),
        ("X-Incus-uid", "99999999999999999999", "uid"),
        ("X-Incus-uid", "1\u{e9}", "uid"),
        ("X-Incus-gid", "abc", "gid"),
        ("X-Incus-gid", "1000000000", "id"),
        ("X-Incus-mode", "99999", "mode"),
        ("X-Incus-mode", "0o644", "mode"),
        ("X-Incus-mode", "-644", "mode"),
        ("X-Incus-mode", "rwx", "mode"),
        ("X-Incus-mode", "170777", "mode"),
        ("X-Incus-type", "weird", "type|weird"),
        ("X-Incus-type", "FILE", "type|FILE"),
        ("X-Incus-write", "weird", "write"),
        ("X-LXD-uid", "abc", "uid"),
        ("X-LXD-mode", "9", "mode"),
        ("Content-Range", "bytes 0-3/8", "range"),
        ("Content-Encoding", "gzip", "encoding"),
    ] {
        let answer = Request::new(&socket, "POST", "/1.0/instances/c1/files?path=/root/refused")
            .header(header, value)
            .body("body")
            .try_send()
            .unwrap();
        faults.refused(&format!("{header}: {value}"), &answer, needle);
    }
    for (kind, path) in [
        ("file", "/"),
        ("file", "/root"),
        ("file", "/root/"),
        ("file", "/nosuch/file"),
        ("file", "/etc/passwd/x"),
        ("file", "/root/%00"),
        ("file", "/proc/nosuch"),
        ("directory", "/etc/passwd"),
        ("directory", "/nosuch/folder/deep"),
        ("symlink", "/root"),
        ("symlink", "/nosuch/link"),
    ] {
        let answer = Request::new(&socket, "POST", &format!("/1.0/instances/c1/files?path={path}"))
            .header("X-Incus-type", kind)
            .body("target")
            .try_send()
            .unwrap();
        faults.refused(&format!("a {kind} at {path}"), &answer, "");
    }
    for (what, target) in
        [("an empty link", Vec::new()), ("NUL in a link", b"a\0b".to_vec()), ("a long link", vec![b'a'; 5000])]
    {
        let answer = Request::new(&socket, "POST", "/1.0/instances/c1/files?path=/root/link")
            .header("X-Incus-type", "symlink")
            .body(target)
            .try_send()
            .unwrap();
        faults.refused(what, &answer, "");
    }
    faults.none();
    assert_eq!(host.inside("c1", "ls -A /root"), "");
    // From above the root one comes to the root, as chroot has it.
    assert_eq!(
        Request::new(&socket, "GET", "/1.0/instances/c1/files?path=/../../etc/passwd").send().body,
        Request::new(&socket, "GET", "/1.0/instances/c1/files?path=/etc/passwd").send().body
    );
    before.unharmed(&host);
}

#[test]
fn conditions_and_queries_that_are_none_are_refused() {
    let host = host();
    let before = Before::of(&host);
    let mut faults = Faults::default();
    let socket = host.socket();
    for tag in ["garbage", "\"", "\"\"", "W/", "\u{e9}", ",,,", "\"a\", \"b\""] {
        let answer = Request::new(&socket, "PUT", "/1.0/profiles/p1")
            .header("If-Match", tag)
            .json(&json!({"config": {}, "description": "changed", "devices": {}}))
            .try_send()
            .unwrap();
        faults.refused(&format!("If-Match: {tag}"), &answer, "etag");
        assert_eq!(answer.status, 412, "If-Match: {tag}");
    }
    let id = host.request("DELETE", "/1.0/instances/c1/snapshots/s1", None).json();
    let operation = id["operation"].as_str().unwrap().to_owned();
    for path in [
        "/1.0/instances?filter=(((",
        "/1.0/instances?filter=name",
        "/1.0/instances?filter=name%20eq",
        "/1.0/instances?filter=%ff",
        "/1.0/instances?project=%00",
        "/1.0/instances?project=../x",
        "/1.0/events?type=nosuch",
        "/1.0/events?type=%00",
        &format!("{operation}/wait?timeout=abc"),
        &format!("{operation}/wait?timeout=1e9"),
        &format!("{operation}/wait?timeout=99999999999999999999999"),
        "/1.0/instances/c1/wait?timeout=abc",
        "/1.0/instances/c1/wait?for=nosuch",
        "/1.0/instances/c1/metadata/templates?path=../../etc/passwd",
        "/1.0/instances/c1/metadata/templates?path=%00",
        "/1.0/instances/c1/logs/..%2f..%2fduet.db",
        "/1.0/instances/c1/logs/%2e%2e%2f",
        "/1.0/instances/c1/logs/exec-output/..%2fx",
    ] {
        let answer = Request::new(&socket, "GET", path).try_send().unwrap();
        faults.refused(path, &answer, "");
    }
    // What is no number asks for no recursion, as in Incus.
    for level in ["abc", "-1", "99999999999", "", "%00", "1e3"] {
        let answer = Request::new(&socket, "GET", &format!("/1.0/instances?recursion={level}")).try_send().unwrap();
        assert_eq!(answer.json()["metadata"], json!(["/1.0/instances/c1"]), "{level}");
    }
    assert_eq!(host.get("/1.0/profiles/p1")["description"], "");
    faults.none();
    before.unharmed(&host);
}

#[test]
fn uploads_that_are_no_image_are_refused_and_leave_nothing() {
    let host = host();
    let before = Before::of(&host);
    let mut faults = Faults::default();
    let socket = host.socket();
    let images = host.get("/1.0/images");
    let form = |parts: &[(&str, &str)], end: &str| {
        let part = |(name, body): &(&str, &str)| {
            format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"f\"\r\n\r\n{body}\r\n")
        };
        format!("{}{end}", parts.iter().map(part).collect::<String>())
    };
    for (what, kind, body) in [
        ("nothing", "application/octet-stream", String::new()),
        ("text", "application/octet-stream", "no image".to_owned()),
        ("a form without parts", "multipart/form-data; boundary=b", form(&[], "--b--\r\n")),
        ("a form that does not end", "multipart/form-data; boundary=b", form(&[("metadata", "x")], "")),
        ("a form without metadata", "multipart/form-data; boundary=b", form(&[("rootfs", "x")], "--b--\r\n")),
        ("a form with another part", "multipart/form-data; boundary=b", form(&[("weird", "x")], "--b--\r\n")),
        (
            "a form with a part twice",
            "multipart/form-data; boundary=b",
            form(&[("metadata", "x"), ("metadata", "x")], "--b--\r\n"),
        ),
        ("a form of text", "multipart/form-data; boundary=b", form(&[("metadata", "x"), ("rootfs", "y")], "--b--\r\n")),
        ("a form of another boundary", "multipart/form-data; boundary=c", form(&[("metadata", "x")], "--b--\r\n")),
        ("a form without boundary", "multipart/form-data", form(&[("metadata", "x")], "--b--\r\n")),
        ("another kind", "text/plain", "x".to_owned()),
    ] {
        let answer =
            Request::new(&socket, "POST", "/1.0/images").header("Content-Type", kind).body(body).try_send().unwrap();
        let answer = if answer.status == 202 {
            let operation = answer.json()["operation"].as_str().unwrap().to_owned();
            let ended = host.get(&format!("{operation}/wait?timeout=60"));
            assert_eq!(ended["status"], "Failure", "{what}: {ended:#}");
            let said = ended["err"].as_str().unwrap();
            assert!(!said.is_empty() && !said.contains('\n'), "{what}: {said}");
            assert!(ended["status_code"].as_u64().is_some_and(|code| code < 500), "{what}: {ended:#}");
            continue;
        } else {
            answer
        };
        faults.refused(what, &answer, "");
    }
    assert_eq!(host.get("/1.0/images"), images);
    let left = host.sh(&format!("cd {}; find work -mindepth 1", host.state().display()));
    assert_eq!(left, "");
    faults.none();
    before.unharmed(&host);
}
