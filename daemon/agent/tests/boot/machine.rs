//! Machines in QEMU's emulation, and programs in them.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio as Std};
use std::time::{Duration, Instant};

use duet_agent::client::{Client, ClientError, Exec, Stdio};
use duet_agent::mux::Link;
use duet_agent::protocol::message::{ExecRequest, ExecStatus};
use duet_agent::setup::Setup;
use duet_agent::{initramfs, kernel};

/// Emulation is slow, and not alone on the machine.
pub const BOOT: Duration = Duration::from_secs(300);
pub const SOON: Duration = Duration::from_secs(60);

/// What the script made.
pub struct Parts {
    /// A root with a kernel in /boot and its modules in /lib/modules.
    pub kernel: PathBuf,
    /// A disk with the image's root, of which the filesystem takes a part.
    pub disk: PathBuf,
    /// A disk with the kernel's modules.
    pub modules: PathBuf,
    /// The agent, linked statically.
    pub agent: PathBuf,
}

impl Parts {
    pub fn find() -> Option<Self> {
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

/// What a machine is started with.
#[derive(Default)]
pub struct Plan<'a> {
    pub words: &'a str,
    pub setup: Option<Setup>,
    /// Further arguments of QEMU's.
    pub more: Vec<OsString>,
    /// A disk that is written to, instead of the script's.
    pub disk: Option<&'a Path>,
}

pub struct Machine {
    pub qemu: Child,
    dir: tempfile::TempDir,
    pub started: Instant,
}

impl Machine {
    pub fn start(parts: &Parts, words: &str) -> Self {
        Self::start_with(parts, Plan { words, ..Plan::default() }, tempfile::tempdir().unwrap())
    }

    pub fn start_with(parts: &Parts, plan: Plan<'_>, dir: tempfile::TempDir) -> Self {
        let path = |name: &str| dir.path().join(name);
        let kernel = kernel::find(&File::open(&parts.kernel).unwrap()).unwrap().unwrap();
        let begun = Instant::now();
        let mut archive = File::create(path("initrd")).unwrap();
        let loaded = initramfs::write(
            &fs::read(&parts.agent).unwrap(),
            &File::open(&parts.kernel).unwrap(),
            &kernel.modules,
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
            .arg(parts.kernel.join("boot").join(format!("vmlinuz-{}", kernel.release)))
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

    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("console")).unwrap_or_default()).into_owned()
    }

    /// The other end of its serial port, whose output must be taken from then on.
    pub fn terminal(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join("console.sock")).unwrap()
    }

    /// A client, and its connection to cut.
    pub fn connect(&mut self) -> (Client, UnixStream) {
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

    pub fn still_runs(&mut self) {
        let status = self.qemu.try_wait().unwrap();
        assert!(status.is_none(), "QEMU ended: {status:?}\n{}", self.console());
    }

    /// Waits for the machine's own end.
    pub fn wait(&mut self) {
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

pub fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

pub fn request(argv: &[&str]) -> ExecRequest {
    ExecRequest { argv: argv.iter().map(|word| (*word).to_owned()).collect(), ..ExecRequest::default() }
}

pub fn exec(client: &Client, argv: &[&str]) -> Result<(Exec, [File; 3]), ClientError> {
    let ((stdin, ours_in), (ours_out, stdout), (ours_err, stderr)) = (pipe(), pipe(), pipe());
    let exec = client.exec(request(argv), Stdio { stdin, stdout, stderr }, SOON)?;
    Ok((exec, [ours_in.into(), ours_out.into(), ours_err.into()]))
}

pub fn shell(client: &Client, command: &str) -> (ExecStatus, String, String) {
    let (mut exec, [stdin, mut stdout, mut stderr]) = exec(client, &["sh", "-c", command]).unwrap();
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    stdout.read_to_string(&mut out).unwrap();
    stderr.read_to_string(&mut err).unwrap();
    (exec.wait(SOON).unwrap().unwrap(), out, err)
}
