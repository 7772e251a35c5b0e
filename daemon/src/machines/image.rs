//! An image as a disk: made once for each image and pool, from the image's unpacked root.
//!
//! It is one more image of the pool, whose fingerprint follows from that of the image it was made from and from its size.
//! Beside the disk it has the image's metadata and templates.

use std::path::Path;
use std::sync::Arc;

use super::{DEFAULT_DISK, disk};
use crate::app::App;
use crate::error::{Context, Error, Result};
use crate::images;
use crate::inventory::ImageRow;
use crate::operations::Operation;
use crate::storage::{Fingerprint, Made};

/// The bytes of the disk that an instance with so large a disk stands on. It is enlarged for those that want more.
pub fn base_size(size: u64) -> u64 {
    size.min(DEFAULT_DISK)
}

/// The fingerprint of an image's disk of so many bytes.
pub fn fingerprint(image: &Fingerprint, bytes: u64) -> Fingerprint {
    Fingerprint::of(&format!("duet disk 1\n{image}\n{bytes}\n"))
}

/// That of the size which most have. It is kept as long as the image is, for the next instance; others go with the last
/// instance that stands on them.
pub fn default_of(image: &Fingerprint) -> Fingerprint {
    fingerprint(image, DEFAULT_DISK)
}

/// Makes sure that a pool has an image's disk of so many bytes. While the value is kept, it cannot be removed.
///
/// # Errors
/// Where the image cannot be unpacked, does not fit, or the pool is full.
pub async fn ensure(
    app: &App,
    image: &ImageRow,
    pool: &str,
    bytes: u64,
    operation: &Arc<Operation>,
) -> Result<(Fingerprint, Made<Option<()>>)> {
    let source: Fingerprint = image.fingerprint.parse()?;
    let disk = fingerprint(&source, bytes);
    // Held, so that it stays unpacked while the disk is made of it.
    let unpacked = images::ensure_unpacked(app, image, pool, operation).await?;
    let lock = app.images.lock(disk.as_str());
    let _making = lock.lock().await;
    let pool = app.pools.get(pool)?;
    let (target, from) = (disk.clone(), pool.image_dir(&source));
    let made = images::observed(operation, "create_instance_from_image_disk", move |observer| {
        pool.image_add(&target, |stage| -> Result<()> {
            let rootfs = stage.join("rootfs");
            std::fs::create_dir(&rootfs).doing("cannot make a directory for the image's disk")?;
            copy_description(&from, stage).doing("cannot copy the image's metadata")?;
            duet_images::disk::make_disk(&from.join("rootfs"), &rootfs.join(disk::BASE), bytes, observer)
                .map_err(|error| images::failure_in(pool.directory(), &error))
        })
    })
    .await?;
    drop(unpacked);
    Ok((disk, made))
}

/// Copies what an image is beside its root: our own files, which no image can have made something else of.
fn copy_description(from: &Path, to: &Path) -> std::io::Result<()> {
    for name in ["metadata.yaml", "templates"] {
        let source = from.join(name);
        if source.is_file() {
            std::fs::copy(&source, to.join(name))?;
        } else if source.is_dir() {
            std::fs::create_dir(to.join(name))?;
            for entry in std::fs::read_dir(&source)? {
                let entry = entry?;
                if entry.file_type()?.is_file() {
                    std::fs::copy(entry.path(), to.join(name).join(entry.file_name()))?;
                }
            }
        }
    }
    Ok(())
}

/// The failure where an image cannot be a virtual machine's.
///
/// # Errors
/// Where it is one of another kind.
pub fn check(image: &ImageRow) -> Result<()> {
    if image.kind == "container" {
        return Ok(());
    }
    Err(Error::invalid(
        "disk images are not served by this version: use an image of a root filesystem (type container)",
    ))
}
