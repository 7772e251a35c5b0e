//! Instances with their profiles applied, and how they look on the wire.

use std::collections::HashMap;

use duet_client::api::{Instance, InstancePut, StatusCode};

use super::lifecycle::Observed;
use crate::app::App;
use crate::config::{self, InstanceKind};
use crate::error::{Error, Result};
use crate::inventory::{ConfigMap, DeviceMap, InstanceRow, ProfileRow};

/// An instance with its profiles applied.
#[derive(Clone, Debug)]
pub struct Expanded {
    /// Its own row.
    pub row: InstanceRow,
    /// Keys, profiles applied in order, its own last.
    pub config: ConfigMap,
    /// Devices, likewise.
    pub devices: DeviceMap,
}

/// The profiles of the inventory by name.
pub(super) type ProfileTable = HashMap<String, ProfileRow>;

pub(super) fn profile_table(app: &App) -> Result<ProfileTable> {
    Ok(app.inventory.profiles()?.into_iter().map(|row| (row.name.clone(), row)).collect())
}

/// Applies profiles by the rules of the typed table.
pub(super) fn apply(
    profiles: &ProfileTable,
    names: &[String],
    own_config: &ConfigMap,
    own_devices: &DeviceMap,
) -> Result<(ConfigMap, DeviceMap)> {
    let mut layers = Vec::with_capacity(names.len());
    for name in names {
        let profile = profiles.get(name).ok_or_else(|| Error::not_found(format!("Profile \"{name}\" not found")))?;
        layers.push((&profile.config, &profile.devices));
    }
    Ok(config::expand(&layers, own_config, own_devices))
}

pub(super) fn expand_with(profiles: &ProfileTable, row: InstanceRow) -> Result<Expanded> {
    let (config, devices) = apply(profiles, &row.profiles, &row.config, &row.devices)?;
    Ok(Expanded { row, config, devices })
}

/// One instance by name.
///
/// # Errors
/// Not found, in Incus' words.
pub fn find(app: &App, name: &str) -> Result<Expanded> {
    let row = find_row(app, name)?;
    expand_with(&profile_table(app)?, row)
}

/// One instance's own row by name.
///
/// # Errors
/// Not found, in Incus' words.
pub fn find_row(app: &App, name: &str) -> Result<InstanceRow> {
    app.inventory.instance(name)?.ok_or_else(|| {
        Error::not_found(format!("Failed to fetch instance \"{name}\" in project \"default\": Instance not found"))
    })
}

/// Every instance, by name.
///
/// # Errors
/// The inventory's.
pub fn expand_all(app: &App) -> Result<Vec<Expanded>> {
    let profiles = profile_table(app)?;
    app.inventory.instances()?.into_iter().map(|row| expand_with(&profiles, row)).collect()
}

/// The status that goes with what is observed.
pub fn status_of(observed: Observed) -> StatusCode {
    match observed {
        Observed::Stopped => StatusCode::Stopped,
        Observed::Running => StatusCode::Running,
        Observed::Frozen => StatusCode::Frozen,
    }
}

impl Expanded {
    /// The wire form.
    pub fn render(self, app: &App) -> Instance {
        let status = status_of(app.instances.slot(self.row.id).observed());
        let row = self.row;
        Instance {
            architecture: row.architecture,
            config: row.config,
            devices: row.devices,
            ephemeral: row.ephemeral,
            profiles: row.profiles,
            stateful: false,
            description: row.description,
            created_at: row.created_at.into(),
            expanded_config: self.config,
            expanded_devices: self.devices,
            name: row.name,
            status: status.to_string(),
            status_code: status,
            last_used_at: row.last_used_at.into(),
            location: "none".into(),
            kind: row.kind.into(),
            project: "default".into(),
        }
    }

    /// What a client may change, for entity tags and PATCH. What the daemon itself records (`volatile.*`) is left out
    /// of the tag, so that a start between a client's GET and PUT does not spoil the PUT.
    pub fn tag(&self) -> String {
        let mut put = self.writable();
        put.config.retain(|key, _| !key.starts_with("volatile."));
        crate::api::response::etag(&put)
    }

    /// What a client may change.
    pub fn writable(&self) -> InstancePut {
        InstancePut {
            architecture: self.row.architecture.clone(),
            config: self.row.config.clone(),
            devices: self.row.devices.clone(),
            ephemeral: self.row.ephemeral,
            profiles: Some(self.row.profiles.clone()),
            restore: String::new(),
            stateful: false,
            description: self.row.description.clone(),
        }
    }
}

/// Checks that what devices name exists: pools and networks. For a profile there is no kind of instance.
///
/// # Errors
/// With the name of what does not.
pub fn check_references(app: &App, kind: Option<InstanceKind>, devices: &DeviceMap) -> Result<()> {
    for (name, device) in devices {
        let type_ = device.get("type").map_or("", String::as_str);
        if type_ == "disk"
            && let Some(pool) = device.get("pool")
            && app.inventory.pool(pool)?.is_none()
        {
            return Err(Error::invalid(format!("device \"{name}\": there is no storage pool \"{pool}\"")));
        }
        // A virtual machine's disk is a file, which has its size on every pool.
        if crate::pools::is_root(device)
            && kind == Some(InstanceKind::Container)
            && device.contains_key("size")
            && let Some(pool) = device.get("pool")
            // One that cannot be used now says so where it is used.
            && let Ok(pool) = app.pools.get(pool)
        {
            pool.quota().map_err(|e| Error::invalid(format!("device \"{name}\": {e}")))?;
        }
        if type_ == "nic"
            && let Some(network) = device.get("network")
            && app.inventory.network(network)?.is_none()
        {
            return Err(Error::invalid(format!("device \"{name}\": there is no managed network \"{network}\"")));
        }
    }
    Ok(())
}

/// The pool that the root disk names.
///
/// # Errors
/// Where there is no root disk.
pub fn root_pool(devices: &DeviceMap) -> Result<String> {
    devices.values().find(|device| crate::pools::is_root(device)).and_then(|d| d.get("pool")).cloned().ok_or_else(|| {
        Error::invalid(
            "No root device could be found: give the instance or one of its profiles a disk device with path=/ and a pool",
        )
    })
}
