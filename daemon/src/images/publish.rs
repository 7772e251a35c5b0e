//! Making an image of an instance or snapshot.

use std::os::fd::AsFd;
use std::sync::Arc;

use duet_container::rootfs::{self, RootSource};
use duet_images::{Compress, Metadata, PackSource};
use jiff::Timestamp;

use super::{Facts, Incoming, add, failure_in, observed};
use crate::app::App;
use crate::config::InstanceKind;
use crate::error::{Context, Error, Result};
use crate::instances::lifecycle::Request;
use crate::instances::slot::Held;
use crate::instances::{expand, snapshot, templates};
use crate::operations::Operation;

/// A checked request.
pub struct Publication {
    expanded: expand::Expanded,
    root: RootSource,
    compress: Compress,
    /// An instance must not start under the packing; a snapshot does not change.
    _held: Option<Held>,
}

impl Publication {
    /// Checks what is to be published: a stopped instance, or `instance/snapshot`.
    ///
    /// # Errors
    /// Where it is not there, or runs.
    pub fn check(app: &App, name: &str, compression: &str) -> Result<Self> {
        let compress = match compression {
            "" => super::compression(app)?,
            word => word.parse().map_err(|e| Error::invalid(format!("compression_algorithm: {e}")))?,
        };
        let (instance, wanted) = snapshot::split(name);
        let expanded = expand::find(app, instance)?;
        if expanded.row.kind == InstanceKind::VirtualMachine {
            return Err(Error::invalid("virtual machines are not published by this version"));
        }
        let pool = app.pools.get(&expanded.row.pool)?;
        match wanted {
            Some(wanted) => {
                let found = snapshot::find(app, &expanded.row, wanted)?;
                let root = pool.snapshot_root(&found.volume)?;
                Ok(Self { expanded, root, compress, _held: None })
            }
            None => {
                let held = app.instances.slot(expanded.row.id).claim(Request::Publish)?;
                let size = crate::pools::root_size(app, &expanded.devices)?;
                let root = pool.volume_root(&expanded.row.volume, size)?;
                Ok(Self { expanded, root, compress, _held: Some(held) })
            }
        }
    }
}

/// What a unified tarball's name ends in.
fn extension(compress: Compress) -> &'static str {
    duet_images::ImageFormat::Tar(compress.format()).extension()
}

/// Packs it and takes the result in as an image.
///
/// # Errors
/// With the step that failed; nothing is left.
pub async fn publish(app: &App, publication: Publication, mut facts: Facts, operation: &Arc<Operation>) -> Result<()> {
    let incoming = Incoming::new(app)?;
    let mut metadata = templates::metadata(app, &publication.expanded)?;
    metadata = Metadata {
        creation_date: Timestamp::now().as_second(),
        expiry_date: facts.expires_at.map_or(0, Timestamp::as_second),
        architecture: publication.expanded.row.architecture.clone(),
        ..metadata
    };
    metadata.properties.extend(facts.properties.clone());
    let files = templates::templates(app, &publication.expanded)?;
    let (root, compress, target) = (publication.root.clone(), publication.compress, incoming.meta());
    let packed = observed(operation, "create_image_from_container_pack", move |observer| {
        let root = rootfs::open_detached(&root, None, true, true).doing("cannot mount the instance's root")?;
        let source = PackSource { rootfs: root.as_fd(), metadata: &metadata, templates: &files };
        let file = std::fs::File::create(&target).doing(format_args!("cannot make {}", target.display()))?;
        duet_images::pack(&source, file, compress, observer).map_err(|e| failure_in(&target, &e))
    })
    .await?;
    drop(publication);
    if facts.filename.is_empty() {
        facts.filename = format!("{}{}", packed.fingerprint, extension(compress));
    }
    add(app, incoming, facts, operation).await?;
    Ok(())
}
