//! Machines to test with, and what they leave behind.

#![allow(dead_code)] // each test program uses a part of it

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use duet_control::MonitorClient;
use duet_control::protocol::{ExecRequest, ExecStatus, ExitReason, ExitRecord, Reply};
use duet_vm::spec::{Accelerator, DiskSpec, LayerFormat, LayerSpec, NicSpec, UserSpec, VmSpec};
use duet_vm::{Launched, StartError, Started};

/// Emulation is slow, and not alone on the machine.
pub const BOOT: Duration = Duration::from_secs(300);
pub const SOON: Duration = Duration::from_secs(60);

/// The console's login without udev, see duet-agent's tests.
pub const NO_UDEV: &str = "systemd.getty_auto=no systemd.wants=console-getty.service";

pub fn is_root() -> bool {
    let root = rustix::process::getuid().is_root();
    if !root {
        eprintln!("skipped: machines are started as root");
    }
    root
}

/// What tests/vm.sh made.
pub struct Parts {
    pub kernel: PathBuf,
    pub modules: PathBuf,
    pub disk: PathBuf,
    pub agent: PathBuf,
}

impl Parts {
    pub fn find() -> Option<Self> {
        let var = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let (Some(kernel), Some(disk), Some(agent)) =
            (var("DUET_VM_KERNEL"), var("DUET_VM_DISK"), var("DUET_VM_AGENT"))
        else {
            eprintln!("skipped: run tests/vm.sh, which makes a kernel and a disk for this");
            return None;
        };
        let modules = PathBuf::from("lib/modules").join(only(&kernel.join("lib/modules"), "").file_name().unwrap());
        is_root().then_some(Self { kernel, modules, disk, agent })
    }
}

/// The one entry of a directory whose name begins like this.
fn only(dir: &Path, prefix: &str) -> PathBuf {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let mut found = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    found.next().unwrap_or_else(|| panic!("{} has no {prefix}*", dir.display())).path()
}

/// A machine's directory, its specification and its descriptors.
pub struct Plan {
    pub dir: tempfile::TempDir,
    pub spec: VmSpec,
    pub files: Vec<OwnedFd>,
}

impl Plan {
    /// A machine of a kernel alone.
    pub fn bare(name: &str, accelerator: Accelerator, program: PathBuf, kernel: File, initrd: File) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let spec = VmSpec {
            name: format!("{name}-{}", std::process::id()),
            run_dir: dir.path().to_owned(),
            console_log: dir.path().join("console.log"),
            accelerator,
            program,
            cpus: 2,
            memory: 512 << 20,
            kernel: 0,
            initrd: 1,
            command_line: "quiet".to_owned(),
            disks: Vec::new(),
            nics: Vec::new(),
            user: UserSpec { uid: 4_000_000, gid: 4_000_001 },
            cgroups: Vec::new(),
            notes: BTreeMap::from([("note".to_owned(), None)]),
        };
        Self { dir, spec, files: vec![kernel.into(), initrd.into()] }
    }

    /// A whole guest in QEMU: its root is a qcow2 layer over the image's raw disk, which stays as it is.
    pub fn guest(name: &str, parts: &Parts, words: &str) -> Self {
        let mut initrd = tempfile::tempfile().unwrap();
        duet_agent::initramfs::write(
            &fs::read(&parts.agent).unwrap(),
            &File::open(&parts.kernel).unwrap(),
            &parts.modules,
            "ext4",
            initrd.try_clone().unwrap(),
        )
        .unwrap();
        std::io::Seek::rewind(&mut initrd).unwrap();
        let kernel = File::open(only(&parts.kernel.join("boot"), "vmlinuz")).unwrap();
        let mut plan = Self::bare(name, Accelerator::Emulation, qemu(), kernel, initrd);
        plan.spec.command_line = format!("quiet duet.root=serial:the-root rw rootfstype=ext4 {words}");
        let below = File::open(&parts.disk).unwrap();
        let size = below.metadata().unwrap().len();
        let top = tempfile::tempfile().unwrap();
        let backing =
            duet_vmm::image::make::Backing { name: "/nowhere/below.img", format: duet_vmm::image::Format::Raw, size };
        duet_vmm::image::make::make(top.try_clone().unwrap(), size, Some(backing)).unwrap();
        plan.files.extend([top.into(), below.into()]);
        let mut data = tempfile::tempfile().unwrap();
        data.set_len(1 << 20).unwrap();
        data.write_all(b"what is on the second disk\n").unwrap();
        plan.files.extend([data.into(), tap().into()]);
        let layer = |file, format| LayerSpec { file, format };
        let layers = vec![layer(2, LayerFormat::Qcow2), layer(3, LayerFormat::Raw)];
        plan.spec.disks.push(DiskSpec { layers, read_only: false, serial: "the-root".to_owned() });
        // Open for writing, which a read-only disk has no use for.
        let layers = vec![layer(4, LayerFormat::Raw)];
        plan.spec.disks.push(DiskSpec { layers, read_only: true, serial: "data".to_owned() });
        plan.spec.nics.push(NicSpec { tap: 5, mac: [2, 0, 0, 0, 0, 0xab], mtu: 1450 });
        plan
    }

    pub fn launch(&self) -> Launched {
        let log = File::create(self.path("monitor.log")).unwrap();
        Launched::spawn(&self.spec.name, Path::new(env!("CARGO_BIN_EXE_duet-vm-monitor")), log).unwrap()
    }

    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.files.iter().map(AsFd::as_fd).collect()
    }

    pub fn start(&self) -> Result<Started, StartError> {
        self.launch().send(&self.spec, &self.fds())?.wait_started()
    }

    pub fn run(self) -> Machine {
        let begun = Instant::now();
        let started = match self.start() {
            Ok(started) => started,
            Err(error) => panic!("{error}\n{}", self.log()),
        };
        eprintln!("{}: started in {:?}", self.spec.name, begun.elapsed());
        Machine { begun, started, plan: self }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("monitor.log")).unwrap_or_default()
    }

    /// Everything whose title or arguments name this machine.
    pub fn processes(&self) -> Vec<u32> {
        let dirs = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let own = std::process::id();
        dirs.filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            *pid != own && String::from_utf8_lossy(&line).contains(&self.spec.name)
        })
        .collect()
    }

    /// Waits until nothing is left: no process, no socket.
    pub fn assert_gone(&self) {
        let deadline = Instant::now() + SOON;
        while !self.processes().is_empty() {
            assert!(Instant::now() < deadline, "{:?} are left of {}", self.processes(), self.spec.name);
            std::thread::sleep(Duration::from_millis(10));
        }
        for name in ["agent.sock", "machine.sock", "monitor.sock"] {
            assert!(!self.path(name).exists(), "{name} is left");
        }
    }
}

/// A tap in a network namespace that is gone with it.
fn tap() -> File {
    /// `TUNSETIFF` of linux/if_tun.h.
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    let make = || {
        // SAFETY: only this thread moves, and it ends.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        let tap = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        let mut request = [0_u8; 40];
        request[..4].copy_from_slice(b"tap0");
        let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
        request[16..18].copy_from_slice(&flags.to_ne_bytes());
        // SAFETY: the request is a struct ifreq of 40 bytes, which outlives the call.
        let made = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
        assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
        tap
    };
    std::thread::spawn(make).join().unwrap()
}

pub fn qemu() -> PathBuf {
    "/usr/bin/qemu-system-x86_64".into()
}

/// A machine that runs. Dropped, it is killed.
pub struct Machine {
    pub plan: Plan,
    pub started: Started,
    pub begun: Instant,
}

impl Machine {
    pub fn client(&self) -> MonitorClient {
        MonitorClient::connect(self.plan.dir.path()).unwrap()
    }

    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.plan.path("console.log")).unwrap_or_default()).into_owned()
    }

    /// Waits until something is so.
    pub fn until<T>(&self, what: &str, patience: Duration, mut so: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(found) = so() {
                return found;
            }
            let late = Instant::now() > deadline;
            assert!(!late, "not in time: {what}\n{}\n{}", self.console(), self.plan.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the agent answers.
    pub fn agent(&self) {
        let client = self.client();
        self.until("the agent", BOOT, || client.guest_state(duet_control::client::CALL_TIMEOUT).ok());
        eprintln!("{}: the agent answers after {:?}", self.plan.spec.name, self.begun.elapsed());
    }

    /// What a program writes, and how it ends.
    pub fn shell(&self, script: &str, input: &[u8]) -> (ExecStatus, String, String) {
        let ((stdin, mut ours_in), (ours_out, stdout), (ours_err, stderr)) = (pipe(), pipe(), pipe());
        let client = self.client();
        let stdio = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        client.exec(request(&["sh", "-c", script]), Some(stdio)).unwrap();
        drop((stdin, stdout, stderr));
        ours_in.write_all(input).unwrap();
        drop(ours_in);
        (exited(&client), read(ours_out), read(ours_err))
    }

    /// Waits for the machine's end, as `watcher` is told of it and as it is written down.
    pub fn ended(&self, watcher: &MonitorClient) -> ExitReason {
        let deadline = Instant::now() + BOOT;
        let record: ExitRecord = loop {
            match watcher.receive_until(deadline).unwrap() {
                Some((Reply::Ready, _)) => {}
                Some((Reply::Exited(record), _)) => break record,
                other => panic!("{other:?}\n{}", self.console()),
            }
        };
        let written = duet_control::client::read_exit(self.plan.dir.path()).unwrap().unwrap();
        assert_eq!(written, record);
        self.plan.assert_gone();
        record.reason
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = duet_sys::process::signal(&self.started.pidfd, libc::SIGKILL);
        if std::thread::panicking() {
            eprintln!("{}", self.plan.log());
        } else {
            self.plan.assert_gone();
        }
    }
}

pub fn pipe() -> (OwnedFd, File) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    (reader, writer.into())
}

pub fn read(from: impl Into<File>) -> String {
    let mut text = Vec::new();
    from.into().read_to_end(&mut text).unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

pub fn request(argv: &[&str]) -> ExecRequest {
    ExecRequest { argv: argv.iter().map(|word| (*word).to_owned()).collect(), ..ExecRequest::default() }
}

pub fn exited(client: &MonitorClient) -> ExecStatus {
    match client.receive_until(Instant::now() + SOON).unwrap() {
        Some((Reply::ExecExited { status }, _)) => status,
        other => panic!("{other:?}"),
    }
}
