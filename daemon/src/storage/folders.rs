//! The directories of a pool, which are the same for every driver that keeps its objects in directories: images and
//! layers by their names, and one for what is half-made or half-removed.

use std::ffi::{CString, OsStr};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, RenameFlags, fstatvfs, fsync, mkdirat, openat, renameat_with, rmdir, statat, syncfs,
};
use rustix::io::Errno;
use uuid::Uuid;

use super::directory::{self, DIRECTORY, errno, names};
use super::value::{Fingerprint, LayerId, Object, Resources};
use super::{Error, Result};

/// The open directories of a pool.
#[derive(Debug)]
pub(super) struct Folders {
    pub(super) directory: PathBuf,
    pub(super) images: OwnedFd,
    pub(super) layers: OwnedFd,
    pub(super) tmp: OwnedFd,
}

impl Folders {
    /// Their names.
    pub(super) const NAMES: [&'static str; 3] = ["images", "layers", "tmp"];

    /// Makes a pool's directory if needed, and resolves and opens it.
    pub(super) fn prepare(directory: &Path) -> Result<(PathBuf, OwnedFd)> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(directory)
            .map_err(|e| Error::io("create", directory)(errno(&e)))?;
        let directory = directory.canonicalize().map_err(|e| Error::io("resolve", directory)(errno(&e)))?;
        let root = directory::open(&directory)?;
        Ok((directory, root))
    }

    /// Makes those that are not there in a pool's directory, closed to all but root.
    pub(super) fn make(directory: &Path, root: &OwnedFd, names: &[&str]) -> Result<()> {
        for name in names {
            match mkdirat(root, *name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(Error::io("create", directory.join(name))(e).in_pool(directory)),
            }
        }
        Ok(())
    }

    /// Opens those of an existing pool.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let absent = |_| Error::NoPool { path: directory.to_owned() };
        let directory = directory.canonicalize().map_err(absent)?;
        let open = |name: &str| Self::open_one(&directory, name);
        let (images, layers, tmp) = (open("images")?, open("layers")?, open("tmp")?);
        Ok(Self { directory, images, layers, tmp })
    }

    /// Opens one in a pool's directory, without which that is no pool.
    pub(super) fn open_one(directory: &Path, name: &str) -> Result<OwnedFd> {
        match directory::open(&directory.join(name)) {
            Err(error) if error.errno() == Some(Errno::NOENT) => Err(Error::NoPool { path: directory.to_owned() }),
            result => result,
        }
    }

    pub(super) fn image_dir(&self, image: &Fingerprint) -> PathBuf {
        self.directory.join("images").join(image.as_str())
    }

    pub(super) fn layer_dir(&self, layer: LayerId) -> PathBuf {
        self.directory.join("layers").join(layer.to_string())
    }

    /// The path of something half-made or half-removed.
    pub(super) fn temporary(&self, name: &str) -> PathBuf {
        self.directory.join("tmp").join(name)
    }

    /// Where an object is: the open directory, its name there, and its whole path.
    pub(super) fn place(&self, object: &Object) -> (&OwnedFd, CString, PathBuf) {
        let (directory, name, path) = match object {
            Object::Image(image) => (&self.images, image.to_string(), self.image_dir(image)),
            Object::Layer(layer) => (&self.layers, layer.to_string(), self.layer_dir(*layer)),
        };
        // Digits, letters and dashes.
        (directory, CString::new(name).unwrap_or_default(), path)
    }

    pub(super) fn open_layer(&self, layer: LayerId) -> Result<OwnedFd> {
        match openat(&self.layers, layer.to_string(), DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => Err(Error::MissingLayer { pool: self.directory.clone(), layer }),
            opened => opened.map_err(Error::io("open", self.layer_dir(layer))),
        }
    }

    /// Gives a staged image its name; false when there is one of that name.
    pub(super) fn name_image(&self, staged: &Path, image: &Fingerprint) -> Result<bool> {
        let name = staged.file_name().unwrap_or_default();
        match renameat_with(&self.tmp, name, &self.images, image.as_str(), RenameFlags::NOREPLACE) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(e) => Err(Error::io("create", self.image_dir(image))(e)),
        }
    }

    /// Flushes the name of an image.
    pub(super) fn flush_image(&self, image: &Fingerprint) -> Result<()> {
        fsync(&self.images).map_err(Error::io("flush", self.image_dir(image)))
    }

    pub(super) fn exists(&self, object: &Object) -> Result<bool> {
        let (directory, name, path) = self.place(object);
        match statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(Error::io("look for", path)(e)),
        }
    }

    pub(super) fn objects(&self) -> Result<Vec<Object>> {
        let images = names(self.images.as_fd()).map_err(Error::io("list", self.directory.join("images")))?;
        let layers = names(self.layers.as_fd()).map_err(Error::io("list", self.directory.join("layers")))?;
        let images = images.iter().filter_map(|name| name.to_str().ok()?.parse().ok()).map(Object::Image);
        let layers = layers.iter().filter_map(|name| LayerId::from_file_name(name.to_str().ok()?)).map(Object::Layer);
        Ok(images.chain(layers).collect())
    }

    /// Takes an object's name away; none where there was no such object.
    pub(super) fn retire(&self, object: &Object) -> Result<Option<PathBuf>> {
        let (directory, name, path) = self.place(object);
        let retired = Uuid::new_v4().to_string();
        match renameat_with(directory, &name, &self.tmp, &retired, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(Some(self.temporary(&retired))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(Error::io("remove", path)(e)),
        }
    }

    /// The name of something retired, as the last part of its path says.
    pub(super) fn retired_name(retired: &Path) -> Result<CString> {
        let name = retired.file_name().unwrap_or_default();
        CString::new(name.as_bytes()).map_err(|_| Error::io("remove", retired)(Errno::INVAL))
    }

    pub(super) fn leftovers(&self) -> Result<Vec<PathBuf>> {
        let tmp = self.directory.join("tmp");
        let names = names(self.tmp.as_fd()).map_err(Error::io("list", &tmp))?;
        Ok(names.iter().map(|name| tmp.join(OsStr::from_bytes(name.to_bytes()))).collect())
    }

    /// Removes empty directories of these names, and the pool's own unless there is something else in it.
    pub(super) fn remove(&self, names: &[&str]) -> Result<()> {
        for path in names.iter().map(|name| self.directory.join(name)) {
            match rmdir(&path) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(Error::io("remove", path)(e)),
            }
        }
        match rmdir(&self.directory) {
            // A mount point, or an administrator's own directory with other things in it.
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::BUSY) => Ok(()),
            Err(e) => Err(Error::io("remove", &self.directory)(e)),
        }
    }

    pub(super) fn resources(&self) -> Result<Resources> {
        let stat = fstatvfs(&self.layers).map_err(Error::io("read the size of", &self.directory))?;
        let used = stat.f_blocks.saturating_sub(stat.f_bfree);
        Ok(Resources {
            space_used: used * stat.f_frsize,
            space_total: (used + stat.f_bavail) * stat.f_frsize,
            // btrfs, which makes inodes as it needs them, says 0 for both.
            inodes_used: stat.f_files.saturating_sub(stat.f_ffree),
            inodes_total: stat.f_files,
        })
    }

    pub(super) fn sync(&self) -> Result<()> {
        syncfs(&self.layers).map_err(Error::io("flush the filesystem of", &self.directory))
    }
}
