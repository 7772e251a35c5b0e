//! Clients that vanish in the middle of something.

use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use duet_tests::api::Request;
use duet_tests::websocket::Socket;
use duet_tests::{Host, eventually, images};
use serde_json::json;

use super::Before;

fn host() -> Host {
    let host = Host::new();
    host.ok("launch busybox c1");
    host
}

fn begin(host: &Host, head: &str, body: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(host.socket()).expect("connecting");
    stream.write_all(head.as_bytes()).expect("sending");
    stream.write_all(body).expect("sending");
    stream
}

fn assert_no_work(host: &Host) {
    eventually("no half-made files", || {
        host.sh(&format!("cd {}; find work -mindepth 1", host.state().display())).is_empty().then_some(())
    });
}

#[test]
fn uploads_that_break_off_leave_nothing() {
    let host = host();
    let listed = host.get("/1.0/images");
    let file = std::fs::read(images::file(images::BUSYBOX)).unwrap();
    let half = &file[..file.len() / 2];
    let before = Before::of(&host);
    for _ in 0..5 {
        let length = file.len();
        let head = |kind: &str| {
            format!("POST /1.0/images HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n")
        };
        drop(begin(&host, &head("application/octet-stream"), half));
        drop(begin(&host, &head(""), half));
        let part = b"--b\r\nContent-Disposition: form-data; name=\"metadata\"; filename=\"f\"\r\n\r\n";
        drop(begin(&host, &head("multipart/form-data; boundary=b"), &[part, half].concat()));
        let json = "POST /1.0/instances HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n";
        drop(begin(&host, json, b"{\"name\": \"c2\", \"source\": {\"type\": \"image\", \"alias\": \"busybox\"}"));
        let upload = "POST /1.0/instances/c1/files?path=/root/f HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n";
        drop(begin(&host, upload, &[b'x'; 50_000]));
    }
    assert_no_work(&host);
    assert_eq!(host.get("/1.0/images"), listed);
    assert_eq!(host.get("/1.0/instances"), json!(["/1.0/instances/c1"]));
    before.unharmed(&host);
}

#[test]
fn downloads_that_break_off_hold_nothing() {
    let host = host();
    host.inside("c1", "head -c 30000000 /dev/zero > /root/big");
    let image = host.get("/1.0/images")[0].as_str().unwrap().to_owned();
    let before = Before::of(&host);
    for path in [format!("{image}/export"), "/1.0/instances/c1/files?path=/root/big".to_owned()] {
        for _ in 0..10 {
            let mut stream = begin(&host, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"), b"");
            let mut some = [0; 1000];
            stream.read_exact(&mut some).unwrap();
            assert!(some.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&some));
        }
    }
    before.unharmed(&host);
}

#[test]
fn sessions_whose_client_vanishes_end() {
    let host = host();
    let before = Before::of(&host);
    for interactive in [false, true] {
        let body = json!({"command": ["sleep", "600"], "wait-for-websocket": true, "interactive": interactive});
        let started = host.request("POST", "/1.0/instances/c1/exec", Some(&body)).json();
        let operation = started["operation"].as_str().unwrap().to_owned();
        let fds = started["metadata"]["metadata"]["fds"].as_object().unwrap().clone();
        let sockets: Vec<Socket> = fds
            .values()
            .map(|secret| {
                Socket::open(&host.socket(), &format!("{operation}/websocket?secret={}", secret.as_str().unwrap()))
            })
            .collect();
        eventually("the program", || (host.processes_inside("c1", "sleep 600") == 1).then_some(()));
        drop(sockets);
        let ended = host.get(&format!("{operation}/wait?timeout=30"));
        assert_ne!(ended["status"], "Running", "interactive: {interactive}: {ended:#}");
        eventually("the program's end", || (host.processes_inside("c1", "sleep 600") == 0).then_some(()));
    }
    before.unharmed(&host);
}

#[test]
fn file_sessions_whose_client_vanishes_end() {
    let host = host();
    let socket = host.socket();
    let before = Before::of(&host);
    let packet = |kind: u8, body: &[u8]| {
        let length = u32::try_from(body.len() + 1).unwrap();
        [length.to_be_bytes().as_slice(), &[kind], body].concat()
    };
    let open = |reader: &mut BufReader<UnixStream>| {
        reader.get_mut().write_all(&packet(1, &[0, 0, 0, 3])).unwrap();
        let mut head = [0; 5];
        reader.read_exact(&mut head).unwrap();
        assert_eq!(head[4], 2);
    };
    let name = b"/root/half";
    let creating = [&[0, 0, 0, 1, 0, 0, 0, 10], name.as_slice(), &[0, 0, 0, 0x1a, 0, 0, 0, 0]].concat();
    let rest: [(&str, Vec<u8>); 8] = [
        ("nothing", vec![]),
        ("half a packet", packet(3, &creating)[..12].to_vec()),
        ("an open file", packet(3, &creating)),
        ("no packet", b"\xff\xff\xff\xffgarbage".to_vec()),
        ("a packet of no length", vec![0, 0, 0, 0]),
        ("an unknown packet", packet(99, &[0, 0, 0, 1])),
        ("a truncated packet", packet(3, &[0, 0, 0, 1, 0, 0, 0xff, 0xff, b'x'])),
        ("a second beginning", packet(1, &[0, 0, 0, 3])),
    ];
    for (what, bytes) in &rest {
        for _ in 0..3 {
            let request = Request::new(&socket, "GET", "/1.0/instances/c1/sftp");
            let (answer, mut reader) = request.upgrade("sftp").unwrap();
            assert_eq!(answer.status, 101, "{what}");
            open(&mut reader);
            reader.get_mut().write_all(bytes).unwrap();
        }
    }
    before.unharmed(&host);
    assert_eq!(host.running("duet-monitor").len(), 1, "only the instance's own");
}

#[test]
fn whoever_waits_and_vanishes_is_forgotten() {
    let host = host();
    let body = json!({"command": ["sleep", "600"], "wait-for-websocket": false, "interactive": false});
    let started = host.request("POST", "/1.0/instances/c1/exec", Some(&body)).json();
    let operation = started["operation"].as_str().unwrap().to_owned();
    let before = Before::of(&host);
    for path in [format!("{operation}/wait"), "/1.0/instances/c1/wait?for=stopped".to_owned(), "/1.0/events".to_owned()]
    {
        for _ in 0..20 {
            let head = format!(
                "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: 37KPcfHgGsXtCXrWccLt2w==\r\n\r\n"
            );
            drop(begin(&host, &head, b""));
        }
    }
    before.unharmed(&host);
    host.ok("stop c1 --force");
    assert_ne!(host.get(&format!("{operation}/wait?timeout=30"))["status"], "Running");
}
