//! A root filesystem as a value, and as a detached mount.
//!
//! Layers lie unshifted on disk: the files of the container's root belong to uid 0. [`open_detached`] makes an idmapped
//! clone of each layer and puts the overlay on those, so that starting a container copies and chowns nothing. The
//! result is a descriptor: whoever holds it attaches it where it likes (the runtime in the container's mount namespace)
//! or works below it without attaching it at all. Nothing is ever mounted in the caller's mount namespace.
//!
//! Kernels from 6.15 on stack overlays on detached mounts. Older ones insist that layers are attached in the mount
//! namespace of the caller; for those, a thread with a mount namespace of its own does the stacking ([`private`]). The
//! same holds for a directory in a filesystem that is mounted for this purpose only.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use duet_sys::mount::{self, Change};
use duet_sys::process::FilesystemUser;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatVfsMountFlags, fstatvfs};
use rustix::mount::{FsOpenFlags, fsconfig_create, fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsopen};
use serde::{Deserialize, Serialize};
use thiserror::Error;

mod private;

/// Where a root filesystem comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootSource {
    /// Layers stacked by overlayfs.
    Overlay {
        /// The read-only layers, top-most first; at least one.
        lower: Vec<PathBuf>,
        /// The layer that takes the changes; `None` makes the whole read-only.
        upper: Option<PathBuf>,
        /// overlayfs' scratch directory, empty and on the same filesystem as `upper`; given exactly if `upper` is.
        work: Option<PathBuf>,
    },
    /// A plain directory.
    Directory {
        /// Its path.
        path: PathBuf,
    },
    /// A directory at the top of a filesystem that need not be mounted anywhere.
    Filesystem {
        /// The filesystem's type: `zfs`.
        kind: String,
        /// What to mount, as mount(2) takes it for that type: a dataset's name.
        source: PathBuf,
        /// The directory's name.
        directory: PathBuf,
        /// Whether it takes changes.
        writable: bool,
    },
}

/// Why a root filesystem could not be opened.
#[derive(Debug, Error)]
pub enum RootError {
    /// A layer is missing, or the kernel refused to clone its mount.
    #[error("cannot use the layer {path:?}: {source}")]
    Layer {
        /// The layer.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The filesystem of a layer supports no idmapped mounts.
    #[error("cannot shift the ids of {path:?}: {source} (the filesystem below it must support idmapped mounts)")]
    Shift {
        /// The layer.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A filesystem could not be mounted.
    #[error("cannot mount {filesystem:?} ({step}): {source}")]
    Mount {
        /// What was to be mounted.
        filesystem: PathBuf,
        /// The call.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// overlayfs refused.
    #[error("cannot stack the layers ({step}): {source}")]
    Overlay {
        /// The option or call.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The value makes no sense.
    #[error("a root of layers needs at least one lower layer, and an upper layer together with a work directory")]
    Incomplete,
}

/// Builds the root filesystem as a detached mount. With `userns`, ids are shifted by that namespace's map.
///
/// `read_only` makes the result read-only; `nodev` keeps device nodes in it from being opened.
///
/// # Errors
/// [`RootError`] names the layer or the step. Nothing is left behind.
pub fn open_detached(
    source: &RootSource,
    userns: Option<BorrowedFd<'_>>,
    read_only: bool,
    nodev: bool,
) -> Result<OwnedFd, RootError> {
    let mut attributes = 0;
    if read_only {
        attributes |= mount::RDONLY;
    }
    if nodev {
        attributes |= mount::NODEV;
    }
    match source {
        RootSource::Directory { path } => open_layer(path, userns, attributes),
        RootSource::Filesystem { kind, source, directory, writable } => {
            let layer = private::directory_in(kind, source, directory)?;
            let attributes = if *writable { attributes } else { attributes | mount::RDONLY };
            prepare(layer, &source.join(directory), userns, attributes)
        }
        RootSource::Overlay { lower, upper: None, work: None } if lower.len() == 1 => {
            // overlayfs wants two layers at least; one that nobody writes to needs no overlay.
            open_layer(&lower[0], userns, attributes | mount::RDONLY)
        }
        RootSource::Overlay { lower, upper, work } => {
            if lower.is_empty() || upper.is_some() != work.is_some() {
                return Err(RootError::Incomplete);
            }
            open_overlay(lower, upper.as_deref().zip(work.as_deref()), userns, attributes)
        }
    }
}

/// The layers of an overlay as detached mounts.
struct Layers {
    lower: Vec<OwnedFd>,
    /// The upper and the work directory: two directories within one clone, since overlayfs wants both on one mount.
    upper: Option<Upper>,
}

struct Upper {
    /// The clone of the directory that holds both.
    parent: OwnedFd,
    upper: PathBuf,
    work: PathBuf,
}

fn open_overlay(
    lower: &[PathBuf],
    upper: Option<(&Path, &Path)>,
    userns: Option<BorrowedFd<'_>>,
    attributes: u64,
) -> Result<OwnedFd, RootError> {
    let layers = Layers {
        lower: lower.iter().map(|path| open_layer(path, userns, 0)).collect::<Result<_, _>>()?,
        upper: upper.map(|(upper, work)| open_upper(upper, work, userns)).transpose()?,
    };
    let _user = assume_owner(&layers, userns.is_some())?;
    match stack_detached(&layers, attributes) {
        Err(RootError::Overlay { source, .. }) if takes_paths_only(&source) => {
            private::stack(&layers, userns.is_some(), attributes)
        }
        result => result,
    }
}

/// Whether the kernel refuses layers by descriptor. EINVAL: one before 6.15 (detached layers). EBADF: one before 6.13,
/// which takes no `O_PATH` descriptor here. EOPNOTSUPP: one before 6.5, whose overlayfs takes strings only.
fn takes_paths_only(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EBADF | libc::EOPNOTSUPP))
}

/// overlayfs makes files in its work directory, and whiteouts, as the user that mounts it. Through an idmapped mount
/// only ids of the map can make files; the one that owns the work directory is such an id.
fn assume_owner(layers: &Layers, shifted: bool) -> Result<Option<FilesystemUser>, RootError> {
    let Some(upper) = layers.upper.as_ref().filter(|_| shifted) else { return Ok(None) };
    let assume = || {
        let work = rustix::fs::statat(&upper.parent, &upper.work, AtFlags::SYMLINK_NOFOLLOW)?;
        FilesystemUser::assume(work.st_uid, work.st_gid)
    };
    assume().map(Some).map_err(|source| RootError::Overlay { step: "assume the owner", source })
}

fn open_layer(path: &Path, userns: Option<BorrowedFd<'_>>, attributes: u64) -> Result<OwnedFd, RootError> {
    let layer =
        mount::clone_tree(CWD, path, false).map_err(|source| RootError::Layer { path: path.to_owned(), source })?;
    prepare(layer, path, userns, attributes)
}

/// Shifts the ids of a detached mount and sets its attributes. The path is for errors.
fn prepare(layer: OwnedFd, path: &Path, userns: Option<BorrowedFd<'_>>, attributes: u64) -> Result<OwnedFd, RootError> {
    let change = Change { set: attributes, idmap: userns, propagation: libc::MS_PRIVATE, ..Change::default() };
    mount::change(&layer, change).map_err(|source| match userns {
        Some(_) => RootError::Shift { path: path.to_owned(), source },
        None => RootError::Layer { path: path.to_owned(), source },
    })?;
    Ok(layer)
}

/// Clones the nearest directory that holds both the upper and the work directory.
fn open_upper(upper: &Path, work: &Path, userns: Option<BorrowedFd<'_>>) -> Result<Upper, RootError> {
    let parent = upper.ancestors().skip(1).find(|dir| work.starts_with(dir)).ok_or(RootError::Incomplete)?;
    let below = |path: &Path| path.strip_prefix(parent).map(Path::to_owned).map_err(|_| RootError::Incomplete);
    Ok(Upper { upper: below(upper)?, work: below(work)?, parent: open_layer(parent, userns, 0)? })
}

/// The options that every overlay here has. Extended attributes are `trusted.*` ones: the container cannot forge them,
/// and layers written by one kind of container are readable by the other.
const OPTIONS: [(&str, &str); 4] = [("redirect_dir", "on"), ("index", "off"), ("metacopy", "off"), ("xino", "auto")];

fn overlay_error(step: &'static str) -> impl Fn(rustix::io::Errno) -> RootError {
    move |error| RootError::Overlay { step, source: error.into() }
}

fn stack_detached(layers: &Layers, attributes: u64) -> Result<OwnedFd, RootError> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(overlay_error("fsopen"))?;
    for layer in &layers.lower {
        fsconfig_set_fd(&context, "lowerdir+", layer).map_err(overlay_error("lowerdir"))?;
    }
    if let Some(upper) = &layers.upper {
        let open = |path: &Path| {
            rustix::fs::openat(
                &upper.parent,
                path,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(|error| RootError::Layer { path: path.to_owned(), source: error.into() })
        };
        fsconfig_set_fd(&context, "upperdir", open(&upper.upper)?).map_err(overlay_error("upperdir"))?;
        fsconfig_set_fd(&context, "workdir", open(&upper.work)?).map_err(overlay_error("workdir"))?;
    }
    create(context.as_fd(), layers.upper.is_some(), attributes)
}

/// Sets the common options, creates the overlay and mounts it detached.
fn create(context: BorrowedFd<'_>, writable: bool, attributes: u64) -> Result<OwnedFd, RootError> {
    for (key, value) in OPTIONS {
        fsconfig_set_string(context, key, value).map_err(overlay_error(key))?;
    }
    // What `mount` shows as the source; purely cosmetic.
    fsconfig_set_string(context, "source", "duet").map_err(overlay_error("source"))?;
    if !writable {
        fsconfig_set_flag(context, "ro").map_err(overlay_error("ro"))?;
    }
    fsconfig_create(context).map_err(overlay_error("create"))?;
    let root = mount::finish(context, attributes).map_err(|source| RootError::Overlay { step: "fsmount", source })?;
    // Where overlayfs cannot make its directory in the work directory, it does without and takes no changes.
    let asked = !writable || attributes & mount::RDONLY != 0;
    if !asked && fstatvfs(&root).is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY)) {
        return Err(overlay_error("make the work directory")(rustix::io::Errno::NOSPC));
    }
    Ok(root)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Both ways of stacking give the same tree: the one for kernels that take detached layers, and the other.
    #[test]
    fn both_ways_of_stacking_agree() {
        let dir = tempfile::tempdir().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        for way in [stack_detached, |layers: &Layers, attributes| private::stack(layers, false, attributes)] {
            for name in ["one", "two", "upper", "work"] {
                let _ = fs::remove_dir_all(dir.path().join(name));
                fs::create_dir(dir.path().join(name)).unwrap();
            }
            fs::write(dir.path().join("one/top"), "1").unwrap();
            fs::write(dir.path().join("two/top"), "2").unwrap();
            fs::write(dir.path().join("two/below"), "2").unwrap();
            let open = |name: &str| open_layer(&dir.path().join(name), None, 0).unwrap();
            let upper = open_upper(&dir.path().join("upper"), &dir.path().join("work"), None).unwrap();
            let root = match way(&Layers { lower: vec![open("one"), open("two")], upper: Some(upper) }, 0) {
                // There is only the other way on this kernel.
                Err(RootError::Overlay { source, .. }) if takes_paths_only(&source) => continue,
                root => root.unwrap(),
            };

            let read = |name: &str| {
                let fd = rustix::fs::openat(&root, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
                std::io::read_to_string(fs::File::from(fd)).unwrap()
            };
            assert_eq!((read("top").as_str(), read("below").as_str()), ("1", "2"));
            rustix::fs::mkdirat(&root, "made", Mode::RWXU).unwrap();
            rustix::fs::unlinkat(&root, "below", AtFlags::empty()).unwrap();
            assert!(dir.path().join("upper/made").is_dir() && dir.path().join("two/below").exists());
        }
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), mounts);
    }
}
