//! A virtual machine's disk: files in its volume.
//!
//! The volume of a virtual machine is one like a container's, on every kind of pool: layers over an image. Instead of a
//! root's files it holds `disk.0.raw`, the image's root as a filesystem, and over that `disk.1.qcow2`, `disk.2.qcow2` and
//! so on, each with what was changed since the one before. Because no two of a chain have the same name, all that pools
//! do with layers (freeze, copy, fold) does the right thing with them.
//!
//! The one with the highest number is written to. Where that lies in a layer that is frozen, another is begun in the
//! volume's own; where a layer is a whole filesystem, `disk.0.raw` itself is written to and there need never be another.
//!
//! The names are ours, but what is in the files is the guest's. They are opened with the format that the name says.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use duet_container::rootfs::{self, RootSource};
use duet_vmm::image::Format;
use duet_vmm::image::join::join;
use duet_vmm::image::make::{Backing, make};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, openat2, renameat, unlinkat};

use crate::error::{Context, Error, Result};

/// The name of the disk that an image is.
pub const BASE: &str = "disk.0.raw";
/// Above so many files they are joined before another is begun: each costs a guest's first access to a place a look-up, and
/// [`duet_vmm::image::MAX_LAYERS`] is the end.
const MOST_FILES: usize = 12;
/// The name of a new disk until it is whole.
const UNFINISHED: &str = "disk.new";

/// One file of a disk.
#[derive(Debug)]
pub struct Layer {
    /// Open for reading, the first one of a disk that is written to also for writing.
    pub file: File,
    /// Its format.
    pub format: Format,
}

/// A disk whose files are open: the topmost first.
#[derive(Debug)]
pub struct Disk(pub Vec<Layer>);

/// Opens a volume's disk for a machine that writes to it, with so many bytes at least. The volume is stopped.
///
/// # Errors
/// Where it cannot be mounted, has no disk, or the pool is full.
pub fn open(root: &RootSource, size: u64) -> Result<Disk> {
    let mount = rootfs::open_detached(root, None, false, true).doing("cannot mount the instance's volume")?;
    let numbers = Numbers::read(&mount)?;
    let mut top = numbers.top();
    let frozen = match root {
        RootSource::Overlay { upper: Some(upper), .. } => !upper.join(top.name()).exists(),
        _ => false,
    };
    let bytes = top.bytes(&mount)?;
    if frozen && numbers.0.len() > MOST_FILES {
        top = join_all(&mount, top)?;
    }
    if !frozen && top.format == Format::Raw && bytes < size {
        top.open(&mount, true)?.set_len(size).doing("cannot enlarge the instance's disk")?;
    } else if (frozen && numbers.top() == top) || bytes < size {
        top = begin(&mount, top, bytes, bytes.max(size))?;
    }
    layers(&mount, top, true)
}

/// Opens a disk of what is not written to any more.
///
/// # Errors
/// As [`open`].
pub fn open_read_only(root: &RootSource) -> Result<Disk> {
    let mount = rootfs::open_detached(root, None, true, true).doing("cannot mount the instance's volume")?;
    let top = Numbers::read(&mount)?.top();
    layers(&mount, top, false)
}

/// A disk's file by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Numbered {
    number: usize,
    format: Format,
}

impl Numbered {
    fn parse(name: &str) -> Option<Self> {
        let (number, format) = match name.strip_prefix("disk.")?.split_once('.')? {
            (number, "raw") => (number, Format::Raw),
            (number, "qcow2") => (number, Format::Qcow2),
            _ => return None,
        };
        let found = Self { number: number.parse().ok()?, format };
        (found.name() == name).then_some(found)
    }

    fn name(self) -> String {
        let ending = match self.format {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        };
        format!("disk.{}.{ending}", self.number)
    }

    fn open(self, mount: &OwnedFd, writable: bool) -> Result<File> {
        let access = if writable { OFlags::RDWR } else { OFlags::RDONLY };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let file = openat2(mount, self.name(), access | OFlags::CLOEXEC, Mode::empty(), resolve);
        file.map(File::from).doing(format_args!("cannot open {}, a file of the instance's disk", self.name()))
    }

    /// The size of the disk that this file is the top of.
    fn bytes(self, mount: &OwnedFd) -> Result<u64> {
        let file = self.open(mount, false)?;
        match self.format {
            Format::Raw => Ok(file.metadata()?.len()),
            Format::Qcow2 => {
                // docs/interop/qcow2.txt: bytes 24 to 31, big-endian.
                let mut size = [0; 8];
                file.read_exact_at(&mut size, 24).doing("cannot read the size of the instance's disk")?;
                Ok(u64::from_be_bytes(size))
            }
        }
    }
}

/// The disk's files, lowest first: without a gap, and at least one.
struct Numbers(Vec<Numbered>);

impl Numbers {
    fn read(mount: &OwnedFd) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(mount, ".", flags, Mode::empty()).doing("cannot look into the volume")?;
        let mut found = Vec::new();
        for entry in rustix::fs::Dir::new(dir).doing("cannot look into the volume")? {
            let entry = entry.doing("cannot look into the volume")?;
            found.extend(entry.file_name().to_str().ok().and_then(Numbered::parse));
        }
        found.sort_by_key(|file| file.number);
        let whole = found.iter().enumerate().all(|(number, file)| file.number == number);
        if found.is_empty() || !whole {
            return Err(Error::internal("the instance's volume holds no whole disk"));
        }
        Ok(Self(found))
    }

    fn top(&self) -> Numbered {
        self.0[self.0.len() - 1]
    }
}

/// Begins a file above `below`, empty so far.
fn begin(mount: &OwnedFd, below: Numbered, bytes: u64, size: u64) -> Result<Numbered> {
    let new = Numbered { number: below.number + 1, format: Format::Qcow2 };
    let backing = Backing { name: &below.name(), format: below.format, size: bytes };
    put(mount, new, |file| make(file, size, Some(backing)).map(drop))
        .doing("cannot begin a new layer of the instance's disk")?;
    Ok(new)
}

/// Joins all files above the lowest into one, in the place of the first of them. What lay above that is still right until
/// it is removed: it says the same once more.
fn join_all(mount: &OwnedFd, top: Numbered) -> Result<Numbered> {
    const DOING: &str = "cannot join the layers of the instance's disk";
    let Disk(files) = layers(mount, top, false)?;
    let files = files.into_iter().map(|file| duet_vmm::image::Layer { file: file.file, format: file.format }).collect();
    let joined = Numbered { number: 1, format: Format::Qcow2 };
    put(mount, joined, |file| join(files, file, BASE)).doing(DOING)?;
    for file in Numbers::read(mount)?.0.into_iter().skip(2).rev() {
        unlinkat(mount, file.name(), AtFlags::empty()).doing(DOING)?;
    }
    Ok(joined)
}

/// Makes a file of the disk's, which gets its name when it is whole and on the pool's own disk.
fn put(mount: &OwnedFd, file: Numbered, fill: impl FnOnce(File) -> io::Result<()>) -> io::Result<()> {
    match unlinkat(mount, UNFINISHED, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let new = File::from(rustix::fs::openat(mount, UNFINISHED, flags, Mode::RUSR | Mode::WUSR)?);
    fill(new.try_clone()?)?;
    new.sync_all()?;
    Ok(renameat(mount, UNFINISHED, mount, file.name())?)
}

fn layers(mount: &OwnedFd, top: Numbered, writable: bool) -> Result<Disk> {
    let mut layers = Vec::with_capacity(top.number + 1);
    for file in Numbers::read(mount)?.0.into_iter().rev() {
        layers.push(Layer { file: file.open(mount, writable && file == top)?, format: file.format });
    }
    Ok(Disk(layers))
}

/// The path of an image's disk in its directory.
pub fn base_in(image: &Path) -> std::path::PathBuf {
    image.join("rootfs").join(BASE)
}

impl Disk {
    /// All files.
    pub fn files(&self) -> impl Iterator<Item = std::os::fd::BorrowedFd<'_>> {
        self.0.iter().map(|layer| layer.file.as_fd())
    }
}
