//! The `zfs` driver: every image and every layer is a dataset, so that copies and snapshots cost nothing.
//!
//! ```text
//! <dataset>/images/<fingerprint>          rootfs/ and what else the image brought
//! <dataset>/images/<fingerprint>@readonly what instances of it are clones of
//! <dataset>/layers/<uuid>                 a clone of an image or of another layer, in which rootfs/ is the root
//! <dataset>/layers/<uuid>@<other uuid>    what the layer <other uuid> is a clone of; it goes when no clone is left
//! <dataset>/tmp/<uuid>                    half-made or half-removed; what is found here at start is garbage
//! ```
//!
//! A layer is a whole filesystem and needs nothing below it. Its contents are those of the snapshot that it was cloned
//! of, so that a frozen one is a clone that nobody writes to. What shall go while others are clones of its snapshots is
//! removed as [`remove`] says.
//!
//! Layers are mounted by the runtime, privately; see `RootSource::Filesystem`. Images are mounted read-only below the
//! pool's directory, since their metadata and templates are read there.
//!
//! Which layers there are, and their limits, is read once when the pool is opened and then known: nobody else makes
//! any, and asking a program for each start of an instance would take longer than the start.
//!
//! Sizes are limits of what a dataset refers to (zfsprops(7), `refquota`), what it shares with its image included.

mod mounts;
mod names;
mod programs;
mod remove;
mod zpool;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use duet_sys::tree;
use rustix::fs::{Mode, fchmod, mkdirat, openat, syncfs};
use uuid::Uuid;

use super::directory::{DIRECTORY, errno};
use super::driver::{Below, Capabilities, Chain, Driver, Files, Purpose};
use super::folders::Folders;
use super::value::{Fingerprint, LayerId, Object, Resources, RootSource};
use super::{Error, Result};
use mounts::Access;
use programs::{bytes, is_absent, is_present, properties, table, zfs};

pub(super) use mounts::unmount_all;
pub use names::check_dataset;
pub(super) use programs::{ZFS, ZPOOL, too_old, version};
pub use zpool::Zpool;
pub(super) use zpool::destroy_on;

/// The root filesystem in a layer or an image.
const ROOT: &str = "rootfs";
/// The snapshot of an image.
const READONLY: &str = "readonly";
/// The datasets of a pool, each with all objects of a kind. Nobody but the driver mounts what is in them; whether a
/// container's files have access lists is the dataset's business, and extended attributes in inodes are the fast ones.
const KINDS: [&str; 3] = ["images", "layers", "tmp"];
const SETTINGS: [&str; 8] =
    ["-o", "mountpoint=legacy", "-o", "acltype=posixacl", "-o", "xattr=sa", "-o", "com.sun:auto-snapshot=false"];
/// The directories of a pool: where images are mounted, and what becomes one.
const FOLDERS: [&str; 2] = ["images", "tmp"];

/// A pool of datasets.
#[derive(Debug)]
pub(super) struct Zfs {
    directory: PathBuf,
    dataset: String,
    /// What is in the pool, with the limit that it has, or 0.
    present: Mutex<HashMap<Object, u64>>,
    /// Held while something is removed: datasets change places then.
    removing: Mutex<()>,
}

impl Zfs {
    /// Makes the pool's datasets and directories.
    pub(super) fn create(directory: &Path, dataset: &str) -> Result<Self> {
        let (directory, root) = Folders::prepare(directory)?;
        Folders::make(&directory, &root, &FOLDERS)?;
        for kind in KINDS {
            let name = format!("{dataset}/{kind}");
            match zfs(&[&["create", "-u"], &SETTINGS[..], &[&name]].concat()) {
                Err(error) if !is_present(&error) => return Err(error),
                _ => {}
            }
        }
        Self::open(&directory, dataset)
    }

    /// Opens an existing pool.
    pub(super) fn open(directory: &Path, dataset: &str) -> Result<Self> {
        let (directory, root) = Folders::prepare(directory)?;
        // They are on the host's own filesystem, and can be made anew.
        Folders::make(&directory, &root, &FOLDERS)?;
        let pool =
            Self { directory, dataset: dataset.to_owned(), present: Mutex::default(), removing: Mutex::default() };
        let present = pool.list()?;
        remove::unused_snapshots(&format!("{dataset}/layers"))?;
        for object in present.keys() {
            if let Object::Image(image) = object {
                pool.show_image(image)?;
            }
        }
        *pool.present() = present;
        Ok(pool)
    }

    fn present(&self) -> MutexGuard<'_, HashMap<Object, u64>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is in the pool, as ZFS says.
    fn list(&self) -> Result<HashMap<Object, u64>> {
        let [images, layers] = ["images", "layers"].map(|kind| format!("{}/{kind}", self.dataset));
        let listed = zfs(&["list", "-H", "-p", "-t", "filesystem", "-d", "1", "-o", "name,refquota", &images, &layers])
            .map_err(|error| if is_absent(&error) { self.no_pool() } else { error })?;
        let mut present = HashMap::new();
        for [name, limit] in table::<2>(&listed)? {
            let object = match name.strip_prefix(&self.dataset).and_then(|name| name[1..].split_once('/')) {
                Some(("images", name)) => name.parse().map(Object::Image).ok(),
                Some(("layers", name)) => LayerId::from_file_name(name).map(Object::Layer),
                _ => None,
            };
            if let Some(object) = object {
                present.insert(object, bytes(limit)?);
            }
        }
        Ok(present)
    }

    fn no_pool(&self) -> Error {
        Error::NoPool { path: PathBuf::from(&self.dataset) }
    }

    fn name_of(&self, object: &Object) -> String {
        match object {
            Object::Image(image) => format!("{}/images/{image}", self.dataset),
            Object::Layer(layer) => format!("{}/layers/{layer}", self.dataset),
        }
    }

    fn layer_name(&self, layer: LayerId) -> String {
        self.name_of(&Object::Layer(layer))
    }

    /// The dataset of something half-made or half-removed.
    fn temporary(&self, path: &Path) -> Result<String> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // What else lies there is not Duet's.
        let id = Uuid::try_parse(name).map_err(|_| Error::io("remove", path)(rustix::io::Errno::INVAL))?;
        Ok(format!("{}/tmp/{id}", self.dataset))
    }

    fn fresh_path(&self) -> PathBuf {
        self.directory.join("tmp").join(Uuid::new_v4().to_string())
    }

    /// Mounts an image where others read it.
    fn show_image(&self, image: &Fingerprint) -> Result<()> {
        let name = self.name_of(&Object::Image(image.clone()));
        mounts::mount_on(&name, &self.image_dir(image), Access::ReadOnly)
    }

    /// Makes a layer a clone of a snapshot.
    fn clone_snapshot(&self, layer: LayerId, snapshot: &str, missing: impl FnOnce() -> Error) -> Result<()> {
        match zfs(&["clone", snapshot, &self.layer_name(layer)]) {
            Err(error) if is_absent(&error) => Err(missing()),
            cloned => cloned.map(drop),
        }?;
        self.present().insert(Object::Layer(layer), 0);
        Ok(())
    }

    /// Makes a layer with an empty root.
    fn empty_layer(&self, layer: LayerId) -> Result<()> {
        let name = self.layer_name(layer);
        zfs(&["create", "-u", &name])?;
        self.present().insert(Object::Layer(layer), 0);
        let make = || {
            let top = mounts::open(&name)?;
            mkdirat(&top, ROOT, Mode::from_raw_mode(0o755))?;
            let root = openat(&top, ROOT, DIRECTORY, Mode::empty())?;
            Ok(fchmod(&root, Mode::from_raw_mode(0o755))?)
        };
        make().map_err(|e: io::Error| self.failed("make the root of", &name, &e))
    }

    fn failed(&self, action: &'static str, dataset: &str, error: &io::Error) -> Error {
        Error::io(action, dataset)(errno(error)).in_pool(&self.directory)
    }
}

impl Driver for Zfs {
    fn name(&self) -> &'static str {
        "zfs"
    }

    fn directory(&self) -> &Path {
        &self.directory
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { stacked: false, shares_blocks: true, fold_above: 1, max_depth: 1 }
    }

    fn image_stage(&self) -> Result<PathBuf> {
        let path = self.fresh_path();
        let name = self.temporary(&path)?;
        zfs(&["create", "-u", &name])?;
        let mounted = mounts::mount_on(&name, &path, Access::Writable).and_then(|()| {
            let top = super::directory::open(&path)?;
            fchmod(&top, Mode::RWXU).map_err(Error::io("set the mode of", &path))
        });
        if let Err(error) = mounted {
            let _ = self.destroy(&path);
            return Err(error);
        }
        Ok(path)
    }

    fn image_publish(&self, staged: &Path, image: &Fingerprint) -> Result<bool> {
        let name = self.temporary(staged)?;
        let top = super::directory::open(staged)?;
        syncfs(&top).map_err(Error::io("flush", staged))?;
        drop(top);
        // It has its snapshot before it has its name.
        zfs(&["snapshot", &format!("{name}@{READONLY}")])?;
        mounts::unmount_from(staged)?;
        match zfs(&["rename", &name, &self.name_of(&Object::Image(image.clone()))]) {
            Err(error) if is_present(&error) => {
                self.destroy(staged)?;
                return Ok(false);
            }
            renamed => renamed?,
        };
        self.present().insert(Object::Image(image.clone()), 0);
        self.show_image(image)?;
        Ok(true)
    }

    fn image_dir(&self, image: &Fingerprint) -> PathBuf {
        self.directory.join("images").join(image.as_str())
    }

    fn layer_create(&self, layer: LayerId, below: Below<'_>) -> Result<()> {
        match below {
            Below::Nothing => self.empty_layer(layer),
            Below::Layer(below) => self.layer_copy(layer, below, Purpose::Upper),
            Below::Image(image) => {
                let snapshot = format!("{}@{READONLY}", self.name_of(&Object::Image(image.clone())));
                let missing = || Error::MissingImage { pool: self.directory.clone(), image: image.clone() };
                self.clone_snapshot(layer, &snapshot, missing)
            }
        }
    }

    fn layer_copy(&self, layer: LayerId, from: LayerId, _: Purpose) -> Result<()> {
        let source = self.layer_name(from);
        // What programs wrote through memory maps is in the page cache alone.
        mounts::open(&source)
            .and_then(|top| Ok(syncfs(&top)?))
            .map_err(|error| self.failed("flush", &source, &error))?;
        let missing = || Error::MissingLayer { pool: self.directory.clone(), layer: from };
        let snapshot = format!("{source}@{layer}");
        match zfs(&["snapshot", &snapshot]) {
            Err(error) if is_absent(&error) => return Err(missing()),
            taken => taken?,
        };
        self.clone_snapshot(layer, &snapshot, missing).inspect_err(|_| {
            if let Err(error) = remove::destroy_snapshot(&snapshot) {
                tracing::warn!(%error, "a snapshot stays until the daemon starts again");
            }
        })
    }

    fn layer_fold(&self, layer: LayerId, _: &[LayerId], _: Files) -> Result<()> {
        let reason = "a dataset stands on no other";
        Err(Error::Unfoldable { layer, path: PathBuf::from(self.layer_name(layer)), reason })
    }

    fn layer_is_unchanged(&self, _: LayerId, _: Below<'_>) -> Result<bool> {
        Ok(false)
    }

    fn quota(&self) -> Result<()> {
        Ok(())
    }

    fn limit(&self, layer: LayerId, limit: Option<u64>) -> Result<()> {
        let (object, limit) = (Object::Layer(layer), limit.unwrap_or(0));
        if self.present().get(&object) == Some(&limit) {
            return Ok(());
        }
        match zfs(&["set", &format!("refquota={limit}"), &self.name_of(&object)]) {
            Err(error) if is_absent(&error) => {
                return Err(Error::MissingLayer { pool: self.directory.clone(), layer });
            }
            set => set?,
        };
        if let Some(known) = self.present().get_mut(&object) {
            *known = limit;
        }
        Ok(())
    }

    fn counted(&self, layer: LayerId) -> Result<u64> {
        match properties(["referenced"], &self.layer_name(layer))? {
            Some([referenced]) => bytes(&referenced),
            None => Err(Error::MissingLayer { pool: self.directory.clone(), layer }),
        }
    }

    fn exists(&self, object: &Object) -> Result<bool> {
        Ok(self.present().contains_key(object))
    }

    fn objects(&self) -> Result<Vec<Object>> {
        Ok(self.list()?.into_keys().collect())
    }

    fn retire(&self, object: &Object) -> Result<Option<PathBuf>> {
        if let Object::Image(image) = object {
            mounts::unmount_from(&self.image_dir(image))?;
        }
        let path = self.fresh_path();
        match zfs(&["rename", &self.name_of(object), &self.temporary(&path)?]) {
            Err(error) if is_absent(&error) => {
                self.present().remove(object);
                Ok(None)
            }
            Err(error) => Err(error),
            Ok(_) => {
                self.present().remove(object);
                Ok(Some(path))
            }
        }
    }

    fn destroy(&self, retired: &Path) -> Result<()> {
        let name = self.temporary(retired)?;
        let _turn = self.removing.lock().unwrap_or_else(PoisonError::into_inner);
        mounts::unmount_from(retired)?;
        let [layers, tmp] = ["layers", "tmp"].map(|kind| format!("{}/{kind}/", self.dataset));
        remove::dataset(&name, |below| below.starts_with(&layers) || below.starts_with(&tmp))
    }

    fn leftovers(&self) -> Result<Vec<PathBuf>> {
        let tmp = format!("{}/tmp", self.dataset);
        let listed = zfs(&["list", "-H", "-t", "filesystem", "-d", "1", "-o", "name", &tmp])?;
        let datasets = listed.lines().filter_map(|name| name.strip_prefix(&tmp)?.strip_prefix('/'));
        // A directory without its dataset is one that was about to go as well.
        let folder = self.directory.join("tmp");
        let opened = super::directory::open(&folder)?;
        let directories = super::directory::names(opened.as_fd()).map_err(Error::io("list", &folder))?;
        let names = datasets.chain(directories.iter().filter_map(|name| name.to_str().ok()));
        let ours: BTreeSet<Uuid> = names.filter_map(|name| Uuid::try_parse(name).ok()).collect();
        Ok(ours.iter().map(|id| folder.join(id.to_string())).collect())
    }

    fn size(&self, object: &Object) -> Result<u64> {
        let name = self.name_of(object);
        let missing = || match object {
            Object::Image(image) => Error::MissingImage { pool: self.directory.clone(), image: image.clone() },
            Object::Layer(layer) => Error::MissingLayer { pool: self.directory.clone(), layer: *layer },
        };
        if matches!(object, Object::Image(_)) {
            let [used] = properties(["used"], &name)?.ok_or_else(missing)?;
            return bytes(&used);
        }
        // What came since the last snapshot of it, and what of the one that it was cloned of nothing else has.
        let [written, origin] = properties(["written", "origin"], &name)?.ok_or_else(missing)?;
        let own = match origin.split_once('@') {
            Some((_, snapshot)) if name.ends_with(snapshot) => properties(["used"], &origin)?,
            _ => None,
        };
        Ok(bytes(&written)? + own.map_or(Ok(0), |[used]| bytes(&used))?)
    }

    fn root(&self, chain: Chain<'_>) -> Result<RootSource> {
        let source = match (chain.upper.or(chain.lowers.last().copied()), chain.image) {
            (Some(layer), _) => self.layer_name(layer),
            (None, Some(image)) => self.name_of(&Object::Image(image.clone())),
            (None, None) => return Err(self.no_pool()),
        };
        Ok(RootSource::Filesystem {
            kind: mounts::FILESYSTEM.into(),
            source: source.into(),
            directory: ROOT.into(),
            writable: chain.upper.is_some(),
        })
    }

    fn remove(&self) -> Result<()> {
        for path in self.leftovers()? {
            self.destroy(&path)?;
        }
        for kind in KINDS {
            remove::dataset(&format!("{}/{kind}", self.dataset), |_| false)?;
        }
        let root = super::directory::open(&self.directory)?;
        for folder in FOLDERS {
            // Something in it that is not a mount is of no use any more.
            let name = std::ffi::CString::new(folder).unwrap_or_default();
            tree::remove_tree(root.as_fd(), &name).map_err(Error::tree("remove", self.directory.join(folder)))?;
        }
        match std::fs::remove_dir(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove", &self.directory)(errno(&error)))
            }
            _ => Ok(()),
        }
    }

    fn resources(&self) -> Result<Resources> {
        let [used, available] = properties(["used", "available"], &self.dataset)?.ok_or_else(|| self.no_pool())?;
        let (used, available) = (bytes(&used)?, bytes(&available)?);
        // Inodes are made as they are needed.
        Ok(Resources { space_used: used, space_total: used + available, inodes_used: 0, inodes_total: 0 })
    }

    fn sync(&self) -> Result<()> {
        programs::zpool(&["sync", names::zpool_of(&self.dataset)]).map(drop)
    }
}
