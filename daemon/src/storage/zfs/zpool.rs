//! What a pool of the `zfs` driver lies on: a zpool of Duet's own, on a file or a device, or somebody's dataset.
//!
//! What Duet made or was given bears the pool's UUID as a user property (zfsprops(7)), so that another zpool or dataset
//! of the same name is not taken for it. A zpool of Duet's own is in no cache file: Duet alone imports it, when the
//! daemon starts. It stays imported when the daemon ends, since instances run on.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::super::backing::{self, Medium};
use super::super::directory::errno;
use super::super::{Error, Result};
use super::names::{check_dataset, zpool_of};
use super::programs::{is_absent, properties, require_module, unless_busy, zfs, zpool};
use super::{mounts, remove};

/// The property that holds the pool's UUID.
const ID: &str = "duet:pool";
/// The property of a dataset that Duet made because there was none.
const MADE: &str = "duet:made";

/// A zpool, or a dataset of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zpool {
    /// What the zpool is on, if it is one of Duet's own.
    pub(in super::super) on: Option<Medium>,
    /// The name of the zpool or dataset.
    pub(in super::super) dataset: String,
    /// Where images are mounted below.
    pub(in super::super) folder: PathBuf,
    /// The pool's UUID.
    pub(in super::super) id: Uuid,
}

impl Zpool {
    /// Says what a new pool is to lie on.
    pub(in super::super) fn plan(source: Option<&str>, places: &backing::Places) -> Result<Self> {
        let with = |on, dataset: &str| {
            check_dataset(dataset).map_err(|why| {
                Error::Backing(format!("{dataset:?} cannot be the name of a ZFS pool: {why}; set zfs.pool_name"))
            })?;
            Ok(Self { on, dataset: dataset.to_owned(), folder: places.directory.clone(), id: Uuid::new_v4() })
        };
        let own = |on| {
            if places.zpool.contains('/') {
                return Err(Error::Backing(
                    "zfs.pool_name is the name of the new ZFS pool; to use a dataset, name it as source".into(),
                ));
            }
            with(Some(on), &places.zpool)
        };
        match source {
            None => own(Medium::File(places.file.clone())),
            Some(source) if source.starts_with('/') => own(Medium::Device(backing::block_device(source)?)),
            Some(dataset) => with(None, dataset),
        }
    }

    /// What is recorded as the pool's source.
    pub(in super::super) fn source(&self) -> &Path {
        match &self.on {
            Some(Medium::File(path) | Medium::Device(path)) => path,
            None => Path::new(&self.dataset),
        }
    }

    /// Makes the zpool, or takes the dataset.
    pub(in super::super) fn make(&self, size: u64, wipe: bool) -> Result<()> {
        require_module()?;
        let (path, force) = match &self.on {
            None => return self.take(),
            Some(Medium::File(file)) => {
                self.require_free_name()?;
                backing::make_file(file, size)?;
                (file, false)
            }
            Some(Medium::Device(device)) => {
                self.require_free_name()?;
                (device, wipe)
            }
        };
        let id = format!("{ID}={}", self.id);
        let mut args = vec!["create", "-m", "none", "-o", "cachefile=none", "-o", "autotrim=on"];
        args.extend(["-O", "compression=on", "-O", &id]);
        if force {
            args.push("-f");
        }
        args.extend([self.dataset.as_str(), text(path)?]);
        match zpool(&args) {
            Err(Error::Zfs { said, .. }) if said.contains("use '-f' to override") => {
                Err(backing::not_empty(path, &said))
            }
            made => made.map(drop),
        }
    }

    fn require_free_name(&self) -> Result<()> {
        let name = &self.dataset;
        match zpool(&["list", "-H", "-o", "name", name]) {
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(Error::Backing(format!(
                "there is a ZFS pool {name} already: set zfs.pool_name to another name, or source={name} to use it"
            ))),
        }
    }

    /// Marks a dataset as the pool's, which is made if there is none.
    fn take(&self) -> Result<()> {
        let name = &self.dataset;
        let mark = format!("{ID}={}", self.id);
        // What is in a pool's dataset has the mark as well.
        let free = |owner: &str| match owner {
            "-" => Ok(()),
            _ => Err(Error::Backing(format!(
                "{name} is used by a storage pool of Duet's; if it is a leftover: zfs inherit -r {ID} {name}"
            ))),
        };
        let Some([owner]) = properties([ID], name)? else {
            let absent = || Error::Backing(format!("there is no ZFS pool or dataset {name}, nor one to make it in"));
            let (parent, _) = name.rsplit_once('/').ok_or_else(absent)?;
            let [owner] = properties([ID], parent)?.ok_or_else(absent)?;
            free(&owner)?;
            let made = format!("{MADE}=on");
            return zfs(&["create", "-u", "-o", "canmount=off", "-o", &mark, "-o", &made, name]).map(drop);
        };
        free(&owner)?;
        let all = zfs(&["list", "-H", "-t", "filesystem,volume", "-d", "1", "-o", "name", name])?;
        if all.lines().count() > 1 {
            return Err(Error::Backing(format!("{name} has datasets in it: a new storage pool needs an empty one")));
        }
        zfs(&["set", &mark, name]).map(drop)
    }

    /// Imports the zpool unless that is done.
    pub(in super::super) fn attach(&self) -> Result<()> {
        require_module()?;
        if self.is_present()? {
            return Ok(());
        }
        self.import()?;
        if self.is_present()? {
            return Ok(());
        }
        Err(Error::Backing(format!("there is no dataset {}", self.dataset)))
    }

    /// Whether the zpool or dataset is there. One that is not the pool's is an error.
    fn is_present(&self) -> Result<bool> {
        match properties([ID], &self.dataset)? {
            None => Ok(false),
            Some([id]) if id == self.id.to_string() => Ok(true),
            Some(_) => Err(Error::Backing(format!(
                "the ZFS pool or dataset {} is not the one that was made for this storage pool",
                self.dataset
            ))),
        }
    }

    fn import(&self) -> Result<()> {
        const IMPORT: [&str; 4] = ["import", "-N", "-o", "cachefile=none"];
        let name = self.dataset.as_str();
        let import = |more: &[&str]| zpool(&[&IMPORT, more, &[name]].concat());
        let imported = match &self.on {
            None => {
                let pool = zpool_of(name);
                return Err(Error::Backing(format!(
                    "there is no dataset {name}: is its pool imported (zpool import {pool})?"
                )));
            }
            // It is nobody else's, whatever the host was called when it was used last.
            Some(Medium::File(file)) => {
                File::open(file).map_err(|e| Error::io("open", file)(errno(&e)))?;
                import(&["-f", "-d", text(file)?])
            }
            // By the name that the device had, or where ZFS finds it.
            Some(Medium::Device(device)) => import(&["-d", text(device)?]).or_else(|_| import(&[])),
        };
        imported.map_err(|error| {
            Error::Backing(format!("the ZFS pool {name} on {} cannot be imported: {error}", self.source().display()))
        })?;
        Ok(())
    }

    /// Destroys what Duet made; a dataset of somebody else's stays.
    pub(in super::super) fn release(&self) -> Result<()> {
        mounts::unmount_all(&self.folder);
        let name = self.dataset.as_str();
        let released = match properties([ID, MADE], name) {
            Ok(Some([id, made])) if id == self.id.to_string() => match &self.on {
                Some(_) => unless_busy(|| zpool(&["destroy", name])).map(drop),
                None if made == "on" => remove::dataset(name, |_| false),
                None => zfs(&["inherit", ID, name]).map(drop),
            },
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        // It may be gone, or be used for something else by now.
        let _ = fs::remove_dir(&self.folder);
        match &self.on {
            Some(Medium::File(file)) if released.is_ok() => backing::remove_file(file),
            _ => released,
        }
    }

    /// Makes the file, and the zpool with it, larger.
    pub(in super::super) fn grow(&self, file: &Path, size: u64) -> Result<()> {
        let opened = OpenOptions::new().write(true).open(file).map_err(|e| Error::io("enlarge", file)(errno(&e)))?;
        backing::enlarge(file, &opened, size)?;
        zpool(&["online", "-e", &self.dataset, text(file)?]).map(drop)
    }
}

/// Destroys the zpool on a file that belongs to no storage pool, if one is imported from it.
pub(in super::super) fn destroy_on(file: &Path) -> Result<()> {
    if !Path::new("/sys/module/zfs").exists() {
        return Ok(());
    }
    let listed = zpool(&["list", "-H", "-P", "-v", "-o", "name"])?;
    match pool_on(&listed, text(file)?) {
        Some(pool) => unless_busy(|| zpool(&["destroy", pool])).map(drop),
        None => Ok(()),
    }
}

/// The pool with a file among its devices, which are indented below it (zpool-list(8), -v).
fn pool_on<'a>(listed: &'a str, file: &str) -> Option<&'a str> {
    let mut pool = None;
    for line in listed.lines() {
        let name = line.trim_start().split('\t').next().unwrap_or_default();
        if !line.starts_with(char::is_whitespace) {
            pool = Some(name);
        } else if name == file {
            return pool;
        }
    }
    None
}

/// A path as an argument. It begins with a slash, and so is no option.
fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| Error::Backing(format!("{} is no text", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_on_a_file_is_found() {
        let listed = "tank\n\t/dev/sdb1\t1G\t-\n\t/dev/sdc\nduet\n\t/var/lib/duet/disks/p.img\t5G\t-\t-\n";
        assert_eq!(pool_on(listed, "/var/lib/duet/disks/p.img"), Some("duet"));
        assert_eq!(pool_on(listed, "/dev/sdc"), Some("tank"));
        assert_eq!(pool_on(listed, "/var/lib/duet/disks/q.img"), None);
        assert_eq!(pool_on("", "/x"), None);
    }

    #[test]
    fn sources_say_what_a_pool_lies_on() {
        let places = |zpool: &str| backing::Places { directory: "/p".into(), file: "/f".into(), zpool: zpool.into() };
        let own = Zpool::plan(None, &places("fast")).unwrap();
        assert_eq!((own.on.clone(), own.dataset.as_str()), (Some(Medium::File("/f".into())), "fast"));
        let given = Zpool::plan(Some("tank/duet"), &places("fast")).unwrap();
        assert_eq!((given.on.clone(), given.source()), (None, Path::new("tank/duet")));
        for (source, zpool, said) in [
            (None, "tank/x", "name it as source"),
            (None, "1x", "begins with a letter"),
            (Some("-r"), "x", "begins with a letter"),
            (Some("tank@x"), "x", "cannot be the name"),
            (Some("/proc/self/exe"), "x", "no block device"),
            (Some("/dev/nothing"), "x", "cannot be used"),
        ] {
            let error = Zpool::plan(source, &places(zpool)).unwrap_err().to_string();
            assert!(error.contains(said), "{source:?} {zpool}: {error}");
        }
    }
}
