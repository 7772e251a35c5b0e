//! The console: its log since boot, and attaching to it.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use duet_tests::Host;
use duet_tests::wait::within;
use duet_tests::websocket::Socket;
use serde_json::json;

/// Opens an instance's console through the API: operation, data and control.
fn attach(host: &Host, name: &str) -> (String, Socket, Socket) {
    let body = json!({"type": "console", "width": 80, "height": 24});
    let started = host.request("POST", &format!("/1.0/instances/{name}/console"), Some(&body)).json();
    assert_eq!(started["type"], "async", "{started:#}");
    let operation = started["operation"].as_str().unwrap().to_owned();
    let secrets = &started["metadata"]["metadata"]["fds"];
    let open = |stream: &str| {
        let secret = secrets[stream].as_str().unwrap_or_else(|| panic!("{started:#}"));
        Socket::open(&host.socket(), &format!("{operation}/websocket?secret={secret}"))
    };
    let (data, control) = (open("0"), open("control"));
    (operation, data, control)
}

fn read_until(socket: &mut Socket, needle: &str) -> String {
    let mut seen = String::new();
    let end = Instant::now() + Duration::from_secs(30);
    while !seen.contains(needle) {
        let left = end.saturating_duration_since(Instant::now());
        let message = socket.next(left).unwrap_or_else(|| panic!("no '{needle}' in {seen:?}"));
        seen.push_str(&String::from_utf8_lossy(&message.into_data()));
    }
    seen
}

fn log(host: &Host, name: &str) -> String {
    String::from_utf8_lossy(&host.request("GET", &format!("/1.0/instances/{name}/console"), None).body).into_owned()
}

#[test]
fn the_log_holds_what_was_written_since_boot() {
    let host = Host::new();
    host.ok("launch busybox c1");
    host.inside("c1", "echo first-boot > /dev/console");
    within(Duration::from_secs(20), "the line in the log", || log(&host, "c1").contains("first-boot").then_some(()));
    assert!(host.ok("console c1 --show-log").contains("first-boot"));
    host.ok("restart c1 --force");
    host.inside("c1", "echo second-boot > /dev/console");
    within(Duration::from_secs(20), "the line in the log", || log(&host, "c1").contains("second-boot").then_some(()));
    assert!(!log(&host, "c1").contains("first-boot"), "the log is of more than one boot");
    host.request("DELETE", "/1.0/instances/c1/console", None).metadata();
    assert!(!log(&host, "c1").contains("second-boot"));
}

#[test]
fn a_login_on_the_console_works() {
    let host = Host::new();
    host.ok("launch busybox c1");
    let (operation, mut data, control) = attach(&host, "c1");
    // What listens there differs from image to image; the terminal itself does not.
    host.inside("c1", "echo to-the-console > /dev/console");
    read_until(&mut data, "to-the-console");
    // Detaching leaves the instance as it is, and one can come back.
    control.close();
    data.close();
    let ended = host.get(&format!("{operation}/wait?timeout=30"));
    assert_ne!(ended["status"], "Running", "{ended:#}");
    assert_eq!(host.status("c1"), "Running");
    let (_, mut data, _control) = attach(&host, "c1");
    host.inside("c1", "echo once-more > /dev/console");
    read_until(&mut data, "once-more");
}

#[test]
fn typing_reaches_the_console() {
    let host = Host::new();
    host.ok("create busybox c1");
    host.ok("start c1");
    // A reader of its own on the console, so that the test does not depend on the image's login.
    let (_, mut data, _control) = attach(&host, "c1");
    let mut child = host.duet("exec c1 -- sh -c 'exec </dev/console; echo waiting >&2; head -n 1 > /typed'").spawn();
    let mut said = [0; 8];
    child.stderr.as_mut().unwrap().read_exact(&mut said).unwrap();
    within(Duration::from_secs(30), "the typed line", || {
        // The login that the image may run there takes lines too: type until ours came through.
        data.send(b"typed-here\n");
        (host.try_inside("c1", "cat /typed").text() == "typed-here").then_some(())
    });
    let _ = child.kill();
    let _ = child.wait();
}

#[test]
fn the_command_attaches_and_detaches() {
    let host = Host::new();
    host.ok("launch busybox c1");
    // `script` gives it a terminal; ctrl-a q detaches.
    let command = format!("{} console c1", host.binaries().join("duet").display());
    let mut child = host.command("script", &["-qec", &command, "/dev/null"]).spawn();
    let mut stdout = child.stdout.take().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count) = stdout.read(&mut buffer) {
            if count == 0 || sender.send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut seen = String::new();
    within(Duration::from_secs(30), "the console's output", || {
        host.inside("c1", "echo marker > /dev/console");
        while let Ok(bytes) = receiver.try_recv() {
            seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        seen.contains("marker").then_some(())
    });
    stdin.write_all(b"\x01q").unwrap();
    let status = duet_tests::command::wait(&mut child, Duration::from_secs(30));
    assert!(status.is_some_and(|status| status.success()), "the client did not detach: {status:?}");
    assert_eq!(host.status("c1"), "Running");
}

#[test]
fn the_console_ends_with_the_instance() {
    let host = Host::new();
    host.ok("launch busybox c1");
    let (operation, _data, _control) = attach(&host, "c1");
    host.ok("stop c1 --force");
    let ended = host.get(&format!("{operation}/wait?timeout=30"));
    assert_ne!(ended["status"], "Running", "{ended:#}");
    host.request("POST", "/1.0/instances/c1/console", Some(&json!({"type": "console"}))).refused(400, "running");
    // The log of the last boot can still be read.
    assert_eq!(host.request("GET", "/1.0/instances/c1/console", None).status, 200);
}

#[test]
fn a_flood_neither_grows_the_daemon_nor_fills_the_disk() {
    let host = Host::new();
    host.ok("launch busybox c1");
    host.duet("exec c1 -- sh -c 'dd if=/dev/zero bs=1M count=64 | tr \"\\0\" x > /dev/console'")
        .within(Duration::from_secs(90))
        .run();
    let size: u64 = host.sh(&format!("stat -c %s {}/logs/c1/console.log", host.state().display())).parse().unwrap();
    assert!(size < 16 << 20, "the console's log has {size} bytes");
    assert_eq!(host.inside("c1", "echo fine"), "fine");
}
