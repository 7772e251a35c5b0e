//! Snapshots: taking, restoring, renaming, deleting.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use duet_container::cgroup::Cgroup;
use jiff::{Timestamp, Zoned};
use serde_json::{Value, json};

use super::expand;
use super::lifecycle::{Observed, Request};
use super::live::Live;
use super::slot::Held;
use super::{start, stop};
use crate::app::App;
use crate::config::{InstanceSettings, NameKind, validate_name};
use crate::error::{Context, Error, Result, blocking};
use crate::inventory::{self, InstanceRow, Power, SnapshotRow};
use crate::pools;
use crate::storage::Activity;

/// A file in the run directory while an instance is held for a copy of its files, as against paused by a client.
const HELD: &str = "held";
/// How long the processes of a running instance may take to be held and let go.
const FREEZE_DEADLINE: Duration = Duration::from_secs(20);

/// `instance/snapshot` in its two parts.
pub fn split(path: &str) -> (&str, Option<&str>) {
    path.split_once('/').map_or((path, None), |(instance, snapshot)| (instance, Some(snapshot)))
}

/// When a snapshot ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// As `snapshots.expiry` says.
    AsConfigured,
    /// Never.
    Never,
    /// Then.
    At(Timestamp),
}

/// Lets an instance go on that was held for a copy of its files: now, or after the daemon was killed meanwhile. One that
/// was paused by a client is left as it is.
///
/// # Errors
/// Where its processes do not go on in time.
pub(super) fn let_go(cgroup: &Cgroup, run_dir: &Path) -> Result<()> {
    let held = run_dir.join(HELD);
    if held.exists() {
        cgroup.thaw(Instant::now() + FREEZE_DEADLINE).doing("the instance's processes do not go on")?;
        // The directory goes with the instance, which may have ended meanwhile.
        let _ = std::fs::remove_file(held);
    }
    Ok(())
}

/// Runs `work` while the processes of a running instance are held, so that it sees one instant. An instance that was
/// frozen already stays so.
///
/// # Errors
/// Where they cannot be held, or what `work` returned.
pub(super) async fn frozen_while<T>(live: Option<&Arc<Live>>, work: impl Future<Output = Result<T>>) -> Result<T> {
    let Some(live) = live.filter(|live| !live.is_frozen()) else { return work.await };
    // Let go on every way out, a dropped future included.
    struct Thaw(Arc<Live>);
    impl Drop for Thaw {
        fn drop(&mut self) {
            if let Err(error) = let_go(&self.0.cgroup, &self.0.run_dir) {
                tracing::error!(%error, "an instance that was held for a snapshot does not go on");
            }
        }
    }
    let cgroup = live.cgroup.clone();
    std::fs::File::create(live.run_dir.join(HELD)).doing("cannot note that the instance is held")?;
    let thaw = Thaw(Arc::clone(live));
    blocking(move || {
        cgroup
            .freeze(Instant::now() + FREEZE_DEADLINE)
            .map_err(|e| Error::internal(format!("the instance's processes cannot be held: {e}")))
    })
    .await?;
    let outcome = work.await;
    drop(thaw);
    outcome
}

/// Takes a snapshot of an instance that the caller holds. Gives its name.
///
/// # Errors
/// A bad or taken name, or what the storage met.
pub async fn take(app: &App, held: &Held, instance: &str, name: &str, ends: Ends) -> Result<String> {
    let expanded = expand::find(app, instance)?;
    let row = &expanded.row;
    let settings = InstanceSettings::from_config(&expanded.config).map_err(|e| Error::invalid(e.to_string()))?;
    let existing = app.inventory.snapshots(row.id)?;
    let name = if name.is_empty() {
        settings.snapshots.pattern.next_name(&Zoned::now(), existing.iter().map(|s| s.name.as_str()))
    } else {
        name.to_owned()
    };
    validate_name(NameKind::Snapshot, &name).map_err(|e| Error::invalid(e.to_string()))?;
    if existing.iter().any(|s| s.name == name) {
        return Err(Error::conflict(format!("Snapshot \"{instance}/{name}\" already exists")));
    }
    let now = Timestamp::now();
    let expires_at = match ends {
        Ends::AsConfigured => settings.snapshots.expiry.and_then(|expiry| expiry.after(now)),
        Ends::Never => None,
        Ends::At(at) => Some(at),
    };
    let pool = app.pools.get(&row.pool)?;
    let activity = if held.from() == Observed::Stopped { Activity::Stopped } else { Activity::Running };
    let (copying, volume) = (pool.clone(), row.volume.clone());
    let taken = frozen_while(held.slot().live().as_ref(), async move {
        blocking(move || copying.snapshot_create(&volume, activity)).await
    })
    .await?;
    if activity == Activity::Running {
        blocking(move || pool.sync()).await?;
    }
    let snapshot = SnapshotRow {
        id: 0,
        instance_id: row.id,
        name: name.clone(),
        architecture: row.architecture.clone(),
        description: String::new(),
        ephemeral: row.ephemeral,
        config: row.config.clone(),
        devices: row.devices.clone(),
        profiles: row.profiles.clone(),
        volume: taken.taken.clone(),
        created_at: now,
        last_used_at: row.last_used_at,
        expires_at,
    };
    let (id, source) = (row.id, taken.source.clone());
    let stored = app
        .inventory
        .write(move |tx| {
            inventory::instances::set_volume(tx, id, &source)?;
            snapshot.insert(tx)
        })
        .await;
    stored?;
    taken.keep();
    app.events.lifecycle("instance-snapshot-created", path(instance, &name), Value::Null);
    Ok(name)
}

/// The path of a snapshot.
pub fn path(instance: &str, snapshot: &str) -> String {
    format!("/1.0/instances/{instance}/snapshots/{snapshot}")
}

/// One snapshot of an instance.
///
/// # Errors
/// Not found, in Incus' words.
pub fn find(app: &App, row: &InstanceRow, name: &str) -> Result<SnapshotRow> {
    app.inventory.snapshot(row.id, name)?.ok_or_else(|| {
        Error::not_found(format!(
            "Failed to fetch snapshot \"{name}\" of instance \"{}\" in project \"default\": Instance snapshot not found",
            row.name
        ))
    })
}

/// Goes back to a snapshot: root filesystem, keys, devices and profiles. One that runs is stopped for it and started
/// again.
///
/// # Errors
/// With the step that failed; until the new root is recorded, the old one stays.
pub async fn restore(app: &App, held: &Held, instance: &str, name: &str) -> Result<()> {
    let row = expand::find_row(app, instance)?;
    let snapshot = find(app, &row, name)?;
    let table = expand::profile_table(app)?;
    if let Some(gone) = snapshot.profiles.iter().find(|p| !table.contains_key(*p)) {
        return Err(Error::conflict(format!("the snapshot uses the profile \"{gone}\", which is not there any more")));
    }
    let pool = app.pools.get(&row.pool)?;
    let wanted = snapshot.volume.clone();
    // Made before anything ends: where that cannot be done, what runs runs on.
    let made = blocking(move || pool.volume_from_snapshot(&wanted)).await?;
    let was_running = held.from() == Observed::Running;
    if was_running {
        stop::end(app, held, stop::How::Kill).await?;
    }
    let mut next = row.clone();
    let old = std::mem::replace(&mut next.volume, (*made).clone());
    // What tells of this instance at this time stays; all else is as it was.
    let current: Vec<_> = row.config.iter().filter(|(key, _)| key.starts_with("volatile.")).collect();
    next.config = snapshot.config.clone();
    next.config.retain(|key, _| !key.starts_with("volatile."));
    next.config.extend(current.into_iter().map(|(key, value)| (key.clone(), value.clone())));
    next.devices = snapshot.devices.clone();
    next.profiles = snapshot.profiles.clone();
    next.ephemeral = snapshot.ephemeral;
    next.power = Power::Stopped;
    let pool_name = next.pool.clone();
    if let Err(refused) = app.inventory.write(move |tx| next.update(tx)).await {
        if was_running && let Err(error) = start::start(app, held, instance).await {
            tracing::error!(instance, %error, "an instance that was not restored did not start again");
        }
        return Err(refused.into());
    }
    made.keep();
    pools::discard(app, &pool_name, old.objects()).await;
    app.instances.forget_usage(row.id);
    app.events.lifecycle("instance-restored", format!("/1.0/instances/{instance}"), json!({ "snapshot": name }));
    if was_running {
        start::start(app, held, instance).await?;
    }
    Ok(())
}

/// Renames a snapshot.
///
/// # Errors
/// A bad or taken name.
pub async fn rename(app: &App, instance: &str, name: &str, new: &str) -> Result<()> {
    validate_name(NameKind::Snapshot, new).map_err(|e| Error::invalid(e.to_string()))?;
    let row = expand::find_row(app, instance)?;
    let _held = app.instances.slot(row.id).claim(Request::Update)?;
    let snapshot = find(app, &row, name)?;
    let chosen = new.to_owned();
    app.inventory.write(move |tx| inventory::snapshots::rename(tx, snapshot.id, &chosen)).await.map_err(
        |e| match e {
            inventory::Error::Exists => Error::conflict(format!("Snapshot \"{instance}/{new}\" already exists")),
            other => other.into(),
        },
    )?;
    app.events.lifecycle("instance-snapshot-renamed", path(instance, new), json!({ "old_name": name }));
    Ok(())
}

/// Deletes a snapshot, and of its layers what nothing else needs.
///
/// # Errors
/// Where it is not there.
pub async fn delete(app: &App, instance: &str, name: &str) -> Result<()> {
    let row = expand::find_row(app, instance)?;
    let held = app.instances.slot(row.id).claim(Request::Update)?;
    let snapshot = find(app, &row, name)?;
    let id = snapshot.id;
    app.inventory.write(move |tx| inventory::snapshots::delete(tx, id)).await?;
    pools::discard(app, &row.pool, snapshot.volume.objects()).await;
    if held.from() == Observed::Stopped
        && let Err(error) = compact(app, instance).await
    {
        tracing::warn!(instance, %error, "what the deleted snapshot held is not given back yet");
    }
    app.events.lifecycle("instance-snapshot-deleted", path(instance, name), Value::Null);
    Ok(())
}

/// Joins the layers of a stopped instance, which the caller holds, that only it needs: what was overwritten since a
/// snapshot that is gone takes no room any more.
async fn compact(app: &App, instance: &str) -> Result<()> {
    let row = expand::find_row(app, instance)?;
    if row.volume.lowers.is_empty() {
        return Ok(());
    }
    let others = pools::references_but(app, &row.pool, row.id)?;
    let (pool, volume) = (app.pools.get(&row.pool)?, row.volume.clone());
    let Some(made) = blocking(move || pool.volume_compact(&volume, &others)).await? else { return Ok(()) };
    let (id, compacted) = (row.id, (*made).clone());
    app.inventory.write(move |tx| inventory::instances::set_volume(tx, id, &compacted)).await?;
    made.keep();
    pools::discard(app, &row.pool, row.volume.objects()).await;
    app.instances.forget_usage(row.id);
    Ok(())
}

/// Changes when a snapshot ends.
///
/// # Errors
/// Where it is not there.
pub async fn edit(app: &App, instance: &str, name: &str, expires_at: Option<Timestamp>) -> Result<()> {
    let row = expand::find_row(app, instance)?;
    let snapshot = find(app, &row, name)?;
    app.inventory
        .write(move |tx| inventory::snapshots::edit(tx, snapshot.id, expires_at, &snapshot.description))
        .await?;
    app.events.lifecycle("instance-snapshot-updated", path(instance, name), Value::Null);
    Ok(())
}
