//! HTTP itself: what is no request of it, and clients that take their time.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use duet_tests::{Host, eventually};

use super::{Before, Faults, outcome};

/// How long the daemon may take to say something about what cannot become a request.
const SOON: Duration = Duration::from_secs(10);

/// Sends bytes over a connection of its own, and gives all that comes back until the daemon has nothing more to say.
fn raw(host: &Host, bytes: &[u8]) -> String {
    talk(host, bytes, true)
}

/// As [`raw`]. A client that closes its side (`ends`) may be taken for one that is gone, and be answered no more.
fn talk(host: &Host, bytes: &[u8], ends: bool) -> String {
    let mut stream = UnixStream::connect(host.socket()).expect("connecting");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    // It may refuse what it has not read to the end.
    let _ = stream.write_all(bytes);
    if ends {
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    let mut answer = Vec::new();
    let started = Instant::now();
    let read = stream.read_to_end(&mut answer);
    assert!(
        !read.is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)),
        "no end within {:?} of {:?}",
        started.elapsed(),
        String::from_utf8_lossy(&bytes[..bytes.len().min(80)])
    );
    String::from_utf8_lossy(&answer).into_owned()
}

/// The statuses of the answers in what came back.
fn statuses(answer: &str) -> Vec<u16> {
    answer.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3)?.parse().ok()).collect()
}

#[test]
fn what_is_no_http_is_refused_or_cut_off() {
    let host = Host::empty();
    let before = Before::of(&host);
    let megabyte = "a".repeat(1 << 20);
    let many: String = (0..10_000).map(|number| format!("X-H{number}: x\r\n")).collect();
    let end = "Host: x\r\nConnection: close\r\n\r\n";
    for (what, bytes) in [
        ("nothing", String::new()),
        ("garbage", "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03".to_owned()),
        ("a line", "hello\r\n\r\n".to_owned()),
        ("HTTP/0.9", "GET /1.0\r\n\r\n".to_owned()),
        ("HTTP/3", format!("GET /1.0 HTTP/3.0\r\n{end}")),
        ("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
        ("a target of 1 MiB", format!("GET /1.0/{megabyte} HTTP/1.1\r\n{end}")),
        ("a header of 1 MiB", format!("GET /1.0 HTTP/1.1\r\nX-Long: {megabyte}\r\n{end}")),
        ("10000 headers", format!("GET /1.0 HTTP/1.1\r\n{many}{end}")),
        ("a header without a name", format!("GET /1.0 HTTP/1.1\r\n: x\r\n{end}")),
        ("a header with NUL", format!("GET /1.0 HTTP/1.1\r\nX: a\0b\r\n{end}")),
        ("two lengths", format!("POST /1.0/profiles HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n{end}{{}}")),
        ("a negative length", format!("POST /1.0/profiles HTTP/1.1\r\nContent-Length: -1\r\n{end}{{}}")),
        ("a length that is none", format!("POST /1.0/profiles HTTP/1.1\r\nContent-Length: x\r\n{end}{{}}")),
        (
            "a length too large",
            format!("POST /1.0/profiles HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n{end}{{}}"),
        ),
        ("a body that ends early", format!("POST /1.0/profiles HTTP/1.1\r\nContent-Length: 200\r\n{end}{{}}")),
        (
            "a length and chunks",
            format!("POST /1.0/profiles HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n{end}zz\r\n"),
        ),
        (
            "chunks of no size",
            format!("POST /1.0/profiles HTTP/1.1\r\nTransfer-Encoding: chunked\r\n{end}zz\r\n{{}}\r\n0\r\n\r\n"),
        ),
        (
            "a chunk of a huge size",
            format!(
                "POST /1.0/profiles HTTP/1.1\r\nTransfer-Encoding: chunked\r\n{end}ffffffffffffffffffff\r\n{{}}\r\n0\r\n\r\n"
            ),
        ),
        (
            "chunks without end",
            format!("POST /1.0/profiles HTTP/1.1\r\nTransfer-Encoding: chunked\r\n{end}2\r\n{{}}\r\n"),
        ),
        ("another encoding", format!("POST /1.0/profiles HTTP/1.1\r\nTransfer-Encoding: gzip\r\n{end}2\r\n{{}}\r\n")),
        (
            "an encoding after chunks",
            format!("POST /1.0/profiles HTTP/1.1\r\nTransfer-Encoding: chunked, gzip\r\n{end}2\r\n{{}}\r\n0\r\n\r\n"),
        ),
    ] {
        let answer = raw(&host, bytes.as_bytes());
        for status in statuses(&answer) {
            assert!((400..506).contains(&status) && status != 500, "{what}: {answer:.300}");
        }
        assert_eq!(host.request("GET", "/1.0", None).status, 200, "after {what}");
    }
    assert_eq!(host.get("/1.0/profiles"), serde_json::json!(["/1.0/profiles/default"]));
    before.unharmed(&host);
}

#[test]
fn methods_and_targets_that_are_unusual_are_answered() {
    let host = Host::empty();
    let before = Before::of(&host);
    let mut faults = Faults::default();
    for method in ["PROPFIND", "TRACE", "OPTIONS", "CONNECT", "get", "X", "DELETE"] {
        faults.refused(method, &outcome(&host, method, "/1.0", ""), method);
    }
    for target in ["/2.0", "//1.0", "/1.0/", "/1.0//instances", "/1.0/../1.0", "/%31.0", "/1.0;x", "*"] {
        let method = if target == "*" { "OPTIONS" } else { "GET" };
        let answer = outcome(&host, method, target, "");
        if answer.status != 200 {
            faults.refused(target, &answer, "");
        }
    }
    faults.none();
    let absolute =
        raw(&host, b"GET http://somewhere.else/1.0/profiles HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(statuses(&absolute), [200], "{absolute}");
    // The second begins while the first is being answered; each has its answer, in their order.
    let one = "GET /1.0/profiles HTTP/1.1\r\nHost: x\r\n\r\n";
    let last = "GET /1.0/nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let pipelined = talk(&host, format!("{}{last}", one.repeat(100)).as_bytes(), false);
    let mut expected = vec![200; 100];
    expected.push(404);
    assert_eq!(statuses(&pipelined), expected);
    before.unharmed(&host);
}

#[test]
fn slow_clients_keep_nobody_waiting() {
    let host = Host::new();
    host.ok("launch busybox c1");
    host.inside("c1", "head -c 20000000 /dev/zero > /root/big");
    let before = Before::of(&host);
    let begin = |bytes: &str| {
        let mut stream = UnixStream::connect(host.socket()).expect("connecting");
        stream.write_all(bytes.as_bytes()).expect("sending");
        stream
    };
    // More than the daemon has workers, of each kind: half a head, half a body, half an upload, and a download of which
    // nothing is read.
    let mut slow: Vec<UnixStream> = Vec::new();
    for number in 0..80 {
        slow.push(begin("GET /1.0 HTTP/1.1\r\nHo"));
        slow.push(begin("POST /1.0/profiles HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"));
        slow.push(begin("POST /1.0/images HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nContent-Length: 100000\r\n\r\nx"));
        slow.push(begin(&format!(
            "POST /1.0/instances/c1/files?path=/root/f{number} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nx"
        )));
        slow.push(begin("GET /1.0/instances/c1/files?path=/root/big HTTP/1.1\r\nHost: x\r\n\r\n"));
    }
    eventually("the downloads' first bytes", || {
        let mut byte = [0];
        slow.iter()
            .skip(4)
            .step_by(5)
            .all(|stream| {
                stream.set_read_timeout(Some(SOON)).is_ok() && (&*stream).read(&mut byte).is_ok_and(|count| count == 1)
            })
            .then_some(())
    });
    // A byte of each at a time does not help them.
    for stream in &mut slow {
        let _ = stream.write_all(b"x");
    }
    let started = Instant::now();
    host.get("/1.0/instances?recursion=2");
    assert_eq!(host.inside("c1", "echo hi"), "hi");
    host.ok("create busybox c2");
    host.ok("start c2");
    host.ok("file push /etc/hostname c2/root/name");
    host.ok("delete --force c2");
    assert!(started.elapsed() < Duration::from_secs(20), "others waited {:?}", started.elapsed());
    drop(slow);
    before.unharmed(&host);
    let left = host.sh(&format!("cd {}; find work -mindepth 1", host.state().display()));
    assert_eq!(left, "");
}
