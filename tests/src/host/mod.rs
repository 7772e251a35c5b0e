//! A test's own machine, with a daemon in it.

mod daemon;
mod disk;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sched::CloneFlags;
use serde_json::{Value, json};

use crate::api::{Request, Response};
use crate::cgroups::{self, Hierarchy};
use crate::command::{Entrance, Output, Run, wait, words};
use crate::images;
use crate::leaks::{self, Baseline};
use crate::machine::Ready;
use crate::net::Listener;
use crate::processes;
use crate::proxy;
use crate::wait::within;
use crate::websocket::Socket;

/// Where hosts keep their files unless `DUET_TEST_DIR` says otherwise: on a real filesystem, since an overlay's upper
/// layer cannot lie on an overlay.
const FOLDER: &str = "/var/tmp";

/// A machine of its own: see the crate's documentation.
#[derive(Debug)]
pub struct Host {
    test: String,
    name: String,
    folder: PathBuf,
    watcher: Child,
    /// While this is open, the host stands.
    watched: Option<ChildStdin>,
    ready: Ready,
    entrance: Entrance,
    hierarchies: Vec<Hierarchy>,
    baseline: Baseline,
    daemon: Option<Child>,
    environment: Vec<(String, String)>,
    /// Whether daemons log what only a developer wants to know.
    verbose: bool,
    binaries: PathBuf,
    passed: bool,
}

impl Host {
    /// A host with a running daemon and the image `busybox`.
    #[track_caller]
    pub fn new() -> Self {
        let mut host = Self::bare();
        host.start_daemon();
        images::import(&host, images::BUSYBOX);
        host
    }

    /// As [`new`](Self::new), with a second pool of this driver that instances are made in: on a loop device that Duet
    /// makes, or the pool that there is.
    #[track_caller]
    pub fn on(driver: &str) -> Self {
        let host = Self::new();
        if driver != "overlay" {
            // Names of ZFS pools are the kernel's.
            let name = if driver == "zfs" { format!("zfs.pool_name={}", host.name) } else { String::new() };
            host.ok(&format!("storage create {driver} {driver} size=2GiB {name}"));
            host.ok(&format!("profile device set default root pool={driver}"));
        }
        host
    }

    /// As [`new`](Self::new), with a kernel for virtual machines: what `make test` fetched, or the machine's own. Where KVM serves, that runs them, and elsewhere QEMU.
    #[track_caller]
    pub fn with_machines() -> Self {
        let host = Self::new();
        host.use_kernel();
        host
    }

    /// Tells the daemon of the kernel for virtual machines.
    #[track_caller]
    pub fn use_kernel(&self) {
        let kernel =
            std::env::var_os("DUET_TEST_KERNEL").map_or_else(|| target_folder().join("vm-kernel"), PathBuf::from);
        if kernel.join("vmlinuz").exists() {
            self.ok(&format!("config set core.vm_kernel={}", kernel.display()));
            return;
        }
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release");
        let modules = Path::new("/lib/modules").join(release.trim()).join("modules.dep");
        assert!(modules.exists(), "{} has no kernel: run the tests with 'make test'", kernel.display());
    }

    /// A host with a running daemon and no image.
    #[track_caller]
    pub fn empty() -> Self {
        let mut host = Self::bare();
        host.start_daemon();
        host
    }

    /// A host with a running daemon and these images, by their alias.
    #[track_caller]
    pub fn with_images(wanted: &[&str]) -> Self {
        let host = Self::empty();
        for image in wanted {
            images::import(&host, image);
        }
        host
    }

    /// A host in which no daemon runs yet.
    #[track_caller]
    pub fn bare() -> Self {
        Self::stand_in(Self::folder())
    }

    /// A new folder for a host's files.
    #[track_caller]
    fn folder() -> PathBuf {
        assert!(nix::unistd::geteuid().is_root(), "the end-to-end tests need root: run 'sudo make test'");
        let parent = std::env::var("DUET_TEST_DIR").unwrap_or_else(|_| FOLDER.to_owned());
        let folder = tempfile::Builder::new().prefix("duet-e2e-").tempdir_in(parent).expect("a folder").keep();
        for part in ["state", "home", "tmp"] {
            fs::create_dir(folder.join(part)).expect("a folder");
        }
        folder
    }

    #[track_caller]
    fn stand_in(folder: PathBuf) -> Self {
        let name = folder.file_name().and_then(|name| name.to_str()).expect("a plain name").to_owned();
        let test = thread::current().name().unwrap_or("main").replace("::", ".");
        let mut command = Command::new(harness_binary("duet-test-holder"));
        command
            .args(["watch", &name])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Out of the test's process group: who kills that must not kill the one who tidies up.
            .process_group(0);
        let mut watcher = command.spawn().expect("starting duet-test-holder");
        let mut line = String::new();
        BufReader::new(watcher.stdout.take().expect("a pipe")).read_line(&mut line).expect("reading from the holder");
        let ready: Ready = serde_json::from_str(&line).expect("the test host did not come up: see above");
        let hierarchies = cgroups::hierarchies().expect("cgroups");
        let entrance = entrance(&hierarchies, &name, &ready);
        let watched = watcher.stdin.take();
        let mut host = Self {
            test,
            name,
            folder,
            watcher,
            watched,
            ready,
            entrance,
            hierarchies,
            baseline: Baseline::default(),
            daemon: None,
            environment: vec![],
            verbose: true,
            binaries: binaries(),
            passed: false,
        };
        host.baseline = Baseline::take(&host);
        host
    }

    /// Sets a variable in the environment of the daemons that are started from now on.
    pub fn daemon_env(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Lets the daemons that are started from now on log as little as those that users start.
    pub fn quiet(&mut self) {
        self.verbose = false;
    }

    /// `DUET_DIR`.
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// A folder for the test's own files; the same path inside and outside of the host.
    pub fn tmp(&self) -> PathBuf {
        self.folder.join("tmp")
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.state().join("unix.socket")
    }

    /// Where the shipped programs are.
    pub fn binaries(&self) -> &Path {
        &self.binaries
    }

    /// The process that stands in the host's namespaces.
    pub fn holder(&self) -> i32 {
        self.ready.holder
    }

    /// The host's cgroup root in every hierarchy of the machine.
    pub fn cgroup_roots(&self) -> Vec<PathBuf> {
        self.hierarchies.iter().map(|hierarchy| hierarchy.mount.join(&self.name)).collect()
    }

    /// Processes of the host that are neither the harness' nor the daemon itself.
    pub fn processes(&self) -> Vec<i32> {
        let mut found: Vec<i32> = self.cgroup_roots().iter().flat_map(|root| cgroups::processes(root)).collect();
        found.sort_unstable();
        found.dedup();
        let daemon = self.daemon.as_ref().and_then(|daemon| i32::try_from(daemon.id()).ok());
        found.retain(|pid| !self.ready.own.contains(pid) && Some(*pid) != daemon);
        found
    }

    /// Those of [`processes`](Self::processes) that run the program of this name.
    pub fn running(&self, program: &str) -> Vec<i32> {
        self.processes().into_iter().filter(|pid| processes::program(*pid).as_deref() == Some(program)).collect()
    }

    /// A command in the host. Nothing of the caller's environment that Duet reads goes along.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Run {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("DUET_DIR", self.state())
            .env("HOME", self.folder.join("home"))
            .env("NO_COLOR", "1")
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("RUST_LOG");
        self.entrance.attach(&mut command);
        Run::new(command, format!("{program} {}", arguments.join(" ")))
    }

    /// Turns a command into one that runs in the host with the caller's own terminal and `duet` on its PATH.
    pub fn foreground(&self, mut command: Command) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("DUET_DIR", self.state())
            .env("HOME", self.folder.join("home"))
            .env("PATH", format!("{}:{path}", self.binaries.display()));
        self.entrance.attach(&mut command);
        command
    }

    /// Takes the host down as it is, without looking for what is left behind.
    pub fn abandon(mut self) {
        self.passed = true;
    }

    /// `duet` with the arguments of a line; see [`words`] for quoting.
    pub fn duet(&self, line: &str) -> Run {
        let arguments = words(line);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.command(self.binaries.join("duet").to_str().expect("a plain path"), &arguments)
    }

    /// Runs `duet`, asserts that it succeeds and gives its output.
    #[track_caller]
    pub fn ok(&self, line: &str) -> String {
        self.duet(line).run().succeeded().text()
    }

    /// Runs `duet` and asserts that it fails with `needle` in what it says.
    #[track_caller]
    pub fn fails(&self, line: &str, needle: &str) -> Output {
        self.duet(line).run().failed_with(needle)
    }

    /// Runs `duet ... --format json` and gives what it printed.
    #[track_caller]
    pub fn json(&self, line: &str) -> Value {
        let text = self.ok(&format!("{line} --format json"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("duet {line}: {error}: {text}"))
    }

    /// Runs a shell command in the host, asserts that it succeeds and gives its output.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        self.command("/bin/sh", &["-ec", script]).run().succeeded().text()
    }

    /// Runs a shell command in an instance, asserts that it succeeds and gives its output.
    #[track_caller]
    pub fn inside(&self, instance: &str, script: &str) -> String {
        self.try_inside(instance, script).succeeded().text()
    }

    /// Runs a shell command in an instance.
    pub fn try_inside(&self, instance: &str, script: &str) -> Output {
        self.duet(&format!("exec {instance} -- sh -c")).arg(script).run()
    }

    /// How many processes of an instance have `needle` in what `ps` says of them.
    #[track_caller]
    pub fn processes_inside(&self, instance: &str, needle: &str) -> usize {
        self.ok(&format!("exec {instance} -- ps")).lines().filter(|line| line.contains(needle)).count()
    }

    /// A request to the daemon.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Response {
        let socket = self.socket();
        let request = Request::new(&socket, method, path);
        match body {
            Some(body) => request.json(body).send(),
            None => request.send(),
        }
    }

    /// Whether a daemon answers at the host's socket.
    pub fn socket_answers(&self) -> bool {
        Request::new(&self.socket(), "GET", "/1.0").try_send().is_ok()
    }

    /// GET, and the envelope's metadata of what has to be a success.
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        self.request("GET", path, None).metadata()
    }

    /// A request that is answered at once.
    #[track_caller]
    pub fn send(&self, method: &str, path: &str, body: &Value) -> Value {
        self.request(method, path, Some(body)).metadata()
    }

    /// A request that starts an operation; waits for its end and gives the operation, whatever became of it.
    #[track_caller]
    pub fn operate(&self, method: &str, path: &str, body: &Value) -> Value {
        let answer = self.request(method, path, Some(body));
        let envelope = answer.json();
        assert!(answer.status == 202 && envelope["type"] == "async", "{method} {path}: {envelope:#}");
        let operation = envelope["operation"].as_str().expect("an operation").to_owned();
        self.get(&format!("{operation}/wait?timeout=120"))
    }

    /// As [`operate`](Self::operate), of an operation that has to succeed.
    #[track_caller]
    pub fn done(&self, method: &str, path: &str, body: &Value) -> Value {
        let operation = self.operate(method, path, body);
        assert!(operation["status_code"] == 200, "{method} {path}: {operation:#}");
        operation
    }

    /// The daemon's events of the given types, such as `lifecycle,operation`.
    #[track_caller]
    pub fn events(&self, types: &str) -> Socket {
        Socket::open(&self.socket(), &format!("/1.0/events?type={types}"))
    }

    /// An instance's status, such as `Running`.
    #[track_caller]
    pub fn status(&self, instance: &str) -> String {
        self.get(&format!("/1.0/instances/{instance}"))["status"].as_str().expect("a status").to_owned()
    }

    /// Waits until an instance has the status.
    #[track_caller]
    pub fn until_status(&self, instance: &str, status: &str) {
        within(Duration::from_secs(90), &format!("{instance} being {status}"), || {
            (self.status(instance) == status).then_some(())
        });
    }

    /// The process on the host that is an instance's PID 1.
    #[track_caller]
    pub fn init_pid(&self, instance: &str) -> i32 {
        let pid = self.get(&format!("/1.0/instances/{instance}/state"))["pid"].as_i64().expect("a pid");
        i32::try_from(pid).ok().filter(|pid| *pid > 0).unwrap_or_else(|| panic!("{instance} has no PID 1"))
    }

    /// Changes keys of an instance's configuration through the API; an empty value removes the key.
    #[track_caller]
    pub fn configure(&self, instance: &str, keys: &[(&str, &str)]) {
        let config: Value = keys.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        let path = format!("/1.0/instances/{instance}");
        self.request("PATCH", &path, Some(&json!({ "config": config }))).metadata();
    }

    /// A listener in the "internet".
    pub fn internet(&self, ip: &str) -> Listener {
        let namespace = format!("/proc/{}/task/{}/ns/net", self.ready.holder, self.ready.internet);
        Listener::start(namespace.into(), ip.parse().expect("an address"))
    }

    /// Lets the daemon reach the machine's package mirror: an HTTP proxy in the host's network.
    pub fn allow_mirror(&mut self) {
        let address = proxy::start(self.network());
        for name in ["http_proxy", "https_proxy"] {
            self.daemon_env(name, &format!("http://{address}"));
        }
    }

    /// Where the daemon can be reached by TCP, from within the host.
    pub fn over_tcp(&self) -> SocketAddr {
        proxy::to_socket(self.network(), self.socket())
    }

    fn network(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.ready.holder).into()
    }

    /// A listener on the host itself.
    pub fn listener(&self, ip: &str) -> Listener {
        Listener::start(self.network(), ip.parse().expect("an address"))
    }

    /// Ends the test: removes everything through the API and asserts that nothing is left. What a test wants to see
    /// before that, it looks at before this; dropping the host does the same.
    #[track_caller]
    fn finish(&mut self) {
        if self.daemon.is_some() {
            leaks::remove_everything(self);
            let left = leaks::left_behind(self);
            assert!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
            self.stop_daemon();
        }
        let left = leaks::left_after_the_end(self);
        assert!(left.is_empty(), "left behind after the daemon's end:\n  {}", left.join("\n  "));
        self.passed = true;
    }

    pub(crate) fn baseline(&self) -> &Baseline {
        &self.baseline
    }

    /// Copies what the daemon and the instances logged to where it can be read afterwards.
    fn keep_logs(&self) {
        let target = target_folder().join("e2e-logs").join(&self.test);
        let _ = fs::remove_dir_all(&target);
        if fs::create_dir_all(&target).is_err() {
            return;
        }
        let copied = Command::new("cp")
            .args(["-r", "--no-preserve=ownership"])
            .args([self.folder.join("duetd.log"), self.state().join("logs")])
            .arg(&target)
            .stderr(Stdio::null())
            .status();
        if copied.is_ok() {
            eprintln!("the logs of this host are in {}", target.display());
        }
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let panicking = thread::panicking();
        // One that was abandoned is taken down as it is.
        let finished = if panicking || self.passed {
            Ok(())
        } else {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.finish()))
        };
        if !self.passed {
            self.keep_logs();
        }
        drop(self.watched.take());
        let swept = wait(&mut self.watcher, Duration::from_secs(90));
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.wait();
        }
        if let Err(panic) = finished {
            std::panic::resume_unwind(panic);
        }
        if !panicking {
            assert!(swept.is_some_and(|status| status.success()), "the test host could not be swept: {swept:?}");
        }
    }
}

fn entrance(hierarchies: &[Hierarchy], name: &str, ready: &Ready) -> Entrance {
    let namespaces =
        [("net", CloneFlags::CLONE_NEWNET), ("cgroup", CloneFlags::CLONE_NEWCGROUP), ("mnt", CloneFlags::CLONE_NEWNS)];
    Entrance {
        cgroups: cgroups::open_entries(hierarchies, name).expect("opening the host's cgroups"),
        namespaces: namespaces
            .into_iter()
            .map(|(kind, flag)| {
                let path = format!("/proc/{}/ns/{kind}", ready.holder);
                (File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}")).into(), flag)
            })
            .collect(),
    }
}

/// `target/<profile>` of the running test.
fn profile_folder() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let folder = test.parent().expect("a parent");
    // Tests lie in deps/, programs beside it.
    let folder = if folder.ends_with("deps") { folder.parent().expect("a parent") } else { folder };
    folder.to_path_buf()
}

/// `target`.
pub(crate) fn target_folder() -> PathBuf {
    profile_folder().parent().expect("a parent").to_path_buf()
}

fn harness_binary(name: &str) -> PathBuf {
    profile_folder().join(name)
}

/// The folder of other people's clients, as `tests/clients.sh` makes it.
pub fn clients() -> PathBuf {
    let folder =
        std::env::var_os("DUET_TEST_CLIENTS").map_or_else(|| profile_folder().join("../clients"), PathBuf::from);
    assert!(folder.join("bin/incus").exists(), "{} has no clients: run the tests with 'make test'", folder.display());
    folder
}

/// The folder of the programs under test: `DUET_TEST_BINARIES`, or what the test's own profile built.
fn binaries() -> PathBuf {
    let folder = std::env::var_os("DUET_TEST_BINARIES").map_or_else(profile_folder, PathBuf::from);
    for program in ["duet", "duetd", "duet-monitor"] {
        let path = folder.join(program);
        assert!(path.exists(), "{} is missing: run the tests with 'make test'", path.display());
    }
    folder.canonicalize().expect("the programs' folder")
}
