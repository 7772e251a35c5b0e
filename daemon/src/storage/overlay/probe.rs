//! Whether a pool's filesystem can hold overlay layers: really tried, since filesystems differ in more ways than their
//! names tell (d_type in readdir, `trusted.*` attributes, whiteouts by rename, being an overlay or a network filesystem
//! themselves).

use std::os::fd::{AsFd, OwnedFd};

use duet_container::rootfs::{RootError, RootSource, open_detached};
use duet_sys::tree;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, mkdirat, openat, renameat, statat, unlinkat};
use rustix::io::Errno;

use super::{Overlay, Temporary};
use crate::storage::directory::{DIRECTORY, filesystem};
use crate::storage::{Error, Result};

/// Mounts a small overlay there, and removes a file and renames a directory of its lower layer in it.
pub(super) fn check(pool: &Overlay) -> Result<()> {
    let temporary = Temporary::create(pool)?;
    attempt(&temporary).map_err(|reason| Error::Unsuitable {
        path: pool.folders.directory.clone(),
        reason: format!("{reason} (the filesystem there is {})", filesystem(pool.folders.layers.as_fd())),
    })
}

fn attempt(temporary: &Temporary<'_>) -> Result<(), String> {
    let layer = |name| temporary.subdirectory(name).map_err(|e| e.to_string());
    let (lower, upper) = (layer("lower")?, layer("upper")?);
    layer("work")?;
    let make = |dir: &OwnedFd, name: &str| {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        openat(dir, name, flags, Mode::RUSR | Mode::WUSR).map(drop).map_err(said("a file cannot be created"))
    };
    make(&lower, "removed")?;
    mkdirat(&lower, "renamed", Mode::RWXU).map_err(said("a directory cannot be created"))?;
    let inner = openat(&lower, "renamed", DIRECTORY, Mode::empty()).map_err(said("a directory cannot be opened"))?;
    make(&inner, "file")?;

    let path = |name: &str| temporary.path().join(name);
    let source =
        RootSource::Overlay { lower: vec![path("lower")], upper: Some(path("upper")), work: Some(path("work")) };
    let merged = open_detached(&source, None, false, true).map_err(mount_reason)?;
    make(&merged, "created").map_err(|e| format!("in an overlay mount there, {e}"))?;
    unlinkat(&merged, "removed", AtFlags::empty())
        .map_err(said("in an overlay mount there, a file cannot be removed"))?;
    let whiteout = statat(&upper, "removed", AtFlags::SYMLINK_NOFOLLOW);
    let is_whiteout = |mode, device| FileType::from_raw_mode(mode) == FileType::CharacterDevice && device == 0;
    if !whiteout.is_ok_and(|stat| is_whiteout(stat.st_mode, stat.st_rdev)) {
        return Err("it cannot hold the whiteouts of overlay layers".into());
    }
    renameat(&merged, "renamed", &merged, "other")
        .map_err(said("in an overlay mount there, a directory cannot be renamed"))?;
    let other =
        openat(&upper, "other", DIRECTORY, Mode::empty()).map_err(said("a renamed directory cannot be opened"))?;
    match tree::get_xattr(&other, c"trusted.overlay.redirect") {
        Ok(Some(_)) => {}
        Ok(None) => return Err("it does not keep trusted.* extended attributes".into()),
        Err(e) => return Err(format!("trusted.* extended attributes cannot be read: {e}")),
    }
    statat(&merged, "other/file", AtFlags::SYMLINK_NOFOLLOW)
        .map_err(said("in an overlay mount there, a renamed directory loses its contents"))?;
    Ok(())
}

fn said(what: &'static str) -> impl Fn(Errno) -> String {
    move |errno| format!("{what}: {errno}")
}

fn mount_reason(error: RootError) -> String {
    let errno = match &error {
        RootError::Layer { source, .. }
        | RootError::Shift { source, .. }
        | RootError::Mount { source, .. }
        | RootError::Overlay { source, .. } => source.raw_os_error().map(Errno::from_raw_os_error),
        RootError::Incomplete => None,
    };
    match errno {
        Some(Errno::NODEV) => "this kernel has no overlay filesystem (try `modprobe overlay`)".into(),
        Some(Errno::PERM) => "mounting an overlay is not permitted (duetd must run as root)".into(),
        _ => format!("an overlay cannot be mounted on layers there: {error}"),
    }
}
