//! Programs in the running container.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use duet_container::client::ClientError;
use duet_container::protocol::{ErrorKind, ExecRequest, ExecStatus, PtySize};
use duet_container::spec::CgroupKind;

use crate::support::{Container, DEADLINE, exit_status, request, wait_until};

#[test]
fn output_error_and_status_are_apart() {
    let container = Container::new().start();
    let output = container.sh("echo out; echo err >&2; exit 42");
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(output.status, ExecStatus::Code(42));
    let output = container.sh("kill -KILL $$");
    assert_eq!(output.status, ExecStatus::Signal(libc::SIGKILL));
    assert_eq!(output.status.shell_code(), 137);
}

#[test]
fn the_standard_descriptors_can_be_opened_by_name() {
    let container = Container::new().start();
    assert_eq!(container.ok("echo by name > /dev/stdout"), "by name");
    let mut ask = request(&["sh", "-c", "echo as user > /dev/stderr"]);
    ask.uid = 1000;
    ask.gid = 1000;
    assert_eq!(container.run(ask).stderr, "as user\n");
}

/// As systemd does at its start: with a controller on for its children, the payload group may have no processes itself.
#[test]
fn programs_find_a_place_when_init_divides_its_group() {
    let container = Container::new().start();
    let payload = &container.spec.cgroups.iter().find(|dir| dir.kind == CgroupKind::V2).unwrap().path;
    let group = payload.parent().unwrap();
    let controllers = std::fs::read_to_string(group.join("cgroup.controllers")).unwrap();
    let Some(controller) = controllers.split_whitespace().next() else {
        eprintln!("skipped: the cgroup2 tree has no controller here");
        return;
    };
    std::fs::write(group.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
    let divide = format!(
        "cd /sys/fs/cgroup && mkdir init && echo 1 > init/cgroup.procs && echo $$ > init/cgroup.procs && \
         echo +{controller} > cgroup.subtree_control"
    );
    container.ok(&divide);
    assert_eq!(container.ok("grep ^0:: /proc/self/cgroup"), "0::/exec");
    assert_eq!(container.ok("grep ^0:: /proc/1/cgroup"), "0::/init");
}

#[test]
fn environment_directory_and_user_are_as_asked() {
    let container = Container::new().start();
    let mut ask = request(&["sh", "-c", "echo $HOME $USER $LANG $PATH $COLOR; pwd; id -u; id -g; umask"]);
    let expected =
        "/root root C.UTF-8 /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n/root\n0\n0\n0022\n";
    assert_eq!(container.run(ask.clone()).stdout, expected);

    ask.uid = 1000;
    ask.gid = 1000;
    ask.cwd = Some("/tmp".into());
    ask.environment.insert("COLOR".into(), "red green".into());
    ask.environment.insert("LANG".into(), "de_DE.UTF-8".into());
    let output = container.run(ask);
    assert!(output.stdout.ends_with(" red green\n/tmp\n1000\n1000\n0022\n"), "{output:?}");
    assert!(output.stdout.contains("de_DE.UTF-8") && !output.stdout.contains("/root"), "{output:?}");

    let mut ask = request(&["sh", "-c", "grep -E 'Cap(Eff|Prm|Inh|Amb)|Groups' /proc/self/status"]);
    ask.uid = 1000;
    let output = container.run(ask);
    assert!(
        output.stdout.lines().filter(|line| line.starts_with("Cap")).all(|line| line.ends_with("0000000000000000"))
    );
    assert!(output.stdout.contains("Groups:\t \n"), "{output:?}");
}

#[test]
fn what_cannot_be_executed_is_told_as_a_shell_would() {
    let container = Container::new().start();
    let refusal = |argv: &[&str]| {
        let null = File::open("/dev/null").unwrap();
        let stdio = [null.as_fd(), null.as_fd(), null.as_fd()];
        match container.connect().exec(request(argv), Some(stdio)) {
            Err(ClientError::Refused(error)) => error.kind,
            other => panic!("{argv:?}: {other:?}"),
        }
    };
    assert_eq!(refusal(&["no-such-program"]), ErrorKind::CommandNotFound);
    assert_eq!(refusal(&["/no/such/program"]), ErrorKind::CommandNotFound);
    assert_eq!(refusal(&["/etc/passwd"]), ErrorKind::CommandNotExecutable);
    assert_eq!(refusal(&["/etc"]), ErrorKind::CommandNotExecutable);
    assert_eq!(refusal(&[]), ErrorKind::Invalid);
    assert_eq!(refusal(&[""]), ErrorKind::Invalid);
    assert_eq!(refusal(&["a\0b"]), ErrorKind::Invalid);

    let ask = ExecRequest { cwd: Some("/no/such/dir".into()), ..request(&["true"]) };
    let null = File::open("/dev/null").unwrap();
    match container.connect().exec(ask, Some([null.as_fd(), null.as_fd(), null.as_fd()])) {
        Err(ClientError::Refused(error)) => assert!(error.message.contains("/no/such/dir"), "{error}"),
        other => panic!("{other:?}"),
    }
    // A script without an interpreter line is run by the shell.
    container.ok("printf 'echo script $1' > /script; chmod +x /script");
    assert_eq!(container.run(request(&["/script", "x"])).stdout, "script x\n");
}

#[test]
fn a_large_input_is_streamed() {
    let container = Container::new().start();
    let client = container.connect();
    let (in_read, in_write) = rustix::pipe::pipe().unwrap();
    let (out_read, out_write) = rustix::pipe::pipe().unwrap();
    let null = File::options().write(true).open("/dev/null").unwrap();
    client.exec(request(&["cat"]), Some([in_read.as_fd(), out_write.as_fd(), null.as_fd()])).unwrap();
    drop((in_read, out_write));
    let writer = std::thread::spawn(move || {
        let mut stdin = File::from(in_write);
        for number in 0..4096_u32 {
            stdin.write_all(&number.to_le_bytes().repeat(1024)).unwrap();
        }
    });
    let mut stdout = File::from(out_read);
    let mut chunk = vec![0; 4096];
    for number in 0..4096_u32 {
        stdout.read_exact(&mut chunk).unwrap();
        assert_eq!(chunk, number.to_le_bytes().repeat(1024));
    }
    writer.join().unwrap();
    assert_eq!(stdout.read(&mut chunk).unwrap(), 0);
    assert_eq!(exit_status(&client), ExecStatus::Code(0));
}

/// Reads from a terminal until a text has come.
fn read_until(master: &OwnedFd, text: &str) -> String {
    let mut seen = String::new();
    let deadline = Instant::now() + DEADLINE;
    while !seen.contains(text) {
        assert!(duet_sys::socket::wait_readable(master, deadline).unwrap(), "waited in vain for {text:?}: {seen:?}");
        let mut chunk = [0; 4096];
        let len = rustix::io::read(master, &mut chunk).unwrap();
        seen.push_str(&String::from_utf8_lossy(&chunk[..len]));
    }
    seen
}

#[test]
fn a_terminal_has_a_size_an_owner_and_job_control() {
    let container = Container::new().start();
    let client = container.connect();
    let mut ask = request(&["sh"]);
    ask.pty = Some(PtySize { columns: 132, rows: 43 });
    ask.uid = 1000;
    ask.gid = 1000;
    ask.cwd = Some("/".into());
    let master = client.exec(ask, None).unwrap().pty.unwrap();
    rustix::io::write(&master, b"stty size; tty; stat -c %u $(tty); echo end-$((1+1))\n").unwrap();
    let seen = read_until(&master, "end-2");
    assert!(seen.contains("43 132") && seen.contains("/dev/pts/") && seen.contains("1000"), "{seen:?}");
    duet_sys::pty::resize(&master, 90, 30).unwrap();
    rustix::io::write(&master, b"stty size; echo end-$((1+2))\n").unwrap();
    assert!(read_until(&master, "end-3").contains("30 90"));
    // Interrupts reach the foreground job, and not the shell.
    rustix::io::write(&master, b"echo ready; sleep 1000\n").unwrap();
    read_until(&master, "ready\r\n");
    wait_until("sleep to run", || container.ok("ps").contains("sleep 1000\n"));
    rustix::io::write(&master, b"\x03").unwrap();
    rustix::io::write(&master, b"exit 5\n").unwrap();
    assert_eq!(exit_status(&client), ExecStatus::Code(5));
}

#[test]
fn a_program_with_a_terminal_ends_with_its_connection() {
    let container = Container::new().start();
    let client = container.connect();
    let mut ask = request(&["sh", "-c", "trap '' HUP TERM; sleep 1000; sleep 1000"]);
    ask.pty = Some(PtySize::default());
    let executed = client.exec(ask, None).unwrap();
    let pid = rustix::process::Pid::from_raw(executed.pid.cast_signed()).unwrap();
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    drop(client);
    crate::support::wait_end(pidfd);
    drop(executed);
}

#[test]
fn a_program_without_a_terminal_outlives_its_connection() {
    let container = Container::new().start();
    let client = container.connect();
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let ask = request(&["sh", "-c", "until test -e /go; do sleep 0.01; done; echo > /done"]);
    client.exec(ask, Some([null.as_fd(), null.as_fd(), null.as_fd()])).unwrap();
    drop(client);
    container.ok("touch /go");
    wait_until("the program to finish", || container.sh("test -e /done").status == ExecStatus::Code(0));
}

#[test]
fn signals_reach_the_program_and_its_group() {
    let container = Container::new().start();
    let client = container.connect();
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let (out_read, out_write) = rustix::pipe::pipe().unwrap();
    let ask = request(&["sh", "-c", "trap 'echo caught; exit 9' USR1; echo up; while :; do sleep 0.01; done"]);
    client.exec(ask, Some([null.as_fd(), out_write.as_fd(), null.as_fd()])).unwrap();
    drop(out_write);
    read_until(&out_read, "up");
    client.send_exec_signal(libc::SIGUSR1).unwrap();
    assert_eq!(exit_status(&client), ExecStatus::Code(9));
    assert!(crate::support::read_all(out_read).contains("caught"));
    // Afterwards the connection is free for the next program.
    client.exec(request(&["false"]), Some([null.as_fd(), null.as_fd(), null.as_fd()])).unwrap();
    assert_eq!(exit_status(&client), ExecStatus::Code(1));
}

#[test]
fn no_descriptor_of_the_host_is_passed_on() {
    let container = Container::with_map(None).start();
    // The three standard ones, and the one with which the directory is read.
    let output = container.run(request(&["sh", "-c", "exec ls /proc/self/fd"]));
    assert_eq!(output.stdout, "0\n1\n2\n3\n");
    let mut ask = request(&["sh", "-c", "pwd"]);
    for number in 3..40 {
        ask.cwd = Some(format!("/proc/self/fd/{number}").into());
        let null = File::open("/dev/null").unwrap();
        let result = container.connect().exec(ask.clone(), Some([null.as_fd(), null.as_fd(), null.as_fd()]));
        assert!(matches!(result, Err(ClientError::Refused(_))), "{number}: {result:?}");
    }
}

#[test]
fn denied_calls_fail_and_the_program_lives() {
    let container = Container::with_map(None).start();
    container.ok("mkdir /m; mount -t tmpfs none /m");
    let output = container.sh("umount -f /m");
    assert_ne!(output.status, ExecStatus::Code(0), "{output:?}");
    assert!(output.stderr.contains("Permission denied"), "{output:?}");
    container.ok("umount /m");
}

#[test]
fn many_programs_at_once() {
    let container = Container::new().start();
    std::thread::scope(|scope| {
        for number in 0..24 {
            let container = &container;
            scope.spawn(move || {
                for _ in 0..4 {
                    let output = container.sh(&format!("echo {number}; exit {number}"));
                    assert_eq!(output.stdout, format!("{number}\n"));
                    assert_eq!(output.status, ExecStatus::Code(number));
                }
            });
        }
    });
}
