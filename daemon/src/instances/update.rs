//! Changing an instance's configuration, stopped or running.
//!
//! A change is checked as a whole, applied to what runs, then committed; where the host refuses a part of it, what was
//! applied is taken back and nothing is committed. What a running instance cannot feel holds from its next start.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use duet_client::api::InstancePut;
use duet_container::cgroup::Limits;
use serde_json::Value;

use super::expand::{self, Expanded};
use super::lifecycle::Request;
use super::live::Live;
use super::plan::{self, PeerNames, Volatile};
use super::slot::Held;
use super::{addresses, machine, start};
use crate::app::App;
use crate::config::{
    self, Device, DevicesOf, DiskDevice, DiskLimits, InstanceKind, InstanceSettings, drop_unset, drop_unset_options,
    keep_server_owned, validate_devices, validate_instance_config,
};
use crate::error::{Context, Error, Kind, Result, blocking};
use crate::inventory::{self, ProfileRow};
use crate::machines;
use crate::pools;

/// Replaces what a client may change of an instance that the caller holds.
///
/// # Errors
/// With what is wrong with it, or what the host refused.
pub async fn update(app: &App, held: &Held, name: &str, put: InstancePut) -> Result<()> {
    let old = expand::find(app, name)?;
    let mut row = old.row.clone();
    row.config = keep_server_owned(&old.row.config, put.config);
    row.devices = put.devices;
    drop_unset(&mut row.config);
    drop_unset_options(&mut row.devices);
    row.profiles = put.profiles.unwrap_or_default();
    row.description = put.description;
    row.ephemeral = put.ephemeral;
    if !put.architecture.is_empty() && put.architecture != row.architecture {
        return Err(Error::invalid("the architecture of an instance cannot be changed"));
    }
    validate_instance_config(&row.config, row.kind).map_err(|e| Error::invalid(e.to_string()))?;
    validate_devices(&row.devices, DevicesOf::Profile).map_err(|e| Error::invalid(e.to_string()))?;
    let new = expand::expand_with(&expand::profile_table(app)?, row)?;
    check(app, &old, &new)?;
    let volatile = apply(app, held, &old, &new).await?;
    commit(app, &new, volatile).await?;
    app.events.lifecycle("instance-updated", format!("/1.0/instances/{name}"), Value::Null);
    Ok(())
}

/// Checks an instance with all its profiles applied.
fn check(app: &App, old: &Expanded, new: &Expanded) -> Result<()> {
    let of = DevicesOf::Instance(new.row.kind);
    let typed = validate_devices(&new.devices, of).map_err(|e| Error::invalid(e.to_string()))?;
    expand::check_references(app, Some(new.row.kind), &new.devices)?;
    addresses::check(app, &new.row.name, &typed)?;
    InstanceSettings::from_config(&new.config).map_err(|e| Error::invalid(e.to_string()))?;
    if expand::root_pool(&new.devices)? != old.row.pool {
        return Err(Error::invalid(
            "the root disk cannot change its pool: copy the instance to the other pool instead",
        ));
    }
    let before = plan::typed_devices(old)?;
    if let Some((device, why)) = config::device_changes(&before, &typed).refused.into_iter().next() {
        return Err(Error::invalid(format!("device \"{device}\": {why}")));
    }
    Ok(())
}

async fn commit(app: &App, new: &Expanded, volatile: Volatile) -> Result<()> {
    let mut row = new.row.clone();
    for (key, value) in volatile {
        match value {
            Some(value) => drop(row.config.insert(key, value)),
            None => drop(row.config.remove(&key)),
        }
    }
    app.inventory.write(move |tx| row.update(tx)).await.map_err(|e| match e {
        inventory::Error::InUse => Error::new(Kind::Conflict, "a profile or pool it uses was removed meanwhile"),
        other => other.into(),
    })
}

/// Applies a change to what runs; gives what is to be recorded. Where a part fails, the rest is taken back.
async fn apply(app: &App, held: &Held, old: &Expanded, new: &Expanded) -> Result<Volatile> {
    let Some(live) = held.slot().live() else {
        resize(app, old, new).await?;
        return Ok(Vec::new());
    };
    // What cannot be had is refused before anything is touched.
    if live.is_machine() {
        machine::check_changes(old, new)?;
        return Ok(Vec::new());
    }
    let limits = changed_limits(app, old, new)?;
    resize(app, old, new).await?;
    match follow(app, &live, limits, old, new).await {
        Ok(volatile) => Ok(volatile),
        Err(error) => {
            // From wherever it got to, back to what is recorded. Steps that had not been done yet fail here, rightly.
            let back = match changed_limits(app, new, old) {
                Ok(limits) => follow(app, &live, limits, new, old).await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(again) = back.and(resize(app, new, old).await) {
                tracing::warn!(%again, instance = old.row.name, "a refused change was not taken back wholly");
            }
            Err(error)
        }
    }
}

/// Applies a new size of the root disk, whether it runs or not.
async fn resize(app: &App, old: &Expanded, new: &Expanded) -> Result<()> {
    let (before, after) = (pools::root_size(app, &old.devices)?, pools::root_size(app, &new.devices)?);
    if before == after {
        return Ok(());
    }
    if new.row.kind == InstanceKind::VirtualMachine {
        // The disk is enlarged when it starts next.
        let (before, after) = (machines::disk_size(before), machines::disk_size(after));
        if after < before {
            return Err(Error::invalid("the root disk: a virtual machine's disk cannot be made smaller"));
        }
        return Ok(());
    }
    let (pool, volume) = (app.pools.get(&old.row.pool)?, old.row.volume.clone());
    let limit = move || {
        // What was written and not yet flushed is not yet counted.
        pool.sync()?;
        pool.volume_limit(&volume, after)
    };
    blocking(limit).await.map_err(|e| Error::invalid(format!("the root disk: {}", e.message)))?;
    app.instances.forget_usage(old.row.id);
    Ok(())
}

async fn follow(
    app: &App,
    live: &Arc<Live>,
    limits: Option<Limits>,
    old: &Expanded,
    new: &Expanded,
) -> Result<Volatile> {
    if let Some(limits) = limits {
        let cpus = limits.cpus.clone();
        let cgroup = live.cgroup.clone();
        if cgroup.is_scope() {
            let weights = plan::weights(&limits);
            app.systemd.set_weights(&new.row.name, weights).await.map_err(|e| Error::internal(e.to_string()))?;
        }
        blocking(move || cgroup.apply(&limits).map_err(|e| Error::invalid(e.to_string()))).await?;
        live.set_cpus(cpus);
    }
    let (before, after) = (plan::typed_devices(old)?, plan::typed_devices(new)?);
    let changes = config::device_changes(&before, &after);
    let mut volatile = Vec::new();
    for name in &changes.remove {
        unplug(app, live, old, name, &before[name]).await?;
        volatile.push((format!("volatile.{name}.host_name"), None));
    }
    let mut names = PeerNames::new(&after);
    names.reserve_recorded(new, &after, &changes.add);
    for name in &changes.add {
        volatile.extend(plug(app, live, new, name, &after[name], &mut names).await?);
    }
    for name in &changes.update {
        let Device::Nic(nic) = &after[name] else { continue };
        let (nic, _) = plan::nic_plan(app, new, name, nic, &mut PeerNames::new(&after))?;
        if let Some(host) = &nic.host {
            app.network.set_host(&nic.parent, host).await.map_err(crate::networks::error)?;
        }
    }
    Ok(volatile)
}

/// The limits to be, where they change.
fn changed_limits(app: &App, old: &Expanded, new: &Expanded) -> Result<Option<Limits>> {
    let changes = config::config_changes(&old.config, &new.config);
    let (before, after) = (plan::typed_devices(old)?, plan::typed_devices(new)?);
    if !changes.touches("limits.") && disk_limits(&before) == disk_limits(&after) {
        return Ok(None);
    }
    let settings = InstanceSettings::from_config(&new.config).map_err(|e| Error::invalid(e.to_string()))?;
    plan::limits(app, new, &settings, &after).map(Some)
}

/// The limits of all disks that have any.
fn disk_limits(devices: &BTreeMap<String, Device>) -> BTreeMap<&String, DiskLimits> {
    let limits = devices.iter().filter_map(|(name, device)| match device {
        Device::Disk(disk) => Some((name, disk.limits())),
        Device::Nic(_) | Device::UnixChar(_) | Device::None => None,
    });
    limits.filter(|(_, limits)| *limits != DiskLimits::default()).collect()
}

async fn plug(
    app: &App,
    live: &Arc<Live>,
    expanded: &Expanded,
    name: &str,
    device: &Device,
    names: &mut PeerNames,
) -> Result<Volatile> {
    let failed = |e: Error| e.context(format_args!("Failed to add device \"{name}\""));
    match device {
        Device::Disk(disk @ DiskDevice::Host { .. }) => {
            if let Some(mount) = plan::mount(name, disk)? {
                live.call(move |monitor| monitor.attach_mount(&mount, None)).await.map_err(failed)?;
            }
        }
        Device::UnixChar(char) => {
            if let Some(node) = plan::node(name, char)? {
                live.call(move |monitor| monitor.attach_device(&node)).await.map_err(failed)?;
            }
        }
        Device::Nic(nic) => {
            let (nic, volatile) = plan::nic_plan(app, expanded, name, nic, names)?;
            if let Some(host) = &nic.host {
                app.network.set_host(&nic.parent, host).await.map_err(crate::networks::error)?;
            }
            start::attach_nic(app, live.init_pid, &nic).await?;
            live.set_nic(name, Some(nic.host_name));
            return Ok(volatile);
        }
        Device::Disk(DiskDevice::Root { .. }) | Device::None => {}
    }
    Ok(Vec::new())
}

async fn unplug(app: &App, live: &Arc<Live>, expanded: &Expanded, name: &str, device: &Device) -> Result<()> {
    let failed = |e: Error| e.context(format_args!("Failed to remove device \"{name}\""));
    let target = |path: &Path| path.to_owned();
    match device {
        Device::Disk(DiskDevice::Host { path, .. }) => {
            let target = target(path);
            live.call(move |monitor| monitor.detach_mount(&target)).await.map_err(failed)?;
        }
        Device::UnixChar(char) => {
            let target = target(&char.path);
            live.call(move |monitor| monitor.detach_device(&target)).await.map_err(failed)?;
        }
        Device::Nic(_) => {
            if let Some(link) = live.nics().get(name) {
                app.network.detach_nic(link).await.map_err(crate::networks::error).map_err(failed)?;
                live.set_nic(name, None);
            }
            for network in app.inventory.networks()? {
                for host in plan::static_hosts(expanded, &network.name) {
                    if host.id == format!("{}.{name}", expanded.row.name) {
                        app.network.remove_host(&network.name, &host).await.map_err(crate::networks::error)?;
                    }
                }
            }
        }
        Device::Disk(DiskDevice::Root { .. }) | Device::None => {}
    }
    Ok(())
}

/// Replaces a profile, after checking every instance that uses it, and lets those that run follow.
///
/// # Errors
/// Where an instance would become invalid, or one that runs could not follow; the profile then stays as it was.
pub async fn profile(app: &App, profile: ProfileRow) -> Result<()> {
    let mut table = expand::profile_table(app)?;
    let users: Vec<Expanded> =
        expand::expand_all(app)?.into_iter().filter(|e| e.row.profiles.contains(&profile.name)).collect();
    let former = table.insert(profile.name.clone(), profile.clone());
    let mut pairs = Vec::with_capacity(users.len());
    for old in users {
        let new = expand::expand_with(&table, old.row.clone())?;
        check(app, &old, &new)
            .map_err(|e| e.context(format_args!("instance \"{}\" uses this profile", old.row.name)))?;
        pairs.push((old, new));
    }
    app.inventory.write(move |tx| profile.update(tx)).await?;
    for (index, (old, new)) in pairs.iter().enumerate() {
        let slot = app.instances.slot(old.row.id);
        let outcome = async {
            let held = slot.claim_when_idle(Request::Update).await?;
            let volatile = apply(app, &held, old, new).await?;
            let id = old.row.id;
            app.inventory
                .write(move |tx| inventory::instances::patch_config(tx, id, &volatile))
                .await
                .doing("cannot record")
        };
        if let Err(error) = outcome.await {
            take_back(app, former, &pairs[..index]).await;
            return Err(error.context(format_args!("instance \"{}\" cannot follow", old.row.name)));
        }
    }
    Ok(())
}

/// Puts a profile back, and the instances that had followed it.
async fn take_back(app: &App, former: Option<ProfileRow>, followed: &[(Expanded, Expanded)]) {
    if let Some(former) = former
        && let Err(error) = app.inventory.write(move |tx| former.update(tx)).await
    {
        tracing::error!(%error, "a profile did not go back to what it was");
    }
    for (old, new) in followed {
        let slot = app.instances.slot(old.row.id);
        let Ok(held) = slot.claim_when_idle(Request::Update).await else { continue };
        if let Err(error) = apply(app, &held, new, old).await {
            tracing::error!(%error, instance = old.row.name, "an instance did not go back to its former profile");
        }
    }
}
