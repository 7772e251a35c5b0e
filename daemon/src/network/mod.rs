//! The network manager: bridges, their addresses, firewall, DHCP and names; instances' NICs; what the network looks
//! like from inside an instance.
//!
//! It knows nothing of the inventory or the API: it is given a network's name and configuration and the hosts on it, and
//! gives back values. All state is in the kernel and under `$DUET_DIR/networks/<name>/`, and every operation takes it
//! from whatever it is to what is wanted, so that the same call serves creation, change, a restarted daemon, a rebooted
//! host and somebody's flushed firewall.
//!
//! | file | subject |
//! |---|---|
//! | [`config`] | configuration keys: meaning, defaults, checks |
//! | [`subnet`] | choosing subnets that nothing else uses |
//! | [`bridge`] | the bridge link, its addresses and settings |
//! | [`nft`] | the firewall table, and how it lives beside others |
//! | [`dnsmasq`] | DHCP and DNS: configuration, process, static hosts |
//! | [`leases`] | who has which address |
//! | [`nic`] | veth pairs |
//! | [`guard`] | putting back what is lost while the daemon runs |
//! | [`netns`] | watching a container's links and addresses |
//! | [`state`] | a link's state for the API |
//! | [`sweep`] | removing leftovers |
//! | [`interface`], [`mac`], [`rtnl`], [`sysctl`], [`program`], [`readable`] | values and tools of the above |
//!
//! # Order and locking
//!
//! A network comes up in the order link, addresses, forwarding, firewall, dnsmasq: nothing is forwarded before its
//! rules are there, and no lease is given before the gateway answers. It goes down in the reverse order.
//!
//! Changes of networks are rare and go one after another ([`Inner::changes`]); the firewall needs that, being one table.
//! NICs, hosts, leases and states take no lock at all: a launch never waits for a network that is being changed.

mod bridge;
mod config;
mod dnsmasq;
mod error;
mod guard;
mod interface;
mod leases;
mod mac;
mod netns;
mod nft;
mod nic;
mod readable;
mod rtnl;
mod state;
mod subnet;
mod sweep;
mod sysctl;
mod tap;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use duet_client::api;
use ipnet::IpNet;
use tokio::{sync::Notify, task::JoinHandle};

use self::{
    bridge::Owner,
    dnsmasq::{HostChange, NetworkDir, Running},
    rtnl::Rtnl,
};
pub use self::{
    config::{
        BridgeConfig, ConfigMap, DEFAULT_DOMAIN, DEFAULT_EXPIRY, DnsMode, Ipv4Config, Ipv6Config, Range, fill_defaults,
        validate, validate_name,
    },
    dnsmasq::StaticHost,
    error::{Error, Result},
    interface::{Address, Counters, Interface, Scope},
    leases::{Lease, LeaseKind},
    mac::{MAC_PREFIX, MacAddr, MacParseError},
    netns::{NetnsState, NetnsWatcher},
    nic::{Netns, NicSpec, host_name, is_host_name},
    state::HostInterface,
    subnet::{Occupied, choose_ipv4, choose_ipv6},
    sweep::Swept,
    tap::{Tap, TapSpec},
};

/// A managed network: what it is to be.
#[derive(Debug, Clone)]
pub struct Network {
    /// Its name, which is its bridge's.
    pub name: String,
    /// Its configuration.
    pub config: BridgeConfig,
    /// The instance NICs on it.
    pub hosts: Vec<StaticHost>,
}

/// A network without what the host's kernel, as it is today, doesn't have.
fn usable(network: &Network) -> Cow<'_, Network> {
    if network.config.ipv6.is_none() || sysctl::has_ipv6() {
        return Cow::Borrowed(network);
    }
    tracing::warn!(network = network.name, "the kernel has no IPv6; the network comes up without it");
    let mut network = network.clone();
    network.config.ipv6 = None;
    Cow::Owned(network)
}

/// The manager; cheap to clone. It acts in the network namespace of the thread that made it.
#[derive(Debug, Clone)]
pub struct Manager(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    rtnl: Rtnl,
    owner: Owner,
    networks_dir: PathBuf,
    /// The configurations that are applied. Held only to look or to note, never while waiting.
    up: Mutex<BTreeMap<String, BridgeConfig>>,
    /// Held while networks are changed.
    changes: tokio::sync::Mutex<()>,
    /// Told after each change.
    changed: Arc<Notify>,
    /// Told when the rules of somebody else's firewall have changed.
    rules_changed: Arc<Notify>,
    guard: OnceLock<JoinHandle<()>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(guard) = self.guard.get() {
            guard.abort();
        }
    }
}

impl Manager {
    /// Opens a netlink connection. Needs a tokio runtime.
    pub fn new(duet_dir: &Path) -> Result<Self> {
        // It goes into the configuration of programs that run elsewhere.
        let duet_dir =
            &std::path::absolute(duet_dir).map_err(|e| Error::system("cannot tell the current directory", e))?;
        Ok(Manager(Arc::new(Inner {
            rtnl: Rtnl::open()?,
            owner: Owner::new(duet_dir),
            networks_dir: duet_dir.join("networks"),
            up: Mutex::default(),
            changes: tokio::sync::Mutex::default(),
            changed: Arc::default(),
            rules_changed: Arc::default(),
            guard: OnceLock::new(),
        })))
    }

    fn dir(&self, name: &str) -> NetworkDir {
        NetworkDir::new(&self.0.networks_dir, name)
    }

    fn up(&self) -> MutexGuard<'_, BTreeMap<String, BridgeConfig>> {
        // No code panics between two changes of the map that belong together.
        self.0.up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn applied(&self, name: &str) -> Result<BridgeConfig> {
        self.up().get(name).cloned().ok_or_else(|| Error::Unknown { name: name.to_owned() })
    }

    /// Completes the configuration of a network that is being created: see [`fill_defaults`]. `others` are all
    /// networks of the inventory, up or not.
    pub async fn fill_defaults(&self, config: &mut ConfigMap, others: &[BridgeConfig]) -> Result<()> {
        let mut occupied = Occupied::default();
        occupied.add_host(&self.0.rtnl, None).await?;
        others.iter().for_each(|other| occupied.add_network(other));
        // The thread's own generator is not Send and so can't live across an await.
        let mut rng = <rand::rngs::StdRng as rand::SeedableRng>::from_rng(&mut rand::rng());
        subnet::fill_defaults_pinging(config, &mut occupied, sysctl::has_ipv6(), &mut rng).await
    }

    /// Refuses subnets that the host or another network uses already. The bridge `name` itself may have them.
    pub async fn check_free(&self, name: &str, config: &BridgeConfig, others: &[BridgeConfig]) -> Result<()> {
        let own = self.0.rtnl.link_by_name(name).await?.map(|link| link.header.index);
        let mut occupied = Occupied::default();
        occupied.add_host(&self.0.rtnl, own).await?;
        others.iter().for_each(|other| occupied.add_network(other));
        for net in config.subnets() {
            let key = if matches!(net, IpNet::V4(_)) { "ipv4.address" } else { "ipv6.address" };
            if let Some(other) = occupied.conflict(net) {
                return Err(Error::SubnetTaken { key, subnet: net.to_string(), other: other.to_owned() });
            }
        }
        Ok(())
    }

    /// Brings a network up, or mends or changes one that is: afterwards bridge, firewall, dnsmasq and the given hosts
    /// are as configured. Hosts that are not given are left as they are. What is right is not touched. Of a network
    /// that never was up before nothing is left if it fails.
    pub async fn bridge_up(&self, network: &Network) -> Result<()> {
        validate_name(&network.name)?;
        let _changing = self.0.changes.lock().await;
        let dir = self.dir(&network.name);
        let is_new = !dir.path().exists();
        let result = self.bridge_up_locked(&usable(network)).await;
        if result.is_err() && is_new {
            let undone = async {
                self.withdraw_rules(&network.name).await?;
                sweep::remove_network(&self.0.rtnl, &self.0.owner, &dir, &network.name).await
            };
            if let Err(error) = undone.await {
                tracing::warn!(network = network.name, %error, "a half-made network is left behind");
            }
        }
        self.0.changed.notify_waiters();
        // A new bridge is judged too.
        self.0.rules_changed.notify_one();
        result
    }

    /// Returns when rules of somebody else's firewall have changed since the last call, or which bridges there are.
    pub async fn rules_changed(&self) {
        self.0.rules_changed.notified().await;
    }

    async fn bridge_up_locked(&self, network: &Network) -> Result<()> {
        let outcome = self.link_up(network).await?;
        self.load_firewall([network]).await?;
        self.serve(network, outcome.created, false).await
    }

    /// Brings all networks up, as at the daemon's start: as [`Manager::bridge_up`] for each, but the firewall is loaded
    /// once and host files that nobody knows are removed. One network's failure doesn't keep the others from coming
    /// up; the failures are returned by name. From then on what is lost is put back while the manager lives: see
    /// [`guard`].
    pub async fn bridges_up(&self, networks: &[Network]) -> Vec<(String, Error)> {
        let _changing = self.0.changes.lock().await;
        self.0.guard.get_or_init(|| guard::spawn(Arc::downgrade(&self.0)));
        let failures = self.bridges_up_locked(networks).await;
        self.0.changed.notify_waiters();
        failures
    }

    async fn bridges_up_locked(&self, networks: &[Network]) -> Vec<(String, Error)> {
        let mut failures = Vec::new();
        let mut linked: Vec<(Cow<'_, Network>, bridge::Outcome)> = Vec::new();
        for network in networks.iter().map(usable) {
            match self.link_up(&network).await {
                Ok(outcome) => linked.push((network, outcome)),
                Err(error) => failures.push((network.name.clone(), error)),
            }
        }
        if let Err(error) = self.load_firewall(linked.iter().map(|(network, _)| &**network)).await {
            let message = error.to_string();
            let each = linked.iter().map(|(network, _)| network.name.clone());
            failures.extend(each.map(|name| (name, Error::Nft { message: message.clone() })));
            return failures;
        }
        for (network, outcome) in linked {
            if let Err(error) = self.serve(&network, outcome.created, true).await {
                failures.push((network.name.clone(), error));
            }
        }
        failures
    }

    async fn link_up(&self, network: &Network) -> Result<bridge::Outcome> {
        validate_name(&network.name)?;
        let dir = self.dir(&network.name);
        dir.create()?;
        let before = self.up().get(&network.name).cloned();
        let Inner { rtnl, owner, .. } = &*self.0;
        bridge::up(rtnl, owner, &dir, &network.name, &network.config, before.as_ref()).await
    }

    /// Loads the firewall with these networks added to those that are up, and notes them as up.
    async fn load_firewall(&self, networks: impl IntoIterator<Item = &Network>) -> Result<()> {
        let mut wanted = self.up().clone();
        wanted.extend(networks.into_iter().map(|network| (network.name.clone(), network.config.clone())));
        nft::load(&wanted).await?;
        *self.up() = wanted;
        Ok(())
    }

    async fn serve(&self, network: &Network, link_is_new: bool, prune: bool) -> Result<()> {
        let dir = self.dir(&network.name);
        let mut change = HostChange::None;
        for host in &network.hosts {
            change = change.max(dnsmasq::write_host(&dir, host, network.config.dns_mode)?);
        }
        if prune {
            change = change.max(dnsmasq::prune_hosts(&dir, &network.hosts)?);
        }
        let wanted = dnsmasq::render(&dir, &network.config);
        let started = dnsmasq::ensure(&dir, wanted.as_deref(), link_is_new).await?;
        if !started && change == HostChange::Replaced {
            self.reload(&dir)?;
        }
        Ok(())
    }

    fn reload(&self, dir: &NetworkDir) -> Result<()> {
        Running::find(dir).map_or(Ok(()), |running| running.reload())
    }

    /// Takes a network down: dnsmasq, firewall rules and bridge go, its files (leases, hardware address) stay. NICs on
    /// it lose their connection.
    pub async fn bridge_down(&self, name: &str) -> Result<()> {
        let _changing = self.0.changes.lock().await;
        let dir = self.dir(name);
        dnsmasq::stop(&dir).await?;
        self.withdraw_rules(name).await?;
        self.0.changed.notify_waiters();
        bridge::down(&self.0.rtnl, &self.0.owner, &dir, name).await
    }

    /// Removes a network with all its files. One that is not there is fine.
    pub async fn remove(&self, name: &str) -> Result<()> {
        validate_name(name)?;
        let _changing = self.0.changes.lock().await;
        self.withdraw_rules(name).await?;
        self.0.changed.notify_waiters();
        sweep::remove_network(&self.0.rtnl, &self.0.owner, &self.dir(name), name).await
    }

    async fn withdraw_rules(&self, name: &str) -> Result<()> {
        let mut remaining = self.up().clone();
        if remaining.remove(name).is_some() {
            nft::load(&remaining).await?;
            *self.up() = remaining;
        }
        Ok(())
    }

    /// Makes a NIC known to the network's DHCP and DNS. To be called before the guest starts; dnsmasq notices by itself.
    pub async fn set_host(&self, network: &str, host: &StaticHost) -> Result<()> {
        let mode = self.applied(network)?.dns_mode;
        let dir = self.dir(network);
        match dnsmasq::write_host(&dir, host, mode)? {
            HostChange::Replaced => self.reload(&dir),
            HostChange::Added | HostChange::None => Ok(()),
        }
    }

    /// Makes the network forget a NIC whose device or instance was deleted, and gives its leases back.
    pub async fn remove_host(&self, network: &str, host: &StaticHost) -> Result<()> {
        let config = self.applied(network)?;
        let dir = self.dir(network);
        if dnsmasq::remove_host(&dir, &host.id)? == HostChange::Replaced {
            self.reload(&dir)?;
        }
        leases::release(network, &config, host.hwaddr, &dir.leases()).await
    }

    /// Who has which address in the network. `hosts` are the NICs on it.
    pub async fn leases(&self, network: &str, hosts: &[StaticHost]) -> Result<Vec<Lease>> {
        leases::list(network, &self.applied(network)?, hosts, &self.dir(network).leases())
    }

    /// Plugs a NIC into a bridge and into a container's network namespace, running or just being made. The container's
    /// end is left down for the guest to raise.
    pub async fn attach_nic(&self, spec: &NicSpec<'_>) -> Result<()> {
        // Of a managed bridge we know what we made it; of another the kernel must be asked.
        let known = self.up().get(spec.parent).map(|config| config.mtu.unwrap_or(bridge::DEFAULT_MTU));
        nic::attach(&self.0.rtnl, spec, known).await
    }

    /// Makes a tap for a virtual machine's NIC and plugs it into a bridge.
    pub async fn attach_tap(&self, spec: &TapSpec<'_>) -> Result<Tap> {
        let known = self.up().get(spec.parent).map(|config| config.mtu.unwrap_or(bridge::DEFAULT_MTU));
        tap::attach(&self.0.rtnl, spec, known).await
    }

    /// Removes a NIC by its host end's name. One that is gone already is fine.
    pub async fn detach_nic(&self, host_name: &str) -> Result<()> {
        self.0.rtnl.delete_link(host_name).await.map(drop)
    }

    /// The state of a link of the host, managed or not.
    pub async fn network_state(&self, name: &str) -> Result<api::NetworkState> {
        state::network_state(&self.0.rtnl, name).await
    }

    /// Waits for the next change of a network, or of its dnsmasq, after this call.
    pub fn changed(&self) -> impl Future<Output = ()> + Send + use<> {
        self.0.changed.clone().notified_owned()
    }

    /// The networks that are up.
    pub fn networks(&self) -> Vec<(String, BridgeConfig)> {
        self.up().iter().map(|(name, config)| (name.clone(), config.clone())).collect()
    }

    /// The process of each network's dnsmasq.
    pub fn dnsmasqs(&self) -> Vec<(String, u32)> {
        let names: Vec<String> = self.up().keys().cloned().collect();
        let process = |name: String| {
            let running = Running::find_noted(&self.dir(&name))?;
            Some((name, running.pid().unsigned_abs()))
        };
        names.into_iter().filter_map(process).collect()
    }

    /// The host's links, with managed bridges, without veths.
    pub async fn host_interfaces(&self) -> Result<Vec<HostInterface>> {
        state::host_interfaces(&self.0.rtnl).await
    }

    /// Removes what belongs to no NIC and no network of these names: host ends of NICs, dnsmasq processes, bridges and
    /// directories. For the daemon's start, before the first launch.
    pub async fn sweep(&self, known_host_names: &HashSet<String>, networks: &BTreeSet<&str>) -> Result<Swept> {
        let _changing = self.0.changes.lock().await;
        let Inner { rtnl, owner, networks_dir, .. } = &*self.0;
        sweep::sweep(rtnl, owner, networks_dir, known_host_names, networks).await
    }
}
