//! What `duet-test-holder` does: it makes the namespaces of a test host and keeps them while the test runs.
//!
//! Two processes, because whoever tidies up must stand outside of what is torn down: [`watch`] stays in the machine's
//! own namespaces and cgroups and waits for its stdin to close; [`hold`] enters new ones, prints where they are and
//! sleeps until it is killed.
//!
//! Addresses are those reserved for documentation (RFC 5737, RFC 3849): nothing real can be reached by mistake, and
//! the "internet" has no route back to the instances' private addresses, so an answer proves that NAT works.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use crate::cgroups::{self, Hierarchy};
use crate::sweep::sweep;

/// The "internet"'s own IPv4 address, where it answers DNS and whatever a test listens with.
pub const INTERNET_IPV4: &str = "203.0.113.1";
/// The host's address on the link to it.
pub const UPLINK_IPV4: &str = "203.0.113.2";
/// The "internet"'s own IPv6 address.
pub const INTERNET_IPV6: &str = "2001:db8:113::1";
/// The host's address on the link to it.
pub const UPLINK_IPV6: &str = "2001:db8:113::2";
/// A name that only the "internet"'s DNS server knows; it resolves to its addresses.
pub const INTERNET_NAME: &str = "www.internet.test";

/// What [`hold`] prints when the host stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ready {
    /// The process in the host's namespaces.
    pub holder: i32,
    /// The thread in the "internet"'s network namespace.
    pub internet: i32,
    /// Processes that belong to the harness and not to what is tested.
    pub own: Vec<i32>,
}

/// Starts [`hold`], passes its one line on, waits for the test to end and sweeps.
pub fn watch(folder: &Path, name: &str) -> Result<()> {
    let result = start_and_wait(folder, name);
    sweep(folder, name)?;
    result
}

fn start_and_wait(folder: &Path, name: &str) -> Result<()> {
    let hierarchies = cgroups::hierarchies()?;
    cgroups::create(&hierarchies, name)?;
    let mut holder = Command::new(std::env::current_exe()?)
        .args(["hold", name])
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the holder")?;
    let mut ready = String::new();
    let stdout = holder.stdout.take().context("the holder has no stdout")?;
    BufReader::new(stdout).read_line(&mut ready)?;
    if ready.is_empty() {
        bail!("the holder ended before the host stood: {}", holder.wait()?);
    }
    io::stdout().write_all(ready.as_bytes())?;
    io::stdout().flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    // Killed by the sweep; reaped here so that its cgroup can go.
    thread::spawn(move || holder.wait());
    Ok(())
}

/// Makes the host's namespaces, says so, and sleeps for ever.
pub fn hold(folder: &Path, name: &str) -> Result<()> {
    let hierarchies = cgroups::hierarchies()?;
    enter(&hierarchies, name, "")?;
    // The root of the new cgroup namespace is where its maker stands.
    unshare(CloneFlags::CLONE_NEWCGROUP).context("unsharing the cgroup namespace")?;
    enter(&hierarchies, name, "host")?;
    unshare(CloneFlags::CLONE_NEWNS).context("unsharing the mount namespace")?;
    remount(None, Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    let stage = stage_cgroups(&hierarchies, name, folder)?;
    unshare(CloneFlags::CLONE_NEWNET).context("unsharing the network namespace")?;
    remount(Some("sysfs"), Path::new("/sys"), Some("sysfs"), MsFlags::empty())?;
    private_run()?;
    let internet = internet_thread()?;
    connect(internet)?;
    let holder = nix::unistd::getpid().as_raw();
    let ready = Ready { holder, internet, own: vec![holder, serve_names(internet)?] };
    let resolv = folder.join("resolv.conf");
    fs::write(&resolv, format!("nameserver {INTERNET_IPV4}\n"))?;
    remount(resolv.to_str(), Path::new("/etc/resolv.conf"), None, MsFlags::MS_BIND)?;
    remount(stage.to_str(), Path::new("/sys/fs/cgroup"), None, MsFlags::MS_MOVE)?;
    println!("{}", serde_json::to_string(&ready)?);
    loop {
        thread::park();
    }
}

fn enter(hierarchies: &[Hierarchy], name: &str, leaf: &str) -> Result<()> {
    for hierarchy in hierarchies {
        let file = hierarchy.mount.join(name).join(leaf).join("cgroup.procs");
        fs::write(&file, "0").with_context(|| format!("entering {}", file.display()))?;
    }
    Ok(())
}

fn remount(source: Option<&str>, target: &Path, kind: Option<&str>, flags: MsFlags) -> Result<()> {
    mount(source, target, kind, flags, None::<&str>)
        .with_context(|| format!("mounting {} on {}", source.or(kind).unwrap_or("nothing"), target.display()))
}

/// Puts the subtree together as the machine's tree is: hybrid under a tmpfs, or the unified one alone. It is moved to
/// its place last, since a new sysfs goes over it in between.
fn stage_cgroups(hierarchies: &[Hierarchy], name: &str, folder: &Path) -> Result<PathBuf> {
    let stage = folder.join("cgroup");
    fs::create_dir(&stage)?;
    let alone = hierarchies.iter().any(|hierarchy| hierarchy.mount == Path::new("/sys/fs/cgroup"));
    if !alone {
        remount(Some("tmpfs"), &stage, Some("tmpfs"), MsFlags::empty())?;
    }
    for hierarchy in hierarchies {
        let source = hierarchy.mount.join(name);
        let target = stage.join(hierarchy.mount.strip_prefix("/sys/fs/cgroup")?);
        fs::create_dir_all(&target)?;
        remount(source.to_str(), &target, None, MsFlags::MS_BIND)?;
        let link = hierarchy.mount.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        for controller in link.split(',').filter(|controller| *controller != link) {
            symlink(link, stage.join(controller))?;
        }
    }
    Ok(stage)
}

/// A `/run` of its own, so that the machine's systemd and whatever else listens there is out of reach.
fn private_run() -> Result<()> {
    let resolv = fs::canonicalize("/etc/resolv.conf");
    remount(Some("tmpfs"), Path::new("/run"), Some("tmpfs"), MsFlags::empty())?;
    if let Ok(target) = resolv
        && target.starts_with("/run")
    {
        fs::create_dir_all(target.parent().unwrap_or(Path::new("/run")))?;
        fs::write(target, "")?;
    }
    Ok(())
}

/// A thread that sits in a network namespace of its own, which lives as long as this process.
fn internet_thread() -> Result<i32> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let made = unshare(CloneFlags::CLONE_NEWNET).map(|()| nix::unistd::gettid().as_raw());
        if sender.send(made).is_ok() {
            loop {
                thread::park();
            }
        }
    });
    receiver.recv()?.context("unsharing the internet's network namespace")
}

fn internet_namespace(internet: i32) -> String {
    format!("--net=/proc/{}/task/{internet}/ns/net", std::process::id())
}

fn run(command: &str) -> Result<()> {
    let mut words = command.split(' ');
    let status = Command::new(words.next().unwrap_or_default())
        .args(words)
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("running {command}"))?;
    if !status.success() {
        bail!("'{command}' failed");
    }
    Ok(())
}

fn connect(internet: i32) -> Result<()> {
    let outside = format!("nsenter {} ip", internet_namespace(internet));
    for command in [
        "ip link set lo up".to_owned(),
        format!("ip link add uplink type veth peer name internet netns {internet}"),
        format!("ip address add {UPLINK_IPV4}/24 dev uplink"),
        format!("ip address add {UPLINK_IPV6}/64 dev uplink nodad"),
        "ip link set uplink up".to_owned(),
        format!("{outside} link set lo up"),
        format!("{outside} address add {INTERNET_IPV4}/24 dev internet"),
        format!("{outside} address add {INTERNET_IPV6}/64 dev internet nodad"),
        format!("{outside} link set internet up"),
        format!("ip route add default via {INTERNET_IPV4}"),
        format!("ip -6 route add default via {INTERNET_IPV6}"),
    ] {
        run(&command)?;
    }
    Ok(())
}

/// The "internet"'s DNS server: it knows one name and has never heard of any other.
fn serve_names(internet: i32) -> Result<i32> {
    let server = Command::new("nsenter")
        .arg(internet_namespace(internet))
        .args(["dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null"])
        .args(["--bind-interfaces", "--interface=internet", "--user=root", "--pid-file="])
        .arg(format!("--address=/{INTERNET_NAME}/{INTERNET_IPV4}"))
        .arg(format!("--address=/{INTERNET_NAME}/{INTERNET_IPV6}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("starting the internet's DNS server")?;
    Ok(i32::try_from(server.id())?)
}
