//! What an update changes, and what of it a running instance can feel.
//!
//! As with Incus, a change that the running instance cannot take over is not refused: it is stored and holds
//! from the next start. Only what would contradict where the instance's data lies is refused.

use std::collections::BTreeMap;

use super::table::{Live, Owner, Scope};
use super::{ConfigMap, Device, DiskDevice, NicDevice};

/// The keys whose values differ between two configurations, by what becomes of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigChanges {
    /// To be applied to the running instance now.
    pub live: Vec<String>,
    /// Felt at the next start (or the next exec) only.
    pub needs_restart: Vec<String>,
}

impl ConfigChanges {
    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live.is_empty() && self.needs_restart.is_empty()
    }

    /// Whether one of the keys to be applied now begins so: `changes.touches("limits.memory")`.
    #[must_use]
    pub fn touches(&self, beginning: &str) -> bool {
        self.live.iter().any(|key| key.starts_with(beginning))
    }
}

/// Compares two expanded configurations. An empty value is the same as none. Keys that only the daemon writes
/// are passed over.
#[must_use]
pub fn config_changes(old: &ConfigMap, new: &ConfigMap) -> ConfigChanges {
    let mut changes = ConfigChanges::default();
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys.into_iter().filter(|key| super::value(old, key) != super::value(new, key)) {
        match Scope::Instance.find(key) {
            Some(row) if row.owner == Owner::Server => {}
            Some(row) if row.live == Live::Yes => changes.live.push(key.clone()),
            _ => changes.needs_restart.push(key.clone()),
        }
    }
    changes
}

/// The configuration to store when a client has asked for `requested`: as asked, but with the daemon's own keys
/// as they are now. A client sends these back as it once read them; in the meantime the instance may have
/// started, and a late writer must not undo what the daemon wrote down about it.
#[must_use]
pub fn keep_server_owned(current: &ConfigMap, requested: ConfigMap) -> ConfigMap {
    let owned = |key: &String| Scope::Instance.find(key).is_some_and(|row| row.owner == Owner::Server);
    let mut result = requested;
    result.retain(|key, _| !owned(key));
    result.extend(current.iter().filter(|(key, _)| owned(key)).map(|(key, value)| (key.clone(), value.clone())));
    result
}

/// How the devices of an instance change. A device that is in both `remove` and `add` is replaced.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceChanges {
    /// To be unplugged from the running instance, as they are in the old set; before anything is added.
    pub remove: Vec<String>,
    /// To be plugged in, as they are in the new set.
    pub add: Vec<String>,
    /// NICs whose addresses from DHCP change, and nothing else.
    pub update: Vec<String>,
    /// Felt at the next start only.
    pub needs_restart: Vec<String>,
    /// Not possible at all, with the reason; when there are any, nothing of the update must be done.
    pub refused: Vec<(String, &'static str)>,
}

impl DeviceChanges {
    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Compares two whole sets of devices of one container.
#[must_use]
pub fn device_changes(old: &BTreeMap<String, Device>, new: &BTreeMap<String, Device>) -> DeviceChanges {
    let mut changes = DeviceChanges::default();
    let (old_root, new_root) = (root(old), root(new));
    if let (Some((_, old_pool, old_readonly)), Some((name, pool, readonly))) = (old_root, new_root) {
        if old_pool != pool {
            changes.refused.push((
                name.to_owned(),
                "the root disk cannot change its pool; copy the instance to the other pool instead",
            ));
        } else if old_readonly != readonly {
            changes.needs_restart.push(name.to_owned());
        }
    }
    for (name, device) in old.iter().filter(|(_, device)| is_pluggable(device)) {
        match new.get(name) {
            Some(next) if next == device || only_lease_differs(device, next) || only_limits_differ(device, next) => {}
            _ => changes.remove.push(name.clone()),
        }
    }
    for (name, device) in new.iter().filter(|(_, device)| is_pluggable(device)) {
        match old.get(name) {
            Some(before) if before == device || only_limits_differ(before, device) => {}
            Some(before) if only_lease_differs(before, device) => changes.update.push(name.clone()),
            _ => changes.add.push(name.clone()),
        }
    }
    changes
}

/// The root disk's device name, pool and whether it is read-only. A root under another device name is the same.
fn root(devices: &BTreeMap<String, Device>) -> Option<(&str, &str, bool)> {
    devices.iter().find_map(|(name, device)| match device {
        Device::Disk(DiskDevice::Root { pool, readonly, .. }) => Some((name.as_str(), pool.as_str(), *readonly)),
        _ => None,
    })
}

fn is_pluggable(device: &Device) -> bool {
    match device {
        Device::Disk(DiskDevice::Host { .. }) | Device::Nic(_) | Device::UnixChar(_) => true,
        Device::Disk(DiskDevice::Root { .. }) | Device::None => false,
    }
}

/// Whether two NICs are the same link, with other addresses from DHCP.
fn only_lease_differs(a: &Device, b: &Device) -> bool {
    let without_lease = |nic: &NicDevice| NicDevice { ipv4: None, ipv6: None, ..nic.clone() };
    match (a, b) {
        (Device::Nic(a), Device::Nic(b)) => a != b && without_lease(a) == without_lease(b),
        _ => false,
    }
}

/// Whether two disks are the same, with other limits: those are the control group's.
fn only_limits_differ(a: &Device, b: &Device) -> bool {
    match (a, b) {
        (Device::Disk(a), Device::Disk(b)) => {
            let mut same = b.clone();
            let (DiskDevice::Root { limits, .. } | DiskDevice::Host { limits, .. }) = &mut same;
            *limits = a.limits();
            a != b && *a == same
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DeviceMap, DevicesOf, validate_devices};
    use super::*;
    use proptest::prelude::*;

    fn config(pairs: &[(&str, &str)]) -> ConfigMap {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn devices(list: &[(&str, &str)]) -> BTreeMap<String, Device> {
        let map: DeviceMap = list
            .iter()
            .map(|(name, text)| {
                let options =
                    text.split(' ').map(|p| p.split_once('=').unwrap()).map(|(k, v)| (k.to_owned(), v.to_owned()));
                ((*name).to_owned(), options.collect())
            })
            .collect();
        validate_devices(&map, DevicesOf::Profile).unwrap()
    }

    #[test]
    fn limits_are_live_and_security_waits() {
        let old =
            config(&[("limits.memory", "1GiB"), ("security.nesting", "false"), ("user.x", ""), ("volatile.uuid", "a")]);
        let new = config(&[
            ("limits.memory", "2GiB"),
            ("security.nesting", "true"),
            ("environment.A", "b"),
            ("volatile.uuid", "c"),
        ]);
        let changes = config_changes(&old, &new);
        assert_eq!(changes.live, ["limits.memory"]);
        assert_eq!(changes.needs_restart, ["environment.A", "security.nesting"]);
        assert!(changes.touches("limits.memory") && !changes.touches("limits.cpu"));
        assert!(config_changes(&old, &old).is_empty());
    }

    #[test]
    fn a_late_client_cannot_undo_what_the_daemon_wrote() {
        let current =
            config(&[("volatile.last_state.power", "RUNNING"), ("volatile.eth0.name", "eth0"), ("user.a", "1")]);
        let stale = config(&[
            ("volatile.last_state.power", "STOPPED"),
            ("volatile.eth0.hwaddr", "10:66:6a:00:00:01"),
            ("user.a", "2"),
        ]);
        let kept = keep_server_owned(&current, stale);
        assert_eq!(
            kept,
            config(&[
                ("volatile.last_state.power", "RUNNING"),
                ("volatile.eth0.name", "eth0"),
                ("volatile.eth0.hwaddr", "10:66:6a:00:00:01"),
                ("user.a", "2")
            ])
        );
    }

    #[test]
    fn devices_are_unplugged_replaced_and_refused() {
        let old = devices(&[
            ("root", "type=disk path=/ pool=default"),
            ("a", "type=disk path=/a source=/a"),
            ("b", "type=disk path=/b source=/b"),
            ("eth0", "type=nic network=n"),
        ]);
        let new = devices(&[
            ("root", "type=disk path=/ pool=other"),
            ("b", "type=disk path=/b source=/b readonly=true"),
            ("c", "type=unix-char path=/dev/fuse"),
            ("eth0", "type=nic network=n ipv4.address=10.0.0.9"),
        ]);
        let changes = device_changes(&old, &new);
        assert_eq!(changes.remove, ["a", "b"]);
        assert_eq!(changes.add, ["b", "c"]);
        assert_eq!(changes.update, ["eth0"]);
        assert_eq!(changes.refused.len(), 1);
        assert!(device_changes(&new, &new).is_empty());
        let renamed = devices(&[("disk0", "type=disk path=/ pool=default"), ("eth0", "type=nic network=n")]);
        let before = devices(&[("root", "type=disk path=/ pool=default"), ("eth0", "type=nic network=n")]);
        assert!(device_changes(&before, &renamed).is_empty(), "the root's device name means nothing");
    }

    proptest! {
        #[test]
        fn every_difference_is_reported_once(
            old in proptest::collection::btree_map("user\\.[ab]|limits\\.(cpu|memory)|security\\.nesting", "[12]?", 0..5),
            new in proptest::collection::btree_map("user\\.[ab]|limits\\.(cpu|memory)|security\\.nesting", "[12]?", 0..5))
        {
            let changes = config_changes(&old, &new);
            let mut seen: Vec<_> = changes.live.iter().chain(&changes.needs_restart).cloned().collect();
            seen.sort();
            let mut differ: Vec<_> = old.keys().chain(new.keys()).cloned().collect();
            differ.sort();
            differ.dedup();
            differ.retain(|key| super::super::value(&old, key) != super::super::value(&new, key));
            prop_assert_eq!(seen, differ);
        }
    }
}
