//! Containers for tests, and the proof that nothing is left of them.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use duet_container::protocol::{ExecRequest, ExecStatus, ExitRecord, Reply};
use duet_container::spec::{CgroupDir, CgroupKind, IdMap, MountSource, MountSpec, RootSource};
use duet_container::{ContainerSpec, Created, MonitorBinary, MonitorClient, StartError, Started, Starting};

/// How long anything here may take: a loaded machine is slow, a broken one is stuck.
pub const DEADLINE: Duration = Duration::from_secs(30);

pub const MAP: IdMap = IdMap { host_base_uid: 1_000_000, host_base_gid: 1_000_000, range: 65536 };

/// An init that does nothing until it is killed: for tests that are not about init.
pub const IDLE: [&str; 2] = ["/bin/sleep", "1000000"];

/// A container with everything that belongs to it, all of which is gone when this is dropped.
pub struct Container {
    pub spec: ContainerSpec,
    dir: tempfile::TempDir,
    cgroup_name: String,
    mounts_before: String,
    pub started: Option<Started>,
}

impl Container {
    /// An unprivileged container of a busybox root, in an overlay; not started yet.
    pub fn new() -> Self {
        Self::with_map(Some(MAP))
    }

    pub fn with_map(idmap: Option<IdMap>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::Builder::new().prefix("duet-container-").tempdir().unwrap();
        // Images are readable by all; the temporary directory is not.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["root", "upper", "work", "run"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        make_busybox_root(&dir.path().join("root"));
        let root = RootSource::Overlay {
            lower: vec![dir.path().join("root")],
            upper: Some(dir.path().join("upper")),
            work: Some(dir.path().join("work")),
        };
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("t{number}");
        let mut spec = ContainerSpec::new(&name, &dir.path().join("run"), &dir.path().join("console.log"), root, idmap);
        spec.init = IDLE.map(str::to_owned).to_vec();
        let cgroup_name = format!("duet-test-{}-{number}", std::process::id());
        spec.cgroups = make_cgroups(&cgroup_name, idmap);
        Self { spec, dir, cgroup_name, mounts_before: mounts(), started: None }
    }

    /// Lets the image's own init run, in place of the idle one.
    pub fn boot_busybox(mut self) -> Self {
        self.spec.init = Vec::new();
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn start(mut self) -> Self {
        self.try_start().unwrap();
        self
    }

    pub fn try_start(&mut self) -> Result<(), StartError> {
        self.try_start_with(&[])
    }

    pub fn try_start_with(&mut self, fds: &[BorrowedFd<'_>]) -> Result<(), StartError> {
        let created = self.create(fds)?;
        created.go()?;
        self.started = Some(created.wait_started()?);
        Ok(())
    }

    /// The first half of a start.
    pub fn create(&self, fds: &[BorrowedFd<'_>]) -> Result<Created, StartError> {
        let log = fs::File::create(self.path("monitor.log")).unwrap();
        let binary = MonitorBinary::open(Path::new(env!("CARGO_BIN_EXE_duet-monitor"))).unwrap();
        Starting::spawn(&self.spec, &binary, log, fds)?.wait_created()
    }

    pub fn init_pid(&self) -> u32 {
        self.started.as_ref().unwrap().init_pid
    }

    pub fn connect(&self) -> MonitorClient {
        MonitorClient::connect(&self.spec.run_dir).unwrap()
    }

    /// Runs a shell line in the container.
    pub fn sh(&self, line: &str) -> Output {
        self.run(request(&["sh", "-c", line]))
    }

    /// Runs a shell line that must succeed, and returns its trimmed standard output.
    pub fn ok(&self, line: &str) -> String {
        let output = self.sh(line);
        assert_eq!(output.status, ExecStatus::Code(0), "{line}: {output:?}");
        output.stdout.trim().to_owned()
    }

    /// Runs a program without a terminal and without input.
    pub fn run(&self, request: ExecRequest) -> Output {
        let client = self.connect();
        let null = fs::File::open("/dev/null").unwrap();
        let (out_read, out_write) = rustix::pipe::pipe().unwrap();
        let (err_read, err_write) = rustix::pipe::pipe().unwrap();
        client.exec(request, Some([null.as_fd(), out_write.as_fd(), err_write.as_fd()])).unwrap();
        drop((out_write, err_write));
        let stderr = std::thread::spawn(move || read_all(err_read));
        let stdout = read_all(out_read);
        Output { status: exit_status(&client), stdout, stderr: stderr.join().unwrap() }
    }

    /// Waits until the console log contains a text.
    pub fn wait_log(&self, text: &str) {
        wait_until(&format!("{text:?} in the console log"), || {
            fs::read_to_string(&self.spec.console_log).is_ok_and(|log| log.contains(text))
        });
    }

    /// Waits for the container's end as a watcher.
    pub fn wait_exit(&self, client: &MonitorClient) -> ExitRecord {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match client.receive_until(deadline).unwrap() {
                Some((Reply::Exited(record), _)) => return record,
                // Init said meanwhile that the system is up.
                Some((Reply::Ready, _)) => {}
                other => panic!("expected the container's end, got {other:?}"),
            }
        }
    }

    /// Asserts that neither a process nor a socket is left of the container.
    pub fn assert_gone(&self) {
        wait_until("the control groups to be empty", || self.members().is_empty());
        wait_until("the control socket to go", || !self.spec.run_dir.join("monitor.sock").exists());
        assert_eq!(mounts(), self.mounts_before, "the host's mounts changed");
    }

    /// The host's process ids of the container's processes.
    pub fn members(&self) -> Vec<String> {
        let v2 = self.spec.cgroups.iter().filter(|dir| dir.kind == CgroupKind::V2);
        v2.flat_map(|dir| {
            fs::read_to_string(dir.path.join("cgroup.procs")).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect()
    }

    fn monitor_log(&self) -> String {
        fs::read_to_string(self.path("monitor.log")).unwrap_or_default()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some(started) = &self.started {
            let _ = rustix::process::pidfd_send_signal(&started.pidfd, rustix::process::Signal::KILL);
        }
        let failed = std::thread::panicking();
        if failed {
            eprintln!("--- monitor.log\n{}", self.monitor_log());
            eprintln!("--- console.log\n{}", fs::read_to_string(&self.spec.console_log).unwrap_or_default());
        } else {
            self.assert_gone();
        }
        for dir in &self.spec.cgroups {
            let group = dir.path.parent().unwrap();
            assert!(group.ends_with(&self.cgroup_name));
            let gone = || {
                // Groups that the container or the monitor made within its own.
                for inner in fs::read_dir(&dir.path).into_iter().flatten().flatten() {
                    let _ = fs::remove_dir(inner.path());
                }
                let _ = fs::remove_dir(&dir.path);
                fs::remove_dir(group).is_ok() || !group.exists()
            };
            if failed {
                gone();
            } else {
                wait_until("the control group to go", gone);
            }
        }
    }
}

/// What a program left behind.
#[derive(Debug)]
pub struct Output {
    pub status: ExecStatus,
    pub stdout: String,
    pub stderr: String,
}

pub fn request(argv: &[&str]) -> ExecRequest {
    ExecRequest { argv: argv.iter().map(|word| (*word).to_owned()).collect(), ..ExecRequest::default() }
}

/// A plain mount of a host path.
pub fn mount(source: &str, target: &str) -> MountSpec {
    MountSpec {
        source: MountSource::Path(source.into()),
        target: target.into(),
        read_only: false,
        recursive: false,
        shift: false,
        optional: false,
    }
}

/// Waits for the end of the program that a connection runs.
pub fn exit_status(client: &MonitorClient) -> ExecStatus {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match client.receive_until(deadline).unwrap() {
            Some((Reply::ExecExited { status }, _)) => return status,
            Some((Reply::Ok, _)) => {}
            other => panic!("expected the program's end, got {other:?}"),
        }
    }
}

pub fn read_all(fd: OwnedFd) -> String {
    let mut bytes = Vec::new();
    // The master of a terminal whose last program has gone fails with EIO: that is the end as well.
    let _ = std::io::Read::read_to_end(&mut fs::File::from(fd), &mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Polls a condition that nothing announces. Panics after [`DEADLINE`].
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until a pidfd says that its process has ended.
pub fn wait_end(pidfd: impl AsFd) {
    assert!(duet_sys::socket::wait_readable(pidfd, Instant::now() + DEADLINE).unwrap(), "the process lives on");
}

fn mounts() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap()
}

fn make_busybox_root(root: &Path) {
    for dir in ["bin", "sbin", "etc", "proc", "sys", "dev", "tmp", "root", "home", "run"] {
        fs::create_dir(root.join(dir)).unwrap();
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    let list = std::process::Command::new("/bin/busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(list.stdout).unwrap().lines().filter(|applet| *applet != "busybox") {
        symlink("/bin/busybox", root.join("bin").join(applet)).unwrap();
    }
    symlink("/bin/busybox", root.join("sbin/init")).unwrap();
    fs::write(root.join("etc/inittab"), "::sysinit:/bin/echo booted\n::askfirst:-/bin/sh\n").unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\ntty:x:5:\nuser:x:1000:\n").unwrap();
}

/// Makes a payload group in the v2 tree and, on a hybrid host, in two v1 hierarchies that need no set-up.
fn make_cgroups(name: &str, idmap: Option<IdMap>) -> Vec<CgroupDir> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut dirs = Vec::new();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let kind = match fields[2] {
            "cgroup2" => CgroupKind::V2,
            "cgroup" if fields[1].ends_with("/pids") || fields[1].ends_with("/freezer") => CgroupKind::V1,
            _ => continue,
        };
        let path = Path::new(fields[1]).join(name).join("payload");
        fs::create_dir_all(&path).unwrap();
        if let (CgroupKind::V2, Some(map)) = (kind, idmap) {
            for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
                chown(path.join(file), Some(map.host_base_uid), Some(map.host_base_gid)).unwrap();
            }
        }
        dirs.push(CgroupDir { path, kind });
    }
    assert!(dirs.iter().any(|dir| dir.kind == CgroupKind::V2), "no cgroup2 tree is mounted");
    dirs
}
