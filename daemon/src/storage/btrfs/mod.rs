//! The `btrfs` driver: every image and every layer is a subvolume, so that copies and snapshots cost nothing.
//!
//! ```text
//! <pool>/images/<fingerprint>/    a read-only subvolume: rootfs/ and what else the image brought
//! <pool>/layers/<uuid>/           a snapshot of an image or of another layer; read-only when it is frozen
//! <pool>/tmp/<uuid>/              half-made or half-removed; what is found here at start is garbage
//! ```
//!
//! The three directories are closed to all but root: in them lie images' set-user-ID programs, owned by the host's root.
//!
//! A layer is a whole filesystem and needs nothing below it. Its root is the directory `rootfs` in the subvolume, not
//! the subvolume itself: distributions that see a subvolume as their root make more of them (tmpfiles.d(5), type `v`),
//! and what lies in those would be in no snapshot.
//!
//! # Sizes
//!
//! The limit of a layer is that of its quota group: how much it refers to, what it shares with its image and with
//! snapshots included. Quota groups are on in filesystems that Duet made; in others they are turned on when the first
//! limit is set. What they count is written down with each transaction, so it lags by some seconds behind writes.

mod quota;
mod remove;

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use duet_sys::btrfs::{self, Access};
use duet_sys::tree;
use rustix::fs::{Mode, RenameFlags, fchmod, mkdirat, openat, renameat_with, syncfs};
use rustix::io::Errno;
use uuid::Uuid;

use super::directory::{self, DIRECTORY, errno, names};
use super::driver::{Below, Capabilities, Chain, Driver, Files, Purpose};
use super::folders::Folders;
use super::value::{Fingerprint, LayerId, Object, Resources, RootSource};
use super::{Error, Result};
use quota::Groups;

/// The root filesystem in a layer or an image.
const ROOT: &str = "rootfs";

/// A pool of subvolumes.
#[derive(Debug)]
pub(super) struct Btrfs {
    folders: Folders,
    groups: Groups,
}

impl Btrfs {
    /// Makes the pool's directories in an empty directory, which is created if needed, of a btrfs filesystem.
    pub(super) fn create(directory: &Path) -> Result<Self> {
        let (directory, root) = Folders::prepare(directory)?;
        if directory::magic(&root).map_err(Error::io("look at", &directory))? != btrfs::SUPER_MAGIC {
            return Err(Error::NotBtrfs { filesystem: directory::filesystem(root.as_fd()), path: directory });
        }
        let present = names(root.as_fd()).map_err(Error::io("list", &directory))?;
        if present.iter().any(|name| !Folders::NAMES.iter().any(|folder| folder.as_bytes() == name.to_bytes())) {
            return Err(Error::NotEmpty { path: directory });
        }
        Folders::make(&directory, &root, &Folders::NAMES)?;
        Self::open(&directory)
    }

    /// Opens an existing pool.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let folders = Folders::open(directory)?;
        let groups = Groups::of(&folders.layers).map_err(|e| Error::io("look at", &folders.directory)(errno(&e)))?;
        Ok(Self { folders, groups })
    }

    fn open_image(&self, image: &Fingerprint) -> Result<OwnedFd> {
        match openat(&self.folders.images, image.as_str(), DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => {
                Err(Error::MissingImage { pool: self.folders.directory.clone(), image: image.clone() })
            }
            opened => opened.map_err(Error::io("open", self.folders.image_dir(image))),
        }
    }

    fn snapshot(&self, layer: LayerId, source: &OwnedFd, access: Access) -> Result<()> {
        let (directory, name, path) = self.folders.place(&Object::Layer(layer));
        btrfs::snapshot(source, directory, &name, access).map_err(|e| Error::io("create", path)(errno(&e)))
    }

    /// Makes an empty private subvolume under `tmp/`.
    fn temporary(&self) -> Result<(CString, PathBuf, OwnedFd)> {
        let name = Uuid::new_v4().to_string();
        let path = self.folders.temporary(&name);
        let name = CString::new(name).unwrap_or_default();
        btrfs::create_subvolume(&self.folders.tmp, &name).map_err(|e| Error::io("create", &path)(errno(&e)))?;
        let opened = openat(&self.folders.tmp, &name, DIRECTORY, Mode::empty())
            .and_then(|fd| fchmod(&fd, Mode::RWXU).map(|()| fd))
            .map_err(Error::io("open", &path));
        match opened {
            Ok(fd) => Ok((name, path, fd)),
            Err(error) => {
                let _ = self.destroy(&path);
                Err(error)
            }
        }
    }

    /// Makes a subvolume with an empty root.
    fn empty_layer(&self, layer: LayerId) -> Result<()> {
        let (staged, path, fd) = self.temporary()?;
        let make = || {
            mkdirat(&fd, ROOT, Mode::from_raw_mode(0o755))?;
            let root = openat(&fd, ROOT, DIRECTORY, Mode::empty())?;
            fchmod(&root, Mode::from_raw_mode(0o755))?;
            let (directory, name, _) = self.folders.place(&Object::Layer(layer));
            renameat_with(&self.folders.tmp, &staged, directory, &name, RenameFlags::NOREPLACE)
        };
        make().map_err(|e| {
            let _ = self.destroy(&path);
            Error::io("create", self.folders.layer_dir(layer))(e)
        })
    }
}

impl Driver for Btrfs {
    fn name(&self) -> &'static str {
        "btrfs"
    }

    fn directory(&self) -> &Path {
        &self.folders.directory
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { stacked: false, shares_blocks: true, fold_above: 1, max_depth: 1 }
    }

    fn image_stage(&self) -> Result<PathBuf> {
        Ok(self.temporary()?.1)
    }

    fn image_publish(&self, staged: &Path, image: &Fingerprint) -> Result<bool> {
        let name = staged.file_name().unwrap_or_default();
        let fd = openat(&self.folders.tmp, name, DIRECTORY, Mode::empty()).map_err(Error::io("open", staged))?;
        syncfs(&fd).map_err(Error::io("flush", staged))?;
        if !self.folders.name_image(staged, image)? {
            self.destroy(staged)?;
            return Ok(false);
        }
        // Only now: the name of a read-only subvolume cannot change its directory. Nobody writes to an image anyway.
        btrfs::set_access(&fd, Access::ReadOnly)
            .map_err(|e| Error::io("protect", self.folders.image_dir(image))(errno(&e)))?;
        self.folders.flush_image(image)?;
        Ok(true)
    }

    fn image_dir(&self, image: &Fingerprint) -> PathBuf {
        self.folders.image_dir(image)
    }

    fn layer_create(&self, layer: LayerId, below: Below<'_>) -> Result<()> {
        let source = match below {
            Below::Nothing => return self.empty_layer(layer),
            Below::Image(image) => self.open_image(image)?,
            Below::Layer(below) => self.folders.open_layer(below)?,
        };
        self.snapshot(layer, &source, Access::Writable)
    }

    fn layer_copy(&self, layer: LayerId, from: LayerId, purpose: Purpose) -> Result<()> {
        let access = match purpose {
            Purpose::Upper => Access::Writable,
            Purpose::Frozen => Access::ReadOnly,
        };
        self.snapshot(layer, &self.folders.open_layer(from)?, access)
    }

    fn layer_fold(&self, layer: LayerId, _: &[LayerId], _: Files) -> Result<()> {
        let reason = "a subvolume stands on no other";
        Err(Error::Unfoldable { layer, path: self.folders.layer_dir(layer), reason })
    }

    fn layer_is_unchanged(&self, _: LayerId, _: Below<'_>) -> Result<bool> {
        Ok(false)
    }

    fn quota(&self) -> Result<()> {
        Ok(())
    }

    fn limit(&self, layer: LayerId, bytes: Option<u64>) -> Result<()> {
        let fd = self.folders.open_layer(layer)?;
        self.groups
            .limit(&fd, bytes)
            .map_err(|e| Error::io("limit the size of", self.folders.layer_dir(layer))(errno(&e)))
    }

    fn counted(&self, layer: LayerId) -> Result<u64> {
        let fd = self.folders.open_layer(layer)?;
        let counted =
            self.groups.usage(&fd).map_err(|e| Error::io("measure", self.folders.layer_dir(layer))(errno(&e)))?;
        match counted {
            Some(counted) => Ok(counted.referenced),
            None => self.size(&Object::Layer(layer)),
        }
    }

    fn exists(&self, object: &Object) -> Result<bool> {
        self.folders.exists(object)
    }

    fn objects(&self) -> Result<Vec<Object>> {
        self.folders.objects()
    }

    fn retire(&self, object: &Object) -> Result<Option<PathBuf>> {
        let (directory, name, path) = self.folders.place(object);
        let fd = match openat(directory, &name, DIRECTORY, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(Error::io("remove", path)(e)),
        };
        // The name of a read-only subvolume cannot change its directory.
        if btrfs::is_subvolume(&fd).unwrap_or(false) {
            btrfs::set_access(&fd, Access::Writable).map_err(|e| Error::io("remove", &path)(errno(&e)))?;
        }
        self.folders.retire(object)
    }

    fn destroy(&self, retired: &Path) -> Result<()> {
        let name = Folders::retired_name(retired)?;
        let failed = |e: std::io::Error| Error::io("remove", retired)(errno(&e));
        let id = match openat(&self.folders.tmp, &name, DIRECTORY, Mode::empty()) {
            Ok(fd) if btrfs::is_subvolume(&fd).map_err(failed)? => btrfs::subvolume_id(&fd).map_err(failed)?,
            Err(Errno::NOENT) => return Ok(()),
            // Nothing here is made like that; whatever it is, it goes.
            _ => return tree::remove_tree(self.folders.tmp.as_fd(), &name).map_err(Error::tree("remove", retired)),
        };
        remove::nested(self.folders.tmp.as_fd(), id, |gone| self.groups.gone(gone)).map_err(failed)?;
        btrfs::remove_subvolume(&self.folders.tmp, &name).map_err(failed)?;
        self.groups.gone(id);
        self.groups.tidy(&self.folders.layers);
        Ok(())
    }

    fn leftovers(&self) -> Result<Vec<PathBuf>> {
        self.folders.leftovers()
    }

    fn size(&self, object: &Object) -> Result<u64> {
        let (fd, path) = match object {
            Object::Layer(layer) => (self.folders.open_layer(*layer)?, self.folders.layer_dir(*layer)),
            Object::Image(image) => (self.open_image(image)?, self.folders.image_dir(image)),
        };
        match self.groups.usage(&fd).map_err(|e| Error::io("measure", &path)(errno(&e)))? {
            Some(usage) => Ok(usage.exclusive),
            None => Ok(tree::tree_size(fd.as_fd()).map_err(Error::tree("measure", path))?.bytes),
        }
    }

    fn root(&self, chain: Chain<'_>) -> Result<RootSource> {
        let subvolume = match (chain.upper.or(chain.lowers.last().copied()), chain.image) {
            (Some(layer), _) => self.folders.layer_dir(layer),
            (None, Some(image)) => self.folders.image_dir(image),
            (None, None) => return Err(Error::NoPool { path: self.folders.directory.clone() }),
        };
        Ok(RootSource::Directory { path: subvolume.join(ROOT) })
    }

    fn remove(&self) -> Result<()> {
        for path in self.leftovers()? {
            self.destroy(&path)?;
        }
        self.folders.remove(&Folders::NAMES)
    }

    fn resources(&self) -> Result<Resources> {
        self.folders.resources()
    }

    fn sync(&self) -> Result<()> {
        self.folders.sync()
    }
}
