//! Incus beside Duet: `incusd` as Debian packages it, on a test host of its own, which takes down all that it made.
//!
//! It is given what it has on a machine that it is installed on, no more and no less: its range of ids, its cgroup tree
//! (liblxc starts from PID 1's cgroup, so it gets a PID namespace whose first process stands in `init.scope`), a pool on
//! `dir` and one on `btrfs`, a bridge with NAT. Only the configuration that the lxcfs package adds to every container is
//! left out: its hook makes every stop half a second longer.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::contender::Contender;
use crate::Host;
use crate::api::Request;
use crate::processes;
use crate::wait::poll_closely;

/// Where Debian's incus-base has the daemon.
const INCUSD: &str = "/usr/libexec/incus/incusd";
/// What has to be installed for a comparison.
const PACKAGES: &str = "incus-base, incus-client and incus-extra";
/// How long the daemon may take to be ready.
const UP: Duration = Duration::from_secs(60);

/// Becomes the first process of a PID namespace, in the cgroup in which a machine has its init, and runs the daemon
/// there for as long as it is wanted; bash, since it reaps what monitors leave to it.
const START: &str = r#"
mount --bind "$PEER/ids" /etc/subuid
mount --bind "$PEER/ids" /etc/subgid
for tree in /sys/fs/cgroup /sys/fs/cgroup/*; do
    if [ -L "$tree" ] || [ ! -e "$tree/cgroup.procs" ]; then continue; fi
    mkdir -p "$tree/init.scope"
    for set in cpuset.cpus cpuset.mems; do
        # v1's cpuset takes no process before its two sets are filled in.
        if [ -e "$tree/tasks" ] && [ -e "$tree/$set" ]; then cat "$tree/$set" > "$tree/init.scope/$set"; fi
    done
    echo $$ > "$tree/init.scope/cgroup.procs"
done
exec unshare --pid --fork --kill-child --mount-proc bash -c '
    while [ -e "$PEER/wanted" ]; do "$INCUSD" --group root >> "$PEER/incusd.log" 2>&1 & wait $!; done'
"#;

/// A running `incusd`.
#[derive(Debug)]
pub struct Incus {
    host: Host,
    starter: thread::JoinHandle<()>,
    folder: PathBuf,
}

impl Incus {
    /// Whether it can be run here; else what is to be done for that.
    ///
    /// # Errors
    /// A sentence for the one who reads the figures.
    pub fn installed() -> Result<(), String> {
        let client =
            std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|p| p.join("incus").exists()));
        if client && Path::new(INCUSD).exists() {
            return Ok(());
        }
        Err(format!(
            "Incus is not installed, so Duet's figures stand alone. To see it beside: install {PACKAGES}\n\
             (Debian 13, or bookworm-backports on Debian 12) without starting it, then run this again."
        ))
    }

    /// Starts it, with its pools and its network.
    pub fn start() -> Self {
        let host = Host::bare();
        let folder = host.tmp().join("incus");
        for part in ["home", "no-templates"] {
            fs::create_dir_all(folder.join(part)).expect("a folder for Incus");
        }
        fs::write(folder.join("ids"), "root:1000000:1000000000\n").expect("Incus' range of ids");
        fs::write(folder.join("wanted"), "").expect("a file");
        let run = host
            .command("bash", &["-euc", START])
            .env("PEER", folder.to_str().expect("a plain path"))
            .env("INCUSD", INCUSD)
            .env("INCUS_DIR", folder.to_str().expect("a plain path"))
            .env("INCUS_LXC_TEMPLATE_CONFIG", folder.join("no-templates").to_str().expect("a plain path"))
            // It ends with its host.
            .within(Duration::from_secs(24 * 3600));
        let starter = thread::spawn(move || drop(run.run()));
        let incus = Self { host, starter, folder };
        incus.until_ready(Instant::now());
        let cli = incus.on("dir");
        for line in [
            "storage create dir dir",
            "storage create btrfs btrfs size=30GiB",
            "network create incusbr0",
            "profile device add default root disk path=/ pool=dir",
            "profile device add default eth0 nic network=incusbr0",
            // Duet's images have no udev, and where /sys can be written networkd waits for it before it asks for an
            // address (systemd's src/network/networkd-link.c).
            "profile set default 'raw.lxc=lxc.mount.auto = sys:ro'",
        ] {
            cli.timed(line);
        }
        incus
    }

    /// It on one of its two pools.
    pub fn on(&self, pool: &str) -> Contender {
        Contender::incus(&self.folder, pool, if pool == "dir" { "d" } else { "b" })
    }

    /// Imports an image.
    pub fn import(&self, file: &Path, alias: &str) {
        self.on("dir").timed(&format!("image import {} --alias {alias}", file.display()));
    }

    /// Ends the daemon without touching instances and says how long the next one took to be ready.
    pub fn restart(&self) -> Duration {
        let old = self.daemon();
        let pid = nix::unistd::Pid::from_raw(old);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("ending incusd");
        let ended = poll_closely(UP, || (!processes::alive(old)).then_some(()));
        assert!(ended.is_some(), "incusd did not end");
        self.until_ready(Instant::now())
    }

    fn until_ready(&self, since: Instant) -> Duration {
        let socket = self.folder.join("unix.socket");
        let ready = poll_closely(UP, || {
            // It answers 503 until it is.
            let answer = Request::new(&socket, "GET", "/internal/ready").try_send().ok()?;
            (answer.status == 200).then(|| since.elapsed())
        });
        ready.unwrap_or_else(|| {
            let log = fs::read_to_string(self.folder.join("incusd.log")).unwrap_or_default();
            panic!("incusd was not ready within {UP:?}: {log}")
        })
    }

    /// The daemon's process.
    pub fn daemon(&self) -> i32 {
        let found = self.host.running("incusd");
        let daemon = found.into_iter().find(|pid| processes::command_line(*pid).get(1).is_some_and(|a| a == "--group"));
        daemon.expect("incusd runs")
    }

    /// The monitors of its running containers.
    pub fn monitors(&self) -> Vec<i32> {
        let mut found = self.host.processes();
        found.retain(|pid| processes::command_line(*pid).first().is_some_and(|name| name.starts_with("[lxc monitor]")));
        found
    }

    /// Takes it down with all that it made.
    pub fn end(self) {
        let _ = fs::remove_file(self.folder.join("wanted"));
        self.host.abandon();
        let _ = self.starter.join();
    }
}
