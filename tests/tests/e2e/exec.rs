//! Running commands in an instance.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use duet_tests::command::wait;
use duet_tests::wait::within;
use duet_tests::websocket::Socket;
use duet_tests::{Host, eventually};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn host() -> Host {
    let host = Host::new();
    host.ok("launch busybox c1");
    host
}

#[test]
fn output_and_errors_come_apart() {
    let host = host();
    let output = host.try_inside("c1", "echo out; echo err >&2; exit 7").exited(7);
    assert_eq!(output.stdout, b"out\n");
    assert_eq!(output.stderr, b"err\n");
}

#[test]
fn the_exit_status_is_passed_on() {
    let host = host();
    for code in [0, 1, 2, 42, 127, 255] {
        host.try_inside("c1", &format!("exit {code}")).exited(code);
    }
    // As in a shell: 128 and the signal's number.
    host.try_inside("c1", "kill -9 $$").exited(137);
    host.try_inside("c1", "kill -15 $$").exited(143);
}

#[test]
fn what_cannot_be_executed_says_so() {
    let host = host();
    let missing = host.duet("exec c1 -- no-such-command").run().exited(127);
    assert!(missing.errors().contains("no-such-command"), "{missing:?}");
    host.duet("exec c1 -- /etc/passwd").run().exited(126);
    host.duet("exec c1 -- /etc").run().exited(126);
    host.duet("exec c1 --cwd /no/such/folder -- true").run().failed_with("/no/such/folder");
    host.duet("exec c1 --user 12345678 -- true").run().failed_with("");
}

#[test]
fn the_environment_is_what_it_should_be() {
    let host = host();
    let plain = host.inside("c1", "env | sort");
    for line in
        ["HOME=/root", "USER=root", "LANG=C.UTF-8", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    {
        assert!(plain.lines().any(|found| found == line), "{line} is missing: {plain}");
    }
    assert!(!plain.contains("DUET_DIR"), "the host's environment came along: {plain}");
    let own = host.ok("exec c1 --env A=1 --env 'B=two words' --env HOME=/tmp -- sh -c 'echo $A/$B/$HOME'");
    assert_eq!(own, "1/two words//tmp");
}

#[test]
fn folder_user_and_group_can_be_chosen() {
    let host = host();
    assert_eq!(host.ok("exec c1 -- pwd"), "/root");
    assert_eq!(host.ok("exec c1 --cwd /usr/bin -- pwd"), "/usr/bin");
    assert_eq!(host.ok("exec c1 -- id -u"), "0");
    assert_eq!(host.ok("exec c1 --user 1000 -- id -u"), "1000");
    assert_eq!(host.ok("exec c1 --user 1000 --group 2000 -- id -g"), "2000");
    // Nothing of root's powers goes along.
    let powers = host.ok("exec c1 --user 1000 --group 1000 -- grep -E 'CapEff|CapPrm|CapAmb' /proc/self/status");
    assert!(powers.lines().all(|line| line.ends_with("0000000000000000")), "{powers}");
    host.duet("exec c1 --user 1000 --group 1000 -- cat /etc/shadow").run().exited(1);
}

#[test]
fn arguments_arrive_as_they_are() {
    let host = host();
    let output = host
        .duet("exec c1 -- printf")
        .arg("<%s>\n")
        .arg("a b")
        .arg("")
        .arg("--flag")
        .arg("$HOME")
        .arg("'quoted'")
        .arg("ü\n")
        .run()
        .succeeded();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "<a b>\n<>\n<--flag>\n<$HOME>\n<'quoted'>\n<ü\n>\n");
}

#[test]
fn input_of_any_size_is_streamed_through() {
    let host = host();
    let size = 64 * 1024 * 1024;
    // Not repeating in any block size, so that a lost or doubled block shows.
    let input: Vec<u8> = (0..size / 4).flat_map(|n: u32| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let output = host.duet("exec c1 -- cat").stdin(input.clone()).within(Duration::from_secs(120)).run().succeeded();
    assert_eq!(output.stdout.len(), input.len());
    assert!(Sha256::digest(&output.stdout) == Sha256::digest(&input), "the bytes differ");
    let summed = host.duet("exec c1 -- sha256sum").stdin(input.clone()).within(Duration::from_secs(120)).run();
    let expected: String = Sha256::digest(&input).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(summed.succeeded().text().split(' ').next(), Some(expected.as_str()));
}

#[test]
fn streams_do_not_pile_up_in_the_daemon() {
    let host = host();
    let before = duet_tests::processes::kilobytes(host.daemon_pid(), "status", "VmRSS").unwrap();
    // A reader that takes nothing: what was written has to wait at its end, not in the daemon.
    let mut child = host.duet("exec c1 -- sh -c 'cat /dev/zero'").spawn();
    let mut first = [0; 65536];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert!(wait(&mut child, Duration::from_secs(2)).is_none());
    let during = duet_tests::processes::kilobytes(host.daemon_pid(), "status", "VmRSS").unwrap();
    assert!(during < before + 32 * 1024, "the daemon grew from {before} to {during} kB");
    child.kill().unwrap();
    child.wait().unwrap();
    // The command ends with its reader.
    eventually("the command's end", || (host.processes_inside("c1", "cat /dev/zero") == 0).then_some(()));
}

#[test]
fn output_without_a_reader_of_input_ends() {
    let host = host();
    // The command ends without reading its input.
    host.duet("exec c1 -- true").stdin(vec![b'x'; 4 << 20]).run().succeeded();
    // A background process that keeps the streams open does not keep the command from ending... as long as it lives.
    let output = host.duet("exec c1 -- sh -c 'echo done; exit 3'").stdin("").run();
    assert_eq!(output.exited(3).text(), "done");
}

#[test]
fn a_terminal_is_given_when_asked_for() {
    let host = host();
    host.duet("exec c1 -T -- test -t 0").run().exited(1);
    host.duet("exec c1 -- test -t 1").run().exited(1);
    host.duet("exec c1 -t -- test -t 0").run().exited(0);
    host.duet("exec c1 -t -- test -t 1").run().exited(0);
    assert!(host.ok("exec c1 -t -- tty").starts_with("/dev/pts/"));
    // A terminal joins the two streams and turns ends of lines into those of terminals.
    let output = host.duet("exec c1 -t -- sh -c 'echo out; echo err >&2; exit 4'").run().exited(4);
    assert_eq!(output.stdout, b"out\r\nerr\r\n");
    assert!(output.stderr.is_empty());
}

/// Starts a command through the API and opens its streams: the operation, then those named.
fn start(host: &Host, body: &Value, streams: &[&str]) -> (String, Vec<Socket>) {
    let started = host.request("POST", "/1.0/instances/c1/exec", Some(body)).json();
    assert_eq!(started["type"], "async", "{started:#}");
    let operation = started["operation"].as_str().unwrap().to_owned();
    let secrets = &started["metadata"]["metadata"]["fds"];
    let sockets = streams
        .iter()
        .map(|stream| {
            let secret = secrets[*stream].as_str().unwrap_or_else(|| panic!("no stream {stream}: {started:#}"));
            Socket::open(&host.socket(), &format!("{operation}/websocket?secret={secret}"))
        })
        .collect();
    (operation, sockets)
}

/// Reads from a socket until what came contains `needle`.
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

#[test]
fn a_terminal_can_be_resized_and_signalled() {
    let host = host();
    let body = json!({
        "command": ["sh", "-c", "stty size; trap 'stty size' 28; trap 'echo interrupted; exit 9' 2; \
                                 echo ready; while true; do sleep 0.1; done"],
        "interactive": true, "wait-for-websocket": true, "width": 100, "height": 40,
        "environment": {"TERM": "xterm"}
    });
    let (operation, mut sockets) = start(&host, &body, &["0", "control"]);
    assert!(read_until(&mut sockets[0], "ready").contains("40 100"));
    sockets[1].send_text(&json!({"command": "window-resize", "args": {"width": "77", "height": "33"}}).to_string());
    read_until(&mut sockets[0], "33 77");
    sockets[1].send_text(&json!({"command": "signal", "signal": 2}).to_string());
    read_until(&mut sockets[0], "interrupted");
    let ended = host.get(&format!("{operation}/wait?timeout=30"));
    assert_eq!(ended["metadata"]["return"], 9, "{ended:#}");
}

#[test]
fn typing_works_in_a_terminal() {
    let host = host();
    let body =
        json!({"command": ["sh"], "interactive": true, "wait-for-websocket": true, "environment": {"PS1": "% "}});
    let (operation, mut sockets) = start(&host, &body, &["0", "control"]);
    read_until(&mut sockets[0], "% ");
    sockets[0].send(b"echo $((6*7))\n");
    read_until(&mut sockets[0], "42");
    // Ctrl-C reaches the foreground process, by way of the terminal.
    sockets[0].send(b"sleep 1000\n");
    eventually("the command running", || (host.processes_inside("c1", "sleep") > 0).then_some(()));
    sockets[0].send(b"\x03");
    read_until(&mut sockets[0], "% ");
    sockets[0].send(b"exit 5\n");
    let ended = host.get(&format!("{operation}/wait?timeout=30"));
    assert_eq!(ended["metadata"]["return"], 5, "{ended:#}");
}

#[test]
fn a_closed_terminal_hangs_up() {
    let host = host();
    let body =
        json!({"command": ["sh", "-c", "echo ready; sleep 4711"], "interactive": true, "wait-for-websocket": true});
    let (operation, mut sockets) = start(&host, &body, &["0", "control"]);
    read_until(&mut sockets[0], "ready");
    for socket in sockets {
        socket.close();
    }
    let ended = host.get(&format!("{operation}/wait?timeout=30"));
    assert_ne!(ended["status"], "Running", "{ended:#}");
    eventually("the command's end", || (host.processes_inside("c1", "sleep 4711") == 0).then_some(()));
}

#[test]
fn signals_reach_a_command_without_terminal() {
    let host = host();
    let body = json!({
        "command": ["sh", "-c", "trap 'echo caught; exit 3' 15; echo ready; while true; do sleep 0.1; done"],
        "interactive": false, "wait-for-websocket": true
    });
    let (operation, mut sockets) = start(&host, &body, &["0", "1", "2", "control"]);
    read_until(&mut sockets[1], "ready");
    sockets[3].send_text(&json!({"command": "signal", "signal": 15}).to_string());
    read_until(&mut sockets[1], "caught");
    let ended = host.get(&format!("{operation}/wait?timeout=30"));
    assert_eq!(ended["metadata"]["return"], 3, "{ended:#}");
}

#[test]
fn the_end_of_input_is_passed_on() {
    let host = host();
    let body = json!({"command": ["sh", "-c", "cat; echo end"], "interactive": false, "wait-for-websocket": true});
    let (_, mut sockets) = start(&host, &body, &["0", "1", "2", "control"]);
    sockets[0].send(b"some bytes\n");
    sockets[0].send_text("");
    let output = sockets[1].read_to_end(Duration::from_secs(30));
    assert_eq!(String::from_utf8(output).unwrap(), "some bytes\nend\n");
    assert_eq!(sockets[2].read_to_end(Duration::from_secs(30)), b"");
}

#[test]
fn a_signal_to_the_client_is_forwarded() {
    let host = host();
    let script = "trap 'echo caught; exit 6' 15; echo ready; while true; do sleep 0.1; done";
    let mut child = host.duet("exec c1 -- sh -c").arg(script).spawn();
    let mut line = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(&line, b"ready\n");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = wait(&mut child, Duration::from_secs(30)).expect("the client ends");
    assert_eq!(status.code(), Some(6));
}

#[test]
fn output_can_be_recorded_and_fetched_later() {
    let host = host();
    let body = json!({"command": ["sh", "-c", "echo out; echo err >&2; exit 2"], "record-output": true,
                      "wait-for-websocket": false, "interactive": false});
    let ended = host.done("POST", "/1.0/instances/c1/exec", &body);
    assert_eq!(ended["metadata"]["return"], 2, "{ended:#}");
    for (stream, expected) in [("1", "out\n"), ("2", "err\n")] {
        let path = ended["metadata"]["output"][stream].as_str().unwrap_or_else(|| panic!("{ended:#}"));
        let answer = host.request("GET", path, None);
        assert_eq!(String::from_utf8(answer.body).unwrap(), expected);
        host.request("DELETE", path, None).metadata();
        host.request("GET", path, None).refused(404, "");
    }
}

#[test]
fn exec_joins_every_namespace_and_limit_of_the_instance() {
    let host = host();
    let same = host.inside(
        "c1",
        "for ns in cgroup ipc mnt net pid user uts; do \
           [ $(readlink /proc/self/ns/$ns) = $(readlink /proc/1/ns/$ns) ] || echo $ns; done",
    );
    assert_eq!(same, "");
    let own = host.inside("c1", "grep -E 'Seccomp:|CapBnd|NoNewPrivs' /proc/self/status");
    let init = host.inside("c1", "grep -E 'Seccomp:|CapBnd|NoNewPrivs' /proc/1/status");
    assert_eq!(own, init);
    // No descriptor of the host's comes along.
    let descriptors =
        host.inside("c1", "for fd in /proc/$$/fd/*; do readlink $fd; done | grep -v -E '^(pipe|socket):' || true");
    assert_eq!(descriptors, "", "{descriptors}");
}

#[test]
fn a_container_cannot_reach_the_host_through_exec() {
    let host = host();
    // What /proc/self/exe of an exec'd process names must not be a file of the host that can be written.
    let output = host.try_inside("c1", "echo x > /proc/self/exe");
    assert_ne!(output.code(), Some(0));
    let mut child = host.duet("exec c1 -- sh -c 'read x'").spawn();
    within(Duration::from_secs(20), "the command", || (host.processes_inside("c1", "read x") > 0).then_some(()));
    // Processes inside see only those inside.
    let seen = host.inside("c1", "ls /proc | grep -c '^[0-9]'").parse::<usize>().unwrap();
    assert!(seen < 20, "{seen} processes are seen");
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    child.wait().unwrap();
}

#[test]
fn many_at_once() {
    let host = host();
    std::thread::scope(|scope| {
        for n in 0..24 {
            let host = &host;
            scope.spawn(move || {
                let output = host
                    .duet(&format!("exec c1 -- sh -c 'cat; echo {n} >&2; exit {n}'"))
                    .stdin(vec![b'x'; 300_000])
                    .run();
                let output = output.exited(n);
                assert_eq!(output.stdout.len(), 300_000);
                assert_eq!(output.errors(), n.to_string());
            });
        }
    });
    eventually("no command being left", || (host.processes_inside("c1", "cat") == 0).then_some(()));
}
