//! The console: attaching, its log, and clients that behave badly.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::Instant;

use duet_container::client::ClientError;
use duet_container::protocol::{ErrorKind, PtySize, Reply};

use crate::support::{Container, DEADLINE, wait_until};

fn read_until(stream: &OwnedFd, text: &str) -> String {
    let mut seen = String::new();
    let deadline = Instant::now() + DEADLINE;
    while !seen.contains(text) {
        assert!(duet_sys::socket::wait_readable(stream, deadline).unwrap(), "waited in vain for {text:?}: {seen:?}");
        let mut chunk = [0; 4096];
        let len = rustix::io::read(stream, &mut chunk).unwrap();
        assert_ne!(len, 0, "the console closed: {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&chunk[..len]));
    }
    seen
}

#[test]
fn a_client_talks_to_the_shell_on_the_console() {
    let container = Container::new().boot_busybox().start();
    container.wait_log("Please press Enter");
    let client = container.connect();
    let console = client.console(false).unwrap();
    rustix::io::write(&console, b"\n").unwrap();
    client.resize_console(PtySize { columns: 101, rows: 33 }).unwrap();
    rustix::io::write(&console, b"stty size; tty; echo sum-$((20+3))\n").unwrap();
    let seen = read_until(&console, "sum-23");
    assert!(seen.contains("33 101") && seen.contains("/dev/console"), "{seen:?}");
    container.wait_log("sum-23");
    assert!(container.connect().status().unwrap().status.console_attached);

    // Closing the stream is leaving, and then there is room for the next.
    drop(console);
    wait_until("the console to be free", || !container.connect().status().unwrap().status.console_attached);
    let second = container.connect();
    let console = second.console(false).unwrap();
    rustix::io::write(&console, b"echo sum-$((20+4))\n").unwrap();
    read_until(&console, "sum-24");
    // So is closing the connection.
    drop(second);
    wait_until("the console to be free", || !container.connect().status().unwrap().status.console_attached);
}

#[test]
fn one_client_at_a_time_unless_forced() {
    let container = Container::new().start();
    let first = container.connect();
    let stream = first.console(false).unwrap();
    let second = container.connect();
    match second.console(false) {
        Err(ClientError::Refused(error)) => assert_eq!(error.kind, ErrorKind::Busy),
        other => panic!("{other:?}"),
    }
    let stolen = second.console(true).unwrap();
    assert!(matches!(first.receive_until(Instant::now() + DEADLINE).unwrap(), Some((Reply::ConsoleTaken, _))));
    let mut chunk = [0; 16];
    assert_eq!(rustix::io::read(&stream, &mut chunk).unwrap(), 0, "the first stream is closed");
    container.ok("echo to the second > /dev/console");
    read_until(&stolen, "to the second");
}

#[test]
fn a_client_that_does_not_read_does_not_hold_the_container_up() {
    let container = Container::new().start();
    let client = container.connect();
    let _console = client.console(false).unwrap();
    container.ok("head -c 2000000 /dev/zero | tr '\\0' x > /dev/console; echo; echo the end > /dev/console");
    container.wait_log("the end");
}

#[test]
fn a_client_that_types_ahead_does_not_hold_the_monitor_up() {
    let container = Container::new().start();
    let client = container.connect();
    let console = client.console(false).unwrap();
    duet_sys::socket::set_nonblocking(&console, true).unwrap();
    // Nobody reads the terminal: its buffer fills, then the monitor's, then the socket's.
    let mut sent = 0;
    while let Ok(len) = rustix::io::write(&console, &[b'x'; 4096]) {
        sent += len;
        if sent > 16 << 20 {
            break;
        }
    }
    assert_eq!(container.ok("echo alive"), "alive");
    drop(console);
    wait_until("the console to be free", || !container.connect().status().unwrap().status.console_attached);
}

#[test]
fn the_log_is_of_this_boot_and_bounded() {
    let mut container = Container::new();
    container.spec.console_log_limit = 10_000;
    fs::write(&container.spec.console_log, "of the last boot").unwrap();
    let container = container.start();
    container.ok("for i in $(seq 1000 2999); do echo line-$i; done > /dev/console");
    container.wait_log("line-2999");
    let log = fs::read_to_string(&container.spec.console_log).unwrap();
    assert!(log.len() <= 10_000 && log.len() > 4_000, "{}", log.len());
    assert!(!log.contains("last boot") && !log.contains("line-1000"));
}

#[test]
fn a_hung_up_console_works_again() {
    let container = Container::new().start();
    // What a login does to its terminal (vhangup(2)) ends every descriptor of it.
    container.ok("echo before > /dev/console");
    let hangup = "exec 0<>/dev/console; setsid -c true";
    let _ = container.sh(hangup);
    container.ok("echo after > /dev/console");
    container.wait_log("after");
}
