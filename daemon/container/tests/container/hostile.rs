//! Clients that send nonsense, do not read, or come in crowds.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use duet_container::protocol::{self, ErrorKind, MAX_PACKET, Reply, Request};
use duet_container::{ClientError, MonitorClient};
use proptest::prelude::*;

use crate::support::{Container, DEADLINE};

fn raw(container: &Container) -> OwnedFd {
    duet_sys::socket::connect_in(&container.spec.run_dir, "monitor.sock".as_ref()).unwrap()
}

fn answer(socket: &OwnedFd) -> Option<Reply> {
    assert!(duet_sys::socket::wait_readable(socket, Instant::now() + DEADLINE).unwrap(), "no answer");
    let mut buffer = vec![0; 65536];
    let packet = duet_sys::socket::receive(socket, &mut buffer).ok()?;
    (packet.len > 0).then(|| serde_json::from_slice(&buffer[..packet.len]).unwrap())
}

#[test]
fn nonsense_gets_an_error_and_the_connection_lives() {
    let container = Container::new().start();
    let socket = raw(&container);
    let null = File::open("/dev/null").unwrap();
    let status = protocol::encode(&Request::Status);
    let exec = br#"{"type":"exec","argv":["true"]}"#;
    let cases: [(&[u8], usize); 9] = [
        (b"x", 0),
        (b"{}", 0),
        (b"{\"type\":\"fly\"}", 0),
        (b"[1,2,3]", 0),
        (b"\xff\xfe\x00", 0),
        (&status, 2),
        (exec, 1),
        (exec, 0),
        (b"{\"type\":\"exec_signal\",\"signal\":9}", 0),
    ];
    for (packet, fds) in cases {
        let fds: Vec<BorrowedFd<'_>> = (0..fds).map(|_| null.as_fd()).collect();
        duet_sys::socket::send(&socket, packet, &fds).unwrap();
        match answer(&socket) {
            Some(Reply::Error(error)) => {
                assert!(matches!(error.kind, ErrorKind::Invalid | ErrorKind::NotFound), "{error:?}");
            }
            other => panic!("{packet:?}: {other:?}"),
        }
    }
    duet_sys::socket::send(&socket, &status, &[]).unwrap();
    assert!(matches!(answer(&socket), Some(Reply::Status(_))));
}

#[test]
fn a_packet_beyond_the_bound_is_refused() {
    let container = Container::new().start();
    let socket = raw(&container);
    duet_sys::socket::reserve_send_buffer(&socket, MAX_PACKET * 2).unwrap();
    let sent = duet_sys::socket::send(&socket, &vec![b' '; MAX_PACKET + 1000], &[]);
    if sent.is_ok() {
        assert!(matches!(answer(&socket), Some(Reply::Error(error)) if error.kind == ErrorKind::Invalid));
    }
    assert_eq!(container.ok("echo alive"), "alive");
}

#[test]
fn a_client_that_never_reads_is_no_trouble() {
    let container = Container::new().start();
    let deaf: Vec<OwnedFd> = (0..8).map(|_| raw(&container)).collect();
    let status = protocol::encode(&Request::Status);
    for socket in &deaf {
        duet_sys::socket::set_nonblocking(socket, true).unwrap();
        for _ in 0..10_000 {
            if duet_sys::socket::send(socket, &status, &[]).is_err() {
                break;
            }
        }
    }
    assert_eq!(container.ok("echo alive"), "alive");
    drop(deaf);
    assert_eq!(container.ok("echo alive"), "alive");
}

#[test]
fn a_crowd_of_watchers_is_told() {
    let container = Container::new().start();
    let watchers: Vec<MonitorClient> = (0..200)
        .map(|_| {
            let client = container.connect();
            client.watch().unwrap();
            client
        })
        .collect();
    container.connect().signal_init(libc::SIGKILL).unwrap();
    for watcher in &watchers {
        container.wait_exit(watcher);
        assert!(matches!(watcher.receive_until(Instant::now() + DEADLINE), Err(ClientError::Closed)));
    }
}

proptest! {
    /// Parsing is a pure function that answers every packet with a request or an error.
    #[test]
    fn any_packet_is_parsed_or_refused(packet in proptest::collection::vec(any::<u8>(), 0..300), fds in 0_usize..5) {
        let _ = protocol::parse_request(&packet, fds);
    }

    /// So does one that resembles a request.
    #[test]
    fn packets_that_resemble_requests_are_parsed_or_refused(
        kind in "(status|exec|exec_signal|console|console_resize|signal_init|stop|attach_mount|watch|[a-z]{0,8})",
        field in "(argv|signal|target|source|force|uid|pty|columns|environment|[a-z]{0,8})",
        value in "(\\[\"[a-z]{0,5}\"\\]|-?[0-9]{1,12}|true|null|\"/[a-z./]{0,12}\"|\\{\\}|\\{\"path\":\"/x\"\\})",
        fds in 0_usize..5,
    ) {
        let packet = format!("{{\"type\":\"{kind}\",\"{field}\":{value}}}");
        if let Ok(request) = protocol::parse_request(packet.as_bytes(), fds) {
            prop_assert_eq!(protocol::parse_request(&protocol::encode(&request), fds).unwrap(), request);
        }
    }
}
