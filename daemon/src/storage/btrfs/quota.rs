//! Quota groups: how much each subvolume may refer to and does.
//!
//! What they count is read from sysfs (`/sys/fs/btrfs/<filesystem>/qgroups/0_<subvolume>/`, Linux 5.9), which exists
//! exactly while they are on.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use duet_sys::btrfs;
use uuid::Uuid;

/// The quota groups of a filesystem.
#[derive(Debug)]
pub(super) struct Groups {
    folder: PathBuf,
    /// Subvolumes that were removed. Their groups can go when the kernel has freed them; newer kernels see to that
    /// themselves.
    stale: Mutex<Vec<u64>>,
}

/// What a group counts, in bytes, metadata included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counted {
    /// All that the subvolume refers to.
    pub referenced: u64,
    /// What nothing else refers to.
    pub exclusive: u64,
}

impl Groups {
    /// Those of the filesystem that a file is on. Where the kernel has lost count, which it does rather than hold the
    /// filesystem up when a very large subvolume is freed, it counts anew.
    pub(super) fn of(fd: impl AsFd) -> io::Result<Self> {
        let id = Uuid::from_bytes(btrfs::filesystem_id(&fd)?);
        let folder = PathBuf::from(format!("/sys/fs/btrfs/{id}/qgroups"));
        if fs::read_to_string(folder.join("inconsistent")).is_ok_and(|text| text.trim() == "1")
            && let Err(error) = btrfs::recount(fd)
        {
            tracing::debug!(%error, "quota groups are not counted anew");
        }
        Ok(Self { folder, stale: Mutex::default() })
    }

    fn read(&self, subvolume: u64, file: &str) -> io::Result<Option<u64>> {
        match fs::read_to_string(self.folder.join(format!("0_{subvolume}")).join(file)) {
            Ok(text) => text.trim().parse().map(Some).map_err(|_| io::ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the subvolume of a file refers to; `None` where nothing is counted.
    pub(super) fn usage(&self, fd: impl AsFd) -> io::Result<Option<Counted>> {
        let id = btrfs::subvolume_id(fd)?;
        let counted = (self.read(id, "referenced")?, self.read(id, "exclusive")?);
        Ok(match counted {
            (Some(referenced), Some(exclusive)) => Some(Counted { referenced, exclusive }),
            _ => None,
        })
    }

    /// Sets the limit of a file's subvolume, or takes it away.
    pub(super) fn limit(&self, fd: impl AsFd, bytes: Option<u64>) -> io::Result<()> {
        let id = btrfs::subvolume_id(&fd)?;
        let limited = self.read(id, "limit_flags")?.is_some_and(|flags| flags != 0);
        let present = if limited { self.read(id, "max_referenced")? } else { None };
        if present == bytes {
            return Ok(());
        }
        if bytes.is_some() && !self.folder.exists() {
            btrfs::enable_quotas(&fd)?;
        }
        btrfs::set_limit(&fd, id, bytes)
    }

    /// Notes that a subvolume was removed.
    pub(super) fn gone(&self, subvolume: u64) {
        if self.folder.exists() {
            self.stale.lock().unwrap_or_else(PoisonError::into_inner).push(subvolume);
        }
    }

    /// Removes the groups of subvolumes that are freed by now.
    pub(super) fn tidy(&self, filesystem: impl AsFd) {
        let mut stale = self.stale.lock().unwrap_or_else(PoisonError::into_inner);
        let busy = |id: &u64| {
            btrfs::remove_group(&filesystem, *id).is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
        };
        stale.retain(busy);
    }
}
