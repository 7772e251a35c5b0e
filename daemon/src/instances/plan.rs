//! From an instance's configuration to what the runtime and the network are told: values only, nothing is done yet.

use std::collections::{BTreeMap, BTreeSet};

use duet_container::cgroup::{self, CpuList, DevicePolicy, DeviceRule, Limits};
use duet_container::spec::{DeviceKind, DeviceNode, MountSource, MountSpec};
use rustix::fs::{FileType, major, makedev, minor, stat};

use super::disk_limits;
use super::expand::Expanded;
use crate::app::App;
use crate::config::values::{CpuAllowance, CpuLimit, SwapLimit};
use crate::config::{
    Device, DevicesOf, DiskDevice, InstanceSettings, MemoryEnforce, NicDevice, NicLink, UnixCharDevice,
    validate_devices,
};
use crate::error::{Context, Error, Result};
use crate::network::{self, MacAddr, StaticHost};
use crate::systemd::Weights;

/// One NIC to be.
#[derive(Clone, Debug)]
pub struct NicPlan {
    /// The device's name.
    pub device: String,
    /// The link on the host.
    pub host_name: String,
    /// The link in the instance.
    pub peer_name: String,
    /// The bridge.
    pub parent: String,
    /// Its hardware address.
    pub hwaddr: MacAddr,
    /// The largest packet; the bridge's where None.
    pub mtu: Option<u32>,
    /// What DHCP and DNS are told, where the bridge is a managed network.
    pub host: Option<StaticHost>,
}

/// What a start needs besides the root filesystem and the id map.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The settings behind it.
    pub settings: InstanceSettings,
    /// Whether the root is read-only.
    pub root_read_only: bool,
    /// Host directories and files.
    pub mounts: Vec<MountSpec>,
    /// Device nodes.
    pub nodes: Vec<DeviceNode>,
    /// Network interfaces.
    pub nics: Vec<NicPlan>,
    /// All devices.
    pub devices: BTreeMap<String, Device>,
    /// What is recorded in the instance's own keys.
    pub volatile: Volatile,
}

/// Translates an instance's configuration.
///
/// # Errors
/// Where it names what the host does not have.
pub fn plan(app: &App, expanded: &Expanded) -> Result<Plan> {
    let settings = InstanceSettings::from_config(&expanded.config).map_err(|e| Error::invalid(e.to_string()))?;
    let devices = typed_devices(expanded)?;
    let mut plan = Plan {
        settings,
        root_read_only: false,
        mounts: Vec::new(),
        nodes: Vec::new(),
        nics: Vec::new(),
        devices: BTreeMap::new(),
        volatile: Vec::new(),
    };
    let mut names = PeerNames::new(&devices);
    for (name, device) in &devices {
        match device {
            Device::Disk(DiskDevice::Root { readonly, .. }) => plan.root_read_only = *readonly,
            Device::Disk(disk) => plan.mounts.extend(mount(name, disk)?),
            Device::UnixChar(char) => plan.nodes.extend(node(name, char)?),
            Device::Nic(nic) => {
                let (nic, volatile) = nic_plan(app, expanded, name, nic, &mut names)?;
                plan.nics.push(nic);
                plan.volatile.extend(volatile);
            }
            Device::None => {}
        }
    }
    // Parents before what lies in them.
    plan.mounts.sort_by_key(|m| m.target.components().count());
    plan.devices = devices;
    Ok(plan)
}

/// The devices of an instance as types.
///
/// # Errors
/// Where they are not valid any more.
pub fn typed_devices(expanded: &Expanded) -> Result<BTreeMap<String, Device>> {
    validate_devices(&expanded.devices, DevicesOf::Instance(expanded.row.kind))
        .map_err(|e| Error::invalid(e.to_string()))
}

/// The names of NICs inside: those that are asked for, and the next free `ethN` for the others.
pub struct PeerNames {
    taken: BTreeSet<String>,
}

impl PeerNames {
    /// Reserves what is asked for.
    pub fn new(devices: &BTreeMap<String, Device>) -> Self {
        let asked = devices.values().filter_map(|d| match d {
            Device::Nic(nic) => nic.name.clone(),
            Device::Disk(_) | Device::UnixChar(_) | Device::None => None,
        });
        Self { taken: asked.collect() }
    }

    /// Reserves the names of NICs that run already, all but those of `devices`.
    pub fn reserve_recorded(&mut self, expanded: &Expanded, all: &BTreeMap<String, Device>, devices: &[String]) {
        for name in all.keys().filter(|name| !devices.contains(name)) {
            if let Some(taken) = expanded.row.config.get(&format!("volatile.{name}.name")) {
                self.taken.insert(taken.clone());
            }
        }
    }

    fn choose(&mut self, preferred: Option<&String>) -> String {
        if let Some(name) = preferred.filter(|name| self.taken.insert((*name).clone())) {
            return name.clone();
        }
        let free = (0..).map(|n| format!("eth{n}")).find(|name| !self.taken.contains(name));
        let name = free.unwrap_or_else(|| "eth0".to_owned());
        self.taken.insert(name.clone());
        name
    }
}

/// Changes of an instance's own keys: a value to record, or none to forget it.
pub type Volatile = Vec<(String, Option<String>)>;

/// One NIC, and the keys that record what was chosen for it.
///
/// # Errors
/// Where the network it names does not exist.
pub fn nic_plan(
    app: &App,
    expanded: &Expanded,
    device: &str,
    nic: &NicDevice,
    names: &mut PeerNames,
) -> Result<(NicPlan, Volatile)> {
    let key = |what: &str| format!("volatile.{device}.{what}");
    let recorded = |what: &str| expanded.row.config.get(&key(what)).filter(|v| !v.is_empty());
    let mut volatile = Vec::new();
    let hwaddr = match (&nic.hwaddr, recorded("hwaddr").and_then(|text| text.parse::<MacAddr>().ok())) {
        (Some(fixed), _) => MacAddr(fixed.0),
        (None, Some(kept)) => kept,
        (None, None) => {
            let fresh = MacAddr::random(&mut rand::rng());
            volatile.push((key("hwaddr"), Some(fresh.to_string())));
            fresh
        }
    };
    let peer_name = match &nic.name {
        Some(name) => name.clone(),
        None => names.choose(recorded("name")),
    };
    let host_name = nic.host_name.clone().unwrap_or_else(|| network::host_name(&mut rand::rng()));
    volatile.push((key("host_name"), Some(host_name.clone())));
    if nic.name.is_none() {
        volatile.push((key("name"), Some(peer_name.clone())));
    }
    let (parent, managed) = match &nic.link {
        NicLink::Network(name) => (name.clone(), app.inventory.network(name)?.is_some()),
        NicLink::Bridge(name) => (name.clone(), app.inventory.network(name)?.is_some()),
    };
    if matches!(nic.link, NicLink::Network(_)) && !managed {
        return Err(Error::invalid(format!("device \"{device}\": there is no managed network \"{parent}\"")));
    }
    let host = managed.then(|| StaticHost {
        id: format!("{}.{device}", expanded.row.name),
        hwaddr,
        name: Some(expanded.row.name.clone()),
        ipv4: nic.ipv4,
        ipv6: nic.ipv6,
    });
    let plan = NicPlan { device: device.to_owned(), host_name, peer_name, parent, hwaddr, mtu: nic.mtu, host };
    Ok((plan, volatile))
}

/// A host path in the instance. None: it is missing and need not be there.
///
/// # Errors
/// Where it is missing and must be there.
pub fn mount(name: &str, disk: &DiskDevice) -> Result<Option<MountSpec>> {
    let DiskDevice::Host { source, path, readonly, recursive, shift, required, .. } = disk else { return Ok(None) };
    match std::fs::metadata(source) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => return Ok(None),
        Err(error) => {
            return Err(Error::invalid(format!(
                "device \"{name}\": its source {} cannot be used: {error} (set required=false to start without it)",
                source.display()
            )));
        }
    }
    Ok(Some(MountSpec {
        source: MountSource::Path(source.clone()),
        target: path.clone(),
        read_only: *readonly,
        recursive: *recursive,
        shift: *shift,
        optional: !required,
    }))
}

/// A device node in the instance. None: its source is missing and need not be there.
///
/// # Errors
/// Where the source is missing and must be there, or is no character device.
pub fn node(name: &str, device: &UnixCharDevice) -> Result<Option<DeviceNode>> {
    let rdev = match device.number {
        Some((major, minor)) => makedev(major, minor),
        None => match stat(&device.source) {
            Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice => found.st_rdev,
            Ok(_) => {
                let source = device.source.display();
                return Err(Error::invalid(format!("device \"{name}\": {source} is not a character device")));
            }
            Err(rustix::io::Errno::NOENT) if !device.required => return Ok(None),
            Err(error) => {
                let source = device.source.display();
                return Err(Error::invalid(format!("device \"{name}\": its source {source} cannot be used: {error}")));
            }
        },
    };
    Ok(Some(DeviceNode {
        target: device.path.clone(),
        kind: DeviceKind::Char,
        major: major(rdev),
        minor: minor(rdev),
        mode: device.mode,
        uid: device.uid,
        gid: device.gid,
    }))
}

/// The limits of an instance; a count of CPUs is resolved against what the others that run were given.
///
/// # Errors
/// Where the host's CPUs or memory cannot be read, or a set names a CPU that is not there.
pub fn limits(
    app: &App,
    expanded: &Expanded,
    settings: &InstanceSettings,
    devices: &BTreeMap<String, Device>,
) -> Result<Limits> {
    let cpus = match &settings.cpu {
        None => None,
        Some(limit) => {
            let available = app.instances.cgroups().available_cpus().doing("cannot read the host's CPUs")?;
            Some(cpus(app, expanded.row.id, limit, &available)?)
        }
    };
    let memory = match settings.memory {
        None => None,
        Some(limit) => {
            let bytes = limit.bytes(host_memory()?);
            Some(match settings.memory_enforce {
                MemoryEnforce::Hard => cgroup::MemoryLimit::Hard(bytes),
                MemoryEnforce::Soft => cgroup::MemoryLimit::Soft(bytes),
            })
        }
    };
    Ok(Limits {
        cpus,
        cpu_allowance: settings.cpu_allowance.map(|allowance| match allowance {
            CpuAllowance::Soft { percent } => cgroup::CpuAllowance::Share(percent.into()),
            CpuAllowance::Hard { quota_us, period_us } => cgroup::CpuAllowance::Quota { quota_us, period_us },
        }),
        cpu_priority: Some(settings.cpu_priority),
        memory,
        swap: match settings.memory_swap {
            SwapLimit::Allowed => cgroup::Swap::Allowed,
            SwapLimit::Denied => cgroup::Swap::Denied,
            SwapLimit::Bytes(bytes) => cgroup::Swap::Bytes(bytes),
        },
        processes: settings.processes,
        io: disk_limits::of(app, expanded, devices)?,
        // As Incus computes it.
        io_weight: settings.disk_priority.map(|priority| (u64::from(priority) * 100).max(10)),
    })
}

/// How an instance with these limits competes with others, where systemd has to be told.
pub fn weights(limits: &Limits) -> Weights {
    Weights { cpu: limits.cpu_weight(), io: limits.io_weight }
}

fn cpus(app: &App, id: i64, limit: &CpuLimit, available: &CpuList) -> Result<CpuList> {
    match limit {
        CpuLimit::Set(set) => {
            let text = set.iter().map(|cpu| cpu.to_string()).collect::<Vec<_>>().join(",");
            let wanted: CpuList = text.parse().map_err(|e| Error::invalid(format!("limits.cpu: {e}")))?;
            if wanted.is_subset(available) {
                return Ok(wanted);
            }
            Err(Error::invalid(format!("limits.cpu={set} names a CPU that this host does not offer ({available})")))
        }
        CpuLimit::Count(count) => {
            let mut load = BTreeMap::new();
            for slot in app.instances.running().into_iter().filter(|slot| slot.id() != id) {
                for cpu in slot.live().and_then(|live| live.cpus()).iter().flat_map(CpuList::iter) {
                    *load.entry(cpu).or_insert(0) += 1;
                }
            }
            Ok(cgroup::pick(available, &load, *count))
        }
    }
}

/// The device policy of a privileged instance: its nodes besides the usual ones. Others are held by their user
/// namespace.
pub fn device_policy(plan: &Plan) -> Option<DevicePolicy> {
    plan.settings.privileged.then(|| {
        let allow = |policy: DevicePolicy, node: &DeviceNode| {
            let kind = match node.kind {
                DeviceKind::Char => cgroup::DeviceKind::Char,
                DeviceKind::Block => cgroup::DeviceKind::Block,
            };
            policy.allow(DeviceRule::new(kind, Some(node.major), Some(node.minor), "rwm"))
        };
        plan.nodes.iter().fold(DevicePolicy::default(), allow)
    })
}

/// The host's memory in bytes (proc_meminfo(5), `MemTotal`).
///
/// # Errors
/// Where it cannot be read.
pub fn host_memory() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").doing("cannot read /proc/meminfo")?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .ok_or_else(|| Error::internal("/proc/meminfo does not say how much memory there is"))?;
    Ok(kib * 1024)
}

/// The NICs of an instance on one network, as its DHCP and DNS are told of them. A NIC without an address of its own
/// yet (it never started) is left out.
pub fn static_hosts(expanded: &Expanded, network: &str) -> Vec<StaticHost> {
    let Ok(devices) = typed_devices(expanded) else { return Vec::new() };
    let on_it = devices.iter().filter_map(|(name, device)| match device {
        Device::Nic(nic) => {
            let (NicLink::Network(parent) | NicLink::Bridge(parent)) = &nic.link;
            (parent == network).then_some((name, nic))
        }
        Device::Disk(_) | Device::UnixChar(_) | Device::None => None,
    });
    on_it
        .filter_map(|(device, nic)| {
            let recorded = || expanded.row.config.get(&format!("volatile.{device}.hwaddr"))?.parse().ok();
            Some(StaticHost {
                id: format!("{}.{device}", expanded.row.name),
                hwaddr: nic.hwaddr.map(|mac| MacAddr(mac.0)).or_else(recorded)?,
                name: Some(expanded.row.name.clone()),
                ipv4: nic.ipv4,
                ipv6: nic.ipv6,
            })
        })
        .collect()
}
