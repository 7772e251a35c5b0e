//! One product on one pool, driven as its users do: by its own CLI, started in the machine's own namespaces, since what
//! it takes to enter a test host would be in every figure.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Host;
use crate::api::{Connection, Request};
use crate::command::{Output, Run, words};
use crate::wait::poll_closely;

/// How long one command may take.
const DEADLINE: Duration = Duration::from_secs(120);
/// How long an instance may take to get an address, or Debian to have booted.
const BOOT: Duration = Duration::from_secs(60);

/// What is measured: Duet, or a peer on one of its pools.
#[derive(Debug, Clone)]
pub struct Contender {
    /// How its column is headed.
    pub title: String,
    program: PathBuf,
    environment: Vec<(&'static str, PathBuf)>,
    /// Where its daemon answers.
    pub socket: PathBuf,
    /// dnsmasq's file of leases on the network that instances are on.
    leases: PathBuf,
    /// The pool that instances are made in, where there is a choice.
    pool: Option<String>,
    /// What its instances' names begin with, so that two of one product do not meet.
    prefix: &'static str,
}

impl Contender {
    /// Duet on a test host.
    pub fn duet(host: &Host) -> Self {
        Self {
            title: "Duet".to_owned(),
            program: host.binaries().join("duet"),
            environment: vec![("DUET_DIR", host.state()), ("HOME", host.tmp())],
            socket: host.socket(),
            leases: host.state().join("networks/duetbr0/dnsmasq.leases"),
            pool: None,
            prefix: "u",
        }
    }

    /// Incus with its state in `folder`, on the pool of this name.
    pub fn incus(folder: &Path, pool: &str, prefix: &'static str) -> Self {
        Self {
            title: format!("Incus {pool}"),
            program: PathBuf::from("incus"),
            environment: vec![("INCUS_DIR", folder.to_owned()), ("HOME", folder.join("home"))],
            socket: folder.join("unix.socket"),
            leases: folder.join("networks/incusbr0/dnsmasq.leases"),
            pool: Some(pool.to_owned()),
            prefix,
        }
    }

    /// The name of its instance of this number.
    pub fn name(&self, number: usize) -> String {
        format!("{}{number}", self.prefix)
    }

    /// Runs its CLI with the arguments of a line.
    #[track_caller]
    pub fn run(&self, line: &str) -> Output {
        let mut command = Command::new(&self.program);
        command.args(words(line)).envs(self.environment.iter().map(|(name, value)| (name, value)));
        Run::new(command, format!("{} {line}", self.program.display())).within(DEADLINE).run()
    }

    /// Runs its CLI, which has to succeed, and says how long that took.
    #[track_caller]
    pub fn timed(&self, line: &str) -> Duration {
        self.run(line).succeeded().took
    }

    /// How `create` and `launch` are told the pool.
    pub fn storage(&self) -> String {
        self.pool.as_ref().map_or_else(String::new, |pool| format!("--storage {pool}"))
    }

    /// Waits until the instance has an IPv4 lease and gives the instant at which it was seen to have one.
    #[track_caller]
    pub fn leased(&self, name: &str) -> Instant {
        let instance = Request::new(&self.socket, "GET", &format!("/1.0/instances/{name}")).try_send();
        let instance = instance.expect("asking for an instance").metadata();
        let mac = instance["config"]["volatile.eth0.hwaddr"].as_str().expect("a hardware address").to_owned();
        let leased = poll_closely(BOOT, || {
            let leases = std::fs::read_to_string(&self.leases).ok()?;
            leases.contains(&mac).then(Instant::now)
        });
        leased.unwrap_or_else(|| panic!("{name} of {} got no lease", self.title))
    }

    /// Waits until systemd in the instance has no more to do, so that what is measured next has the machine to itself.
    #[track_caller]
    pub fn settled(&self, name: &str) {
        // How the boot ended is none of this program's business.
        let line = format!("exec {name} -- systemctl is-system-running --wait");
        let end = Instant::now() + BOOT;
        while self.run(&line).errors().contains("Failed to connect to bus") {
            assert!(Instant::now() < end, "{name} of {} did not boot", self.title);
        }
    }

    /// A request that starts an operation, and the wait for its success.
    #[track_caller]
    pub fn done(&self, connection: &mut Connection, method: &str, path: &str, body: Option<&Value>) {
        let answer = connection.send(method, path, body).json();
        let operation = answer["operation"].as_str().unwrap_or_else(|| panic!("{method} {path}: {answer:#}"));
        let ended = connection.send("GET", &format!("{operation}/wait?timeout=120"), None).metadata();
        assert!(ended["status_code"] == 200, "{method} {path}: {ended:#}");
    }

    /// Makes an instance of an image without starting it.
    #[track_caller]
    pub fn create(&self, connection: &mut Connection, image: &str, number: usize) {
        let mut body = json!({"name": self.name(number), "source": {"type": "image", "alias": image}});
        if let Some(pool) = &self.pool {
            body["devices"] = json!({"root": {"type": "disk", "path": "/", "pool": pool}});
        }
        self.done(connection, "POST", "/1.0/instances", Some(&body));
    }

    /// Starts or, by force, stops an instance.
    #[track_caller]
    pub fn change(&self, connection: &mut Connection, action: &str, number: usize) {
        let path = format!("/1.0/instances/{}/state", self.name(number));
        self.done(connection, "PUT", &path, Some(&json!({"action": action, "force": action == "stop", "timeout": -1})));
    }
}
