//! A whole guest: a distribution's kernel, our initramfs, an image's root, in QEMU's software emulation.
//!
//! `tests/vm.sh` makes what it needs and says where it is; without that it is skipped.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio as Std};
use std::time::{Duration, Instant, SystemTime};

use duet_agent::client::{Client, ClientError, Exec, Stdio, connect_vsock};
use duet_agent::initramfs;
use duet_agent::mux::Link;
use duet_agent::protocol::message::{ErrorKind, ExecRequest, ExecStatus, Power, PtySize};
use duet_agent::setup::{self, Setup};
use duet_files::{FileSession, WriteOptions};

/// Emulation is slow, and not alone on the machine.
const BOOT: Duration = Duration::from_secs(300);
const SOON: Duration = Duration::from_secs(60);

/// What QEMU's own network gives to a guest.
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 15));

/// What the script made.
struct Parts {
    /// A root with a kernel in /boot and its modules in /lib/modules.
    kernel: PathBuf,
    /// A disk with the image's root, of which the filesystem takes a part.
    disk: PathBuf,
    /// A disk with the kernel's modules.
    modules: PathBuf,
    /// The agent, linked statically.
    agent: PathBuf,
}

impl Parts {
    fn find() -> Option<Self> {
        let var = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let parts = (|| {
            Some(Self {
                kernel: var("DUET_VM_KERNEL")?,
                disk: var("DUET_VM_DISK")?,
                modules: var("DUET_VM_MODULES")?,
                agent: var("DUET_VM_AGENT")?,
            })
        })();
        if parts.is_none() {
            eprintln!("skipped: run tests/vm.sh, which makes a kernel and a disk for this");
        }
        parts
    }
}

/// The one entry of a directory whose name begins like this.
fn only(dir: &Path, prefix: &str) -> PathBuf {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let mut found = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    found.next().unwrap_or_else(|| panic!("{} has no {prefix}*", dir.display())).path()
}

/// What a machine is started with.
#[derive(Default)]
struct Plan<'a> {
    words: &'a str,
    setup: Option<Setup>,
    /// Further arguments of QEMU's.
    more: Vec<OsString>,
    /// A disk that is written to, instead of the script's.
    disk: Option<&'a Path>,
}

struct Machine {
    qemu: Child,
    dir: tempfile::TempDir,
    started: Instant,
}

impl Machine {
    fn start(parts: &Parts, words: &str) -> Self {
        Self::start_with(parts, Plan { words, ..Plan::default() }, tempfile::tempdir().unwrap())
    }

    fn start_with(parts: &Parts, plan: Plan<'_>, dir: tempfile::TempDir) -> Self {
        let path = |name: &str| dir.path().join(name);
        let modules = only(&parts.kernel.join("lib/modules"), "");
        let begun = Instant::now();
        let mut archive = File::create(path("initrd")).unwrap();
        let loaded = initramfs::write(
            &fs::read(&parts.agent).unwrap(),
            File::open(&parts.kernel).unwrap(),
            &Path::new("lib/modules").join(modules.file_name().unwrap()),
            "ext4",
            &mut archive,
        )
        .unwrap();
        if let Some(setup) = &plan.setup {
            initramfs::append_setup(setup, &mut archive).unwrap();
        }
        let size = fs::metadata(path("initrd")).unwrap().len();
        eprintln!("initramfs: {size} bytes in {:?}, with {}", begun.elapsed(), loaded.join(" "));
        let option = |text: &str, path: &Path, rest: &str| {
            let mut all = OsString::from(text);
            all.push(path);
            all.push(rest);
            all
        };
        let qemu = Command::new("qemu-system-x86_64")
            .args([
                "-accel",
                "tcg",
                "-machine",
                "q35,memory-backend=memory",
                "-object",
                "memory-backend-memfd,id=memory,size=512M,share=on",
                "-cpu",
                "max",
                "-m",
                "512",
                "-nodefaults",
                "-no-reboot",
                "-display",
                "none",
            ])
            .arg("-kernel")
            .arg(only(&parts.kernel.join("boot"), "vmlinuz"))
            .arg("-initrd")
            .arg(path("initrd"))
            .args(["-append", &format!("console=ttyS0 quiet {}", plan.words)])
            .arg("-drive")
            .arg(match plan.disk {
                Some(disk) => option("if=none,id=root,format=raw,file=", disk, ""),
                None => option("if=none,id=root,format=raw,snapshot=on,file=", &parts.disk, ""),
            })
            .args(["-device", "virtio-blk-pci,drive=root,serial=the-root"])
            .args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=org.duet.agent"])
            .arg("-chardev")
            .arg(option("socket,id=agent,server=on,wait=off,path=", &path("agent.sock"), ""))
            .arg("-chardev")
            .arg(option(
                &format!("socket,id=console,server=on,wait=off,logfile={},path=", path("console").display()),
                &path("console.sock"),
                "",
            ))
            .args(["-serial", "chardev:console"])
            .args(["-device", "virtio-rng-pci"])
            .args(&plan.more)
            .stdin(Std::null())
            .spawn()
            .unwrap();
        Self { qemu, dir, started: Instant::now() }
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("console")).unwrap_or_default()).into_owned()
    }

    /// A client, and its connection to cut.
    fn connect(&mut self) -> (Client, UnixStream) {
        let deadline = Instant::now() + BOOT;
        let socket = loop {
            match UnixStream::connect(self.dir.path().join("agent.sock")) {
                Ok(socket) => break socket,
                Err(error) => assert!(Instant::now() < deadline, "QEMU opens no socket: {error}"),
            }
            self.still_runs();
            std::thread::sleep(Duration::from_millis(5));
        };
        let copy = socket.try_clone().unwrap();
        match Client::connect(socket.into(), Link::Shared, BOOT) {
            Ok(client) => (client, copy),
            Err(error) => panic!("{error}\n{}", self.console()),
        }
    }

    fn still_runs(&mut self) {
        let status = self.qemu.try_wait().unwrap();
        assert!(status.is_none(), "QEMU ended: {status:?}\n{}", self.console());
    }

    /// Waits for the machine's own end.
    fn wait(&mut self) {
        let deadline = Instant::now() + BOOT;
        while self.qemu.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the machine does not end:\n{}", self.console());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

fn request(argv: &[&str]) -> ExecRequest {
    ExecRequest { argv: argv.iter().map(|word| (*word).to_owned()).collect(), ..ExecRequest::default() }
}

fn exec(client: &Client, argv: &[&str]) -> Result<(Exec, [File; 3]), ClientError> {
    let ((stdin, ours_in), (ours_out, stdout), (ours_err, stderr)) = (pipe(), pipe(), pipe());
    let exec = client.exec(request(argv), Stdio { stdin, stdout, stderr }, SOON)?;
    Ok((exec, [ours_in.into(), ours_out.into(), ours_err.into()]))
}

fn shell(client: &Client, command: &str) -> (ExecStatus, String, String) {
    let (mut exec, [stdin, mut stdout, mut stderr]) = exec(client, &["sh", "-c", command]).unwrap();
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    stdout.read_to_string(&mut out).unwrap();
    stderr.read_to_string(&mut err).unwrap();
    (exec.wait(SOON).unwrap().unwrap(), out, err)
}

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

/// The cards of the machine, by the order in which the kernel finds them.
const CARDS: [[u8; 6]; 2] = [[0x52, 0x54, 0, 0, 0, 0x0a], [0x52, 0x54, 0, 0, 0, 0x0b]];

/// Two cards, the first of which leads nowhere, and the disk with the modules.
fn cards_and_modules(parts: &Parts) -> Vec<OsString> {
    let mac = |card: [u8; 6]| card.map(|byte| format!("{byte:02x}")).join(":");
    let mut modules = OsString::from("if=none,id=modules,format=raw,readonly=on,file=");
    modules.push(&parts.modules);
    let words = [
        "-netdev".into(),
        "hubport,id=nowhere,hubid=0".into(),
        "-device".into(),
        format!("virtio-net-pci,netdev=nowhere,mac={}", mac(CARDS[0])),
        "-netdev".into(),
        "user,id=net".into(),
        "-device".into(),
        format!("virtio-net-pci,netdev=net,mac={}", mac(CARDS[1])),
        "-device".into(),
        "virtio-blk-pci,drive=modules,serial=duet-modules".into(),
        "-drive".into(),
    ];
    words.into_iter().map(OsString::from).chain([modules]).collect()
}

/// What the boot is told: a name, files, and that the second card is eth0.
fn told() -> Setup {
    let file = |path: &str, content: &str, create_only| setup::File {
        path: path.into(),
        content: content.into(),
        create_only,
    };
    let nic = |card: usize, name: &str| setup::Nic { mac: CARDS[card], name: name.into() };
    Setup {
        hostname: Some("told".into()),
        files: vec![
            file("/etc/hostname", "told\n", false),
            file("/etc/debian_version", "not this", true),
            file("/opt/told/file", "content\n", true),
            file("/proc/cmdline", "this cannot be", false),
        ],
        nics: vec![nic(0, "eth1"), nic(1, "eth0")],
    }
}

/// All of that was done, the root has grown, and the system has all that it wants without waiting.
fn was_told(client: &Client) {
    assert_eq!(shell(client, "systemctl is-system-running --wait; systemctl --failed --quiet").1, "running\n");
    eprintln!("{}", shell(client, "systemd-analyze").1);
    let state = client.state(SOON).unwrap();
    assert_eq!(state.hostname, "told");
    assert!(state.root.total > 2900 << 20, "{:?}", state.root);
    let (_, out, _) = shell(client, "cat /etc/hostname /opt/told/file; grep not /etc/debian_version; ls -A /opt/told");
    assert_eq!(out, "told\ncontent\nfile\n");
    let (_, out, _) = shell(client, "cat /sys/class/net/eth0/address /sys/class/net/eth1/address");
    assert_eq!(out, "52:54:00:00:00:0b\n52:54:00:00:00:0a\n");
    // By DHCP, from QEMU.
    let deadline = Instant::now() + SOON;
    while !client.state(SOON).unwrap().network["eth0"].addresses.iter().any(|found| found.address == ADDRESS) {
        assert!(Instant::now() < deadline, "{}", shell(client, "networkctl; networkctl status eth0").1);
        std::thread::sleep(Duration::from_millis(100));
    }
    let (status, out, err) =
        shell(client, "modprobe dummy && grep dummy /proc/modules && systemctl is-active getty.target");
    assert_eq!(status, ExecStatus::Code(0), "{out}{err}");
}

/// Somebody logs in on the console, and has a terminal there.
fn console(client: &Client, machine: &Machine) {
    assert_eq!(shell(client, "passwd -d root").0, ExecStatus::Code(0));
    let shows = |text: &str| {
        let deadline = Instant::now() + SOON;
        while !machine.console().contains(text) {
            assert!(Instant::now() < deadline, "{text:?} is not shown:\n{}", machine.console());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let mut keyboard = UnixStream::connect(machine.dir.path().join("console.sock")).unwrap();
    // What is shown must be taken, or QEMU shows no more.
    let mut screen = keyboard.try_clone().unwrap();
    let screen = std::thread::spawn(move || std::io::copy(&mut screen, &mut std::io::sink()));
    shows("told login: ");
    keyboard.write_all(b"root\n").unwrap();
    shows("root@told:");
    keyboard.write_all(b"tty; echo $((6 * 7))0; sleep 1000\n").unwrap();
    shows("420");
    // A terminal's own keys reach what runs there.
    keyboard.write_all(b"\x03").unwrap();
    keyboard.write_all(b"echo $((7 * 7))0; exit\n").unwrap();
    shows("490");
    keyboard.shutdown(std::net::Shutdown::Both).unwrap();
    screen.join().unwrap().unwrap();
    assert!(!machine.console().contains("no job control"), "{}", machine.console());
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
