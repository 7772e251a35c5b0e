//! The `overlay` driver: layers of overlayfs in directories of any local filesystem.
//!
//! ```text
//! <pool>/images/<fingerprint>/    rootfs/ and what else the image brought; never written again
//! <pool>/layers/<uuid>/diff/      what the layer changes, as overlayfs writes it
//! <pool>/layers/<uuid>/work/      overlayfs' work directory while the layer is an upper one
//! <pool>/empty/                   a lower layer for those who have no other
//! <pool>/tmp/<uuid>/              half-made or half-removed; what is found here at start is garbage
//! ```
//!
//! The four directories are closed to all but root: in them lie images' set-user-ID programs, owned by the host's root.
//!
//! Sizes are limits of projects: see [`projects`].
//!
//! Facts about overlayfs that the driver stands on (kernel: Documentation/filesystems/overlayfs.rst):
//!
//! - The merged root's owner, mode and attributes are the *upper* root's, so a new layer's root takes those of what is
//!   below it.
//! - Upper and work must be on one filesystem, and the work directory's contents mean nothing between mounts. It
//!   contains a directory of mode 000.
//! - With `index=off` and `metacopy=off` a layer may be copied, and may be stacked over other layers than it was
//!   written over, as long as those show the same contents: its whiteouts (character devices 0/0), opaque
//!   directories and redirects name paths, never inodes. `trusted.overlay.origin` does name an inode, only to keep
//!   inode numbers constant; where it does not fit it is ignored.
//! - `trusted.overlay.uuid` on an upper root becomes the mount's own identity, so a copy must not have it.

mod fold;
mod probe;
mod projects;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use duet_sys::tree;
use rustix::fs::{
    Dir, Gid, Mode, OFlags, RenameFlags, Uid, fchmod, fchown, fstat, futimens, ioctl_ficlone, mkdirat, openat,
    renameat_with,
};
use rustix::io::Errno;
use uuid::Uuid;

use super::directory::{self, DIRECTORY, errno, names};
use super::driver::{Below, Capabilities, Chain, Driver, Files, Purpose};
use super::folders::Folders;
use super::value::{Fingerprint, LayerId, Object, Resources, RootSource};
use super::{Error, Result};

/// overlayfs takes 500 lower layers (OVL_MAX_STACK), but before Linux 6.5 only as one string of 255 bytes: 14 paths of
/// the form `/proc/self/fd/NNN`. That leaves room for an image and a copied layer on top.
const FOLD_ABOVE: usize = 12;

/// Chains that cannot be folded may still grow this far where the kernel takes layers one by one.
const MAX_DEPTH: usize = 64;

/// A lower layer for those who have no other.
const EMPTY: &str = "empty";
/// The pool's directories.
const FOLDERS: [&str; 4] = ["images", "layers", "tmp", EMPTY];

/// A pool of overlay layers.
#[derive(Debug)]
pub(super) struct Overlay {
    folders: Folders,
    reflink: bool,
    /// Whether layers can be limited.
    projects: bool,
    fold_above: usize,
}

impl Overlay {
    /// Makes the pool's directories and tries whether overlayfs works in them.
    pub(super) fn create(directory: &Path) -> Result<Self> {
        let (directory, root) = Folders::prepare(directory)?;
        Folders::make(&directory, &root, &FOLDERS)?;
        let pool = Self::open(&directory)?;
        probe::check(&pool)?;
        Ok(pool)
    }

    /// Opens an existing pool.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let folders = Folders::open(directory)?;
        Folders::open_one(&folders.directory, EMPTY)?;
        let mut pool = Self { folders, reflink: false, projects: false, fold_above: FOLD_ABOVE };
        pool.projects = projects::why_not(pool.folders.layers.as_fd()).is_none();
        pool.reflink = match pool.try_reflink().map_err(|error| error.in_pool(&pool.folders.directory)) {
            // A full pool is opened all the same: else nothing could be deleted from it. The next opening knows.
            Err(Error::NoSpace { .. }) => false,
            tried => tried?,
        };
        Ok(pool)
    }

    /// The same with shorter chains, so that tests meet folding often.
    #[cfg(test)]
    pub(super) fn folding_above(self, fold_above: usize) -> Self {
        Self { fold_above, ..self }
    }

    fn diff_dir(&self, layer: LayerId) -> PathBuf {
        self.folders.layer_dir(layer).join("diff")
    }

    fn open_diff(&self, layer: LayerId) -> Result<OwnedFd> {
        let name = format!("{layer}/diff");
        openat(&self.folders.layers, &name, DIRECTORY, Mode::empty()).map_err(|source| match source {
            Errno::NOENT => Error::MissingLayer { pool: self.folders.directory.clone(), layer },
            source => Error::io("open", self.diff_dir(layer))(source),
        })
    }

    /// The root of what is below a layer.
    fn open_below(&self, below: Below<'_>) -> Result<Option<OwnedFd>> {
        match below {
            Below::Nothing => Ok(None),
            Below::Layer(layer) => self.open_diff(layer).map(Some),
            Below::Image(image) => {
                let name = format!("{image}/rootfs");
                match openat(&self.folders.images, &name, DIRECTORY, Mode::empty()) {
                    Ok(fd) => Ok(Some(fd)),
                    Err(Errno::NOENT) => {
                        Err(Error::MissingImage { pool: self.folders.directory.clone(), image: image.clone() })
                    }
                    Err(e) => Err(Error::io("open", self.folders.directory.join("images").join(name))(e)),
                }
            }
        }
    }

    /// Makes a layer under `tmp/`, lets `fill` write its `diff/` (with a `links/` beside it, see
    /// [`tree::EntryCopier`]), and gives it its name.
    fn make_layer(
        &self,
        layer: LayerId,
        files: Files,
        fill: impl FnOnce(BorrowedFd<'_>, &dyn Fn() -> Result<OwnedFd>) -> Result<()>,
    ) -> Result<()> {
        let temporary = Temporary::create(self)?;
        // What is in another layer's project cannot be linked into this one's.
        if self.projects && files == Files::Copy {
            projects::begin(temporary.fd.as_fd()).map_err(|e| Error::io("count", temporary.path())(errno(&e)))?;
        }
        let diff = temporary.subdirectory("diff")?;
        temporary.subdirectory("work")?;
        fill(diff.as_fd(), &|| temporary.subdirectory("links"))?;
        tree::remove_tree(temporary.fd.as_fd(), c"links").map_err(Error::tree("clean", temporary.path()))?;
        if self.projects && files == Files::Link {
            projects::adopt(temporary.fd.as_fd()).map_err(Error::tree("count", temporary.path()))?;
        }
        let name = layer.to_string();
        renameat_with(&self.folders.tmp, temporary.name(), &self.folders.layers, &name, RenameFlags::NOREPLACE)
            .map_err(Error::io("create", self.folders.layer_dir(layer)))?;
        temporary.keep();
        Ok(())
    }

    /// Whether the filesystem shares blocks between files.
    fn try_reflink(&self) -> Result<bool> {
        let temporary = Temporary::create(self)?;
        let file = |name: &str| {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            openat(&temporary.fd, name, flags, Mode::RUSR | Mode::WUSR)
                .map_err(Error::io("create a file in", temporary.path()))
        };
        let (from, to) = (file("from")?, file("to")?);
        rustix::io::write(&from, &[1; 4096]).map_err(Error::io("write in", temporary.path()))?;
        Ok(ioctl_ficlone(&to, &from).is_ok())
    }
}

impl Driver for Overlay {
    fn name(&self) -> &'static str {
        "overlay"
    }

    fn directory(&self) -> &Path {
        &self.folders.directory
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { stacked: true, shares_blocks: self.reflink, fold_above: self.fold_above, max_depth: MAX_DEPTH }
    }

    fn image_stage(&self) -> Result<PathBuf> {
        let temporary = Temporary::create(self)?;
        let path = temporary.path();
        temporary.keep();
        Ok(path)
    }

    fn image_publish(&self, staged: &Path, image: &Fingerprint) -> Result<bool> {
        self.sync()?;
        if !self.folders.name_image(staged, image)? {
            self.destroy(staged)?;
            return Ok(false);
        }
        self.folders.flush_image(image)?;
        Ok(true)
    }

    fn image_dir(&self, image: &Fingerprint) -> PathBuf {
        self.folders.image_dir(image)
    }

    fn layer_create(&self, layer: LayerId, below: Below<'_>) -> Result<()> {
        let below = self.open_below(below)?;
        self.make_layer(layer, Files::Copy, |diff, _| match below {
            Some(below) => copy_root(below.as_fd(), diff).map_err(Error::io("set attributes of", self.diff_dir(layer))),
            None => fchmod(diff, Mode::from_raw_mode(0o755)).map_err(Error::io("set mode of", self.diff_dir(layer))),
        })
    }

    fn layer_copy(&self, layer: LayerId, from: LayerId, _: Purpose) -> Result<()> {
        let source = self.open_diff(from)?;
        self.make_layer(layer, Files::Copy, |diff, links| {
            tree::copy_tree(source.as_fd(), diff, links()?.as_fd(), |name| !is_mount_identity(name))
                .map_err(Error::tree("copy", self.diff_dir(from)))?;
            Ok(())
        })
    }

    fn layer_fold(&self, layer: LayerId, layers: &[LayerId], files: Files) -> Result<()> {
        let sources = layers.iter().map(|&id| Ok((id, self.open_diff(id)?))).collect::<Result<Vec<_>>>()?;
        self.make_layer(layer, files, |diff, links| fold::fold(&sources, files, diff, links()?.as_fd()))
    }

    fn layer_is_unchanged(&self, layer: LayerId, below: Below<'_>) -> Result<bool> {
        let failed = |e| Error::io("read", self.diff_dir(layer))(e);
        let diff = self.open_diff(layer)?;
        let Some(below) = self.open_below(below)? else {
            return Ok(false);
        };
        for entry in Dir::read_from(&diff).map_err(failed)? {
            let name = entry.map_err(failed)?;
            if name.file_name() != c"." && name.file_name() != c".." {
                return Ok(false);
            }
        }
        same_root(below.as_fd(), diff.as_fd()).map_err(failed)
    }

    fn quota(&self) -> Result<()> {
        match projects::why_not(self.folders.layers.as_fd()) {
            None if self.projects => Ok(()),
            why => {
                let reason = why.unwrap_or("project quotas were turned on meanwhile; restart the daemon");
                Err(Error::NoQuota { pool: self.folders.directory.clone(), reason })
            }
        }
    }

    fn limit(&self, layer: LayerId, bytes: Option<u64>) -> Result<()> {
        if !self.projects {
            return bytes.map_or(Ok(()), |_| self.quota());
        }
        let directory = self.folders.open_layer(layer)?;
        projects::limit(directory.as_fd(), bytes).map_err(Error::tree("limit", self.folders.layer_dir(layer)))
    }

    fn counted(&self, layer: LayerId) -> Result<u64> {
        if self.projects {
            let directory = self.folders.open_layer(layer)?;
            let counted =
                projects::counted(directory.as_fd()).map_err(Error::io("measure", self.folders.layer_dir(layer)))?;
            if let Some(bytes) = counted {
                return Ok(bytes);
            }
        }
        self.size(&Object::Layer(layer))
    }

    fn exists(&self, object: &Object) -> Result<bool> {
        self.folders.exists(object)
    }

    fn objects(&self) -> Result<Vec<Object>> {
        self.folders.objects()
    }

    fn retire(&self, object: &Object) -> Result<Option<PathBuf>> {
        self.folders.retire(object)
    }

    fn destroy(&self, retired: &Path) -> Result<()> {
        let name = Folders::retired_name(retired)?;
        tree::remove_tree(self.folders.tmp.as_fd(), &name).map_err(Error::tree("remove", retired))
    }

    fn leftovers(&self) -> Result<Vec<PathBuf>> {
        self.folders.leftovers()
    }

    fn size(&self, object: &Object) -> Result<u64> {
        let root = match object {
            Object::Layer(layer) => self.open_diff(*layer)?,
            Object::Image(image) => directory::open(&self.folders.image_dir(image))?,
        };
        let size = tree::tree_size(root.as_fd()).map_err(Error::tree("measure", self.folders.place(object).2))?;
        Ok(size.bytes)
    }

    fn root(&self, chain: Chain<'_>) -> Result<RootSource> {
        let mut lower: Vec<PathBuf> = chain.lowers.iter().rev().map(|&layer| self.diff_dir(layer)).collect();
        lower.extend(chain.image.map(|image| self.folders.image_dir(image).join("rootfs")));
        // An upper layer needs a lower one, and a lone layer that may hold whiteouts another one to be stacked with.
        if lower.is_empty() || (lower.len() == 1 && chain.upper.is_none() && chain.image.is_none()) {
            lower.push(self.folders.directory.join(EMPTY));
        }
        Ok(RootSource::Overlay {
            lower,
            upper: chain.upper.map(|layer| self.diff_dir(layer)),
            work: chain.upper.map(|layer| self.folders.layer_dir(layer).join("work")),
        })
    }

    fn remove(&self) -> Result<()> {
        for path in self.leftovers()? {
            self.destroy(&path)?;
        }
        self.folders.remove(&FOLDERS)
    }

    fn resources(&self) -> Result<Resources> {
        self.folders.resources()
    }

    fn sync(&self) -> Result<()> {
        self.folders.sync()
    }
}

/// A directory under `tmp/`, removed again unless kept.
struct Temporary<'a> {
    pool: &'a Overlay,
    name: Option<String>,
    fd: OwnedFd,
}

impl<'a> Temporary<'a> {
    fn create(pool: &'a Overlay) -> Result<Self> {
        let name = Uuid::new_v4().to_string();
        let path = pool.folders.temporary(&name);
        mkdirat(&pool.folders.tmp, &name, Mode::RWXU).map_err(Error::io("create", &path))?;
        let fd = openat(&pool.folders.tmp, &name, DIRECTORY, Mode::empty()).map_err(Error::io("open", &path))?;
        Ok(Self { pool, name: Some(name), fd })
    }

    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    fn path(&self) -> PathBuf {
        self.pool.folders.temporary(self.name())
    }

    fn subdirectory(&self, name: &str) -> Result<OwnedFd> {
        mkdirat(&self.fd, name, Mode::RWXU).map_err(Error::io("create", self.path().join(name)))?;
        openat(&self.fd, name, DIRECTORY, Mode::empty()).map_err(Error::io("open", self.path().join(name)))
    }

    fn keep(mut self) {
        self.name = None;
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if self.name.is_some()
            && let Err(error) = self.pool.destroy(&self.path())
        {
            tracing::warn!(%error, "cannot remove what was half made; it is tried again when the daemon starts");
        }
    }
}

/// Gives a new layer's root the owner, mode, times and extended attributes of what it stands on. What overlayfs noted
/// there for itself is about that directory's own contents.
fn copy_root(below: BorrowedFd<'_>, diff: BorrowedFd<'_>) -> Result<(), Errno> {
    let stat = fstat(below)?;
    fchown(diff, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fchmod(diff, Mode::from_raw_mode(stat.st_mode))?;
    tree::copy_xattrs(below, diff, |name| !name.starts_with(b"trusted.overlay."))?;
    futimens(diff, &tree::timestamps(&stat))
}

/// Whether two roots look the same in a merged tree.
fn same_root(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Result<bool, Errno> {
    let key = |fd: BorrowedFd<'_>| {
        let stat = fstat(fd)?;
        let mut xattrs = Vec::new();
        for name in tree::list_xattrs(fd)? {
            if !name.to_bytes().starts_with(b"trusted.overlay.") {
                xattrs.push((tree::get_xattr(fd, &name)?, name));
            }
        }
        xattrs.sort();
        Ok::<_, Errno>(((stat.st_uid, stat.st_gid, stat.st_mode, stat.st_mtime, stat.st_mtime_nsec), xattrs))
    };
    Ok(key(one)? == key(other)?)
}

/// Attributes of an upper root that belong to one mount only.
fn is_mount_identity(name: &[u8]) -> bool {
    matches!(name, b"trusted.overlay.uuid" | b"trusted.overlay.origin" | b"trusted.overlay.upper")
}
