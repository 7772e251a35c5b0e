//! Deleting and renaming instances.

use serde_json::{Value, json};

use super::slot::Held;
use super::{expand, templates};
use crate::app::App;
use crate::config::{InstanceSettings, NameKind, validate_name};
use crate::error::{Error, Result};
use crate::inventory;
use crate::pools;
use crate::warnings::INSTANCE_OUT_OF_MEMORY;

/// Deletes an instance that the caller holds, with its snapshots. The row goes first: what a crash leaves on disk after
/// that, nothing names, and the next start sweeps it.
///
/// # Errors
/// Where it is protected.
pub async fn delete(app: &App, held: Held, name: &str) -> Result<()> {
    let expanded = expand::find(app, name)?;
    let protected = InstanceSettings::from_config(&expanded.config).is_ok_and(|s| s.protection_delete);
    if protected {
        return Err(Error::invalid("Instance is protected from being deleted: unset security.protection.delete first"));
    }
    let id = expanded.row.id;
    let mut objects = expanded.row.volume.objects();
    for snapshot in app.inventory.snapshots(id)? {
        objects.extend(snapshot.volume.objects());
    }
    app.inventory.write(move |tx| inventory::instances::delete(tx, id)).await?;
    app.events.lifecycle("instance-deleted", format!("/1.0/instances/{name}"), Value::Null);
    pools::discard(app, &expanded.row.pool, objects).await;
    forget_hosts(app, &expanded).await;
    for dir in [app.paths.logs(name), app.paths.devices(id), app.paths.run(id), app.paths.metadata(id)] {
        remove_dir(&dir);
    }
    app.instances.forget(id);
    app.warnings.resolve(app, INSTANCE_OUT_OF_MEMORY, &format!("/1.0/instances/{name}")).await;
    drop(held);
    Ok(())
}

fn remove_dir(dir: &std::path::Path) {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, dir = %dir.display(), "a directory of a deleted instance stays behind");
        }
        _ => {}
    }
}

/// Takes the instance's names and leases out of its networks' DNS and DHCP.
async fn forget_hosts(app: &App, expanded: &expand::Expanded) {
    let Ok(networks) = app.inventory.networks() else { return };
    for network in networks {
        for host in super::static_hosts(expanded, &network.name) {
            if let Err(error) = app.network.remove_host(&network.name, &host).await {
                tracing::warn!(%error, network = network.name, host = host.id, "a name stays in a network's DNS");
            }
        }
    }
}

/// Renames an instance that the caller holds.
///
/// # Errors
/// A bad or taken name.
pub async fn rename(app: &App, held: &Held, name: &str, new: &str) -> Result<()> {
    validate_name(NameKind::Instance, new).map_err(|e| Error::invalid(e.to_string()))?;
    let reserved = app.instances.reserve(app, new)?;
    let expanded = expand::find(app, name)?;
    let (id, chosen) = (held.slot().id(), new.to_owned());
    // What the first start is still to apply says the name as well.
    let due = (!expanded.row.config.contains_key(templates::DUE))
        .then(|| vec![(templates::DUE.to_owned(), Some("rename".to_owned()))]);
    app.inventory
        .write(move |tx| {
            inventory::instances::rename(tx, id, &chosen)?;
            due.map_or(Ok(()), |due| inventory::instances::patch_config(tx, id, &due))
        })
        .await
        .map_err(|e| super::create::refused(e, new))?;
    drop(reserved);
    forget_hosts(app, &expanded).await;
    // A log that does not move is no reason to fail: a new one begins at the next start.
    if let Err(error) = std::fs::rename(app.paths.logs(name), app.paths.logs(new))
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, name, new, "the logs of a renamed instance stay behind");
    }
    app.events.lifecycle("instance-renamed", format!("/1.0/instances/{new}"), json!({ "old_name": name }));
    Ok(())
}
