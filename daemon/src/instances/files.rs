//! Files of an instance, running or stopped, through the rooted file service.
//!
//! For a running instance the service joins its namespaces and has no more rights than its root. For a stopped one it
//! works below a detached mount of the root filesystem; the instance is claimed meanwhile, since an overlay must not be
//! mounted twice for writing.

use std::io::ErrorKind;
use std::os::fd::AsFd;

use duet_container::files::{FileError, FileSession, Target};
use duet_container::rootfs::{self, RootError};

use super::expand::{self, Expanded};
use super::idmap::RANGE;
use super::lifecycle::{Observed, Request};
use super::machine;
use super::service::{self, Service};
use super::slot::Held;
use crate::app::App;
use crate::config::{InstanceKind, InstanceSettings};
use crate::error::{Error, Kind, Result, blocking};

/// A session, and the claim that goes with it.
pub struct Files {
    /// The service.
    pub session: FileSession,
    /// For a stopped container.
    _held: Option<Held>,
    /// For a stopped virtual machine. After the session, which it serves.
    service: Option<Service>,
}

/// What served a disk is put away on the thread that drops the last of it: a worker, which may wait. (A closure takes a
/// value that has this whole; of another it would take the session alone, and leave the rest to the runtime's thread.)
impl Drop for Files {
    fn drop(&mut self) {
        drop(self.service.take());
    }
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To read: possible on a full disk as well, where an overlay that takes changes cannot be mounted.
    Read,
    /// To read and write.
    Write,
}

/// Translates the service's failure.
pub fn failure(error: &FileError) -> Error {
    let kind = match error {
        FileError::NotFound { .. } => Kind::NotFound,
        FileError::PermissionDenied { .. } => Kind::Forbidden,
        FileError::Exists { .. }
        | FileError::NotADirectory { .. }
        | FileError::IsADirectory { .. }
        | FileError::NotEmpty { .. }
        | FileError::LinkLoop { .. }
        | FileError::BadPath { .. }
        | FileError::NameTooLong { .. }
        | FileError::SpecialFile { .. }
        | FileError::ReadOnly { .. }
        | FileError::Busy { .. }
        | FileError::CrossesFilesystems { .. }
        | FileError::BadId { .. }
        | FileError::Changed { .. }
        | FileError::BadHandle
        | FileError::TooManyHandles
        | FileError::ContainerStopped => Kind::Invalid,
        FileError::NoSpace { .. }
        | FileError::SessionLost
        | FileError::TimedOut(_)
        | FileError::Setup { .. }
        | FileError::Protocol(_)
        | FileError::Start { .. }
        | FileError::Transfer(_)
        | FileError::Other { .. } => Kind::Internal,
    };
    Error::new(kind, error.to_string())
}

/// Opens a session.
///
/// # Errors
/// Where the instance is not there, or its root cannot be mounted.
pub async fn open(app: &App, name: &str, access: Access) -> Result<Files> {
    let row = expand::find_row(app, name)?;
    let slot = app.instances.slot(row.id);
    if let Some(live) = slot.live().filter(|live| live.is_machine()) {
        let stream = machine::files(&live).await?;
        let session = FileSession::over(stream).map_err(|e| failure(&e))?;
        return Ok(Files { session, _held: None, service: None });
    }
    if let Some(live) = slot.live() {
        let program = app.instances.monitor_path().to_owned();
        let session = blocking(move || {
            let target = Target::Running {
                pid: live.init_pid,
                pidfd: live.pidfd.as_fd(),
                user_namespace: live.idmap().is_some(),
            };
            FileSession::spawn(&program, &target).map_err(|e| failure(&e))
        })
        .await?;
        return Ok(Files { session, _held: None, service: None });
    }
    let held = slot.claim_when_idle(Request::Update).await?;
    if held.from() != Observed::Stopped {
        drop(held);
        return Box::pin(open(app, name, access)).await;
    }
    if row.kind == InstanceKind::VirtualMachine {
        let expanded = expand::find(app, name)?;
        let disk = machine::root_disk(app, &expanded).await?;
        let service = service::serve(app, Some(held), &expanded, disk).await?;
        let (session, service) = blocking(move || {
            let session = FileSession::over(service.files()?).map_err(|e| failure(&e))?;
            Ok::<_, Error>((session, service))
        })
        .await?;
        return Ok(Files { session, _held: None, service: Some(service) });
    }
    let session = of_stopped(app, &expand::find(app, name)?, access).await?;
    Ok(Files { session, _held: Some(held), service: None })
}

/// Opens a session of a stopped instance that the caller holds.
///
/// # Errors
/// Where its root cannot be mounted.
pub(super) async fn of_stopped(app: &App, expanded: &Expanded, access: Access) -> Result<FileSession> {
    let program = app.instances.monitor_path().to_owned();
    let privileged = InstanceSettings::from_config(&expanded.config).is_ok_and(|s| s.privileged);
    let (pool, volume) = (app.pools.get(&expanded.row.pool)?, expanded.row.volume.clone());
    let size = crate::pools::root_size(app, &expanded.devices)?;
    let read_only = access == Access::Read;
    if !read_only {
        app.instances.forget_usage(expanded.row.id);
    }
    blocking(move || {
        let source = pool.volume_root(&volume, size)?;
        let root = rootfs::open_detached(&source, None, read_only, true).map_err(|error| match error {
            RootError::Overlay { source, .. } if source.kind() == ErrorKind::StorageFull => {
                Error::full_disk(pool.directory())
            }
            error => Error::internal(format!("cannot mount the instance's root: {error}")),
        })?;
        let target = Target::Root { root: root.as_fd(), id_limit: (!privileged).then_some(RANGE) };
        FileSession::spawn(&program, &target).map_err(|e| failure(&e))
    })
    .await
}
