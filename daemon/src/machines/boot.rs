//! What a virtual machine boots: a kernel, the initramfs made for it, and its modules.
//!
//! What is made for a kernel is kept, in a directory of the state directory whose name follows from all that it was made
//! of. The oldest go when there are many.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use duet_agent::initramfs;
use duet_agent::kernel::{self, Kernel};
use duet_agent::setup::Setup;
use duet_agent::tree::{Ext4Disk, Tree};
use duet_images::Observer;
use duet_vmm::image::Image;
use ext4_view::Ext4Read;
use rustix::fs::{MemfdFlags, memfd_create};

use super::disk::Disk;
use crate::app::App;
use crate::error::{Context, Error, Result, blocking};
use crate::storage::Fingerprint;

/// The kernel's command line: where the root is, that interfaces keep the names that containers' have, that there are
/// modules to be had, and few words.
pub const COMMAND_LINE: &str = "duet.root=serial:duet-root rw rootfstype=ext4 net.ifnames=0 duet.modules quiet";
/// The same for a machine that serves a disk and runs nothing of it.
pub const SERVING: &str = "duet.root=serial:duet-root rw rootfstype=ext4 duet.serve quiet";
/// For so many kernels what was made is kept; a machine of another one waits for that again.
const MOST_KEPT: usize = 8;

/// The name of the disk with a kernel's modules, among what is kept.
const MODULES: &str = "modules.raw";

/// What a machine boots.
pub struct Boot {
    /// The kernel.
    pub kernel: File,
    /// The initramfs, with what this start is told.
    pub initrd: OwnedFd,
    /// A disk with the kernel's modules, where the root has none of its own.
    pub modules: Option<File>,
}

/// Opens what a machine with this root disk boots, after making what is not there yet: the newest kernel on the disk, else
/// the one that is configured, else the newest of the host.
///
/// # Errors
/// Where there is no kernel, or the initramfs cannot be made.
pub async fn prepare(app: &App, disk: Disk, setup: Setup) -> Result<(Disk, Boot)> {
    let chosen = app.inventory.server_config()?.get("core.vm_kernel").filter(|path| !path.is_empty()).cloned();
    let agent = app.machines.programs().agent()?;
    let app = app.clone();
    blocking(move || {
        let kept = app.paths.kernels();
        let (kernel, own) = match on_disk(&disk) {
            Ok(Some((kernel, tree))) => (kernel, Some(tree)),
            Ok(None) => (find(chosen.as_deref())?, None),
            Err(error) => {
                tracing::warn!(%error, "no kernel can be looked for on a virtual machine's disk: it gets the host's");
                (find(chosen.as_deref())?, None)
            }
        };
        let host = open_root()?;
        let tree: &dyn Tree = own.as_ref().map_or(&host, |tree| tree);
        let name = name_of(&kernel, own.is_some(), &agent).doing("cannot look at the kernel")?;
        let dir = kept.join(name.as_str());
        // One at a time, and who waited finds it made.
        let turn = app.machines.preparing.lock().unwrap_or_else(PoisonError::into_inner);
        if !dir.is_dir() {
            make(&kernel, tree, own.is_none(), &agent, &kept, &dir)?;
        }
        drop(turn);
        let initrd = tell(&dir.join("initrd"), &setup)?;
        let modules = match own {
            Some(_) => None,
            None => Some(File::open(dir.join(MODULES)).doing("cannot open the kernel's modules")?),
        };
        Ok::<_, Error>((disk, Boot { kernel: kernel.image, initrd, modules }))
    })
    .await
}

/// The newest kernel on a machine's own disk. Nobody writes to that.
fn on_disk(disk: &Disk) -> std::result::Result<Option<(Kernel, Ext4Disk)>, String> {
    let layers =
        disk.0.iter().map(|layer| Ok(duet_vmm::image::Layer { file: layer.file.try_clone()?, format: layer.format }));
    let layers = layers.collect::<io::Result<_>>().map_err(|e| e.to_string())?;
    let (image, size) = Image::open(layers, true).map_err(|e| e.to_string())?;
    let tree = Ext4Disk::open(Box::new(Reader { image, size })).map_err(|e| e.to_string())?;
    let found = kernel::find(&tree).map_err(|e| e.to_string())?;
    Ok(found.map(|kernel| (kernel, tree)))
}

/// A disk of layers, as it is read.
struct Reader {
    image: Image,
    size: u64,
}

impl Ext4Read for Reader {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        let end = start_byte.checked_add(dst.len() as u64).filter(|end| *end <= self.size);
        end.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        Ok(self.image.read_own(dst, start_byte)?)
    }
}

/// The kernel that is configured, else the newest of the host.
fn find(chosen: Option<&str>) -> Result<Kernel> {
    if let Some(path) = chosen {
        return kernel::at(Path::new(path)).map_err(|e| Error::invalid(format!("core.vm_kernel: {e}")));
    }
    let found = kernel::find(&open_root()?);
    let found = found.map_err(|e| Error::internal(format!("no kernel can be looked for: {e}")))?;
    found.ok_or_else(|| {
        Error::invalid(
            "virtual machines need a kernel, and there is none in the image nor, with its modules, on the host: install the \
             package linux-image-cloud-amd64 or linux-image-amd64, or name a kernel with \"duet config set \
             core.vm_kernel=/path/to/vmlinuz\"",
        )
    })
}

/// The root that the host's kernels are below.
fn open_root() -> Result<File> {
    File::open("/").doing("cannot open the host's root")
}

/// A name that follows from all that is made for a kernel: of the host's from when its files were written, of one that a
/// guest has from what is in it.
fn name_of(kernel: &Kernel, own: bool, agent: &Path) -> io::Result<Fingerprint> {
    let stamp =
        |meta: std::fs::Metadata| format!("{} {} {}.{}", meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec());
    let image = if own {
        let mut file = &kernel.image;
        let mut hash = duet_images::HashingWriter::new(io::sink());
        file.rewind()?;
        io::copy(&mut file, &mut hash)?;
        file.rewind()?;
        hash.finish()?.1
    } else {
        stamp(kernel.image.metadata()?)
    };
    let agent = stamp(std::fs::metadata(agent)?);
    let (release, version) = (&kernel.release, crate::VERSION);
    Ok(Fingerprint::of(&format!("duet kernel 1\n{version}\n{release}\n{own}\n{image}\n{agent}\n")))
}

fn make(kernel: &Kernel, tree: &dyn Tree, with_modules: bool, agent: &Path, kept: &Path, dir: &Path) -> Result<()> {
    let stage =
        tempfile::Builder::new().prefix("new-").tempdir_in(kept).doing("cannot make a directory for a kernel")?;
    let agent = std::fs::read(agent).doing(format_args!("cannot read {}", agent.display()))?;
    let initrd = File::create(stage.path().join("initrd")).doing("cannot make the initramfs")?;
    initramfs::write(&agent, tree, &kernel.modules, "ext4", io::BufWriter::new(&initrd))
        .doing(format_args!("no initramfs can be made for the kernel {}", kernel.release))?;
    initrd.sync_all().doing("cannot flush the initramfs")?;
    if with_modules {
        // By its descriptor, since the directory's path is below a root.
        let modules = open_modules(kernel)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", modules.as_raw_fd()));
        let size = tree_size(&path).doing("cannot look at the kernel's modules")?;
        // Blocks, inodes and a journal come on top.
        let size = (size + size / 4 + (64 << 20)).next_multiple_of(1 << 20);
        duet_images::disk::make_disk(&path, &stage.path().join(MODULES), size, &mut Observer::none())
            .doing("cannot make a disk of the kernel's modules")?;
    }
    forget_oldest(kept);
    std::fs::rename(stage.path(), dir).doing("cannot keep what was made for the kernel")?;
    drop(stage.keep());
    Ok(())
}

fn open_modules(kernel: &Kernel) -> Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    openat2(open_root()?, &kernel.modules, flags, Mode::empty(), ResolveFlags::IN_ROOT)
        .doing(format_args!("cannot open the modules of the kernel {}", kernel.release))
}

/// Bytes of all files below a directory, each rounded up to blocks.
fn tree_size(dir: &Path) -> io::Result<u64> {
    let mut size = 0;
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                dirs.push(entry.path());
            }
            if kind.is_file() {
                size += entry.metadata()?.len().next_multiple_of(4096);
            }
        }
    }
    Ok(size)
}

/// Makes room among what is kept. What machines have open stays with them.
fn forget_oldest(kept: &Path) {
    let entries = std::fs::read_dir(kept).into_iter().flatten().flatten();
    let made = |entry: &std::fs::DirEntry| entry.metadata().and_then(|meta| meta.modified()).ok();
    let mut all: Vec<_> = entries.filter_map(|entry| Some((made(&entry)?, entry.path()))).collect();
    all.sort();
    // The one that is being made is the newest.
    for (_, old) in all.iter().rev().skip(MOST_KEPT) {
        if let Err(error) = std::fs::remove_dir_all(old) {
            tracing::warn!(%error, path = %old.display(), "what was made for another kernel stays behind");
        }
    }
}

/// The initramfs with what one start is told behind it, in memory.
fn tell(initrd: &Path, setup: &Setup) -> Result<OwnedFd> {
    const DOING: &str = "cannot put the initramfs together";
    let memory = memfd_create("initrd", MemfdFlags::CLOEXEC).doing(DOING)?;
    let mut whole = File::from(memory);
    io::copy(&mut File::open(initrd).doing(DOING)?, &mut whole).doing(DOING)?;
    let mut end = io::BufWriter::new(&whole);
    initramfs::append_setup(setup, &mut end).doing(DOING)?;
    end.flush().doing(DOING)?;
    drop(end);
    whole.rewind().doing(DOING)?;
    Ok(whole.into())
}
