//! The image store: files under `$DUET_DIR/images`, rows in the inventory, unpacked trees in the pools.
//!
//! An image's files are kept as they came, because its fingerprint is theirs. It is unpacked when it comes in, which is
//! also what verifies it: a hostile archive never becomes a row. Another pool gets its own tree when an instance is
//! first made there.

mod add;
mod build;

mod export;
mod publish;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use duet_client::api::InstanceSource;
use duet_images::{Compress, ImageError, ImageFiles, Observer, Progress, UnpackOptions, Unpacked};
use serde_json::Value;

use crate::app::App;
use crate::error::{Error, Kind, Result, blocking};
use crate::inventory::{self, ImageRow};
use crate::machines;
use crate::operations::Operation;
use crate::storage::{self, Fingerprint, Made};

pub use add::{Facts, Incoming, Upload, add};

pub use build::{build, recipe};
pub use export::{Export, export};
pub use publish::{Publication, publish};

/// What the verbs on images share.
#[derive(Default)]
pub struct Images {
    /// One unpacking at a time for each image.
    unpacking: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Images {
    /// The turn of whoever unpacks this image, or makes a disk of it.
    pub(crate) fn lock(&self, fingerprint: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut all = self.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(all.entry(fingerprint.to_owned()).or_default())
    }
}

/// Translates a failure about an image: what is wrong with the image itself is the client's.
pub fn failure(error: &ImageError) -> Error {
    let kind = if error.is_bad_image() { Kind::Invalid } else { Kind::Internal };
    Error::new(kind, error.to_string())
}

/// The same of something that was to be written below `place`, whose filesystem may be full.
pub(crate) fn failure_in(place: &Path, error: &ImageError) -> Error {
    if error.is_full_disk() { Error::full_disk(place) } else { failure(error) }
}

/// How images made here are compressed: `images.compression_algorithm`, else zstd.
///
/// # Errors
/// The inventory's.
fn compression(app: &App) -> Result<Compress> {
    let config = app.inventory.server_config()?;
    let chosen = config.get("images.compression_algorithm").filter(|v| !v.is_empty());
    chosen.map_or(Ok(Compress::default()), |word| {
        word.parse().map_err(|e| Error::invalid(format!("images.compression_algorithm: {e}")))
    })
}

/// Passes progress on to an operation, at most a few times a second.
struct Report {
    operation: Arc<Operation>,
    stage: &'static str,
    last: Option<(std::time::Instant, Option<u8>)>,
}

impl Report {
    fn new(operation: &Arc<Operation>, stage: &'static str) -> Self {
        Self { operation: Arc::clone(operation), stage, last: None }
    }

    fn say(&mut self, progress: &Progress) {
        let percent = progress.percent();
        let now = std::time::Instant::now();
        let recent = self.last.is_some_and(|(at, _)| now.duration_since(at).as_millis() < 200);
        if recent && (percent != Some(100) || self.last.is_some_and(|(_, before)| before == percent)) {
            return;
        }
        self.last = Some((now, percent));
        let label = progress.phase.label();
        let text = match (percent, progress.detail.as_str()) {
            (Some(percent), "") => format!("{label}: {percent}%"),
            (Some(percent), detail) => format!("{label}: {percent}% ({detail})"),
            (None, "") => label.to_owned(),
            (None, detail) => format!("{label}: {detail}"),
        };
        self.operation.progress(self.stage, text, percent.map(u64::from));
    }
}

/// Runs work on an image on a worker thread, with progress into the operation and cancellation out of it.
pub(crate) async fn observed<T, F>(operation: &Arc<Operation>, stage: &'static str, work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce(&mut Observer<'_>) -> Result<T> + Send + 'static,
{
    let mut report = Report::new(operation, stage);
    let cancel = operation.cancelled().clone();
    blocking(move || {
        let mut say = |progress: Progress| report.say(&progress);
        let cancelled = || cancel.is_cancelled();
        work(&mut Observer::new(&mut say, &cancelled))
    })
    .await
}

/// Where an image's files are.
pub fn files(app: &App, row: &ImageRow) -> ImageFiles {
    let meta = app.paths.images().join(&row.fingerprint);
    let rootfs = row.split.then(|| rootfs_path(&meta));
    ImageFiles { meta, rootfs }
}

fn rootfs_path(meta: &Path) -> PathBuf {
    meta.with_extension("rootfs")
}

/// Finds the image by its fingerprint or a unique beginning of it.
///
/// # Errors
/// Where there is none, or more than one.
pub fn find(app: &App, prefix: &str) -> Result<ImageRow> {
    let not_found = || Error::not_found(format!("Image \"{prefix}\" not found"));
    if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(not_found());
    }
    let mut found = app.inventory.images_like(&prefix.to_ascii_lowercase())?;
    match found.len() {
        0 => Err(not_found()),
        1 => Ok(found.remove(0)),
        _ => Err(Error::invalid(format!("more than one image begins with \"{prefix}\": give more of the fingerprint"))),
    }
}

/// Finds the image that an instance is to be made from.
///
/// # Errors
/// Where there is none, or it would have to be fetched.
pub fn resolve(app: &App, source: &InstanceSource) -> Result<ImageRow> {
    if !source.server.is_empty() {
        return Err(Error::invalid(format!(
            "image servers are not served by this version ({}): import the image or build it first",
            source.server
        )));
    }
    if !source.alias.is_empty() {
        let alias = app.inventory.alias(&source.alias)?;
        let alias = alias.ok_or_else(|| Error::not_found(format!("Image \"{}\" not found", source.alias)))?;
        return find(app, &alias.fingerprint);
    }
    if !source.fingerprint.is_empty() {
        return find(app, &source.fingerprint);
    }
    if source.properties.is_empty() {
        return Err(Error::invalid("Must specify one of alias, fingerprint or properties for the image"));
    }
    let fits = |image: &ImageRow| source.properties.iter().all(|(key, value)| image.properties.get(key) == Some(value));
    let newest = app.inventory.images()?.into_iter().filter(fits).max_by_key(|image| image.created_at);
    newest.ok_or_else(|| Error::not_found("No image has those properties"))
}

/// Makes sure that a pool has the unpacked image. While the value is kept, the image cannot be removed from the pool.
///
/// # Errors
/// Where it cannot be unpacked.
pub async fn ensure_unpacked(
    app: &App,
    image: &ImageRow,
    pool: &str,
    operation: &Arc<Operation>,
) -> Result<Made<Option<Unpacked>>> {
    let fingerprint: Fingerprint = image.fingerprint.parse()?;
    unpack_into(app, &fingerprint, files(app, image), pool, operation).await
}

async fn unpack_into(
    app: &App,
    fingerprint: &Fingerprint,
    files: ImageFiles,
    pool: &str,
    operation: &Arc<Operation>,
) -> Result<Made<Option<Unpacked>>> {
    let lock = app.images.lock(fingerprint.as_str());
    let _unpacking = lock.lock().await;
    let pool = app.pools.get(pool)?;
    let fingerprint = fingerprint.clone();
    observed(operation, "create_instance_from_image_unpack", move |observer| {
        // The pool flushes the whole tree at once; flushing each file as well would be waste.
        let options = UnpackOptions {
            fingerprint: Some(fingerprint.as_str().to_owned()),
            sync: false,
            ..UnpackOptions::default()
        };
        pool.image_add(&fingerprint, |stage| -> Result<Unpacked> {
            duet_images::unpack(&files, stage, &options, observer).map_err(|e| failure_in(pool.directory(), &e))
        })
    })
    .await
}

/// Removes an image: its row, its files, and its trees where no instance stands on them.
///
/// # Errors
/// The inventory's.
pub async fn delete(app: &App, row: &ImageRow) -> Result<()> {
    let gone = row.fingerprint.clone();
    let aliases = app.inventory.aliases()?.into_iter().filter(|alias| alias.fingerprint == row.fingerprint);
    app.inventory.write(move |tx| inventory::images::delete(tx, &gone)).await?;
    for alias in aliases {
        app.events.lifecycle("image-alias-deleted", format!("/1.0/images/aliases/{}", alias.name), Value::Null);
    }
    let files = files(app, row);
    for file in std::iter::once(&files.meta).chain(&files.rootfs) {
        match std::fs::remove_file(file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, file = %file.display(), "a file of a deleted image stays behind");
            }
            _ => {}
        }
    }
    let fingerprint: Fingerprint = row.fingerprint.parse()?;
    for (pool, _) in app.pools.all() {
        // What instances still stand on stays.
        let objects = [fingerprint.clone(), machines::image::default_of(&fingerprint)].map(storage::Object::Image);
        crate::pools::discard(app, &pool, objects.into()).await;
    }
    app.events.lifecycle("image-deleted", format!("/1.0/images/{}", row.fingerprint), Value::Null);
    Ok(())
}

/// Removes image files that no row names: after a crash.
///
/// # Errors
/// What could not be read.
pub fn sweep(app: &App) -> Result<()> {
    let known: std::collections::HashSet<String> =
        app.inventory.images()?.into_iter().map(|row| row.fingerprint).collect();
    for entry in std::fs::read_dir(app.paths.images())? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !known.contains(name.trim_end_matches(".rootfs")) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
