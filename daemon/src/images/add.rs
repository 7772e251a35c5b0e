//! Taking an image in: an upload, a build or a publication becomes files, a tree and a row.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use duet_client::api::ImageAlias;
use duet_images::{ImageFiles, fingerprint, read_metadata};
use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{failure, observed, rootfs_path, unpack_into};
use crate::app::App;
use crate::config;
use crate::error::{Context, Error, Result, blocking};
use crate::inventory::{self, AliasRow, ImageRow};
use crate::operations::Operation;
use crate::pools::DEFAULT_POOL;
use crate::storage::Fingerprint;

/// What a client says about an image beside its files.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The file's name.
    pub filename: String,
    /// Kept as given.
    pub public: bool,
    /// Kept as given.
    pub auto_update: bool,
    /// Laid over what the image says of itself.
    pub properties: BTreeMap<String, String>,
    /// For instances made from it.
    pub profiles: Vec<String>,
    /// Names to give it.
    pub aliases: Vec<ImageAlias>,
    /// When it expires, where the client says so.
    pub expires_at: Option<Timestamp>,
    /// The fingerprint that the client expects.
    pub fingerprint: Option<String>,
}

/// Files on their way in, in a directory of their own that goes with this value.
#[derive(Debug)]
pub struct Incoming {
    dir: PathBuf,
    /// Whether there is a second file.
    pub split: bool,
}

impl Incoming {
    /// A new directory under the work directory.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn new(app: &App) -> Result<Self> {
        let dir = app.paths.work().join(format!("image-{}", Uuid::new_v4()));
        std::fs::create_dir(&dir).doing(format_args!("cannot make {}", dir.display()))?;
        Ok(Self { dir, split: false })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The unified file, or the metadata file.
    pub fn meta(&self) -> PathBuf {
        self.dir.join("meta")
    }

    /// The root filesystem's file.
    pub fn rootfs(&self) -> PathBuf {
        rootfs_path(&self.meta())
    }

    fn files(&self) -> ImageFiles {
        ImageFiles { meta: self.meta(), rootfs: self.split.then(|| self.rootfs()) }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::warn!(%error, dir = %self.dir.display(), "a work directory stays behind until the next start");
        }
    }
}

/// A file that grows as a client sends it. Written on worker threads.
pub struct Upload {
    path: PathBuf,
    file: Option<std::fs::File>,
}

impl Upload {
    /// Opens the file.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        let file = std::fs::File::create(path).doing(format_args!("cannot make {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file: Some(file) })
    }

    /// Adds a piece.
    ///
    /// # Errors
    /// Where the disk is full.
    pub async fn write(&mut self, piece: axum::body::Bytes) -> Result<()> {
        let mut file = self.file.take().ok_or_else(|| Error::internal("the upload was broken off"))?;
        let written = blocking(move || -> Result<_> { Ok(file.write_all(&piece).map(|()| file)) }).await?;
        self.file = Some(written.map_err(|error| match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::full_disk(&self.path),
            _ => Error::internal(format!("cannot keep the upload: {error}")),
        })?);
        Ok(())
    }
}

/// Takes files in. Gives the fingerprint.
///
/// # Errors
/// Where the image is bad, or there already; nothing is left of it then.
pub async fn add(app: &App, incoming: Incoming, facts: Facts, operation: &Arc<Operation>) -> Result<String> {
    for alias in &facts.aliases {
        config::validate_alias_name(&alias.name).map_err(|e| Error::invalid(e.to_string()))?;
        if app.inventory.alias(&alias.name)?.is_some() {
            return Err(Error::conflict(format!("Alias \"{}\" already exists", alias.name)));
        }
    }
    if let Some(gone) = facts.profiles.iter().find(|name| !app.inventory.profile(name).is_ok_and(|p| p.is_some())) {
        return Err(Error::invalid(format!("Profile \"{gone}\" not found")));
    }
    let files = incoming.files();
    let (found, metadata) = observed(operation, "create_image_from_upload", move |observer| {
        let found = fingerprint(&files.meta, files.rootfs.as_deref(), observer).map_err(|e| failure(&e))?;
        let metadata = read_metadata(&files.meta, &duet_images::Limits::default()).map_err(|e| failure(&e))?;
        Ok((found, metadata))
    })
    .await?;
    if let Some(expected) = facts.fingerprint.as_deref().filter(|expected| **expected != found) {
        return Err(Error::invalid(format!(
            "the image's fingerprint is {found}, the client expects {expected}: the upload was damaged, or it is another image"
        )));
    }
    if super::find(app, &found).is_ok() {
        return Err(Error::conflict("Image with same fingerprint already exists"));
    }
    let parsed: Fingerprint = found.parse()?;
    let size = size(&incoming)?;
    let kept = unpack_into(app, &parsed, incoming.files(), DEFAULT_POOL, operation).await?;
    let epoch = |seconds: i64| Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
    let mut properties = metadata.properties.clone();
    properties.extend(facts.properties);
    let row = ImageRow {
        fingerprint: found.clone(),
        filename: if facts.filename.is_empty() { format!("{found}.tar") } else { facts.filename },
        split: incoming.split,
        size,
        kind: "container".into(),
        architecture: metadata.architecture.clone(),
        public: facts.public,
        auto_update: facts.auto_update,
        cached: false,
        properties,
        profiles: if facts.profiles.is_empty() { vec!["default".into()] } else { facts.profiles },
        created_at: epoch(metadata.creation_date),
        expires_at: facts.expires_at.unwrap_or_else(|| epoch(metadata.expiry_date)),
        uploaded_at: Timestamp::now(),
        last_used_at: Timestamp::UNIX_EPOCH,
    };
    place(app, &incoming, &row)?;
    let aliases: Vec<AliasRow> = facts
        .aliases
        .into_iter()
        .map(|alias| AliasRow {
            name: alias.name,
            fingerprint: found.clone(),
            description: alias.description,
            kind: "container".into(),
        })
        .collect();
    let stored = row.clone();
    let outcome = app
        .inventory
        .write(move |tx| {
            stored.insert(tx)?;
            aliases.iter().try_for_each(|alias| alias.insert(tx))
        })
        .await;
    if let Err(error) = outcome {
        // Whoever came first owns the files now; else the next start sweeps them.
        drop(kept);
        return Err(match error {
            inventory::Error::Exists => Error::conflict("the image or one of its aliases was added meanwhile"),
            other => other.into(),
        });
    }
    drop(kept.keep());
    app.events.lifecycle("image-created", format!("/1.0/images/{found}"), json!({ "type": "container" }));
    operation.update([
        ("fingerprint".to_owned(), Value::from(found.clone())),
        ("size".to_owned(), Value::from(size.to_string())),
    ]);
    Ok(found)
}

fn size(incoming: &Incoming) -> Result<i64> {
    let files = incoming.files();
    let mut size = std::fs::metadata(&files.meta)?.len();
    if let Some(rootfs) = &files.rootfs {
        size += std::fs::metadata(rootfs)?.len();
    }
    Ok(i64::try_from(size).unwrap_or(i64::MAX))
}

/// Moves the files to where they stay, and makes sure that a power cut does not lose them once the row is there.
fn place(app: &App, incoming: &Incoming, row: &ImageRow) -> Result<()> {
    let target = super::files(app, row);
    let source = incoming.files();
    let pairs = std::iter::once((&source.meta, &target.meta)).chain(source.rootfs.iter().zip(&target.rootfs));
    for (from, to) in pairs {
        std::fs::File::open(from)?.sync_all().doing("cannot flush the image")?;
        std::fs::rename(from, to).doing("cannot keep the image")?;
    }
    std::fs::File::open(app.paths.images())?.sync_all().doing("cannot flush the image")
}
