//! DHCP and DNS: one dnsmasq per bridge.
//!
//! All that a dnsmasq needs lies in `$DUET_DIR/networks/<name>/`:
//!
//! | file | written by | what |
//! |---|---|---|
//! | `dnsmasq.conf` | us, only while it is stopped | its whole configuration |
//! | `dnsmasq.pid` | dnsmasq | its process id |
//! | `dnsmasq.leases` | dnsmasq | leases, see [`super::leases`] |
//! | `hosts/<instance>.<nic>` | us | one static host, see [`StaticHost`] |
//!
//! dnsmasq puts itself into the background, in a session of its own and as a child of init, so it outlives the
//! daemon; its parent's exit status says whether it got all its sockets. Afterwards it is known by its command line,
//! which names our configuration file: the pid file only tells where to look first, and a process is signalled through
//! a pidfd that was opened *before* its command line was read, so never a stranger that inherited the number.
//! Because the configuration is only ever written while no dnsmasq runs on it, the file on disk is what the running
//! one has read, and comparing it with the wanted one decides about a restart.
//!
//! It drops root as soon as its sockets are open, to the user `dnsmasq` or `nobody` if there is one that can reach
//! the `hosts` directory; where the path is closed to others it stays root rather than lose the static hosts.

use std::{
    collections::HashSet,
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    net::{Ipv4Addr, Ipv6Addr},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::{Ipv4Net, Ipv6Net};
use nix::unistd::{Group, User};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::timeout;

use super::{
    config::{BridgeConfig, DnsMode, Ipv4Config, Ipv6Config},
    error::{Error, Result},
    mac::MacAddr,
    program::{DNSMASQ, complaint},
    readable,
};

/// How long it may take to end after SIGTERM, and again after SIGKILL.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// Users that dnsmasq may run as, by preference.
const USERS: [&str; 2] = ["dnsmasq", "nobody"];
/// Lease limit; dnsmasq's own default of 1000 is less than one /22 of instances.
const LEASE_MAX: u32 = 100_000;

/// One instance NIC that the network knows: it has its name from the first DHCP exchange on, and fixed addresses if
/// it has any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticHost {
    /// Unique in the network: `<instance>.<device>`.
    pub id: String,
    /// The NIC's hardware address.
    pub hwaddr: MacAddr,
    /// The name to register; ignored unless the network's `dns.mode` is `managed`.
    pub name: Option<String>,
    /// Fixed IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// Fixed IPv6 address; needs `ipv6.dhcp.stateful`.
    pub ipv6: Option<Ipv6Addr>,
}

impl StaticHost {
    /// The line for dnsmasq (the right side of its `dhcp-host=`), or nothing if there is nothing to say.
    fn line(&self, mode: DnsMode) -> Option<String> {
        let mut line = self.hwaddr.to_string();
        let bare = line.len();
        if let Some(ip) = self.ipv4 {
            let _ = write!(line, ",{ip}");
        }
        if let Some(ip) = self.ipv6 {
            let _ = write!(line, ",[{ip}]");
        }
        if let (Some(name), DnsMode::Managed) = (&self.name, mode) {
            let _ = write!(line, ",{name}");
        }
        (line.len() > bare).then(|| line + "\n")
    }
}

/// The files of one network.
#[derive(Debug, Clone)]
pub(super) struct NetworkDir {
    name: String,
    dir: PathBuf,
}

impl NetworkDir {
    pub fn new(networks: &Path, name: &str) -> Self {
        NetworkDir { name: name.to_owned(), dir: networks.join(name) }
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    pub fn leases(&self) -> PathBuf {
        self.dir.join("dnsmasq.leases")
    }

    fn config(&self) -> PathBuf {
        self.dir.join("dnsmasq.conf")
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("dnsmasq.pid")
    }

    pub fn hosts(&self) -> PathBuf {
        self.dir.join("hosts")
    }

    /// Makes the directories that are missing. Others may pass through them, as a dnsmasq without root must.
    pub fn create(&self) -> Result<()> {
        for (dir, mode) in [(self.dir.clone(), 0o711), (self.hosts(), 0o755)] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(&dir)
                .map_err(|e| Error::file("create", dir.clone(), e))?;
        }
        Ok(())
    }

    /// Removes all files of the network.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", &self.dir, e)),
            _ => Ok(()),
        }
    }

    /// Writes a file of ours so that readers see the old text or the new one, never a part.
    pub fn write(&self, path: &Path, text: &str) -> Result<()> {
        let temporary = self.dir.join(".new");
        let write = || {
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o644).open(&temporary)?;
            file.write_all(text.as_bytes())?;
            fs::rename(&temporary, path)
        };
        write().map_err(|e| Error::file("write", path, e))
    }

    fn host_file(&self, id: &str) -> PathBuf {
        self.hosts().join(file_name(id))
    }
}

/// What writing or removing a host file asks of a running dnsmasq, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum HostChange {
    /// Nothing changed.
    None,
    /// A file is new: dnsmasq's inotify watch reads it.
    Added,
    /// A file that dnsmasq has read was changed or removed: it must read all anew, by SIGHUP (dnsmasq(8),
    /// `--dhcp-hostsdir`: "host records are only added dynamically").
    Replaced,
}

/// Writes one host's file.
pub(super) fn write_host(dir: &NetworkDir, host: &StaticHost, mode: DnsMode) -> Result<HostChange> {
    let path = dir.host_file(&host.id);
    let Some(line) = host.line(mode) else {
        return remove_host(dir, &host.id);
    };
    let change = match fs::read_to_string(&path) {
        Ok(old) if old == line => return Ok(HostChange::None),
        Ok(_) => HostChange::Replaced,
        Err(_) => HostChange::Added,
    };
    dir.write(&path, &line)?;
    Ok(change)
}

/// Removes one host's file.
pub(super) fn remove_host(dir: &NetworkDir, id: &str) -> Result<HostChange> {
    let path = dir.host_file(id);
    match fs::remove_file(&path) {
        Ok(()) => Ok(HostChange::Replaced),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(HostChange::None),
        Err(e) => Err(Error::file("remove", path, e)),
    }
}

/// Removes the files of all hosts but these.
pub(super) fn prune_hosts(dir: &NetworkDir, hosts: &[StaticHost]) -> Result<HostChange> {
    let mut change = HostChange::None;
    let known: HashSet<String> = hosts.iter().map(|host| file_name(&host.id)).collect();
    let hosts_dir = dir.hosts();
    for entry in fs::read_dir(&hosts_dir).map_err(|e| Error::file("read", &hosts_dir, e))? {
        let entry = entry.map_err(|e| Error::file("read", &hosts_dir, e))?;
        if !entry.file_name().to_str().is_some_and(|name| known.contains(name)) {
            fs::remove_file(entry.path()).map_err(|e| Error::file("remove", entry.path(), e))?;
            change = HostChange::Replaced;
        }
    }
    Ok(change)
}

/// A file name for any id: what dnsmasq would pass over (a leading dot or `#`, a trailing `~`) or the file system
/// would misread is written as `%xx`.
fn file_name(id: &str) -> String {
    let mut name = String::with_capacity(id.len());
    for byte in id.bytes() {
        match byte {
            b'.' if name.is_empty() => name.push_str("%2e"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => name.push(char::from(byte)),
            _ => {
                let _ = write!(name, "%{byte:02x}");
            }
        }
    }
    name
}

/// The configuration of a network's dnsmasq; none if the bridge has no address and hence nothing to serve.
pub(super) fn render(dir: &NetworkDir, config: &BridgeConfig) -> Option<String> {
    if config.ipv4.is_none() && config.ipv6.is_none() {
        return None;
    }
    let mut text = String::from("# Made by duetd; changed only through the network's configuration.\n");
    let name = &dir.name;
    let mut add = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    // Only this bridge, and no wildcard socket that would keep the host's own DNS server from its port.
    add(format!("interface={name}\nexcept-interface=lo\nbind-interfaces"));
    add(format!("pid-file={}", dir.pid_file().display()));
    add(format!("dhcp-leasefile={}", dir.leases().display()));
    add(format!("dhcp-hostsdir={}", dir.hosts().display()));
    for line in identity(&dir.hosts()) {
        add(line);
    }
    // The host's /etc/hosts often says that its name is 127.0.1.1, which is no use to an instance.
    add("no-hosts\nno-negcache".to_owned());
    // No ping before an offer (it costs a client three seconds) and one exchange less for those who can.
    add("no-ping\ndhcp-rapid-commit\ndhcp-authoritative\ndhcp-no-override".to_owned());
    add(format!("dhcp-lease-max={LEASE_MAX}\nquiet-dhcp\nquiet-dhcp6\nquiet-ra"));
    dns_lines(name, config, &mut add);
    if let Some(v4) = &config.ipv4 {
        ipv4_lines(v4, config, &mut add);
    }
    if let Some(v6) = &config.ipv6 {
        ipv6_lines(name, v6, config, &mut add);
    }
    if !config.raw_dnsmasq.trim().is_empty() {
        add(format!("# raw.dnsmasq\n{}", config.raw_dnsmasq.trim_end()));
    }
    Some(text)
}

fn dns_lines(name: &str, config: &BridgeConfig, add: &mut impl FnMut(String)) {
    if config.dns_mode != DnsMode::Dynamic {
        // Names come from the host files alone; a client can't claim another's.
        add("dhcp-ignore-names".to_owned());
    }
    if config.dns_mode == DnsMode::None {
        return;
    }
    let domain = &config.dns_domain;
    add(format!("domain={domain}\nlocal=/{domain}/\ninterface-name=_gateway.{domain},{name}"));
    // Questions about our own addresses never go upstream either.
    let zones = config.ipv4.as_ref().and_then(|v4| reverse_zone_v4(v4.address));
    for zone in zones.into_iter().chain(config.ipv6.as_ref().and_then(|v6| reverse_zone_v6(v6.address))) {
        add(format!("local=/{zone}/"));
    }
}

fn ipv4_lines(v4: &Ipv4Config, config: &BridgeConfig, add: &mut impl FnMut(String)) {
    if !v4.dhcp {
        return;
    }
    let mask = v4.address.netmask();
    for (first, last) in ipv4_ranges(v4) {
        add(format!("dhcp-range={first},{last},{mask},{}", v4.expiry));
    }
    if !config.dns_search.is_empty() {
        add(format!("dhcp-option-force=option:domain-search,{}", config.dns_search.join(",")));
    }
    if let Some(mtu) = config.mtu.filter(|mtu| *mtu != 1500) {
        add(format!("dhcp-option-force=option:mtu,{mtu}"));
    }
}

fn ipv6_lines(name: &str, v6: &Ipv6Config, config: &BridgeConfig, add: &mut impl FnMut(String)) {
    if !v6.dhcp {
        return;
    }
    add("enable-ra".to_owned());
    if v6.stateful {
        for (first, last) in ipv6_ranges(v6) {
            add(format!("dhcp-range={first},{last},{},{}", v6.address.prefix_len(), v6.expiry));
        }
    } else {
        // Hosts make their own addresses; DHCPv6 answers only about DNS, and names are guessed from the hardware
        // address of the same host's IPv4 lease.
        add(format!("dhcp-range=::,constructor:{name},ra-stateless,ra-names"));
    }
    if !config.dns_search.is_empty() {
        add(format!("dhcp-option-force=option6:domain-search,{}", config.dns_search.join(",")));
    }
}

/// What DHCP hands out: the configured ranges, or all hosts of the subnet around the bridge's own address.
fn ipv4_ranges(v4: &Ipv4Config) -> Vec<(Ipv4Addr, Ipv4Addr)> {
    if !v4.ranges.is_empty() {
        return v4.ranges.iter().map(|range| (range.first, range.last)).collect();
    }
    let own = u32::from(v4.address.addr());
    let first = u32::from(v4.address.network()) + 1;
    let last = u32::from(v4.address.broadcast()) - 1;
    [(first, own - 1), (own + 1, last)]
        .into_iter()
        .filter(|(from, to)| from <= to)
        .map(|(from, to)| (Ipv4Addr::from(from), Ipv4Addr::from(to)))
        .collect()
}

fn ipv6_ranges(v6: &Ipv6Config) -> Vec<(Ipv6Addr, Ipv6Addr)> {
    if !v6.ranges.is_empty() {
        return v6.ranges.iter().map(|range| (range.first, range.last)).collect();
    }
    // The part of the subnet above the bridge's own address, which is ::1 wherever it was chosen by us; below it
    // there is at most a sliver not worth a second range.
    let own = u128::from(v6.address.addr());
    let last = u128::from(v6.address.broadcast());
    let first = if own < last { own + 1 } else { u128::from(v6.address.network()) + 1 };
    let last = if own < last { last } else { own - 1 };
    vec![(Ipv6Addr::from(first), Ipv6Addr::from(last))]
}

/// The `in-addr.arpa` zone of a subnet whose prefix ends between octets (RFC 1035, 3.5).
fn reverse_zone_v4(net: Ipv4Net) -> Option<String> {
    if net.prefix_len() == 0 || !net.prefix_len().is_multiple_of(8) {
        return None;
    }
    let octets = net.network().octets();
    let used = &octets[..usize::from(net.prefix_len() / 8)];
    let labels: Vec<String> = used.iter().rev().map(u8::to_string).collect();
    Some(format!("{}.in-addr.arpa", labels.join(".")))
}

/// The `ip6.arpa` zone of a subnet whose prefix ends between nibbles (RFC 3596, 2.5).
fn reverse_zone_v6(net: Ipv6Net) -> Option<String> {
    if net.prefix_len() == 0 || !net.prefix_len().is_multiple_of(4) {
        return None;
    }
    let digits: Vec<char> = format!("{:032x}", u128::from(net.network())).chars().collect();
    let used = &digits[..usize::from(net.prefix_len() / 4)];
    let labels: Vec<String> = used.iter().rev().map(char::to_string).collect();
    Some(format!("{}.ip6.arpa", labels.join(".")))
}

/// The `user=` and `group=` lines.
fn identity(hosts: &Path) -> Vec<String> {
    for name in USERS {
        let Ok(Some(user)) = User::from_name(name) else {
            continue;
        };
        let Ok(Some(group)) = Group::from_gid(user.gid) else {
            continue;
        };
        if may_read(hosts, user.uid.as_raw(), user.gid.as_raw()) {
            return vec![format!("user={name}"), format!("group={}", group.name)];
        }
    }
    vec!["user=root".to_owned()]
}

/// Whether a user can list this directory, by the mode bits of it and all above it.
fn may_read(dir: &Path, uid: u32, gid: u32) -> bool {
    let allowed = |path: &Path, bits: u32| {
        let Ok(meta) = fs::metadata(path) else {
            return false;
        };
        let mode = meta.mode();
        let granted = if meta.uid() == uid {
            mode >> 6
        } else if meta.gid() == gid {
            mode >> 3
        } else {
            mode
        };
        granted & bits == bits
    };
    allowed(dir, 0o5) && dir.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).all(|p| allowed(p, 0o1))
}

/// A running dnsmasq of ours.
#[derive(Debug)]
pub(super) struct Running {
    network: String,
    pid: Pid,
    fd: OwnedFd,
}

impl Running {
    /// The dnsmasq that runs on this network's configuration, if one does.
    pub fn find(dir: &NetworkDir) -> Option<Self> {
        let noted = fs::read_to_string(dir.pid_file()).ok().and_then(|text| text.trim().parse().ok());
        if let Some(found) = noted.and_then(|pid| Self::adopt(dir, pid)) {
            return Some(found);
        }
        // The pid file is missing or stale. One that is still alive would fight with a new one over the port.
        let processes = fs::read_dir("/proc").ok()?.flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.into_iter().find_map(|pid| Self::adopt(dir, pid))
    }

    fn adopt(dir: &NetworkDir, pid: i32) -> Option<Self> {
        let process = Pid::from_raw(pid)?;
        let cmdline = || fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        // Look before opening, to open no fd on every process of the host, and again after, now that the fd pins it.
        let ours = |cmdline: Vec<u8>| {
            let wanted = config_argument(dir);
            let mut args = cmdline.split(|b| *b == 0);
            let program = args.next().unwrap_or_default();
            program.ends_with(DNSMASQ.name.as_bytes()) && args.any(|arg| arg == wanted.as_bytes())
        };
        if !ours(cmdline()) {
            return None;
        }
        let fd = pidfd_open(process, PidfdFlags::NONBLOCK).ok()?;
        ours(cmdline()).then(|| Running { network: dir.name.clone(), pid: process, fd })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Makes it read the host files anew.
    pub fn reload(&self) -> Result<()> {
        self.signal(Signal::HUP)
    }

    /// Ends it: SIGTERM, and SIGKILL when the deadline has passed.
    pub async fn stop(self) -> Result<()> {
        let watched = self.fd.try_clone().and_then(readable::register);
        let watched = watched.map_err(|e| Error::system(format!("cannot watch dnsmasq (pid {})", self.pid()), e))?;
        for signal in [Signal::TERM, Signal::KILL] {
            self.signal(signal)?;
            // A pidfd becomes readable when its process has ended (pidfd_open(2)).
            if timeout(STOP_DEADLINE, watched.readable()).await.is_ok() {
                return Ok(());
            }
        }
        let seconds = 2 * STOP_DEADLINE.as_secs();
        Err(Error::DnsmasqStuck { network: self.network.clone(), pid: self.pid(), seconds })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        match pidfd_send_signal(&self.fd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(Error::system(format!("cannot signal dnsmasq (pid {})", self.pid()), e)),
        }
    }
}

fn config_argument(dir: &NetworkDir) -> String {
    format!("--conf-file={}", dir.config().display())
}

/// Makes the network's dnsmasq run with this configuration, or not run if there is none. `anew` restarts it even if
/// the configuration is the same, as is needed when the bridge is another link than before: its DHCP socket is bound
/// to the link itself. Returns whether one was started.
pub(super) async fn ensure(dir: &NetworkDir, wanted: Option<&str>, anew: bool) -> Result<bool> {
    let running = Running::find(dir);
    let Some(wanted) = wanted else {
        stop(dir).await?;
        return Ok(false);
    };
    let same = fs::read_to_string(dir.config()).is_ok_and(|text| text == wanted);
    if let Some(running) = running {
        if same && !anew {
            return Ok(false);
        }
        if !same {
            // Better an error now, with the old one still serving, than none at all afterwards.
            check(dir, wanted).await?;
        }
        running.stop().await?;
    }
    if !same {
        dir.write(&dir.config(), wanted)?;
    }
    let argument = config_argument(dir);
    let output = DNSMASQ.run(&[argument.as_ref()], "").await?;
    if output.status.success() {
        return Ok(true);
    }
    Err(failure(dir, complaint(&output)))
}

/// Stops the network's dnsmasq if it runs.
pub(super) async fn stop(dir: &NetworkDir) -> Result<()> {
    if let Some(running) = Running::find(dir) {
        running.stop().await?;
    }
    // Left behind by one that was killed.
    let _ = fs::remove_file(dir.pid_file());
    Ok(())
}

/// Has dnsmasq read a configuration without acting on it.
async fn check(dir: &NetworkDir, text: &str) -> Result<()> {
    let trial = dir.path().join("dnsmasq.conf.trial");
    dir.write(&trial, text)?;
    let argument = format!("--conf-file={}", trial.display());
    let output = DNSMASQ.run(&["--test".as_ref(), argument.as_ref()], "").await;
    let _ = fs::remove_file(&trial);
    let output = output?;
    if output.status.success() { Ok(()) } else { Err(failure(dir, complaint(&output))) }
}

fn failure(dir: &NetworkDir, said: String) -> Error {
    let hint = if said.contains("Address already in use") {
        "; another DNS server listens on all addresses of this host: make it leave the bridge out (dnsmasq: \
         bind-interfaces, unbound: interface, named: listen-on)"
    } else {
        ""
    };
    let said = said.strip_prefix("dnsmasq: ").unwrap_or(&said).trim();
    Error::Dnsmasq { network: dir.name.clone(), message: format!("{said}{hint}") }
}
