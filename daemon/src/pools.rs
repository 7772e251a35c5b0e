//! The storage pools of this host: inventory rows and the open [`Pool`] behind each.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};

use duet_client::api::ConfigMap;

use crate::app::{App, Paths};
use crate::config;
use crate::error::{Context, Error, Kind, Result, blocking};
use crate::inventory::{self, Inventory, PoolRow};
use crate::storage::{self, Fingerprint, Pool, References, Survey};

/// The pool made at first start.
pub const DEFAULT_POOL: &str = "default";

impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Self {
        Self::internal(error)
    }
}

/// The pools that are open.
#[derive(Default)]
pub struct Pools {
    open: RwLock<HashMap<String, Pool>>,
}

impl Pools {
    /// Opens every pool of the inventory. One that cannot be opened is reported and left out: what lives on the
    /// others runs on.
    ///
    /// # Errors
    /// The inventory's.
    pub fn open(paths: &Paths, inventory: &Inventory) -> Result<Self> {
        let pools = Self::default();
        for row in inventory.pools()? {
            match Pool::open(&directory(paths, &row)) {
                Ok((pool, trash)) => {
                    // What an earlier process left half-removed goes in the background.
                    std::thread::spawn(move || drop(trash));
                    pools.put(&row.name, pool);
                }
                Err(error) => tracing::error!(pool = %row.name, %error, "a storage pool cannot be used"),
            }
        }
        Ok(pools)
    }

    /// An open pool.
    ///
    /// # Errors
    /// Where it does not exist or could not be opened.
    pub fn get(&self, name: &str) -> Result<Pool> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(name).cloned().ok_or_else(|| Error::not_found(format!("Storage pool \"{name}\" is not available")))
    }

    /// Every open pool.
    pub fn all(&self) -> Vec<(String, Pool)> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.iter().map(|(name, pool)| (name.clone(), pool.clone())).collect()
    }

    fn put(&self, name: &str, pool: Pool) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), pool);
    }

    fn take(&self, name: &str) -> Option<Pool> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(name)
    }
}

/// Where a pool is: its `source`, or below the state directory.
fn directory(paths: &Paths, row: &PoolRow) -> PathBuf {
    row.config.get("source").map_or_else(|| paths.pool(&row.name), PathBuf::from)
}

/// Makes a pool.
///
/// # Errors
/// Bad names and keys, a filesystem that cannot carry one, a name that is taken.
pub async fn create(app: &App, name: &str, driver: &str, description: String, mut config: ConfigMap) -> Result<()> {
    config::validate_pool_name(name).map_err(|e| Error::invalid(e.to_string()))?;
    if !storage::DRIVER_NAMES.contains(&driver) {
        let known = storage::DRIVER_NAMES.join(", ");
        return Err(Error::invalid(format!("the storage driver \"{driver}\" is not served here: use one of {known}")));
    }
    config::drop_unset(&mut config);
    config::validate_pool_config(&config).map_err(|e| Error::invalid(e.to_string()))?;
    if app.inventory.pool(name)?.is_some() {
        return Err(Error::conflict(format!("Storage pool \"{name}\" already exists")));
    }
    let row = PoolRow { name: name.to_owned(), driver: driver.to_owned(), description, config };
    let place = directory(&app.paths, &row);
    let taken = app.inventory.pools()?.iter().any(|other| directory(&app.paths, other) == place);
    if taken {
        return Err(Error::conflict(format!("{} is used by another storage pool", place.display())));
    }
    let pool = blocking(move || Pool::create(&place)).await.map_err(|e| Error::invalid(e.message))?;
    let kept = row.clone();
    app.inventory.write(move |tx| kept.insert(tx)).await?;
    app.pools.put(name, pool);
    Ok(())
}

/// Changes a pool's description and keys; where it lives cannot change.
///
/// # Errors
/// Bad keys.
pub async fn update(app: &App, name: &str, description: String, mut config: ConfigMap) -> Result<()> {
    let mut row = app.inventory.pool(name)?.ok_or_else(|| Error::not_found("Storage pool not found"))?;
    config::drop_unset(&mut config);
    config::validate_pool_config(&config).map_err(|e| Error::invalid(e.to_string()))?;
    if config.get("source") != row.config.get("source") {
        return Err(Error::invalid("the \"source\" of a storage pool cannot be changed: make a new pool"));
    }
    row.description = description;
    row.config = config;
    app.inventory.write(move |tx| row.update(tx)).await?;
    Ok(())
}

/// Removes a pool that nothing uses, with its directory's contents.
///
/// # Errors
/// Where something uses it.
pub async fn delete(app: &App, name: &str) -> Result<()> {
    let row = app.inventory.pool(name)?.ok_or_else(|| Error::not_found("Storage pool not found"))?;
    if let Some(profile) = profiles_using(app, name)?.first() {
        return Err(Error::invalid(format!("The storage pool is currently in use by {profile}")));
    }
    let gone = name.to_owned();
    app.inventory.write(move |tx| inventory::pools::delete(tx, &gone)).await.map_err(|e| match e {
        inventory::Error::InUse => Error::new(Kind::Invalid, "The storage pool is currently in use by an instance"),
        other => other.into(),
    })?;
    let Some(pool) = app.pools.take(name) else { return Ok(()) };
    let place = directory(&app.paths, &row);
    blocking(move || -> Result<()> {
        drop(pool.survey().sweep(&References::new())?);
        for leaf in ["images", "layers", "tmp"] {
            let leaf = place.join(leaf);
            if leaf.exists() {
                std::fs::remove_dir(&leaf).doing(format_args!("cannot remove {}", leaf.display()))?;
            }
        }
        // The directory itself may be the admin's own and hold other things.
        let _ = std::fs::remove_dir(&place);
        Ok(())
    })
    .await
}

/// Paths of what uses a pool.
///
/// # Errors
/// The inventory's.
pub fn used_by(app: &App, name: &str) -> Result<Vec<String>> {
    let instances = app.inventory.instances()?.into_iter().filter(|i| i.pool == name);
    let mut users: Vec<String> = instances.map(|i| format!("/1.0/instances/{}", i.name)).collect();
    users.extend(profiles_using(app, name)?);
    Ok(users)
}

fn profiles_using(app: &App, name: &str) -> Result<Vec<String>> {
    let uses = |row: &inventory::ProfileRow| {
        row.devices
            .values()
            .any(|d| d.get("type").is_some_and(|t| t == "disk") && d.get("pool").is_some_and(|p| p == name))
    };
    let rows = app.inventory.profiles()?;
    Ok(rows.iter().filter(|row| uses(row)).map(|row| format!("/1.0/profiles/{}", row.name)).collect())
}

/// Counts what the inventory needs of a pool. Open a [`Survey`] first where something is to be removed by it.
///
/// # Errors
/// The inventory's.
pub fn references(app: &App, pool: &str) -> Result<References> {
    count(app, pool, None)
}

/// The same without one instance's own volume; its snapshots count.
///
/// # Errors
/// The inventory's.
pub fn references_but(app: &App, pool: &str, instance: i64) -> Result<References> {
    count(app, pool, Some(instance))
}

fn count(app: &App, pool: &str, left_out: Option<i64>) -> Result<References> {
    let mut references = References::new();
    let volumes = app.inventory.volumes(pool)?;
    let ids: std::collections::HashSet<i64> = volumes.iter().map(|(id, _)| *id).collect();
    for (_, volume) in volumes.iter().filter(|(id, _)| Some(*id) != left_out) {
        references.add_volume(volume);
    }
    for snapshot in app.inventory.all_snapshots()?.iter().filter(|s| ids.contains(&s.instance_id)) {
        references.add_snapshot(&snapshot.volume);
    }
    for image in app.inventory.images()? {
        if let Ok(fingerprint) = image.fingerprint.parse::<Fingerprint>() {
            references.add_image(&fingerprint);
        }
    }
    Ok(references)
}

/// Removes from a pool, of `objects`, what nothing needs any more. Failures are logged: the next sweep tries again.
pub async fn discard(app: &App, pool_name: &str, objects: Vec<storage::Object>) {
    let (app, pool_name) = (app.clone(), pool_name.to_owned());
    let work = move || -> Result<()> {
        let pool = app.pools.get(&pool_name)?;
        let survey: Survey = pool.survey();
        let references = references(&app, &pool_name)?;
        let trash = survey.discard(objects, &references)?;
        // Names are gone already; freeing the blocks of a large tree need not be waited for.
        std::thread::spawn(move || drop(trash));
        Ok(())
    };
    if let Err(error) = blocking(work).await {
        tracing::warn!(%error, "storage that nothing needs any more was not removed; the next start does");
    }
}

/// Removes everything that nothing needs, in every pool: at start, after a crash.
pub async fn sweep(app: &App) {
    for (name, pool) in app.pools.all() {
        let app = app.clone();
        let work = move || -> Result<()> {
            let survey = pool.survey();
            let references = references(&app, &name)?;
            drop(survey.sweep(&references)?);
            Ok(())
        };
        if let Err(error) = blocking(work).await {
            tracing::warn!(%error, "a storage pool could not be swept");
        }
    }
}
