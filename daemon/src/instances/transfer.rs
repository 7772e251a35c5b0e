//! Copies into another pool: every file of the instance and of each of its snapshots, since pools share nothing.
//!
//! What is made in the other pool is noted, and at the end whatever the inventory does not need is removed again: that
//! is everything where the copy failed.

use std::os::fd::{AsFd, OwnedFd};

use duet_container::rootfs::{RootSource, open_detached};
use duet_sys::tree;
use rustix::fs::{AtFlags, Mode, OFlags, fstat, futimens, mkdirat, openat, unlinkat};
use uuid::Uuid;

use super::slot::Held;
use super::snapshot::frozen_while;
use crate::app::App;
use crate::error::{Context, Error, Result, blocking};
use crate::inventory::{InstanceRow, SnapshotRow};
use crate::storage::{Activity, Object, Pool, Volume};

/// What lies in the other pool and is not recorded yet.
pub(super) struct Transferred {
    /// The copy of the instance's or snapshot's root.
    pub volume: Volume,
    /// The snapshots, with their values in the other pool.
    pub snapshots: Vec<SnapshotRow>,
}

/// Copies a snapshot, or an instance that the caller holds with these of its snapshots, into the pool `target`. What was
/// made is in `objects` in any case: discard them when the copy is recorded or has failed.
///
/// # Errors
/// With the step that failed.
pub(super) async fn copy(
    app: &App,
    held: &Held,
    row: &InstanceRow,
    snapshot: Option<SnapshotRow>,
    snapshots: Vec<SnapshotRow>,
    target: &str,
    objects: &mut Vec<Object>,
) -> Result<Transferred> {
    let (from, to) = (app.pools.get(&row.pool)?, app.pools.get(target)?);
    let mut copied = Vec::with_capacity(snapshots.len());
    for mut snapshot in snapshots {
        let root = from.snapshot_root(&snapshot.volume)?;
        let volume = fill(&to, root, objects).await?;
        let freezing = to.clone();
        let taken = blocking(move || freezing.snapshot_create(&volume, Activity::Stopped)).await?.keep();
        objects.extend(taken.source.objects().into_iter().chain(taken.taken.objects()));
        snapshot.volume = taken.taken;
        copied.push(snapshot);
    }
    let volume = match (snapshot, held.slot().live()) {
        (Some(snapshot), _) => fill(&to, from.snapshot_root(&snapshot.volume)?, objects).await?,
        (None, None) => fill(&to, from.volume_root(&row.volume, None)?, objects).await?,
        (None, live) => {
            // What is mounted is not mounted again: a snapshot is copied, which goes afterwards.
            let (freezing, volume) = (from.clone(), row.volume.clone());
            let moment = frozen_while(live.as_ref(), async move {
                blocking(move || freezing.snapshot_create(&volume, Activity::Running)).await
            })
            .await?;
            fill(&to, from.snapshot_root(&moment.taken)?, objects).await?
        }
    };
    let flushing = to.clone();
    blocking(move || flushing.sync()).await?;
    Ok(Transferred { volume, snapshots: copied })
}

/// A new volume with these files.
async fn fill(to: &Pool, root: RootSource, objects: &mut Vec<Object>) -> Result<Volume> {
    let pool = to.clone();
    let volume = blocking(move || pool.volume_create(None)).await?.keep();
    objects.extend(volume.objects());
    let (pool, filled) = (to.clone(), volume.clone());
    blocking(move || {
        let source = open_detached(&root, None, true, true).doing("cannot mount the root that is copied")?;
        let target = pool.volume_root(&filled, None)?;
        let target = open_detached(&target, None, false, true).doing("cannot mount the copy's root")?;
        copy_files(&source, &target).map_err(|error| match error.errno() {
            Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => Error::full_disk(pool.directory()),
            _ => Error::internal(format!("cannot copy the root: {error}")),
        })
    })
    .await?;
    Ok(volume)
}

fn copy_files(source: &OwnedFd, target: &OwnedFd) -> std::result::Result<(), tree::TreeError> {
    let failed = |action| move |source| tree::TreeError::Io { action, path: std::path::PathBuf::new(), source };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // A mount's own descriptor can only be looked up from.
    let target = openat(target, ".", flags, Mode::empty()).map_err(failed("open it"))?;
    // Beside the files, since hard links are made from there.
    let links = format!(".duet-{}", Uuid::new_v4());
    mkdirat(&target, &links, Mode::RWXU).map_err(failed("make a directory"))?;
    let opened = openat(&target, &links, flags, Mode::empty()).map_err(failed("open a directory"))?;
    tree::copy_tree(source.as_fd(), target.as_fd(), opened.as_fd(), |_| true)?;
    tree::remove_contents(opened.as_fd())?;
    unlinkat(&target, &links, AtFlags::REMOVEDIR).map_err(failed("remove a directory"))?;
    // Removing that was a change of the root.
    let stat = fstat(source).map_err(failed("look at it"))?;
    futimens(&target, &tree::timestamps(&stat)).map_err(failed("set times of it"))
}
