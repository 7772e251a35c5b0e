//! Whole guests in QEMU's software emulation. `tests/vm.sh` makes what that takes; without it these are skipped.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use duet_control::client::ClientError;
use duet_control::protocol::{ErrorKind, ExecRequest, ExecStatus, ExitReason, PtySize, Reply, Request};
use duet_files::{FileSession, WriteOptions};
use rustix::process::{Pid, Signal};
use support::{BOOT, Machine, NO_UDEV, Parts, Plan, SOON, exited, pipe, request};

fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> ErrorKind {
    match result {
        Err(ClientError::Refused(error)) => error.kind,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_lives_from_start_to_stop() {
    let Some(parts) = Parts::find() else { return };
    let below = fs::metadata(&parts.disk).unwrap().modified().unwrap();
    let machine = Plan::guest("whole", &parts, NO_UDEV).run();
    let watcher = machine.client();
    watcher.watch().unwrap();
    let status = machine.client().status().unwrap();
    assert_eq!(status.status.init_pid, machine.started.pid);
    assert_eq!((status.status.name, status.status.ready), (machine.plan.spec.name.clone(), false));
    assert!(status.netlink.is_none() && status.status.notes.contains_key("note"));
    eprintln!("{:?}", status.status.start_timings);
    confined(&machine);

    // Nobody is kept waiting for an agent that is not there.
    let begun = Instant::now();
    assert_eq!(refusal(machine.client().guest_state(duet_control::client::CALL_TIMEOUT)), ErrorKind::Other);
    assert!(begun.elapsed() < Duration::from_secs(2));
    machine.agent();
    programs(&machine);
    terminal(&machine);
    files(&machine);

    let (ready, _) = watcher.receive_until(Instant::now() + BOOT).unwrap().expect("the guest comes up");
    assert_eq!(ready, Reply::Ready);
    eprintln!("the system is up after {:?}", machine.begun.elapsed());
    assert!(machine.client().status().unwrap().status.ready);
    let state = machine.client().guest_state(duet_control::client::CALL_TIMEOUT).unwrap();
    assert_eq!((state["up"].as_bool(), state["os_release"]["ID"].as_str()), (Some(true), Some("debian")));

    console(&machine);
    hostile_clients(&machine);
    eprintln!("{}", footprint(status.status.monitor_pid));
    let attach = Request::DetachDevice { target: "/dev/x".into() };
    assert_eq!(refusal(machine.client().call(&attach, &[])), ErrorKind::Invalid);
    assert_eq!(refusal(machine.client().signal_init(15)), ErrorKind::Invalid);

    let (client, program) = (machine.client(), machine.client());
    program.exec(request(&["sleep", "1000"]), Some([pipe().0.as_fd(), pipe().1.as_fd(), pipe().1.as_fd()])).unwrap();
    let begun = Instant::now();
    client.stop().unwrap();
    assert_eq!(machine.ended(&watcher), ExitReason::Halt);
    eprintln!("stopped in {:?}", begun.elapsed());
    assert!(matches!(program.receive_until(Instant::now()), Ok(Some((Reply::ExecExited { .. }, _)))));
    assert!(machine.console().contains("Power down"), "{}", machine.console());
    // What a guest writes goes into the upper layer alone.
    assert_eq!(fs::metadata(&parts.disk).unwrap().modified().unwrap(), below);
}

/// The machine's process has nothing of the host's.
fn confined(machine: &Machine) {
    let proc = |name: &str| format!("/proc/{}/{name}", machine.started.pid);
    let status = fs::read_to_string(proc("status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
        line.split_ascii_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(field("Uid"), ["4000000"; 4]);
    assert_eq!(field("Gid"), ["4000001"; 4]);
    assert!(field("Groups").is_empty());
    assert_eq!((&*field("NoNewPrivs")[0], &*field("Seccomp")[0]), ("1", "2"));
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert_eq!(field(set), ["0000000000000000"], "{set}");
    }
    assert_eq!(field("NSpid").len(), 2);
    for namespace in ["mnt", "net", "ipc", "uts", "pid"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of(&machine.started.pid.to_string()), of("self"), "{namespace}");
    }
    let mut seen: Vec<_> = fs::read_dir(proc("root")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    seen.sort();
    assert!(!seen.iter().any(|name| ["home", "var", "run", "root"].iter().any(|host| name == host)), "{seen:?}");
    assert_eq!(fs::read_dir(proc("root/dev")).unwrap().count(), 1);
    let mounts = fs::read_to_string(proc("mounts")).unwrap();
    assert!(mounts.lines().all(|line| line.contains(" proc ") || line.split(' ').nth(3).unwrap().starts_with("ro")));
}

fn programs(machine: &Machine) {
    let done = machine.shell("echo out; echo err >&2; cat; exit 3", b"typed");
    assert_eq!(done, (ExecStatus::Code(3), "out\ntyped".into(), "err\n".into()));
    // The second disk, and the interface.
    let (_, out, _) = machine.shell("cat /sys/block/vdb/ro /sys/block/vdb/serial; echo; head -n 1 /dev/vdb", b"");
    assert_eq!(out, "1\ndata\nwhat is on the second disk\n");
    let (_, out, _) = machine.shell("cd /sys/class/net/e*; cat address mtu", b"");
    assert_eq!(out, "02:00:00:00:00:ab\n1450\n");
    let exec = |argv: &[&str]| {
        machine.client().exec(request(argv), Some([pipe().0.as_fd(), pipe().1.as_fd(), pipe().1.as_fd()]))
    };
    assert_eq!(refusal(exec(&["no-such-program"])), ErrorKind::CommandNotFound);
    assert_eq!(refusal(exec(&["/etc/passwd"])), ErrorKind::CommandNotExecutable);
    assert_eq!(machine.shell("echo mark > /srv/mark; sync", b"").0, ExecStatus::Code(0));

    // A program without a terminal outlives its connection and is signalled by it.
    let client = machine.client();
    let (reader, writer) = pipe();
    client.exec(request(&["cat"]), Some([reader.as_fd(), writer.as_fd(), writer.as_fd()])).unwrap();
    client.send_exec_signal(15).unwrap();
    assert_eq!(client.receive_until(Instant::now() + SOON).unwrap().unwrap().0, Reply::Ok);
    assert_eq!(exited(&client), ExecStatus::Signal(15));
    assert_eq!(refusal(client.call(&Request::ExecSignal { signal: 15 }, &[])), ErrorKind::NotFound);
    let client = machine.client();
    let ((stdin, mut ours), (output, stdout)) = (pipe(), pipe());
    client.exec(request(&["cat"]), Some([stdin.as_fd(), stdout.as_fd(), stdout.as_fd()])).unwrap();
    drop((client, stdin, stdout));
    ours.write_all(b"alone").unwrap();
    drop(ours);
    assert_eq!(support::read(output), "alone");
}

fn terminal(machine: &Machine) {
    let size = PtySize { columns: 100, rows: 30 };
    let interactive = || ExecRequest { pty: Some(size), ..request(&["sh"]) };
    let client = machine.client();
    let started = client.exec(interactive(), None).unwrap();
    let mut terminal = UnixStream::from(started.pty.unwrap());
    client.send_exec_resize(PtySize { columns: 90, rows: 20 }).unwrap();
    assert_eq!(client.receive_until(Instant::now() + SOON).unwrap().unwrap().0, Reply::Ok);
    terminal.write_all(b"stty size; exit 7\n").unwrap();
    let mut shown = String::new();
    terminal.read_to_string(&mut shown).unwrap();
    assert!(shown.contains("20 90"), "{shown}");
    assert_eq!(exited(&client), ExecStatus::Code(7));

    let client = machine.client();
    let started = client.exec(interactive(), None).unwrap();
    drop(client);
    let alive = format!("test -d /proc/{}", started.pid);
    machine.until("the end of what had a terminal", SOON, || {
        (machine.shell(&alive, b"").0 == ExecStatus::Code(1)).then_some(())
    });
}

fn files(machine: &Machine) {
    let mut session = FileSession::over(machine.client().files().unwrap()).unwrap();
    let content = vec![7; 1_000_000];
    session.write_from("/srv/file", &mut &*content, &WriteOptions::default()).unwrap();
    let mut back = Vec::new();
    session.read_to("/srv/file", &mut back).unwrap();
    assert!(back == content);
}

fn console(machine: &Machine) {
    let client = machine.client();
    let mut stream = UnixStream::from(client.console(false).unwrap());
    assert_eq!(refusal(machine.client().console(false)), ErrorKind::Busy);
    client.resize_console(PtySize { columns: 80, rows: 25 }).unwrap();
    // The login greets again.
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut seen = String::new();
    let begun = Instant::now();
    while !seen.contains("login:") {
        assert!(begun.elapsed() < SOON, "{seen:?}\n{}", machine.console());
        stream.write_all(b"\n").unwrap();
        let mut chunk = [0; 1024];
        let len = stream.read(&mut chunk).unwrap();
        seen.push_str(&String::from_utf8_lossy(&chunk[..len]));
    }
    machine.until("the login in the log", SOON, || machine.console().contains("login:").then_some(()));
    let second = machine.client();
    let _taken = second.console(true).unwrap();
    assert_eq!(client.receive_until(Instant::now() + SOON).unwrap().unwrap().0, Reply::ConsoleTaken);
    drop(second);
    machine.until("the console's freedom", SOON, || {
        (!machine.client().status().unwrap().status.console_attached).then_some(())
    });
}

/// Clients that say nonsense or never read do not hold others up.
fn hostile_clients(machine: &Machine) {
    let silent = machine.client();
    for _ in 0..10_000 {
        if silent.send(&Request::Status, &[]).is_err() {
            break;
        }
    }
    let nonsense = machine.client();
    duet_sys::socket::send(&nonsense, b"{\"type\":\"dance\"}", &[]).unwrap();
    let said = nonsense.receive_until(Instant::now() + SOON).unwrap().unwrap().0;
    assert!(matches!(said, Reply::Error(error) if error.kind == ErrorKind::Invalid));
    let begun = Instant::now();
    machine.client().status().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1));
}

fn footprint(pid: u32) -> String {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let field = |name: &str| rollup.lines().find(|line| line.starts_with(name)).unwrap_or("").to_owned();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    format!("monitor: {}, {}, {threads} threads", field("Pss:"), field("Private_Dirty:"))
}

#[test]
fn a_guest_that_resets_wants_to_be_started_again() {
    let Some(parts) = Parts::find() else { return };
    let machine = Plan::guest("reset", &parts, "init=/bin/sh").run();
    let watcher = machine.client();
    watcher.watch().unwrap();
    machine.agent();
    // This init never says that it is up.
    assert_eq!(watcher.receive_until(Instant::now() + BOOT).unwrap().unwrap().0, Reply::Ready);
    // On the console's shell, which is the guest's first process.
    let client = machine.client();
    let mut stream = UnixStream::from(client.console(false).unwrap());
    stream.write_all(b"exec reboot -f\n").unwrap();
    assert_eq!(machine.ended(&watcher), ExitReason::Reboot);
}

#[test]
fn a_guest_that_panics_is_not_started_again() {
    let Some(parts) = Parts::find() else { return };
    let machine = Plan::guest("panic", &parts, "init=/bin/sh").run();
    let watcher = machine.client();
    watcher.watch().unwrap();
    machine.agent();
    // What a guest's udev would do.
    let modules = parts.kernel.join(&parts.modules).join("kernel/drivers/misc/pvpanic");
    let mut session = FileSession::over(machine.client().files().unwrap()).unwrap();
    let busybox = fs::read("/usr/bin/busybox").unwrap();
    session.write_from("/srv/busybox", &mut &*busybox, &WriteOptions::default()).unwrap();
    for name in ["pvpanic.ko", "pvpanic-mmio.ko"] {
        let packed = modules.join(format!("{name}.xz"));
        let unpacked = Command::new("xz").arg("-dc").arg(packed).output().unwrap().stdout;
        session.write_from(format!("/srv/{name}"), &mut &*unpacked, &WriteOptions::default()).unwrap();
    }
    let script = "chmod 755 /srv/busybox; cd /srv; for m in pvpanic pvpanic-mmio; do ./busybox insmod $m.ko; done";
    assert_eq!(machine.shell(script, b""), (ExecStatus::Code(0), String::new(), String::new()));
    let client = machine.client();
    let mut stream = UnixStream::from(client.console(false).unwrap());
    stream.write_all(b"echo c > /proc/sysrq-trigger\n").unwrap();
    assert_eq!(machine.ended(&watcher), ExitReason::Exited { code: 11 });
    assert!(machine.console().contains("Kernel panic"), "{}", machine.console());
}

#[test]
fn machine_and_monitor_end_with_each_other() {
    let Some(parts) = Parts::find() else { return };
    let machine = Plan::guest("killed", &parts, "").run();
    let watcher = machine.client();
    watcher.watch().unwrap();
    machine.client().signal_init(9).unwrap();
    assert_eq!(machine.ended(&watcher), ExitReason::Signal { signal: 9 });

    let machine = Plan::guest("orphan", &parts, "").run();
    let monitor = machine.client().status().unwrap().status.monitor_pid;
    rustix::process::kill_process(Pid::from_raw(monitor.cast_signed()).unwrap(), Signal::KILL).unwrap();
    let gone = duet_sys::socket::wait_readable(&machine.started.pidfd, Instant::now() + SOON).unwrap();
    assert!(gone, "the machine outlives its monitor");
    // It could not tidy up.
    fs::remove_file(machine.plan.path("monitor.sock")).unwrap();
}

#[test]
fn a_start_that_is_given_up_leaves_nothing() {
    let Some(parts) = Parts::find() else { return };
    let plan = Plan::guest("given-up", &parts, "");
    drop(plan.launch());
    plan.assert_gone();
    drop(plan.launch().send(&plan.spec, &plan.fds()).unwrap());
    plan.assert_gone();
    for pause in [1, 20, 50, 100] {
        let starting = plan.launch().send(&plan.spec, &plan.fds()).unwrap();
        std::thread::sleep(Duration::from_millis(pause));
        drop(starting);
        // It may have been too late.
        for pid in plan.processes() {
            let name = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if plan.path("monitor.sock").exists() && name.starts_with(b"[duet monitor]") {
                plan_kill(&plan);
            }
        }
        plan.assert_gone();
    }
}

fn plan_kill(plan: &Plan) {
    if let Ok(client) = duet_control::MonitorClient::connect(plan.dir.path()) {
        let _ = client.signal_init(9);
    }
}

#[test]
fn a_machine_that_cannot_run_says_why() {
    let Some(parts) = Parts::find() else { return };
    let mut plan = Plan::guest("broken", &parts, "");
    plan.files[2] = tempfile::tempfile().unwrap().into();
    let error = plan.start().unwrap_err().to_string();
    assert!(error.starts_with("run the machine: ") && error.contains("qcow2"), "{error}");
    plan.assert_gone();
    plan.spec.program = "/usr/bin/no-such-program".into();
    let error = plan.start().unwrap_err().to_string();
    assert!(error.contains("execute /usr/bin/no-such-program: No such file"), "{error}");
    plan.assert_gone();
    plan.spec.cgroups = vec!["/nowhere".into()];
    let error = plan.start().unwrap_err().to_string();
    assert!(error.contains("open the control group \"/nowhere\""), "{error}");
    plan.assert_gone();
}
