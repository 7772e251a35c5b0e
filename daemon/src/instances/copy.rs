//! Copies: a second instance from an instance or a snapshot, sharing every frozen layer where both are in one pool.

use std::sync::Arc;

use duet_client::api::InstanceSource;

use super::create::{self, Draft};
use super::expand;
use super::lifecycle::{Observed, Request};
use super::slot::{Held, Slot};
use super::snapshot::{self, frozen_while, split};
use super::transfer;
use crate::app::App;
use crate::config::InstanceKind;
use crate::error::{Error, Result, blocking};
use crate::inventory::{self, ConfigMap, DeviceMap, InstanceRow, SnapshotRow};
use crate::pools;
use crate::storage::Activity;

/// What is copied.
pub struct From {
    row: InstanceRow,
    snapshot: Option<SnapshotRow>,
    with_snapshots: bool,
}

/// Finds what a request names: `instance` or `instance/snapshot`.
///
/// # Errors
/// Where it is not there.
pub fn resolve(app: &App, source: &InstanceSource) -> Result<From> {
    if source.refresh {
        return Err(Error::invalid("refreshing an existing copy is not served: delete it and copy again"));
    }
    // `live` is what Incus' client says of everything that runs; of a container, files are copied and no memory.
    let (name, snapshot) = split(&source.source);
    let row = expand::find_row(app, name)?;
    let snapshot = snapshot.map(|wanted| snapshot::find(app, &row, wanted)).transpose()?;
    let with_snapshots = snapshot.is_none() && !source.instance_only && !source.container_only;
    Ok(From { row, snapshot, with_snapshots })
}

/// Whether a copy inherits this key: what tells of one particular instance stays with it.
fn inherited(key: &str) -> bool {
    !key.starts_with("volatile.") || key == "volatile.base_image"
}

impl From {
    /// The source's kind, which a copy has too.
    pub fn kind(&self) -> InstanceKind {
        self.row.kind
    }

    /// The source's architecture.
    pub fn architecture(&self) -> &String {
        &self.row.architecture
    }

    /// The snapshot that is copied, as it is now.
    fn snapshot(&self, app: &App, row: &InstanceRow) -> Result<Option<SnapshotRow>> {
        let Some(snapshot) = &self.snapshot else { return Ok(None) };
        let found = app.inventory.snapshot(row.id, &snapshot.name)?;
        found.map(Some).ok_or_else(|| Error::not_found("the snapshot was deleted meanwhile"))
    }

    /// The snapshots that come along.
    fn snapshots(&self, app: &App, row: &InstanceRow) -> Result<Vec<SnapshotRow>> {
        if self.with_snapshots { Ok(app.inventory.snapshots(row.id)?) } else { Ok(Vec::new()) }
    }

    /// Lays the source's keys, devices and profiles under what the request says.
    pub fn inherit(&self, config: &mut ConfigMap, devices: &mut DeviceMap, profiles: &mut Option<Vec<String>>) {
        let (its_config, its_devices, its_profiles) = match &self.snapshot {
            Some(snapshot) => (&snapshot.config, &snapshot.devices, &snapshot.profiles),
            None => (&self.row.config, &self.row.devices, &self.row.profiles),
        };
        config.retain(|key, _| inherited(key));
        for (key, value) in its_config.iter().filter(|(key, _)| inherited(key)) {
            config.entry(key.clone()).or_insert_with(|| value.clone());
        }
        for (name, device) in its_devices {
            devices.entry(name.clone()).or_insert_with(|| device.clone());
        }
        if profiles.is_none() {
            *profiles = Some(its_profiles.clone());
        }
    }
}

/// Makes the copy.
///
/// # Errors
/// With the step that failed; nothing is left of it.
pub(super) async fn run(app: &App, name: &super::Reservation, draft: Draft, from: From) -> Result<Arc<Slot>> {
    let source_slot = app.instances.slot(from.row.id);
    let held = source_slot.claim(Request::Copy)?;
    // What was found before the claim may have changed since.
    let row = expand::find_row(app, &from.row.name)?;
    if draft.pool != row.pool {
        return elsewhere(app, name, draft, &held, &row, &from).await;
    }
    let pool = app.pools.get(&row.pool)?;
    let (made, changed_source) = match from.snapshot(app, &row)? {
        Some(snapshot) => {
            let made = blocking(move || pool.volume_from_snapshot(&snapshot.volume)).await?;
            (super::MadeVolume::Alone(made), None)
        }
        None => {
            let volume = row.volume.clone();
            let activity = if held.from() == Observed::Stopped { Activity::Stopped } else { Activity::Running };
            let copying = pool.clone();
            let taken = frozen_while(source_slot.live().as_ref(), async move {
                blocking(move || copying.volume_copy(&volume, activity)).await
            })
            .await?;
            if activity == Activity::Running {
                blocking(move || pool.sync()).await?;
            }
            let changed = (taken.source != row.volume).then(|| taken.source.clone());
            (super::MadeVolume::Taken(taken), changed)
        }
    };
    create::limit(app, &draft, made.volume()).await?;
    let snapshots = from.snapshots(app, &row)?;
    let new = draft.into_row(name.name(), made.volume().clone());
    let pool_name = new.pool.clone();
    let source_id = row.id;
    let id = app
        .inventory
        .write(move |tx| {
            if let Some(volume) = &changed_source {
                inventory::instances::set_volume(tx, source_id, volume)?;
            }
            let id = new.insert(tx)?;
            for snapshot in snapshots {
                SnapshotRow { instance_id: id, ..snapshot }.insert(tx)?;
            }
            Ok(id)
        })
        .await
        .map_err(|e| create::refused(e, name.name()))?;
    made.keep();
    drop(held);
    create::announce(app, name.name(), &pool_name, row.kind);
    Ok(app.instances.slot(id))
}

/// Makes a copy in another pool than the source's.
async fn elsewhere(
    app: &App,
    name: &super::Reservation,
    draft: Draft,
    held: &Held,
    row: &InstanceRow,
    from: &From,
) -> Result<Arc<Slot>> {
    let pool = draft.pool.clone();
    let mut objects = Vec::new();
    let made = async {
        let (snapshot, snapshots) = (from.snapshot(app, row)?, from.snapshots(app, row)?);
        let copied = transfer::copy(app, held, row, snapshot, snapshots, &pool, &mut objects).await?;
        create::limit(app, &draft, &copied.volume).await?;
        let new = draft.into_row(name.name(), copied.volume);
        let stored = app.inventory.write(move |tx| {
            let id = new.insert(tx)?;
            for snapshot in copied.snapshots {
                SnapshotRow { instance_id: id, ..snapshot }.insert(tx)?;
            }
            Ok(id)
        });
        stored.await.map_err(|e| create::refused(e, name.name()))
    };
    let made = made.await;
    pools::discard(app, &pool, objects).await;
    let id = made?;
    create::announce(app, name.name(), &pool, row.kind);
    Ok(app.instances.slot(id))
}
