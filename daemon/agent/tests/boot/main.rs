//! A whole guest: a distribution's kernel, our initramfs, an image's root, in QEMU's software emulation.
//!
//! `tests/vm.sh` makes what it needs and says where it is; without that it is skipped.

mod archive;
mod machine;
mod told;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio as Std};
use std::time::{Duration, Instant, SystemTime};

use duet_agent::client::{Client, ClientError, connect_vsock};
use duet_agent::mux::Link;
use duet_agent::protocol::message::{ErrorKind, ExecStatus, Power, PtySize};
use duet_files::{FileSession, WriteOptions};

use machine::{BOOT, Machine, Parts, Plan, SOON, exec, request, shell};
use told::{cards_and_modules, console, told, was_told};

#[test]
fn a_guest_boots_and_serves_from_its_first_moment_to_its_last() {
    let Some(parts) = Parts::find() else { return };
    let plan = Plan {
        words: "duet.root=serial:the-root rw rootfstype=ext4 duet.modules",
        setup: Some(told()),
        more: cards_and_modules(&parts),
        ..Plan::default()
    };
    let mut machine = Machine::start_with(&parts, plan, tempfile::tempdir().unwrap());
    let (client, _) = machine.connect();
    eprintln!("agent after {:?}", machine.started.elapsed());
    let (status, out, _) = shell(&client, "cat /proc/1/comm; cat /proc/self/mountinfo | grep ' / / '");
    eprintln!("first program after {:?}: {status:?} {out}", machine.started.elapsed());

    while client.state(SOON).unwrap().up != Some(true) {
        assert!(machine.started.elapsed() < BOOT, "systemd never says that it is up:\n{}", machine.console());
        std::thread::sleep(Duration::from_millis(200));
    }
    eprintln!("the system is up after {:?}", machine.started.elapsed());
    let state = client.state(SOON).unwrap();
    eprintln!("{state:#?}");
    assert_eq!(state.os_release["ID"], "debian");
    assert!(state.memory.total > 300 << 20 && state.processes > 20);
    assert!(state.network["lo"].loopback);
    let sentences: Vec<String> =
        machine.console().lines().filter(|line| line.contains("duet: ")).map(str::to_owned).collect();
    assert!(sentences.len() == 1 && sentences[0].contains("duet: /proc/cmdline cannot be written"), "{sentences:?}");

    was_told(&client);
    console(&client, &machine);

    programs(&client);
    terminal(&client, "tty | grep /dev/pts/");
    transfer(&client);
    files(&client);

    // The agent is out of systemd's and of the old root's way.
    let (_, out, _) = shell(
        &client,
        "tr '\\0' ' ' < /proc/$PPID/cmdline; readlink /proc/$PPID/exe; grep -E 'VmRSS|Threads' /proc/$PPID/status; \
         cat /proc/$PPID/cgroup; grep ' / ' /proc/mounts; ulimit -n",
    );
    eprintln!("{out}");
    assert!(out.starts_with("@duet-agent"), "{out}");
    assert!(out.contains("/init (deleted)") && out.contains("Threads:\t1\n"), "{out}");
    assert!(out.ends_with("\n1024\n"), "{out}");

    // The clock.
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
    client.set_time(then.duration_since(SystemTime::UNIX_EPOCH).unwrap(), SOON).unwrap();
    assert!(shell(&client, "date +%s").1.starts_with("20000000"));

    drop(client);
    reconnect(&mut machine);

    let begun = Instant::now();
    let (client, _) = machine.connect();
    client.power(Power { reboot: false, force: false }, SOON).unwrap();
    machine.wait();
    eprintln!("switched off in {:?}", begun.elapsed());
    let console = machine.console();
    assert!(console.contains("Power down"), "{console}");
}

/// Connections are cut in the middle of everything, and the next client finds an agent all the same.
fn reconnect(machine: &mut Machine) {
    let mut lasting = 0;
    let mut interactive = 0;
    for round in 0..5 {
        let begun = Instant::now();
        let (client, socket) = machine.connect();
        eprintln!("connected again in {:?}", begun.elapsed());
        if round > 0 {
            // What had a terminal ended with its client, what had none lives on.
            let there = |pid: u32| shell(&client, &format!("test -d /proc/{pid}")).0 == ExecStatus::Code(0);
            assert!(there(lasting));
            let deadline = Instant::now() + SOON;
            while there(interactive) {
                assert!(Instant::now() < deadline, "the program of a terminal outlives its client");
            }
        }
        let size = PtySize { columns: 80, rows: 24 };
        let (with_terminal, _terminal) = client.exec_pty(request(&["sleep", "111111"]), size, SOON).unwrap();
        let (without, _fds) = exec(&client, &["sleep", "222222"]).unwrap();
        (interactive, lasting) = (with_terminal.pid(), without.pid());
        let (_pouring, [mut into, _, _]) = exec(&client, &["sha256sum"]).unwrap();
        let (_flooding, [_held, mut out, _]) = exec(&client, &["cat", "/dev/zero"]).unwrap();
        let writer = std::thread::spawn(move || while into.write(&[1; 4096]).is_ok() {});
        out.read_exact(&mut vec![0; 1 << 20]).unwrap();
        // As if the process of this client was killed.
        socket.shutdown(std::net::Shutdown::Both).unwrap();
        writer.join().unwrap();
        assert!(client.is_lost());
    }
}

/// The files of a machine that is switched off, and what is left of its disk afterwards.
#[test]
fn a_root_is_served_without_anything_of_it_running() {
    let Some(parts) = Parts::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    let copied = Command::new("cp").arg("--sparse=always").args([&parts.disk, &disk]).status().unwrap();
    assert!(copied.success());
    let check = |command: &str, words: &[&str]| {
        let output = Command::new(command).args(words).arg(&disk).output().unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let words = "duet.root=serial:the-root rw duet.serve";
    let plan = Plan { words, setup: Some(told()), disk: Some(&disk), ..Plan::default() };
    let mut machine = Machine::start_with(&parts, plan, tempfile::tempdir().unwrap());
    let (client, _) = machine.connect();
    eprintln!("serves after {:?}", machine.started.elapsed());
    assert_eq!(client.state(SOON).unwrap().up, None);
    files(&client);
    let (_, out, _) = shell(&client, "readlink /proc/1/exe; ls /srv; echo made > /srv/made");
    assert_eq!(out, "/init (deleted)\nfile\n");
    // One that has a file open, and one that nobody waits for.
    let _held = exec(&client, &["sh", "-c", "sleep 1111 & exec sleep 1000 > /srv/held"]).unwrap();
    let begun = Instant::now();
    client.power(Power { reboot: false, force: false }, SOON).unwrap();
    machine.wait();
    eprintln!("switched off in {:?}", begun.elapsed());
    assert!(!machine.console().contains("duet"), "{}", machine.console());
    let header = check("dumpe2fs", &["-h"]);
    assert!(header.contains("state:         clean\n") && !header.contains("needs_recovery"), "{header}");
    check("e2fsck", &["-f", "-n"]);
    assert_eq!(check("debugfs", &["-R", "cat /srv/made"]), "made\n");
}

/// By vsock, as with Duet's own monitor: the device of another project stands in for that where there is no KVM.
#[test]
fn a_guest_is_reached_by_vsock() {
    let Some(parts) = Parts::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (device, hub) = (dir.path().join("device.sock"), dir.path().join("vsock.sock"));
    let mut vm = OsString::from("guest-cid=7,socket=");
    vm.push(&device);
    vm.push(",uds-path=");
    vm.push(&hub);
    let Ok(mut vsock) = Command::new("vhost-device-vsock").arg("--vm").arg(vm).stderr(Std::null()).spawn() else {
        eprintln!("skipped: no vhost-device-vsock (cargo install vhost-device-vsock)");
        return;
    };
    let deadline = Instant::now() + SOON;
    while !device.exists() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut chardev = OsString::from("socket,id=vsock,path=");
    chardev.push(&device);
    let more = ["-chardev".into(), chardev, "-device".into(), "vhost-user-vsock-pci,chardev=vsock".into()];
    let plan = Plan { words: "duet.root=/dev/vda rw init=/bin/sh", more: more.into(), ..Plan::default() };
    let mut machine = Machine::start_with(&parts, plan, dir);
    for round in 0..3 {
        let begun = Instant::now();
        let (client, socket) = loop {
            machine.still_runs();
            // Nobody listens before the agent does.
            let connected = UnixStream::connect(&hub).unwrap();
            let copy = connected.try_clone().unwrap();
            if let Ok(stream) = connect_vsock(connected, SOON) {
                break (Client::connect(stream, Link::Fresh, SOON).unwrap(), copy);
            }
            assert!(begun.elapsed() < BOOT, "{}", machine.console());
            std::thread::sleep(Duration::from_millis(50));
        };
        eprintln!("by vsock after {:?} (round {round})", begun.elapsed());
        assert_eq!(client.state(SOON).unwrap().os_release["ID"], "debian");
        // That device loses what a guest from Linux 6.12 on sends in one packet of more than 32 KiB, because it takes only the
        // first of the pieces that such a packet then has.
        assert_eq!(shell(&client, "head -c 20000 /dev/zero | tr '\\0' x").1, "x".repeat(20_000));
        let _held = exec(&client, &["sleep", "1000"]).unwrap();
        socket.shutdown(std::net::Shutdown::Both).unwrap();
    }
    drop(machine);
    let _ = vsock.kill();
    let _ = vsock.wait();
}

#[test]
fn a_guest_without_its_root_says_so_and_ends() {
    let Some(parts) = Parts::find() else { return };
    for (words, sentence) in [
        (
            "duet.root=serial:another duet.wait=1",
            "duet: there is no root: a disk with the serial number another did not appear",
        ),
        ("", "duet: the kernel's command line names no root"),
        ("duet.root=/dev/vda rootfstype=vfat", "duet: the root /dev/vda cannot be mounted as vfat"),
        ("duet.root=/dev/vda init=/no", "duet: the root has no init that can be executed (/no: No such file"),
    ] {
        let mut machine = Machine::start(&parts, words);
        machine.wait();
        let console = machine.console();
        assert!(console.contains(sentence), "{console}");
    }
}

#[test]
fn an_image_without_an_init_has_a_shell_and_is_ended_by_force() {
    let Some(parts) = Parts::find() else { return };
    let mut machine = Machine::start(&parts, "duet.root=/dev/vda rw init=/bin/sh");
    let (client, _) = machine.connect();
    let state = client.state(SOON).unwrap();
    assert_eq!((state.up, &*state.os_release["ID"]), (None, "debian"));
    // What an init would make is there.
    terminal(&client, "tty | grep /dev/pts/");
    assert_eq!(shell(&client, "echo a > /dev/stderr; test -d /dev/shm").0, ExecStatus::Code(0));
    let begun = Instant::now();
    match client.power(Power { reboot: true, force: true }, SOON) {
        Ok(()) | Err(ClientError::Lost(_)) => {}
        Err(error) => panic!("{error}"),
    }
    machine.wait();
    eprintln!("forced to end in {:?}", begun.elapsed());
}

fn programs(client: &Client) {
    assert_eq!(shell(client, "echo out; echo err >&2; exit 3"), (ExecStatus::Code(3), "out\n".into(), "err\n".into()));
    let (_, out, _) = shell(client, "id; ulimit -n; umask; pwd; echo $HOME $PATH; cat /proc/self/oom_score_adj");
    eprintln!("{out}");
    let kind = |argv: &[&str]| match exec(client, argv) {
        Err(ClientError::Refused(error)) => error.kind,
        other => panic!("{other:?}"),
    };
    assert_eq!(kind(&["no-such-program"]), ErrorKind::CommandNotFound);
    assert_eq!(kind(&["/etc/passwd"]), ErrorKind::CommandNotExecutable);
    let (mut sleep, _fds) = exec(client, &["sleep", "1000"]).unwrap();
    sleep.signal(15).unwrap();
    assert_eq!(sleep.wait(SOON).unwrap(), Some(ExecStatus::Signal(15)));
    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(shell(client, "true").0, ExecStatus::Code(0));
    }
    eprintln!("exec of `sh -c true`: {:?} each", begun.elapsed() / 20);
}

fn terminal(client: &Client, first: &str) {
    let (mut exec, terminal) = client.exec_pty(request(&["sh"]), PtySize { columns: 100, rows: 30 }, SOON).unwrap();
    let mut terminal = UnixStream::from(terminal);
    terminal.write_all(format!("{first} && stty size && exit 7\n").as_bytes()).unwrap();
    let mut shown = String::new();
    terminal.read_to_string(&mut shown).unwrap();
    eprintln!("{shown}");
    assert!(shown.contains("30 100"), "{shown}");
    assert_eq!(exec.wait(SOON).unwrap(), Some(ExecStatus::Code(7)));
}

fn files(client: &Client) {
    let mut session = FileSession::over(client.files(SOON).unwrap()).unwrap();
    let content: Vec<u8> = (0..10_000_000_u32).map(|at| (at % 251) as u8).collect();
    let begun = Instant::now();
    session.write_from("/srv/file", &mut &*content, &WriteOptions::default()).unwrap();
    let mut back = Vec::new();
    session.read_to("/srv/file", &mut back).unwrap();
    assert!(back == content);
    eprintln!("{} bytes into a file and out of it in {:?}", content.len(), begun.elapsed());
    assert_eq!(session.names("/srv").unwrap(), ["file"]);
    let mut release = Vec::new();
    session.read_to("/etc/os-release", &mut release).unwrap();
    assert!(String::from_utf8(release).unwrap().contains("ID=debian"));
}

/// A hundred megabytes each way, checked by hash, while another program's output is not read.
fn transfer(client: &Client) {
    const LENGTH: usize = 100_000_000;
    let (_flood, _unread) = exec(client, &["yes"]).unwrap();
    let begun = Instant::now();
    // The guest makes them and tells their hash, so that both directions carry what cannot be guessed.
    let script = format!("head -c {LENGTH} /dev/urandom | tee /dev/stderr | sha256sum");
    let (mut exec, [stdin, mut hash, mut bytes]) = crate::exec(client, &["sh", "-c", &script]).unwrap();
    drop(stdin);
    let mut all = Vec::new();
    bytes.read_to_end(&mut all).unwrap();
    let mut theirs = String::new();
    hash.read_to_string(&mut theirs).unwrap();
    assert_eq!(exec.wait(SOON).unwrap(), Some(ExecStatus::Code(0)));
    assert_eq!(all.len(), LENGTH);
    eprintln!("{LENGTH} bytes out of the guest in {:?}", begun.elapsed());
    let begun = Instant::now();
    let (mut exec, [mut stdin, mut hash, _]) = crate::exec(client, &["sha256sum"]).unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&all));
    let mut ours = String::new();
    hash.read_to_string(&mut ours).unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(exec.wait(SOON).unwrap(), Some(ExecStatus::Code(0)));
    eprintln!("and back into it in {:?}: {ours}", begun.elapsed());
    assert_eq!(ours, theirs);
}
