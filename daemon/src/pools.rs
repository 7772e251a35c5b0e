//! The storage pools of this host: inventory rows and the open [`Pool`] behind each.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use duet_client::api::ConfigMap;
use tokio::sync::Mutex;

use crate::app::{App, Paths};
use crate::config;
use crate::error::{Error, Kind, Result, blocking};
use crate::inventory::{self, Inventory, PoolRow};
use crate::machines;
use crate::storage::backing::{self, Backing, Places};
use crate::storage::{self, Fingerprint, Pool, References, Survey, Trash};
use crate::warnings;

/// The pool made at first start.
pub const DEFAULT_POOL: &str = "default";
/// The key that records the UUID of a filesystem that Duet made.
const IDENTITY: &str = "volatile.uuid";
/// The key with the name of a zpool or dataset.
const ZFS_NAME: &str = "zfs.pool_name";
/// When it is tried again to open a pool that could not be.
const RETRY: Duration = Duration::from_secs(60);

impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Self {
        Self::internal(error)
    }
}

/// The pools that are open.
#[derive(Default)]
pub struct Pools {
    open: RwLock<HashMap<String, Pool>>,
    /// Why those that are not open are not.
    failed: RwLock<HashMap<String, String>>,
    /// Held while a pool is made, changed or removed.
    changing: Mutex<()>,
}

impl Pools {
    /// Opens every pool of the inventory. One that cannot be opened is reported and left out: what lives on the
    /// others runs on.
    ///
    /// # Errors
    /// The inventory's.
    pub fn open(paths: &Paths, inventory: &Inventory) -> Result<Self> {
        let pools = Self::default();
        let rows = inventory.pools()?;
        let names = rows.iter().map(|row| row.name.clone()).collect();
        if let Err(error) = backing::sweep(&paths.disks(), &paths.pools(), &names) {
            tracing::warn!(%error, "what belongs to no storage pool is not removed");
        }
        for row in &rows {
            pools.try_open(paths, row);
        }
        Ok(pools)
    }

    /// Whether this pool could be opened.
    fn try_open(&self, paths: &Paths, row: &PoolRow) -> bool {
        match open(paths, row) {
            Ok((pool, trash)) => {
                // What an earlier process left half-removed goes in the background.
                std::thread::spawn(move || drop(trash));
                self.put(&row.name, pool);
                true
            }
            Err(error) => {
                tracing::error!(pool = %row.name, %error, "a storage pool cannot be used");
                let mut failed = self.failed.write().unwrap_or_else(PoisonError::into_inner);
                failed.insert(row.name.clone(), error.to_string());
                false
            }
        }
    }

    /// An open pool.
    ///
    /// # Errors
    /// Where it does not exist or could not be opened.
    pub fn get(&self, name: &str) -> Result<Pool> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(name).cloned().ok_or_else(|| {
            let why = self.failure(name).map_or_else(String::new, |why| format!(": {why}"));
            Error::not_found(format!("Storage pool \"{name}\" is not available{why}"))
        })
    }

    /// Why a pool could not be opened.
    fn failure(&self, name: &str) -> Option<String> {
        self.failed.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Every open pool.
    pub fn all(&self) -> Vec<(String, Pool)> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.iter().map(|(name, pool)| (name.clone(), pool.clone())).collect()
    }

    fn put(&self, name: &str, pool: Pool) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), pool);
        self.failed.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    fn take(&self, name: &str) -> Option<Pool> {
        self.failed.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(name)
    }
}

fn open(paths: &Paths, row: &PoolRow) -> Result<(Pool, Trash)> {
    let backing = recorded(paths, row)?;
    backing.attach()?;
    Ok(Pool::open(kind(&row.driver)?, &backing)?)
}

fn kind(driver: &str) -> Result<storage::Kind> {
    driver.parse().map_err(|()| {
        let known: Vec<&str> = storage::Kind::ALL.iter().map(|kind| kind.name()).collect();
        Error::invalid(format!("the storage driver \"{driver}\" is not served here: use one of {}", known.join(", ")))
    })
}

fn places(paths: &Paths, name: &str, config: &ConfigMap) -> Places {
    let zpool = config.get(ZFS_NAME).map_or(name, String::as_str).to_owned();
    Places { directory: paths.pool(name), file: paths.disk(name), zpool }
}

fn recorded(paths: &Paths, row: &PoolRow) -> Result<Backing> {
    let id = row.config.get(IDENTITY).and_then(|text| text.parse().ok());
    let source = row.config.get("source").map(String::as_str);
    Ok(Backing::recorded(kind(&row.driver)?, source, id, &places(paths, &row.name, &row.config)))
}

/// A size among a pool's keys, which were checked.
fn size(config: &ConfigMap, key: &str) -> Option<u64> {
    config.get(key).and_then(|text| config::values::parse_size(text).ok())
}

/// Makes a pool.
///
/// # Errors
/// Bad names and keys, a filesystem that cannot carry one, a name that is taken.
pub async fn create(app: &App, name: &str, driver: &str, description: String, mut config: ConfigMap) -> Result<()> {
    config::validate_pool_name(name).map_err(|e| Error::invalid(e.to_string()))?;
    let kind = kind(driver)?;
    kind.available().map_err(|why| Error::invalid(format!("no {driver} pool can be made: {why}")))?;
    config.retain(|key, value| !value.is_empty() && !key.starts_with("volatile."));
    config::validate_pool_config(&config).map_err(|e| Error::invalid(e.to_string()))?;
    let _turn = app.pools.changing.lock().await;
    if app.inventory.pool(name)?.is_some() {
        return Err(Error::conflict(format!("Storage pool \"{name}\" already exists")));
    }
    let places = places(&app.paths, name, &config);
    let source = config.get("source").map(String::as_str).filter(|source| Path::new(source) != places.file);
    let backing = Backing::plan(kind, source, &places).map_err(|e| Error::invalid(e.to_string()))?;
    check_keys(&backing, &config)?;
    let taken = app
        .inventory
        .pools()?
        .iter()
        .filter_map(|other| recorded(&app.paths, other).ok())
        .any(|other| other.source() == backing.source() || other.directory() == backing.directory());
    if taken {
        return Err(Error::conflict(format!("{} is used by another storage pool", backing.source().display())));
    }
    let wipe = config.remove("source.wipe").is_some_and(|text| config::values::parse_bool(&text).unwrap_or(false));
    let bytes = match size(&config, "size") {
        Some(bytes) => bytes,
        None => backing::default_size(&app.paths.root)?,
    };
    if backing.is_file() {
        config.entry("size".into()).or_insert_with(|| format!("{}GiB", bytes >> 30));
    }
    if let Some(id) = backing.id() {
        let given = config.insert("source".into(), backing.source().display().to_string());
        given.into_iter().for_each(|given| drop(config.insert("volatile.initial_source".into(), given)));
        config.insert(IDENTITY.into(), id.to_string());
    }
    if let Some(dataset) = backing.dataset() {
        config.insert(ZFS_NAME.into(), dataset.to_owned());
    }
    let limited = config.contains_key("volume.size");
    let made = blocking(move || {
        let new = backing.make(bytes, wipe)?;
        let pool = Pool::create(kind, new.backing())?;
        if limited && let Err(error) = pool.quota() {
            pool.abandon();
            return Err(error);
        }
        Ok((new, pool))
    });
    let (new, pool) = made.await.map_err(|e| Error::invalid(e.message))?;
    let row = PoolRow { name: name.to_owned(), driver: driver.to_owned(), description, config };
    if let Err(error) = app.inventory.write(move |tx| row.insert(tx)).await {
        pool.abandon();
        return Err(error.into());
    }
    new.keep();
    app.pools.put(name, pool);
    Ok(())
}

/// Checks that keys fit what a pool lies on.
fn check_keys(backing: &Backing, config: &ConfigMap) -> Result<()> {
    if config.contains_key("size") && !backing.is_file() {
        return Err(Error::invalid(
            "size: a pool in a directory or on a device is as large as its filesystem; leave the size out, or the source \
             for a file of that size",
        ));
    }
    if config.contains_key("source.wipe") && !backing.is_formatted() {
        return Err(Error::invalid("source.wipe: a directory or dataset is never wiped; empty it first"));
    }
    match (config.get(ZFS_NAME), backing.dataset()) {
        (Some(_), None) => Err(Error::invalid("zfs.pool_name: only pools of the zfs driver have one")),
        (Some(name), Some(dataset)) if name != dataset => {
            Err(Error::invalid(format!("zfs.pool_name: the pool is {dataset}, as its source says")))
        }
        _ => Ok(()),
    }
}

/// Where a pool lives cannot change.
fn check_fixed(before: &ConfigMap, after: &ConfigMap) -> Result<()> {
    for key in ["source", ZFS_NAME] {
        if after.get(key) != before.get(key) {
            return Err(Error::invalid(format!("the \"{key}\" of a storage pool cannot be changed: make a new pool")));
        }
    }
    Ok(())
}

/// Changes a pool's description and keys. Where it lives cannot change; a file may become larger.
///
/// # Errors
/// Bad keys.
pub async fn update(app: &App, name: &str, description: String, mut config: ConfigMap) -> Result<()> {
    let _turn = app.pools.changing.lock().await;
    let mut row = app.inventory.pool(name)?.ok_or_else(|| Error::not_found("Storage pool not found"))?;
    config::drop_unset(&mut config);
    config::validate_pool_config(&config).map_err(|e| Error::invalid(e.to_string()))?;
    config.retain(|key, _| !key.starts_with("volatile."));
    config.extend(row.config.clone().into_iter().filter(|(key, _)| key.starts_with("volatile.")));
    check_fixed(&row.config, &config)?;
    if config.contains_key("source.wipe") {
        return Err(Error::invalid("source.wipe: only a new pool's device is wiped"));
    }
    let backing = recorded(&app.paths, &row)?;
    check_keys(&backing, &config)?;
    if config.contains_key("volume.size") {
        let pool = app.pools.get(name)?;
        pool.quota().map_err(|e| Error::invalid(e.to_string()))?;
    }
    let (before, after) = (size(&row.config, "size"), size(&config, "size"));
    if before != after {
        let after = after.ok_or_else(|| Error::invalid("the \"size\" of a storage pool cannot be unset"))?;
        app.pools.get(name)?;
        blocking(move || backing.grow(after)).await.map_err(|e| Error::invalid(e.message))?;
    }
    row.description = description;
    row.config = config;
    app.inventory.write(move |tx| row.update(tx)).await?;
    Ok(())
}

/// Removes a pool that nothing uses, with what is in it. An administrator's own directory or device stays.
///
/// # Errors
/// Where something uses it.
pub async fn delete(app: &App, name: &str) -> Result<()> {
    let _turn = app.pools.changing.lock().await;
    let row = app.inventory.pool(name)?.ok_or_else(|| Error::not_found("Storage pool not found"))?;
    if let Some(profile) = profiles_using(app, name)?.first() {
        return Err(Error::invalid(format!("The storage pool is currently in use by {profile}")));
    }
    let gone = name.to_owned();
    app.inventory.write(move |tx| inventory::pools::delete(tx, &gone)).await.map_err(|e| match e {
        inventory::Error::InUse => Error::new(Kind::Invalid, "The storage pool is currently in use by an instance"),
        other => other.into(),
    })?;
    let pool = app.pools.take(name);
    let backing = recorded(&app.paths, &row)?;
    blocking(move || {
        let deleted = pool.map_or(Ok(()), Pool::delete);
        // What it lay on goes in any case.
        backing.release().and(deleted)
    })
    .await?;
    app.warnings.resolve(app, warnings::POOL_UNAVAILABLE, &path(name)).await;
    Ok(())
}

fn path(name: &str) -> String {
    format!("/1.0/storage-pools/{name}")
}

/// Warns of pools that cannot be used, and tries again to open them until the daemon goes down.
pub async fn watch(app: App) {
    loop {
        let rows = app.inventory.pools().unwrap_or_default();
        for row in rows {
            let Some(why) = app.pools.failure(&row.name) else {
                app.warnings.resolve(&app, warnings::POOL_UNAVAILABLE, &path(&row.name)).await;
                continue;
            };
            app.warnings.raise(&app, warnings::POOL_UNAVAILABLE, &path(&row.name), &why).await;
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = app.shutdown.cancelled() => return,
        }
        let _turn = app.pools.changing.lock().await;
        let closed = app.inventory.pools().unwrap_or_default().into_iter();
        for row in closed.filter(|row| app.pools.failure(&row.name).is_some()) {
            let trying = app.clone();
            if blocking(move || Ok::<_, Error>(trying.pools.try_open(&trying.paths, &row))).await.unwrap_or(false) {
                sweep(&app).await;
            }
        }
    }
}

/// What the pools limit root disks to that have no size of their own, by pool.
#[derive(Default)]
pub struct RootSizes(HashMap<String, u64>);

impl RootSizes {
    /// As the inventory has it now.
    ///
    /// # Errors
    /// The inventory's.
    pub fn read(app: &App) -> Result<Self> {
        let rows = app.inventory.pools()?.into_iter();
        Ok(Self(rows.filter_map(|row| Some((row.name, size(&row.config, "volume.size")?))).collect()))
    }

    /// The size that an instance's root disk is limited to: its own, or its pool's.
    pub fn of(&self, devices: &inventory::DeviceMap) -> Option<u64> {
        let root = devices.values().find(|device| is_root(device))?;
        size(root, "size").or_else(|| self.0.get(root.get("pool")?).copied())
    }
}

/// The size that one instance's root disk is limited to.
///
/// # Errors
/// The inventory's.
pub fn root_size(app: &App, devices: &inventory::DeviceMap) -> Result<Option<u64>> {
    Ok(RootSizes::read(app)?.of(devices))
}

/// Whether a device is an instance's root filesystem.
pub fn is_root(device: &BTreeMap<String, String>) -> bool {
    let is = |key, value| device.get(key).is_some_and(|found| found == value);
    is("type", "disk") && is("path", "/") && !device.contains_key("source")
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
            references.add_image(&machines::image::default_of(&fingerprint));
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
