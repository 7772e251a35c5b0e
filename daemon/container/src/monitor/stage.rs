//! The stage: the monitor's own mount namespace.
//!
//! It begins as a copy of the host's, in which the monitor opens everything that the container is made of. Then it is
//! stripped to a small tmpfs on which only those mounts stand, so that a monitor holds no mount of the host and does not
//! slow the host's own mounts down. Init leaves from here for its own namespace, which locks what it takes along (see
//! [`crate::inside::mounts`]). Afterwards the stage is cleared; what stays is /proc and the hot plug directory.
//!
//! That directory is shared with the container downstream: what the monitor mounts in it appears there with every
//! attribute locked, which is how a read-only disk can be added to a running container and stay read-only.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use duet_sys::mount::{self, Change, NODEV, NOEXEC, NOSUID};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::mount::UnmountFlags;
use rustix::thread::UnshareFlags;

use crate::inside::paths::{self, Kind};
use crate::step::{Step, StepError};

/// Where the container's root filesystem stands.
pub(crate) const ROOT: &str = "root";
/// Where the container's /dev stands.
pub(crate) const DEV: &str = "dev";
/// Where new mounts for the running container are put.
pub(crate) const HOTPLUG: &str = "hotplug";
/// Where init attaches its clone of the root in its own namespace.
pub(crate) const NEW_ROOT: &CStr = c"new";
/// Where the mounts of the specification stand.
const MOUNTS: &str = "mounts";

/// Where the mount with this index in the specification stands, if it was not left out.
pub(crate) fn mount_path(index: usize) -> PathBuf {
    Path::new(MOUNTS).join(index.to_string())
}

/// What is put on the stage for init: detached mounts.
pub(super) struct Props<'a> {
    pub root: OwnedFd,
    pub dev: BorrowedFd<'a>,
    /// In the order of the specification; `None` for an optional one that does not exist.
    pub mounts: Vec<Option<OwnedFd>>,
}

/// The monitor's mount namespace once it is stripped.
pub(super) struct Stage {
    /// What [`Stage::clear`] takes away.
    props: Vec<CString>,
    /// How many mounts were offered so far, for their names.
    offered: u64,
}

/// Splits the monitor's mount namespace off the host's.
pub(super) fn split() -> Result<(), StepError> {
    // SAFETY: the process has a single thread, and no descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.step("make the monitor's mount namespace")?;
    let private = Change { propagation: libc::MS_PRIVATE, recursive: true, ..Change::default() };
    mount::change_at(CWD, c"/", private).step("cut the monitor's mounts off")
}

impl Stage {
    /// Replaces everything in the mount namespace by the stage with these props. `foothold` is any directory.
    pub fn set(foothold: &Path, props: &Props<'_>) -> Result<Self, StepError> {
        let floor =
            mount::new_filesystem("tmpfs", &[("size", Some("1m")), ("mode", Some("755"))], NOSUID | NODEV | NOEXEC)
                .step("make the stage")?;
        for dir in ["proc", "sys", ROOT, DEV, MOUNTS, HOTPLUG, "new"] {
            rustix::fs::mkdirat(&floor, dir, Mode::from_raw_mode(0o755)).step_at("make the stage's", &dir)?;
        }
        let foothold = CString::new(foothold.as_os_str().as_bytes()).step("name the run directory")?;
        mount::attach_at(&floor, CWD, &foothold).step("attach the stage")?;
        rustix::process::fchdir(&floor).step("enter the stage")?;
        rustix::process::pivot_root(c".", c".").step("change to the stage")?;
        rustix::mount::unmount(c".", UnmountFlags::DETACH).step("leave the host's mounts")?;
        rustix::process::chdir(c"/").step("enter the stage's root")?;

        let mut stage = Self { props: Vec::new(), offered: 0 };
        // Init may only mount its own proc and sysfs where it sees whole ones (`mount_too_revealing`, fs/namespace.c).
        let proc = mount::new_filesystem("proc", &[], NOSUID | NODEV | NOEXEC).step("mount the stage's /proc")?;
        mount::attach_at(&proc, CWD, c"/proc").step("attach the stage's /proc")?;
        let sys = mount::new_filesystem("sysfs", &[], NOSUID | NODEV | NOEXEC).step("mount the stage's /sys")?;
        stage.put(&sys, Path::new("sys"))?;
        stage.put(&props.root, Path::new(ROOT))?;
        stage.put(props.dev, Path::new(DEV))?;
        for (index, prop) in props.mounts.iter().enumerate() {
            let Some(prop) = prop else { continue };
            let path = mount_path(index);
            make_place(&path, prop).step_at("make the stage's", &path)?;
            stage.put(prop, &path)?;
        }
        let shared = Change { propagation: libc::MS_SHARED, ..Change::default() };
        mount::change_at(CWD, c"/", shared).step("share the stage with the container")?;
        Ok(stage)
    }

    fn put(&mut self, prop: impl AsFd, path: &Path) -> Result<(), StepError> {
        let name = CString::new(Path::new("/").join(path).into_os_string().into_encoded_bytes()).step("name a prop")?;
        mount::attach_at(prop, CWD, &name).step_at("attach the stage's", &name)?;
        self.props.push(name);
        Ok(())
    }

    /// Takes away what init has cloned, so that the container's mounts are its own alone: when its last process has
    /// ended, they are gone.
    pub fn clear(&mut self) -> Result<(), StepError> {
        for prop in self.props.drain(..) {
            rustix::mount::unmount(&prop, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).step_at("clear", &prop)?;
        }
        Ok(())
    }

    /// Shows a detached mount to the running container, under the name that is returned, until it is withdrawn.
    pub fn offer(&mut self, mount: BorrowedFd<'_>) -> Result<String, StepError> {
        self.offered += 1;
        let name = self.offered.to_string();
        let path = Path::new("/").join(HOTPLUG).join(&name);
        make_place(&path, mount).step("make a place for the new mount")?;
        let target = CString::new(path.into_os_string().into_encoded_bytes()).step("name the new mount")?;
        mount::attach_at(mount, CWD, &target).step("show the new mount to the container")?;
        Ok(name)
    }

    /// Takes an offered mount back; what the container has cloned of it stays.
    pub fn withdraw(&mut self, name: &str) -> Result<(), StepError> {
        let path = Path::new("/").join(HOTPLUG).join(name);
        rustix::mount::unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).step("withdraw the mount")?;
        rustix::fs::unlinkat(CWD, &path, AtFlags::REMOVEDIR)
            .or_else(|_| rustix::fs::unlinkat(CWD, &path, AtFlags::empty()))
            .step("remove the mount's place")
    }
}

impl Drop for Stage {
    /// A start that fails leaves no mount behind, even before the monitor has ended.
    fn drop(&mut self) {
        let _ = self.clear();
    }
}

/// Makes a directory or a file on the stage for a mount to stand on.
fn make_place(path: &Path, mount: impl AsFd) -> io::Result<()> {
    match paths::kind_of(mount)? {
        Kind::Directory => rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o755))?,
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(0o644))?;
        }
    }
    Ok(())
}
