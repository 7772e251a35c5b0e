//! What a pool lies on: a directory, a file of Duet's own on a loop device, a block device, or a zpool (see
//! [`Zpool`]).
//!
//! A file or device is formatted when the pool is made and mounted by the daemon below its state directory, where it
//! stays when the daemon ends and is found again. A loop device ends with the mount on it, so nothing has to be undone
//! for one after a crash; what a crash leaves otherwise is a file that no pool names and a mount on a directory of that
//! name, which [`sweep`] removes.
//!
//! A filesystem that Duet made is known by its UUID, so that a device that is called otherwise after a reboot is found,
//! and another one in its place is not taken for it.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use duet_sys::{btrfs, loop_device, mount};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use uuid::Uuid;

use super::directory::{self, errno};
use super::zfs::{self, Zpool};
use super::{Error, Kind, Result};
use crate::program::{Program, complaint};

/// What formats files and devices.
pub(super) const MKFS_BTRFS: Program = Program { name: "mkfs.btrfs", package: "btrfs-progs" };

/// Where the superblock of btrfs lies on a device, and in it the filesystem's UUID and the magic
/// (`struct btrfs_super_block` of fs/btrfs).
const SUPERBLOCK: u64 = 64 << 10;
const SUPERBLOCK_ID: usize = 0x20;
const SUPERBLOCK_MAGIC: (usize, &[u8]) = (0x40, b"_BHRfS_M");

const GIB: u64 = 1 << 30;

/// What a pool lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// A directory.
    Directory(PathBuf),
    /// A filesystem that Duet made.
    Filesystem {
        /// What it is on.
        on: Medium,
        /// Where it is mounted.
        mount: PathBuf,
        /// Its UUID.
        id: Uuid,
    },
    /// A zpool that Duet made, or a dataset.
    Zpool(Zpool),
}

/// What a filesystem is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Medium {
    /// A file of Duet's own.
    File(PathBuf),
    /// A block device, by the name that it had when the pool was made.
    Device(PathBuf),
}

/// Where Duet puts what is its own.
#[derive(Debug, Clone)]
pub struct Places {
    /// The pool's directory, or where its filesystem is mounted.
    pub directory: PathBuf,
    /// The file of a pool on a file.
    pub file: PathBuf,
    /// What a zpool of its own is called.
    pub zpool: String,
}

impl Backing {
    /// Says what a new pool is to lie on, as its `source` tells.
    ///
    /// # Errors
    /// Where the source is not there or not such a thing.
    pub fn plan(kind: Kind, source: Option<&str>, places: &Places) -> Result<Self> {
        let directory = |path: PathBuf| Ok(Self::Directory(path));
        let filesystem = |on| Ok(Self::Filesystem { on, mount: places.directory.clone(), id: Uuid::new_v4() });
        if let (Kind::Overlay | Kind::Btrfs, Some(source)) = (kind, source)
            && !source.starts_with('/')
        {
            return Err(Error::Backing(format!("{source} is no absolute path, as the source of such a pool must be")));
        }
        match (kind, source) {
            (Kind::Zfs, source) => Zpool::plan(source, places).map(Self::Zpool),
            (Kind::Overlay, source) => directory(source.map_or_else(|| places.directory.clone(), PathBuf::from)),
            (Kind::Btrfs, None) => filesystem(Medium::File(places.file.clone())),
            (Kind::Btrfs, Some(source)) => match fs::metadata(source) {
                Ok(meta) if meta.is_dir() => directory(source.into()),
                Err(error) if error.kind() == ErrorKind::NotFound && !source.starts_with("/dev/") => {
                    directory(source.into())
                }
                Ok(meta) if !meta.file_type().is_block_device() => {
                    Err(Error::Backing(format!("{source} is neither a directory nor a block device")))
                }
                _ => filesystem(Medium::Device(block_device(source)?)),
            },
        }
    }

    /// Says what a pool that was made earlier lies on: `id` is recorded of those on a file or device.
    pub fn recorded(kind: Kind, source: Option<&str>, id: Option<Uuid>, places: &Places) -> Self {
        let Some(id) = id else {
            return Self::Directory(source.map_or_else(|| places.directory.clone(), PathBuf::from));
        };
        let on = match source.map(Path::new) {
            Some(device) if device != places.file => Medium::Device(device.to_owned()),
            _ => Medium::File(places.file.clone()),
        };
        let mount = places.directory.clone();
        match (kind, source) {
            (Kind::Zfs, Some(dataset)) if !dataset.starts_with('/') => {
                Self::Zpool(Zpool { on: None, dataset: dataset.into(), folder: mount, id })
            }
            (Kind::Zfs, _) => Self::Zpool(Zpool { on: Some(on), dataset: places.zpool.clone(), folder: mount, id }),
            (Kind::Overlay | Kind::Btrfs, _) => Self::Filesystem { on, mount, id },
        }
    }

    /// The pool's directory.
    pub fn directory(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Filesystem { mount: path, .. } => path,
            Self::Zpool(zpool) => &zpool.folder,
        }
    }

    /// What is recorded as the pool's source.
    pub fn source(&self) -> &Path {
        match self {
            Self::Directory(path) => path,
            Self::Filesystem { on: Medium::File(path) | Medium::Device(path), .. } => path,
            Self::Zpool(zpool) => zpool.source(),
        }
    }

    /// What is recorded as the identity of a filesystem that Duet made.
    pub fn id(&self) -> Option<Uuid> {
        match self {
            Self::Directory(_) => None,
            Self::Filesystem { id, .. } | Self::Zpool(Zpool { id, .. }) => Some(*id),
        }
    }

    /// Whether it is a file, whose size can be chosen.
    pub fn is_file(&self) -> bool {
        self.file().is_some()
    }

    /// Whether a new pool formats it.
    pub fn is_formatted(&self) -> bool {
        match self {
            Self::Directory(_) => false,
            Self::Filesystem { .. } => true,
            Self::Zpool(zpool) => zpool.on.is_some(),
        }
    }

    fn file(&self) -> Option<&Path> {
        match self {
            Self::Filesystem { on: Medium::File(path), .. }
            | Self::Zpool(Zpool { on: Some(Medium::File(path)), .. }) => Some(path),
            _ => None,
        }
    }

    /// The zpool or dataset, where it is one.
    pub fn dataset(&self) -> Option<&str> {
        match self {
            Self::Zpool(zpool) => Some(&zpool.dataset),
            Self::Directory(_) | Self::Filesystem { .. } => None,
        }
    }

    /// Formats and mounts or imports it: a file with this size, a device whatever it holds if `wipe` says so. Undone
    /// unless kept.
    ///
    /// # Errors
    /// With what is in the way.
    pub fn make(self, size: u64, wipe: bool) -> Result<New> {
        // What is here when something fails is taken away again.
        let new = New { backing: self, kept: false };
        match &new.backing {
            Self::Directory(_) => {}
            Self::Zpool(zpool) => zpool.make(size, wipe)?,
            Self::Filesystem { on, id, .. } => {
                let (path, force) = match on {
                    Medium::File(file) => {
                        make_file(file, size)?;
                        (file, true)
                    }
                    Medium::Device(device) => (device, wipe),
                };
                format(path, *id, force)?;
                new.backing.attach()?;
                let root = directory::open(new.backing.directory())?;
                btrfs::enable_quotas(&root).map_err(|e| Error::io("count the files of", path)(errno(&e)))?;
            }
        }
        Ok(new)
    }

    /// Mounts or imports it, unless that is done already.
    ///
    /// # Errors
    /// Where the file or device is gone or holds something else.
    pub fn attach(&self) -> Result<()> {
        let (on, place, id) = match self {
            Self::Directory(_) => return Ok(()),
            Self::Zpool(zpool) => return zpool.attach(),
            Self::Filesystem { on, mount, id } => (on, mount, id),
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(place)
            .map_err(|e| Error::io("create", place)(errno(&e)))?;
        if is_mounted(place, *id) {
            return Ok(());
        }
        let failed = |path: &Path, e: &io::Error| Error::io("mount", path)(errno(e));
        // The loop device lasts until it is mounted, and then as long as that.
        let (mut options, device, _device) = match on {
            Medium::File(path) => {
                let file = OpenOptions::new().read(true).write(true).open(path);
                let file = file.map_err(|e| failed(path, &e))?;
                require_id(path, &file, *id)?;
                // Where something still uses the filesystem by a mount that nobody sees, there is one.
                let present = loop_over(&file).map_err(|e| failed(path, &e))?;
                let (fd, device) = match present {
                    Some(present) => present,
                    None => loop_device::attach(&file).map_err(|e| failed(path, &e))?,
                };
                // What is freed within is freed in the file.
                (vec![("discard", Some("async"))], device, Some(fd))
            }
            Medium::Device(path) => (Vec::new(), find_device(path, *id)?, None),
        };
        // So that a container can remove the subvolumes that it can make.
        options.push(("user_subvol_rm_allowed", None));
        let mounted = mount::block_filesystem("btrfs", &device, &options).map_err(|e| failed(self.source(), &e))?;
        let target = std::ffi::CString::new(place.as_os_str().as_encoded_bytes())
            .map_err(|_| Error::io("mount on", place)(Errno::INVAL))?;
        mount::attach_at(&mounted, CWD, &target).map_err(|e| Error::io("mount on", place)(errno(&e)))
    }

    /// Unmounts it and removes what is Duet's own: the mount point, the file and the zpool. A device keeps the filesystem
    /// that is on it.
    ///
    /// # Errors
    /// Where the file cannot be removed.
    pub fn release(&self) -> Result<()> {
        let (on, place, id) = match self {
            Self::Directory(_) => return Ok(()),
            Self::Zpool(zpool) => return zpool.release(),
            Self::Filesystem { on, mount, id } => (on, mount, id),
        };
        while is_mounted(place, *id) {
            // Whatever still has a file open there keeps the filesystem, not the name.
            unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(Error::io("unmount", place))?;
        }
        // It may be gone, or be used for something else by now.
        let _ = fs::remove_dir(place);
        let Medium::File(file) = on else { return Ok(()) };
        remove_file(file)
    }

    /// Makes the file of a mounted pool larger, and its filesystem with it.
    ///
    /// # Errors
    /// Where it would become smaller, or the pool is on no file.
    pub fn grow(&self, size: u64) -> Result<()> {
        let Some(path) = self.file() else {
            return Err(Error::Backing(
                "the size of a pool can only be changed where it lies on a file of Duet's".into(),
            ));
        };
        if let Self::Zpool(zpool) = self {
            return zpool.grow(path, size);
        }
        let failed = |e: io::Error| Error::io("enlarge", path)(errno(&e));
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
        enlarge(path, &file, size)?;
        let Some((device, _)) = loop_over(&file).map_err(failed)? else {
            return Err(Error::Backing(format!("{} is not in use as a disk", path.display())));
        };
        loop_device::update_size(device).map_err(failed)?;
        btrfs::grow(directory::open(self.directory())?).map_err(failed)
    }
}

/// Something that was made for a pool that is not recorded yet; dropped, it is removed again.
#[derive(Debug)]
#[must_use = "dropping it removes what was made; record it and call keep()"]
pub struct New {
    backing: Backing,
    kept: bool,
}

impl New {
    /// What was made.
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// It is recorded.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for New {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = self.backing.release()
        {
            tracing::warn!(%error, "what was made for a storage pool stays behind until the daemon starts again");
        }
    }
}

/// The size of a file for a pool where none is given: a fifth of the filesystem, at least 5 and at most 30 GiB, as
/// Incus has it.
///
/// # Errors
/// As statvfs(2).
pub fn default_size(directory: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(directory).map_err(Error::io("read the size of", directory))?;
    Ok((stat.f_blocks * stat.f_frsize / 5 / GIB).clamp(5, 30) * GIB)
}

/// Removes files below `files` and mounts on directories below `mounts` that belong to no pool of these names.
///
/// # Errors
/// What cannot be listed.
pub fn sweep(files: &Path, mounts: &Path, names: &HashSet<String>) -> Result<()> {
    for entry in fs::read_dir(mounts).map_err(|e| Error::io("list", mounts)(errno(&e)))?.flatten() {
        if !entry.file_name().to_str().is_some_and(|name| names.contains(name)) {
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            while unmount(entry.path(), flags).is_ok() {}
            zfs::unmount_all(&entry.path());
            // Not if there is something in it.
            let _ = fs::remove_dir(entry.path());
        }
    }
    for entry in fs::read_dir(files).map_err(|e| Error::io("list", files)(errno(&e)))?.flatten() {
        let name = entry.file_name();
        let pool = name.to_str().and_then(|name| name.strip_suffix(".img"));
        if pool.is_some_and(|pool| !names.contains(pool))
            && let Err(error) = zfs::destroy_on(&entry.path()).and_then(|()| remove_file(&entry.path()))
        {
            tracing::warn!(%error, file = %entry.path().display(), "a file that belongs to no storage pool stays");
        }
    }
    Ok(())
}

/// A path that is to be one of a block device.
pub(super) fn block_device(source: &str) -> Result<PathBuf> {
    match fs::metadata(source) {
        Ok(meta) if meta.file_type().is_block_device() => Ok(source.into()),
        Ok(_) => Err(Error::Backing(format!("{source} is no block device"))),
        Err(error) => Err(Error::Backing(format!("{source} cannot be used: {error}"))),
    }
}

/// Makes a file of holes. One that is there belongs to no pool.
pub(super) fn make_file(path: &Path, size: u64) -> Result<()> {
    let failed = |e: io::Error| Error::io("create", path)(errno(&e));
    remove_file(path)?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.set_len(size).map_err(failed)
}

/// Removes a file that may be gone.
pub(super) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(errno(&error))),
        _ => Ok(()),
    }
}

/// Makes a file larger with a hole at its end.
pub(super) fn enlarge(path: &Path, file: &File, size: u64) -> Result<()> {
    let failed = |e: io::Error| Error::io("enlarge", path)(errno(&e));
    if size < file.metadata().map_err(failed)?.len() {
        return Err(Error::Backing("a storage pool cannot be made smaller".into()));
    }
    file.set_len(size).map_err(failed)
}

/// A device holds something that a program would not overwrite.
pub(super) fn not_empty(path: &Path, said: &str) -> Error {
    Error::Backing(format!(
        "{} is not empty ({said}): give another device, or source.wipe=true to lose what is on it",
        path.display()
    ))
}

fn format(path: &Path, id: Uuid, force: bool) -> Result<()> {
    let id = id.to_string();
    let mut arguments = vec!["--quiet".as_ref(), "--nodiscard".as_ref(), "--uuid".as_ref(), id.as_ref()];
    if force {
        arguments.push("--force".as_ref());
    }
    arguments.push(path.as_os_str());
    let output = MKFS_BTRFS.run_blocking(&arguments).map_err(|error| Error::Backing(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = format!("{}: {}", MKFS_BTRFS.name, complaint(&output).replace("ERROR: ", ""));
    if said.contains("existing filesystem") || said.contains("partition table") {
        return Err(not_empty(path, &said));
    }
    Err(Error::Backing(said))
}

/// Whether the filesystem of this UUID is what a directory shows.
fn is_mounted(place: &Path, id: Uuid) -> bool {
    let Ok(fd) = directory::open(place) else { return false };
    btrfs::filesystem_id(fd.as_fd()).is_ok_and(|found| found == *id.as_bytes())
}

/// The UUID of the btrfs filesystem on a file or device; none where there is no such.
fn read_id(file: &File) -> io::Result<Option<Uuid>> {
    let mut block = [0; 4096];
    match file.read_exact_at(&mut block, SUPERBLOCK) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let (at, magic) = SUPERBLOCK_MAGIC;
    let id = Uuid::from_slice(&block[SUPERBLOCK_ID..SUPERBLOCK_ID + 16]).ok();
    Ok(id.filter(|_| block[at..].starts_with(magic)))
}

fn require_id(path: &Path, file: &File, id: Uuid) -> Result<()> {
    match read_id(file).map_err(|e| Error::io("read", path)(errno(&e)))? {
        Some(found) if found == id => Ok(()),
        _ => Err(Error::Backing(format!("{} does not hold the filesystem {id} of this pool", path.display()))),
    }
}

/// The device with the filesystem of this UUID: the one of the name that it had, or the one that udev has found.
fn find_device(path: &Path, id: Uuid) -> Result<PathBuf> {
    let holds = |path: &Path| File::open(path).and_then(|file| read_id(&file)).is_ok_and(|found| found == Some(id));
    let by_id = PathBuf::from(format!("/dev/disk/by-uuid/{id}"));
    [path, &by_id].into_iter().find(|path| holds(path)).map(Path::to_owned).ok_or_else(|| {
        Error::Backing(format!("neither {} nor any other device holds the filesystem {id}", path.display()))
    })
}

/// The loop device over a file, if there is one.
fn loop_over(file: &File) -> io::Result<Option<(OwnedFd, PathBuf)>> {
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        let path = Path::new("/dev").join(&name);
        if name.to_string_lossy().starts_with("loop")
            && let Ok(Some(device)) = loop_device::open_over(&path, file)
        {
            return Ok(Some((device, path)));
        }
    }
    Ok(None)
}
