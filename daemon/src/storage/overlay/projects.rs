//! Sizes of overlay layers: each layer is a project of its own where the filesystem enforces limits of projects.
//!
//! A layer's directory is in its project before anything is in it, so that all that is made there counts, overlayfs' own
//! work included. (Between directories of different projects nothing can be moved or linked, and overlayfs does both.)
//! Layers whose files are links to other layers' are moved into a project when they are whole, and those from before
//! quotas were turned on when they are first limited.
//!
//! The number of a project is the inode number of the layer's directory, unless somebody else has that one already.

use std::io;
use std::os::fd::BorrowedFd;

use duet_sys::project_quota as quota;
use duet_sys::tree::{self, TreeError};
use rustix::fs::fstat;
use rustix::io::Errno;

use crate::storage::directory::{errno, filesystem};

/// How many numbers are tried for one that nobody has.
const ATTEMPTS: u32 = 1000;

/// Why sizes cannot be limited on a filesystem; none where they can.
pub(super) fn why_not(pool: BorrowedFd<'_>) -> Option<&'static str> {
    if quota::is_enforced(pool) {
        return None;
    }
    Some(match filesystem(pool).as_str() {
        "ext4" => {
            "its ext4 does not enforce project quotas; turn them on with `tune2fs -O project,quota -Q prjquota` while it \
             is not mounted, and mount it with the option prjquota"
        }
        "xfs" => "its xfs does not enforce project quotas; mount it with the option prjquota",
        _ => "its filesystem has no project quotas; ext4 and xfs have them, and a btrfs pool needs none",
    })
}

/// Makes a new layer's directory, which is empty, a project without a limit.
pub(super) fn begin(layer: BorrowedFd<'_>) -> io::Result<()> {
    quota::set_project(layer, free(layer)?, true)
}

/// Moves a layer with all that is in it into a project without a limit, and gives its number.
pub(super) fn adopt(layer: BorrowedFd<'_>) -> Result<u32, TreeError> {
    let project = free(layer).map_err(failed)?;
    tree::set_project(layer, project)?;
    Ok(project)
}

fn failed(error: io::Error) -> TreeError {
    TreeError::Io { action: "limit it", path: ".".into(), source: errno(&error) }
}

/// Limits a layer.
pub(super) fn limit(layer: BorrowedFd<'_>, bytes: Option<u64>) -> Result<(), TreeError> {
    let mut project = quota::project(layer).map_err(failed)?;
    if project == 0 {
        if bytes.is_none() {
            return Ok(());
        }
        project = adopt(layer)?;
    }
    let present = quota::counted(layer, project).map_err(failed)?.limit;
    // The kernel keeps them in KiB.
    if present.map(|limit| limit >> 10) == bytes.map(|limit| limit >> 10) {
        return Ok(());
    }
    quota::set_limit(layer, project, bytes).map_err(failed)
}

/// What counts against a layer's limit; none where it is in no project.
pub(super) fn counted(layer: BorrowedFd<'_>) -> Result<Option<u64>, Errno> {
    let project = quota::project(layer).map_err(|e| errno(&e))?;
    if project == 0 {
        return Ok(None);
    }
    Ok(Some(quota::counted(layer, project).map_err(|e| errno(&e))?.bytes))
}

/// A project that nothing is in, without a limit.
fn free(layer: BorrowedFd<'_>) -> io::Result<u32> {
    // Those of ext4 have 32 bits; of others' it does not matter which are taken.
    let first = fstat(layer)?.st_ino as u32;
    for project in (0..ATTEMPTS).map(|offset| first.wrapping_add(offset)).filter(|project| *project != 0) {
        let counted = quota::counted(layer, project)?;
        if counted.files == 0 {
            if counted.limit.is_some() {
                // That of a layer which is gone.
                quota::set_limit(layer, project, None)?;
            }
            return Ok(project);
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}
