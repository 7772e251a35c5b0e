//! What a virtual machine boots: a kernel, the initramfs made for it, and its modules.
//!
//! What is made for a kernel is kept, in a directory of the state directory whose name follows from all that it was made
//! of. Directories of kernels and agents that are gone are removed when another is made.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use duet_agent::initramfs;
use duet_agent::kernel::{self, Kernel};
use duet_agent::setup::Setup;
use duet_images::Observer;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::app::App;
use crate::error::{Context, Error, Result, blocking};
use crate::storage::Fingerprint;

/// The kernel's command line: where the root is, that interfaces keep the names that containers' have, that there are
/// modules to be had, and few words.
pub const COMMAND_LINE: &str = "duet.root=serial:duet-root rw rootfstype=ext4 net.ifnames=0 duet.modules quiet";

/// What a machine boots.
pub struct Boot {
    /// The kernel.
    pub kernel: File,
    /// The initramfs, with what this start is told.
    pub initrd: OwnedFd,
    /// A disk with the kernel's modules.
    pub modules: Option<File>,
}

/// Opens what a machine boots, after making what is not there yet.
///
/// # Errors
/// Where there is no kernel, or the initramfs cannot be made.
pub async fn prepare(app: &App, setup: Setup) -> Result<Boot> {
    let _turn = app.machines.preparing.lock().await;
    let chosen = app.inventory.server_config()?.get("core.vm_kernel").filter(|path| !path.is_empty()).cloned();
    let agent = app.machines.programs().agent()?;
    let kept = app.paths.kernels();
    blocking(move || {
        let kernel = find(chosen.as_deref())?;
        let dir = kept.join(name_of(&kernel, &agent).doing("cannot look at the kernel")?.as_str());
        if !dir.is_dir() {
            make(&kernel, &agent, &kept, &dir)?;
        }
        let initrd = tell(&dir.join("initrd"), &setup).doing("cannot put the initramfs together")?;
        let modules = File::open(dir.join("modules.raw")).doing("cannot open the kernel's modules")?;
        Ok::<_, Error>(Boot { kernel: kernel.image, initrd, modules: Some(modules) })
    })
    .await
}

/// The kernel that is configured, else the newest of the host.
fn find(chosen: Option<&str>) -> Result<Kernel> {
    if let Some(path) = chosen {
        return kernel::at(Path::new(path)).map_err(|e| Error::invalid(format!("core.vm_kernel: {e}")));
    }
    let found = kernel::find(&open_root()?).map_err(|e| Error::internal(format!("no kernel can be looked for: {e}")))?;
    found.ok_or_else(|| {
        Error::invalid(
            "virtual machines need a kernel and the host has none in /boot with its modules in /lib/modules: install the \
             package linux-image-cloud-amd64 or linux-image-amd64, or name a kernel with \"duet config set \
             core.vm_kernel=/path/to/vmlinuz\"",
        )
    })
}

/// The root that kernels are below.
fn open_root() -> Result<File> {
    File::open("/").doing("cannot open the host's root")
}

/// A name that follows from all that is made for a kernel.
fn name_of(kernel: &Kernel, agent: &Path) -> io::Result<Fingerprint> {
    let stamp = |meta: std::fs::Metadata| format!("{} {} {}.{}", meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec());
    let image = stamp(kernel.image.metadata()?);
    let agent = stamp(std::fs::metadata(agent)?);
    Ok(Fingerprint::of(&format!("duet kernel 1\n{}\n{}\n{image}\n{agent}\n", crate::VERSION, kernel.release)))
}

fn make(kernel: &Kernel, agent: &Path, kept: &Path, dir: &Path) -> Result<()> {
    let stage = tempfile::Builder::new().prefix("new-").tempdir_in(kept).doing("cannot make a directory for a kernel")?;
    let agent = std::fs::read(agent).doing(format_args!("cannot read {}", agent.display()))?;
    let initrd = File::create(stage.path().join("initrd")).doing("cannot make the initramfs")?;
    initramfs::write(&agent, &open_root()?, &kernel.modules, "ext4", io::BufWriter::new(&initrd))
        .doing(format_args!("no initramfs can be made for the kernel {}", kernel.release))?;
    initrd.sync_all().doing("cannot flush the initramfs")?;
    // By its descriptor, since the directory's path is below a root.
    let modules = open_modules(kernel)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&modules)));
    let size = tree_size(&path).doing("cannot look at the kernel's modules")?;
    // Blocks, inodes and a journal come on top.
    let size = (size + size / 4 + (64 << 20)).next_multiple_of(1 << 20);
    duet_images::disk::make_disk(&path, &stage.path().join("modules.raw"), size, &mut Observer::none())
        .doing("cannot make a disk of the kernel's modules")?;
    forget_others(kept, stage.path());
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

/// Removes what was made for other kernels. What machines have open stays with them.
fn forget_others(kept: &Path, stage: &Path) {
    let entries = std::fs::read_dir(kept).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.path() != stage) {
        if let Err(error) = std::fs::remove_dir_all(entry.path()) {
            tracing::warn!(%error, path = %entry.path().display(), "what was made for another kernel stays behind");
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

