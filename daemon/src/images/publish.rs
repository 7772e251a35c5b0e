//! Making an image of an instance or snapshot.

use std::io::BufReader;
use std::os::fd::AsFd;
use std::sync::Arc;

use duet_container::rootfs::{self, RootSource};
use duet_images::{Compress, Metadata, PackSource};
use jiff::Timestamp;
use rustix::pipe::PipeFlags;

use super::{Facts, Incoming, add, failure_in, observed};
use crate::app::App;
use crate::config::InstanceKind;
use crate::error::{Context, Error, Result, blocking};
use crate::instances::lifecycle::Request;
use crate::instances::slot::Held;
use crate::instances::{expand, machine, service, snapshot, templates};
use crate::inventory::SnapshotRow;
use crate::machines::disk;
use crate::operations::Operation;
use crate::storage::{Made, Volume};

/// The word for the progress of packing, as Incus has it.
const STAGE: &str = "create_image_from_container_pack";

/// A checked request.
pub struct Publication {
    expanded: expand::Expanded,
    root: Root,
    compress: Compress,
    /// An instance must not start under the packing; a snapshot does not change.
    held: Option<Held>,
}

/// What is packed.
enum Root {
    /// A container's files.
    Files(RootSource),
    /// What is on a virtual machine's disk, at a snapshot or now.
    Disk(Option<SnapshotRow>),
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
        let is_machine = expanded.row.kind == InstanceKind::VirtualMachine;
        let pool = app.pools.get(&expanded.row.pool)?;
        match wanted {
            Some(wanted) => {
                let found = snapshot::find(app, &expanded.row, wanted)?;
                let root =
                    if is_machine { Root::Disk(Some(found)) } else { Root::Files(pool.snapshot_root(&found.volume)?) };
                Ok(Self { expanded, root, compress, held: None })
            }
            None => {
                let held = app.instances.slot(expanded.row.id).claim(Request::Publish)?;
                let size = crate::pools::root_size(app, &expanded.devices)?;
                let root = if is_machine {
                    Root::Disk(None)
                } else {
                    Root::Files(pool.volume_root(&expanded.row.volume, size)?)
                };
                Ok(Self { expanded, root, compress, held: Some(held) })
            }
        }
    }
}

/// What a unified tarball's name ends in.
fn extension(compress: Compress) -> &'static str {
    duet_images::ImageFormat::Tar(compress.format()).extension()
}

/// Opens a virtual machine's disk: the instance's own, which the caller holds, or a new one that is as a snapshot was, which
/// goes with the value that comes along. (A guest that ran had something to make good on its disk, so that it is written to.)
async fn open_disk(
    app: &App,
    expanded: &expand::Expanded,
    snapshot: Option<&SnapshotRow>,
) -> Result<(disk::Disk, Option<Made<Volume>>)> {
    let Some(snapshot) = snapshot else { return Ok((machine::root_disk(app, expanded).await?, None)) };
    let (pool, volume) = (app.pools.get(&expanded.row.pool)?, snapshot.volume.clone());
    blocking(move || {
        let made = pool.volume_from_snapshot(&volume)?;
        let opened = disk::open(&pool.volume_root(&made, None)?, 0)?;
        Ok::<_, Error>((opened, Some(made)))
    })
    .await
}

/// Packs it and takes the result in as an image.
///
/// # Errors
/// With the step that failed; nothing is left.
pub async fn publish(
    app: &App,
    mut publication: Publication,
    mut facts: Facts,
    operation: &Arc<Operation>,
) -> Result<()> {
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
    let (compress, target) = (publication.compress, incoming.meta());
    let create = move || {
        let file = std::fs::File::create(&target).doing(format_args!("cannot make {}", target.display()))?;
        Ok::<_, Error>((file, target))
    };
    let packed = match &publication.root {
        Root::Files(root) => {
            let root = root.clone();
            observed(operation, STAGE, move |observer| {
                let root = rootfs::open_detached(&root, None, true, true).doing("cannot mount the instance's root")?;
                let source = PackSource { rootfs: root.as_fd(), metadata: &metadata, templates: &files };
                let (file, target) = create()?;
                duet_images::pack(&source, file, compress, observer).map_err(|e| failure_in(&target, &e))
            })
            .await?
        }
        Root::Disk(snapshot) => {
            let (disk, _volume) = open_disk(app, &publication.expanded, snapshot.as_ref()).await?;
            let service = service::serve(app, publication.held.take(), &publication.expanded, disk).await?;
            observed(operation, STAGE, move |observer| {
                let (archive, end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).doing("cannot make a pipe")?;
                let archiving = service.archive(end)?;
                let (file, target) = create()?;
                let archive = BufReader::new(std::fs::File::from(archive));
                let packed = duet_images::pack_archive(&metadata, &files, archive, file, compress, observer)
                    .map_err(|e| failure_in(&target, &e))?;
                archiving.finish()?;
                Ok(packed)
            })
            .await?
        }
    };
    drop(publication);
    if facts.filename.is_empty() {
        facts.filename = format!("{}{}", packed.fingerprint, extension(compress));
    }
    add(app, incoming, facts, operation).await?;
    Ok(())
}
