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

use std::ffi::{CString, OsStr};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use duet_sys::btrfs::{self, Access};
use duet_sys::tree;
use rustix::fs::{
    AtFlags, FileType, Mode, RenameFlags, fchmod, fstatvfs, fsync, mkdirat, openat, renameat_with, rmdir, statat,
    syncfs,
};
use rustix::io::Errno;
use uuid::Uuid;

use super::directory::{self, DIRECTORY, errno, names};
use super::driver::{Below, Capabilities, Chain, Driver, Files, Purpose};
use super::value::{Fingerprint, LayerId, Object, Resources, RootSource};
use super::{Error, Result};
use quota::Groups;

/// The pool's directories.
const FOLDERS: [&str; 3] = ["images", "layers", "tmp"];
/// The root filesystem in a layer or an image.
const ROOT: &str = "rootfs";

/// A pool of subvolumes.
#[derive(Debug)]
pub(super) struct Btrfs {
    directory: PathBuf,
    images: OwnedFd,
    layers: OwnedFd,
    tmp: OwnedFd,
    groups: Groups,
}

impl Btrfs {
    /// Makes the pool's directories in an empty directory, which is created if needed, of a btrfs filesystem.
    pub(super) fn create(directory: &Path) -> Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(directory)
            .map_err(|e| Error::io("create", directory)(errno(&e)))?;
        let directory = directory.canonicalize().map_err(|e| Error::io("resolve", directory)(errno(&e)))?;
        let root = directory::open(&directory)?;
        if directory::magic(&root).map_err(Error::io("look at", &directory))? != btrfs::SUPER_MAGIC {
            return Err(Error::NotBtrfs { filesystem: directory::filesystem(root.as_fd()), path: directory });
        }
        let present = names(root.as_fd()).map_err(Error::io("list", &directory))?;
        if present.iter().any(|name| !FOLDERS.iter().any(|folder| folder.as_bytes() == name.to_bytes())) {
            return Err(Error::NotEmpty { path: directory });
        }
        for name in FOLDERS {
            match mkdirat(&root, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(Error::io("create", directory.join(name))(e).in_pool(&directory)),
            }
        }
        Self::open(&directory)
    }

    /// Opens an existing pool.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let absent = |_| Error::NoPool { path: directory.to_owned() };
        let directory = directory.canonicalize().map_err(absent)?;
        let open = |name: &str| match directory::open(&directory.join(name)) {
            Err(error) if error.errno() == Some(Errno::NOENT) => Err(Error::NoPool { path: directory.clone() }),
            result => result,
        };
        let (images, layers, tmp) = (open("images")?, open("layers")?, open("tmp")?);
        let groups = Groups::of(&layers).map_err(|e| Error::io("look at", &directory)(errno(&e)))?;
        Ok(Self { images, layers, tmp, groups, directory })
    }

    fn layer_dir(&self, layer: LayerId) -> PathBuf {
        self.directory.join("layers").join(layer.to_string())
    }

    fn open_layer(&self, layer: LayerId) -> Result<OwnedFd> {
        match openat(&self.layers, layer.to_string(), DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => Err(Error::MissingLayer { pool: self.directory.clone(), layer }),
            opened => opened.map_err(Error::io("open", self.layer_dir(layer))),
        }
    }

    fn open_image(&self, image: &Fingerprint) -> Result<OwnedFd> {
        match openat(&self.images, image.as_str(), DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => Err(Error::MissingImage { pool: self.directory.clone(), image: image.clone() }),
            opened => opened.map_err(Error::io("open", self.image_dir(image))),
        }
    }

    fn place(&self, object: &Object) -> (&OwnedFd, CString, PathBuf) {
        let (directory, name, path) = match object {
            Object::Image(image) => (&self.images, image.to_string(), self.image_dir(image)),
            Object::Layer(layer) => (&self.layers, layer.to_string(), self.layer_dir(*layer)),
        };
        // Digits, letters and dashes.
        (directory, CString::new(name).unwrap_or_default(), path)
    }

    fn snapshot(&self, layer: LayerId, source: &OwnedFd, access: Access) -> Result<()> {
        let (directory, name, path) = self.place(&Object::Layer(layer));
        btrfs::snapshot(source, directory, &name, access).map_err(|e| Error::io("create", path)(errno(&e)))
    }

    /// Makes an empty private subvolume under `tmp/`.
    fn temporary(&self) -> Result<(CString, PathBuf, OwnedFd)> {
        let name = Uuid::new_v4().to_string();
        let path = self.directory.join("tmp").join(&name);
        let name = CString::new(name).unwrap_or_default();
        btrfs::create_subvolume(&self.tmp, &name).map_err(|e| Error::io("create", &path)(errno(&e)))?;
        let opened = openat(&self.tmp, &name, DIRECTORY, Mode::empty())
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
            let (directory, name, _) = self.place(&Object::Layer(layer));
            renameat_with(&self.tmp, &staged, directory, &name, RenameFlags::NOREPLACE)
        };
        make().map_err(|e| {
            let _ = self.destroy(&path);
            Error::io("create", self.layer_dir(layer))(e)
        })
    }
}

impl Driver for Btrfs {
    fn name(&self) -> &'static str {
        "btrfs"
    }

    fn directory(&self) -> &Path {
        &self.directory
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { stacked: false, shares_blocks: true, fold_above: 1, max_depth: 1 }
    }

    fn image_stage(&self) -> Result<PathBuf> {
        Ok(self.temporary()?.1)
    }

    fn image_publish(&self, staged: &Path, image: &Fingerprint) -> Result<bool> {
        let name = staged.file_name().unwrap_or_default();
        let fd = openat(&self.tmp, name, DIRECTORY, Mode::empty()).map_err(Error::io("open", staged))?;
        syncfs(&fd).map_err(Error::io("flush", staged))?;
        match renameat_with(&self.tmp, name, &self.images, image.as_str(), RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                self.destroy(staged)?;
                return Ok(false);
            }
            Err(e) => return Err(Error::io("create", self.image_dir(image))(e)),
        }
        // Only now: the name of a read-only subvolume cannot change its directory. Nobody writes to an image anyway.
        btrfs::set_access(&fd, Access::ReadOnly).map_err(|e| Error::io("protect", self.image_dir(image))(errno(&e)))?;
        fsync(&self.images).map_err(Error::io("flush", self.image_dir(image)))?;
        Ok(true)
    }

    fn image_dir(&self, image: &Fingerprint) -> PathBuf {
        self.directory.join("images").join(image.as_str())
    }

    fn layer_create(&self, layer: LayerId, below: Below<'_>) -> Result<()> {
        let source = match below {
            Below::Nothing => return self.empty_layer(layer),
            Below::Image(image) => self.open_image(image)?,
            Below::Layer(below) => self.open_layer(below)?,
        };
        self.snapshot(layer, &source, Access::Writable)
    }

    fn layer_copy(&self, layer: LayerId, from: LayerId, purpose: Purpose) -> Result<()> {
        let access = match purpose {
            Purpose::Upper => Access::Writable,
            Purpose::Frozen => Access::ReadOnly,
        };
        self.snapshot(layer, &self.open_layer(from)?, access)
    }

    fn layer_fold(&self, layer: LayerId, _: &[LayerId], _: Files) -> Result<()> {
        let reason = "a subvolume stands on no other";
        Err(Error::Unfoldable { layer, path: self.layer_dir(layer), reason })
    }

    fn layer_is_unchanged(&self, _: LayerId, _: Below<'_>) -> Result<bool> {
        Ok(false)
    }

    fn quota(&self) -> Result<()> {
        Ok(())
    }

    fn limit(&self, layer: LayerId, bytes: Option<u64>) -> Result<()> {
        let fd = self.open_layer(layer)?;
        self.groups.limit(&fd, bytes).map_err(|e| Error::io("limit the size of", self.layer_dir(layer))(errno(&e)))
    }

    fn counted(&self, layer: LayerId) -> Result<u64> {
        let fd = self.open_layer(layer)?;
        let counted = self.groups.usage(&fd).map_err(|e| Error::io("measure", self.layer_dir(layer))(errno(&e)))?;
        match counted {
            Some(counted) => Ok(counted.referenced),
            None => self.size(&Object::Layer(layer)),
        }
    }

    fn exists(&self, object: &Object) -> Result<bool> {
        let (directory, name, path) = self.place(object);
        match statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(Error::io("look for", path)(e)),
        }
    }

    fn objects(&self) -> Result<Vec<Object>> {
        let images = names(self.images.as_fd()).map_err(Error::io("list", self.directory.join("images")))?;
        let layers = names(self.layers.as_fd()).map_err(Error::io("list", self.directory.join("layers")))?;
        let images = images.iter().filter_map(|name| name.to_str().ok()?.parse().ok()).map(Object::Image);
        let layers = layers.iter().filter_map(|name| LayerId::from_file_name(name.to_str().ok()?)).map(Object::Layer);
        Ok(images.chain(layers).collect())
    }

    fn retire(&self, object: &Object) -> Result<Option<PathBuf>> {
        let (directory, name, path) = self.place(object);
        let fd = match openat(directory, &name, DIRECTORY, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(Error::io("remove", path)(e)),
        };
        // The name of a read-only subvolume cannot change its directory.
        if btrfs::is_subvolume(&fd).unwrap_or(false) {
            btrfs::set_access(&fd, Access::Writable).map_err(|e| Error::io("remove", &path)(errno(&e)))?;
        }
        let retired = Uuid::new_v4().to_string();
        renameat_with(directory, &name, &self.tmp, &retired, RenameFlags::NOREPLACE)
            .map_err(Error::io("remove", path))?;
        Ok(Some(self.directory.join("tmp").join(retired)))
    }

    fn destroy(&self, retired: &Path) -> Result<()> {
        let name = retired.file_name().unwrap_or_default();
        let name = CString::new(name.as_bytes()).map_err(|_| Error::io("remove", retired)(Errno::INVAL))?;
        let failed = |e: std::io::Error| Error::io("remove", retired)(errno(&e));
        let id = match openat(&self.tmp, &name, DIRECTORY, Mode::empty()) {
            Ok(fd) if btrfs::is_subvolume(&fd).map_err(failed)? => btrfs::subvolume_id(&fd).map_err(failed)?,
            Err(Errno::NOENT) => return Ok(()),
            // Nothing here is made like that; whatever it is, it goes.
            _ => return tree::remove_tree(self.tmp.as_fd(), &name).map_err(Error::tree("remove", retired)),
        };
        remove::nested(self.tmp.as_fd(), id, |gone| self.groups.gone(gone)).map_err(failed)?;
        btrfs::remove_subvolume(&self.tmp, &name).map_err(failed)?;
        self.groups.gone(id);
        self.groups.tidy(&self.layers);
        Ok(())
    }

    fn leftovers(&self) -> Result<Vec<PathBuf>> {
        let tmp = self.directory.join("tmp");
        let names = names(self.tmp.as_fd()).map_err(Error::io("list", &tmp))?;
        Ok(names.iter().map(|name| tmp.join(OsStr::from_bytes(name.to_bytes()))).collect())
    }

    fn size(&self, object: &Object) -> Result<u64> {
        let (fd, path) = match object {
            Object::Layer(layer) => (self.open_layer(*layer)?, self.layer_dir(*layer)),
            Object::Image(image) => (self.open_image(image)?, self.image_dir(image)),
        };
        match self.groups.usage(&fd).map_err(|e| Error::io("measure", &path)(errno(&e)))? {
            Some(usage) => Ok(usage.exclusive),
            None => Ok(tree::tree_size(fd.as_fd()).map_err(Error::tree("measure", path))?.bytes),
        }
    }

    fn root(&self, chain: Chain<'_>) -> Result<RootSource> {
        let subvolume = match (chain.upper.or(chain.lowers.last().copied()), chain.image) {
            (Some(layer), _) => self.layer_dir(layer),
            (None, Some(image)) => self.image_dir(image),
            (None, None) => return Err(Error::NoPool { path: self.directory.clone() }),
        };
        Ok(RootSource::Directory { path: subvolume.join(ROOT) })
    }

    fn remove(&self) -> Result<()> {
        for path in self.leftovers()? {
            self.destroy(&path)?;
        }
        for path in FOLDERS.map(|name| self.directory.join(name)) {
            match rmdir(&path) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(Error::io("remove", path)(e)),
            }
        }
        match rmdir(&self.directory) {
            // A mount point, or a directory of the administrator's own with other things in it.
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::BUSY) => Ok(()),
            Err(e) => Err(Error::io("remove", &self.directory)(e)),
        }
    }

    fn resources(&self) -> Result<Resources> {
        let stat = fstatvfs(&self.layers).map_err(Error::io("read the size of", &self.directory))?;
        let used = stat.f_blocks.saturating_sub(stat.f_bfree);
        Ok(Resources {
            space_used: used * stat.f_frsize,
            space_total: (used + stat.f_bavail) * stat.f_frsize,
            inodes_used: 0,
            inodes_total: 0,
        })
    }

    fn sync(&self) -> Result<()> {
        syncfs(&self.layers).map_err(Error::io("flush the filesystem of", &self.directory))
    }
}
