//! Tests against the real kernel, nft and dnsmasq, each in a network namespace of its own; as root.

mod bridge;
mod dhcp;
mod firewall;
mod watch;

use std::{
    fs,
    future::Future,
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    process::{Command, Output},
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use super::{
    dnsmasq::{NetworkDir, Running},
    *,
};

/// How long anything may take that a test waits for.
const DEADLINE: Duration = Duration::from_secs(20);

/// Runs a test in a fresh network namespace, on a thread and a runtime of its own.
fn isolated<F: Future<Output = ()>>(test: impl FnOnce(Host) -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        run("ip link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let host = Host::new();
            test(host).await;
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// The host of a test: a state directory, and whatever runs on it ends with the test.
struct Host {
    dir: TempDir,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let open: fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        fs::set_permissions(dir.path(), open).unwrap();
        Host { dir }
    }

    fn manager(&self) -> Manager {
        Manager::new(self.dir.path()).unwrap()
    }

    fn network_dir(&self, name: &str) -> NetworkDir {
        NetworkDir::new(&self.dir.path().join("networks"), name)
    }

    fn dnsmasq(&self, name: &str) -> Option<i32> {
        Running::find(&self.network_dir(name)).map(|running| running.pid())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let entries = fs::read_dir(self.dir.path().join("networks")).into_iter().flatten().flatten();
        for entry in entries {
            if let Some(pid) = self.dnsmasq(&entry.file_name().to_string_lossy()) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
        }
    }
}

/// A network namespace with nothing but loopback, standing for a container or for the world.
struct Space {
    fd: OwnedFd,
    /// A routing socket made inside.
    socket: OwnedFd,
}

impl Space {
    fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let fd = fs::File::open("/proc/thread-self/ns/net").unwrap().into();
            Space { fd, socket: netlink_socket() }
        });
        let space = made.join().unwrap();
        space.run("ip link set lo up");
        space
    }

    /// Runs a command in it; it must succeed.
    fn run(&self, command: &str) -> String {
        check(command, self.command(command).output().unwrap())
    }

    fn command(&self, command: &str) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.arg(format!("--net=/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd()));
        nsenter.args(["sh", "-c", command]);
        nsenter
    }

    fn watcher(&self) -> NetnsWatcher {
        NetnsWatcher::spawn(self.socket.try_clone().unwrap()).unwrap()
    }
}

fn netlink_socket() -> OwnedFd {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    // Protocol 0 of this family is NETLINK_ROUTE.
    socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap()
}

/// Runs a command; it must succeed.
fn run(command: &str) -> String {
    check(command, Command::new("sh").args(["-c", command]).output().unwrap())
}

fn check(command: &str, output: Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Waits until something holds.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn config(pairs: &[(&str, &str)]) -> BridgeConfig {
    let map: ConfigMap = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    BridgeConfig::parse(&map).unwrap()
}

/// A network as a bare `network create` makes it.
fn network(name: &str) -> Network {
    let pairs = [
        ("ipv4.address", "10.123.7.1/24"),
        ("ipv4.nat", "true"),
        ("ipv6.address", "fd42:1:2:3::1/64"),
        ("ipv6.nat", "true"),
    ];
    Network { name: name.to_owned(), config: config(&pairs), hosts: Vec::new() }
}

fn host(name: &str, mac: &str) -> StaticHost {
    StaticHost {
        id: format!("{name}.eth0"),
        hwaddr: mac.parse().unwrap(),
        name: Some(name.to_owned()),
        ipv4: None,
        ipv6: None,
    }
}

/// Plugs a NIC for `host` into the bridge and the space.
async fn plug(manager: &Manager, bridge: &str, host: &StaticHost, space: &Space) -> String {
    use std::os::fd::AsFd;
    let name = host_name(&mut rand::rng());
    let spec = NicSpec {
        host_name: &name,
        peer_name: "eth0",
        parent: bridge,
        hwaddr: host.hwaddr,
        mtu: None,
        netns: Netns::Fd(space.fd.as_fd()),
    };
    manager.attach_nic(&spec).await.unwrap();
    name
}

/// A script for busybox' udhcpc that does what a guest's would.
fn dhcp_script(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("udhcpc.sh");
    let text = "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip addr add $ip/$mask dev $interface\n\
                ip route add default via $router\necho \"dns=$dns domain=$domain search=$search\"\n";
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    path
}
