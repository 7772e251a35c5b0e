//! The managed networks of this host: inventory rows and the bridges behind them.

use std::collections::{HashMap, HashSet};

use duet_client::api::NetworkLease;

use crate::app::App;
use crate::config::{self, ConfigMap};
use crate::error::{Error, Kind, Result};
use crate::instances::{Expanded, expand_all, static_hosts};
use crate::inventory::{self, DeviceMap, NetworkRow};
use crate::network::{self, BridgeConfig, Network, StaticHost};

/// The network made at first start.
pub const DEFAULT_NETWORK: &str = "duetbr0";

/// Translates the network layer's failure.
pub fn error(error: network::Error) -> Error {
    Error::new(error_kind(&error), error.to_string())
}

/// What sort of failure it is for a client.
pub fn error_kind(error: &network::Error) -> Kind {
    match error {
        network::Error::Config { .. }
        | network::Error::Name { .. }
        | network::Error::LinkTaken { .. }
        | network::Error::NoSuchLink { .. }
        | network::Error::NoFreeSubnet { .. }
        | network::Error::SubnetTaken { .. } => Kind::Invalid,
        _ => Kind::Internal,
    }
}

/// A network as the network layer is told of it.
fn network(app: &App, name: &str, config: &ConfigMap) -> Result<Network> {
    network_of(&expand_all(app)?, name, config)
}

/// The same, of instances that were looked up already.
fn network_of(instances: &[Expanded], name: &str, config: &ConfigMap) -> Result<Network> {
    Ok(Network { name: name.to_owned(), config: parse(config)?, hosts: hosts(instances, name) })
}

/// The NICs of all instances on a network, running or not: their names and fixed addresses.
fn hosts(instances: &[Expanded], network: &str) -> Vec<StaticHost> {
    instances.iter().flat_map(|expanded| static_hosts(expanded, network)).collect()
}

fn parse(config: &ConfigMap) -> Result<BridgeConfig> {
    BridgeConfig::parse(config).map_err(error)
}

/// Makes a network: `auto` addresses are chosen here, free of conflict.
///
/// # Errors
/// Bad names and keys, a link of that name that is not ours, a name that is taken.
pub async fn create(app: &App, name: &str, description: String, mut config: ConfigMap) -> Result<()> {
    config::validate_network_name(name).map_err(|e| Error::invalid(e.to_string()))?;
    config::drop_unset(&mut config);
    config::validate_network_config(&config).map_err(|e| Error::invalid(e.to_string()))?;
    if app.inventory.network(name)?.is_some() {
        return Err(Error::conflict(format!("Network \"{name}\" already exists")));
    }
    app.network.fill_defaults(&mut config, &subnets(app)?).await.map_err(error)?;
    app.network.bridge_up(&network(app, name, &config)?).await.map_err(error)?;
    let row = NetworkRow { name: name.to_owned(), kind: "bridge".into(), description, config };
    let stored = app.inventory.write(move |tx| row.insert(tx)).await;
    if let Err(failure) = stored {
        if let Err(error) = app.network.remove(name).await {
            tracing::warn!(%error, name, "a half-made network was not taken down; the next start does");
        }
        return Err(failure.into());
    }
    Ok(())
}

/// The configurations of all networks, for choosing addresses that are free.
fn subnets(app: &App) -> Result<Vec<BridgeConfig>> {
    Ok(app.inventory.networks()?.iter().filter_map(|row| parse(&row.config).ok()).collect())
}

/// Brings up every network of the inventory for all `instances`; called at start, changes nothing that is right.
///
/// # Errors
/// The inventory's; a network that cannot be brought up becomes a warning.
pub async fn bring_up_all(app: &App, instances: &[Expanded]) -> Result<()> {
    let mut wanted = Vec::new();
    let mut failures: HashMap<String, String> = HashMap::new();
    let rows = app.inventory.networks()?;
    for row in &rows {
        match network_of(instances, &row.name, &row.config) {
            Ok(network) => wanted.push(network),
            Err(error) => drop(failures.insert(row.name.clone(), error.to_string())),
        }
    }
    failures.extend(app.network.bridges_up(&wanted).await.into_iter().map(|(name, error)| (name, error.to_string())));
    for row in rows {
        let entity = format!("/1.0/networks/{}", row.name);
        match failures.get(&row.name) {
            None => app.warnings.resolve(app, crate::warnings::NETWORK_UNAVAILABLE, &entity).await,
            Some(error) => {
                tracing::error!(network = %row.name, %error, "a network could not be brought up");
                app.warnings.raise(app, crate::warnings::NETWORK_UNAVAILABLE, &entity, error).await;
            }
        }
    }
    Ok(())
}

/// Removes links, dnsmasq processes and directories that belong to no network and no running instance (`links` are
/// those of running ones). Failures are logged: the next start tries again.
pub async fn sweep(app: &App, links: &HashSet<String>) {
    let work = async {
        let rows = app.inventory.networks()?;
        let known = rows.iter().map(|row| row.name.as_str()).collect();
        app.network.sweep(links, &known).await.map_err(error)
    };
    match work.await {
        Ok(swept) => {
            for failure in swept.failures {
                tracing::warn!(%failure, "something of a network stays behind");
            }
        }
        Err(error) => tracing::warn!(%error, "leftover links could not be looked for"),
    }
}

/// Changes a network; the old state comes back where the new one cannot be had.
///
/// # Errors
/// Bad keys, or what the host refused.
pub async fn update(app: &App, name: &str, description: String, mut config: ConfigMap) -> Result<()> {
    let mut row = app.inventory.network(name)?.ok_or_else(|| Error::not_found("Network not found"))?;
    config::drop_unset(&mut config);
    config::validate_network_config(&config).map_err(|e| Error::invalid(e.to_string()))?;
    app.network.fill_defaults(&mut config, &subnets(app)?).await.map_err(error)?;
    let all = expand_all(app)?;
    let (old, new) = (network_of(&all, name, &row.config)?, network_of(&all, name, &config)?);
    if let Err(failure) = app.network.bridge_up(&new).await {
        if let Err(error) = app.network.bridge_up(&old).await {
            tracing::error!(network = name, %error, "the former state of a network did not come back");
        }
        return Err(error(failure));
    }
    row.description = description;
    row.config = config;
    app.inventory.write(move |tx| row.update(tx)).await?;
    app.events.lifecycle("network-updated", format!("/1.0/networks/{name}"), serde_json::Value::Null);
    Ok(())
}

/// Renames a network that nothing uses.
///
/// # Errors
/// Where something uses it or the name is taken.
pub async fn rename(app: &App, name: &str, new: &str) -> Result<()> {
    config::validate_network_name(new).map_err(|e| Error::invalid(e.to_string()))?;
    refuse_if_used(app, name)?;
    if app.inventory.network(new)?.is_some() {
        return Err(Error::conflict(format!("Network \"{new}\" already exists")));
    }
    let row = app.inventory.network(name)?.ok_or_else(|| Error::not_found("Network not found"))?;
    app.network.remove(name).await.map_err(error)?;
    app.network.bridge_up(&network(app, new, &row.config)?).await.map_err(error)?;
    let (old, new) = (name.to_owned(), new.to_owned());
    app.inventory.write(move |tx| inventory::networks::rename(tx, &old, &new)).await?;
    Ok(())
}

/// Removes a network that nothing uses.
///
/// # Errors
/// Where something uses it.
pub async fn delete(app: &App, name: &str) -> Result<()> {
    refuse_if_used(app, name)?;
    let gone = name.to_owned();
    app.inventory.write(move |tx| inventory::networks::delete(tx, &gone)).await?;
    app.network.remove(name).await.map_err(error)
}

fn refuse_if_used(app: &App, name: &str) -> Result<()> {
    match users(app)?.remove(name).and_then(|users| users.into_iter().next()) {
        Some(user) => Err(Error::invalid(format!("The network is currently in use by {user}"))),
        None => Ok(()),
    }
}

/// Which paths use which network.
///
/// # Errors
/// The inventory's.
pub fn users(app: &App) -> Result<HashMap<String, Vec<String>>> {
    let mut users: HashMap<String, Vec<String>> = HashMap::new();
    for row in app.inventory.profiles()? {
        for network in networks_of(&row.devices) {
            users.entry(network).or_default().push(format!("/1.0/profiles/{}", row.name));
        }
    }
    for expanded in expand_all(app)? {
        for network in networks_of(&expanded.devices) {
            users.entry(network).or_default().push(format!("/1.0/instances/{}", expanded.row.name));
        }
    }
    Ok(users)
}

fn networks_of(devices: &DeviceMap) -> Vec<String> {
    let nics = devices.values().filter(|d| d.get("type").is_some_and(|t| t == "nic"));
    let mut names: Vec<String> = nics.filter_map(|d| d.get("network").or_else(|| d.get("parent")).cloned()).collect();
    names.sort();
    names.dedup();
    names
}

/// The leases of a network, dynamic, static and its own address.
///
/// # Errors
/// What could not be read.
pub async fn leases(app: &App, name: &str) -> Result<Vec<NetworkLease>> {
    let hosts = hosts(&expand_all(app)?, name);
    let leases = app.network.leases(name, &hosts).await.map_err(error)?;
    Ok(leases.into_iter().map(NetworkLease::from).collect())
}
