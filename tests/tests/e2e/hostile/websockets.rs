//! Websockets: who may not connect, what is no frame, and what a session is told that makes no sense.

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use duet_tests::api::Request;
use duet_tests::wait::within;
use duet_tests::websocket::Socket;
use duet_tests::{Host, eventually};
use serde_json::{Value, json};

use super::{Before, Faults};

/// How long a stream may take.
const SOON: Duration = Duration::from_secs(30);

fn host() -> Host {
    let host = Host::new();
    host.ok("launch busybox c1");
    host
}

/// A session that waits for its websockets.
struct Session {
    operation: String,
    secrets: Value,
}

impl Session {
    fn begin(host: &Host, command: &[&str], interactive: bool) -> Self {
        let body = json!({"command": command, "wait-for-websocket": true, "interactive": interactive, "width": 80, "height": 24});
        let started = host.request("POST", "/1.0/instances/c1/exec", Some(&body)).json();
        let operation = started["operation"].as_str().expect("an operation").to_owned();
        Self { operation, secrets: started["metadata"]["metadata"]["fds"].clone() }
    }

    fn path(&self, stream: &str) -> String {
        let secret = self.secrets[stream].as_str().expect("a secret");
        format!("{}/websocket?secret={secret}", self.operation)
    }

    fn open(&self, host: &Host, stream: &str) -> Socket {
        Socket::open(&host.socket(), &self.path(stream))
    }

    /// The operation once it has ended.
    fn end(&self, host: &Host) -> Value {
        let ended = host.get(&format!("{}/wait?timeout=60", self.operation));
        assert_ne!(ended["status"], "Running", "{ended:#}");
        ended
    }
}

fn upgrade<'a>(socket: &'a std::path::Path, path: &str) -> Request<'a> {
    Request::new(socket, "GET", path)
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", "37KPcfHgGsXtCXrWccLt2w==")
}

#[test]
fn who_may_not_connect_is_refused() {
    let host = host();
    let before = Before::of(&host);
    let mut faults = Faults::default();
    let socket = host.socket();
    let session = Session::begin(&host, &["cat"], false);
    let task = host.done("POST", "/1.0/instances/c1/snapshots", &json!({"name": "s1"}));
    let task = format!("/1.0/operations/{}", task["id"].as_str().unwrap());
    for (what, path, needle) in [
        ("no secret", format!("{}/websocket", session.operation), "secret"),
        ("an empty secret", format!("{}/websocket?secret=", session.operation), "secret"),
        ("a wrong secret", format!("{}/websocket?secret=00", session.operation), "secret"),
        ("an operation without streams", format!("{task}/websocket?secret=00"), "websocket"),
        (
            "no operation",
            "/1.0/operations/11111111-2222-3333-4444-555555555555/websocket?secret=00".to_owned(),
            "operation",
        ),
    ] {
        let (mut answer, mut reader) = upgrade(&socket, &path).upgrade("websocket").unwrap();
        let length = answer.header("content-length").unwrap().parse().unwrap();
        answer.body = vec![0; length];
        reader.read_exact(&mut answer.body).unwrap();
        faults.refused(what, &answer, needle);
    }
    for path in [session.path("0"), "/1.0/events".to_owned()] {
        faults.refused("no upgrade", &Request::new(&socket, "GET", &path).try_send().unwrap(), "websocket");
        for (header, value) in [
            ("Sec-WebSocket-Version", "12"),
            ("Sec-WebSocket-Version", "abc"),
            ("Upgrade", "h2c"),
            ("Connection", "keep-alive"),
        ] {
            let mut request =
                Request::new(&socket, "GET", &path).header("Sec-WebSocket-Key", "37KPcfHgGsXtCXrWccLt2w==");
            for (name, usual) in [("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")] {
                request = request.header(name, if name == header { value } else { usual });
            }
            faults.refused(&format!("{header}: {value}"), &request.try_send().unwrap(), "websocket");
        }
        faults.refused("POST", &Request::new(&socket, "POST", &path).try_send().unwrap(), "POST");
    }
    // None of this used the secret up; a connection does.
    let input = session.open(&host, "0");
    let (again, _) = upgrade(&socket, &session.path("0")).upgrade("websocket").unwrap();
    assert_eq!(again.status, 403);
    let (output, errors) = (session.open(&host, "1"), session.open(&host, "2"));
    input.close();
    assert_eq!(session.end(&host)["metadata"]["return"], 0);
    drop((output, errors));
    faults.none();
    before.unharmed(&host);
}

#[test]
fn a_session_of_which_only_some_streams_are_connected_ends() {
    let host = host();
    let before = Before::of(&host);
    let cases: [(&[&str], bool); 5] =
        [(&[], false), (&["control"], false), (&["0"], false), (&["1", "2"], false), (&["control"], true)];
    let sessions: Vec<(Session, Vec<Socket>)> = cases
        .iter()
        .map(|(streams, interactive)| {
            let session = Session::begin(&host, &["cat"], *interactive);
            let sockets = streams.iter().map(|stream| session.open(&host, stream)).collect();
            (session, sockets)
        })
        .collect();
    for (session, _sockets) in &sessions {
        let ended = session.end(&host);
        assert_eq!(ended["status"], "Failure", "{ended:#}");
        assert!(ended["err"].as_str().is_some_and(|said| said.contains("websocket")), "{ended:#}");
    }
    drop(sessions);
    assert_eq!(host.processes_inside("c1", "cat"), 0);
    before.unharmed(&host);
}

#[test]
fn control_messages_that_make_no_sense_change_nothing() {
    let host = host();
    let before = Before::of(&host);
    let long = format!("{{\"command\": \"{}\"}}", "x".repeat(1 << 20));
    let messages = [
        "",
        "garbage",
        "{",
        "[]",
        "null",
        "5",
        "{}",
        "{\"command\": 5}",
        "{\"command\": \"nosuch\"}",
        "{\"command\": \"window-resize\"}",
        "{\"command\": \"window-resize\", \"args\": null}",
        "{\"command\": \"window-resize\", \"args\": {}}",
        "{\"command\": \"window-resize\", \"args\": {\"width\": \"0\", \"height\": \"0\"}}",
        "{\"command\": \"window-resize\", \"args\": {\"width\": \"-1\", \"height\": \"-1\"}}",
        "{\"command\": \"window-resize\", \"args\": {\"width\": \"1000000000\", \"height\": \"1000000000\"}}",
        "{\"command\": \"window-resize\", \"args\": {\"width\": \"x\", \"height\": \"y\"}}",
        "{\"command\": \"window-resize\", \"args\": {\"width\": 80, \"height\": 24}}",
        "{\"command\": \"signal\"}",
        "{\"command\": \"signal\", \"signal\": 0}",
        "{\"command\": \"signal\", \"signal\": -1}",
        "{\"command\": \"signal\", \"signal\": 9999}",
        "{\"command\": \"signal\", \"signal\": 2147483647}",
        "{\"command\": \"signal\", \"signal\": \"TERM\"}",
        "{\"command\": \"signal\", \"signal\": 1e99}",
        &long,
    ];
    for interactive in [false, true] {
        let session = Session::begin(&host, &["sh", "-c", "read line; echo got $line; exit 3"], interactive);
        let mut control = session.open(&host, "control");
        let mut input = session.open(&host, "0");
        let outputs: Vec<Socket> =
            if interactive { vec![] } else { ["1", "2"].iter().map(|stream| session.open(&host, stream)).collect() };
        for message in messages {
            control.send_text(message);
            control.send(message.as_bytes());
        }
        input.send(b"it\n");
        let mut output = outputs.into_iter().next().unwrap_or(input);
        let said = output.read_to_end(SOON);
        assert!(String::from_utf8_lossy(&said).contains("got it"), "{:?}", String::from_utf8_lossy(&said));
        assert_eq!(session.end(&host)["metadata"]["return"], 3);
    }
    before.unharmed(&host);
}

#[test]
fn what_is_no_frame_ends_the_connection() {
    let host = host();
    let before = Before::of(&host);
    let socket = host.socket();
    let huge = [b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0".as_slice(), &[b'x'; 1000]].concat();
    let frames: [(&str, &[u8]); 9] = [
        ("unmasked", b"\x82\x05hello"),
        ("a reserved opcode", b"\x83\x80\0\0\0\0"),
        ("reserved bits", b"\xf2\x80\0\0\0\0"),
        ("a ping in parts", b"\x09\x80\0\0\0\0"),
        ("a ping that is too long", b"\x89\xfe\x01\x00\0\0\0\0"),
        ("a part of nothing", b"\x80\x80\0\0\0\0"),
        ("text that is not UTF-8", b"\x81\x82\0\0\0\0\xff\xfe"),
        ("a close of one byte", b"\x88\x81\0\0\0\0x"),
        ("longer than anything", &huge),
    ];
    for (what, frame) in frames {
        let session = Session::begin(&host, &["sleep", "600"], false);
        let outputs = [session.open(&host, "1"), session.open(&host, "2")];
        // The input first: with it the session is complete, and the rest is read.
        for path in [session.path("0"), session.path("control"), "/1.0/events".to_owned()] {
            let (answer, mut reader) = upgrade(&socket, &path).upgrade("websocket").unwrap();
            assert_eq!(answer.status, 101);
            // It may be cut off before it is all there.
            let _ = reader.get_mut().write_all(frame);
            let _ = reader.get_mut().shutdown(std::net::Shutdown::Write);
            reader.get_mut().set_read_timeout(Some(SOON)).unwrap();
            let mut rest = Vec::new();
            let ended = reader.read_to_end(&mut rest);
            let timed_out = ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
            assert!(!timed_out, "{what} on {path:.30}: the connection stays");
        }
        session.end(&host);
        drop(outputs);
    }
    eventually("the ends of the programs", || (host.processes_inside("c1", "sleep 600") == 0).then_some(()));
    // Parts of one message are one message.
    let session = Session::begin(&host, &["cat"], false);
    let (mut output, _errors) = (session.open(&host, "1"), session.open(&host, "2"));
    let (_, mut reader) = upgrade(&socket, &session.path("0")).upgrade("websocket").unwrap();
    let parts: [&[u8]; 4] = [b"\x02\x82\0\0\0\0he", b"\x89\x80\0\0\0\0", b"\x80\x83\0\0\0\0llo", b"\x81\x80\0\0\0\0"];
    for part in parts {
        reader.get_mut().write_all(part).unwrap();
    }
    assert_eq!(output.read_to_end(SOON), b"hello");
    assert_eq!(session.end(&host)["metadata"]["return"], 0);
    drop(reader);
    before.unharmed(&host);
}

#[test]
fn whoever_never_reads_events_costs_little() {
    let host = Host::empty();
    let before = Before::of(&host);
    let deaf: Vec<Socket> = (0..5).map(|_| host.events("operation,lifecycle,logging")).collect();
    let mut hearing = host.events("lifecycle");
    let count = 4000;
    let note = "x".repeat(2000);
    for number in 0..count {
        host.send("PUT", "/1.0/profiles/default", &json!({"config": {"user.note": format!("{number} {note}")}}));
        // Whoever reads misses nothing.
        hearing.event("a change", |event| event["metadata"]["action"] == "profile-updated");
    }
    host.send("POST", "/1.0/profiles", &json!({"name": "last"}));
    hearing.lifecycle("profile-created", "last");
    drop((deaf, hearing));
    before.unharmed(&host);
}

#[test]
fn a_terminal_takes_more_than_fits_while_nobody_reads_it() {
    let host = host();
    let before = Before::of(&host);
    let session = Session::begin(&host, &["sh", "-c", "stty raw -echo; echo ready; head -c 2000000"], true);
    let (_control, mut terminal) = (session.open(&host, "control"), session.open(&host, "0"));
    let mut said = Vec::new();
    while !said.ends_with(b"ready\n") {
        said.extend_from_slice(&terminal.next(SOON).expect("the program's word").into_data());
    }
    let (mut reading, mut writing) = terminal.split();
    let sent = thread::spawn(move || {
        for _ in 0..40 {
            writing.send(&vec![b'x'; 50_000]);
        }
        writing
    });
    let started = Instant::now();
    let echoed = reading.read_to_end(SOON);
    assert_eq!(echoed.len(), 2_000_000, "after {:?}", started.elapsed());
    assert_eq!(session.end(&host)["metadata"]["return"], 0);
    drop(sent.join());
    drop(reading);
    // One that nobody reads can be cancelled.
    let session = Session::begin(&host, &["sh", "-c", "stty raw -echo; sleep 600"], true);
    let mut terminal = session.open(&host, "0");
    thread::spawn(move || {
        for _ in 0..40 {
            terminal.send(&vec![b'x'; 50_000]);
        }
    });
    within(SOON, "the program", || (host.processes_inside("c1", "sleep 600") == 1).then_some(()));
    host.request("DELETE", &session.operation, None).metadata();
    session.end(&host);
    eventually("the program's end", || (host.processes_inside("c1", "sleep 600") == 0).then_some(()));
    before.unharmed(&host);
}
