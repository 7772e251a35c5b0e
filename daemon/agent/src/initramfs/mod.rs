//! Making the initramfs for a kernel, on the host.
//!
//! It is an uncompressed archive: the kernel copies it as fast as it could unpack one, and it is read from the host's page
//! cache. The same kernel and agent give the same bytes.
//!
//! The kernel's directory of modules lies in an image or an instance, whose owner may have put anything there. It is read as
//! [`crate::tree`] does, and all sizes are bounded. What is in the modules is for the guest's kernel to judge.

mod cpio;
mod elf;
mod modules;
mod source;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::init::{MODULE_LIST, MODULES, NEW_ROOT};
use crate::setup::{SETUP, Setup};
use crate::tree::Tree;
use cpio::Archive;
use modules::Modules;
pub(crate) use source::MAX_LIST;
use source::Source;

/// Modules without which there is no root.
const NEEDED: [&str; 2] = ["virtio_pci", "virtio_blk"];
/// Modules for the devices of a machine, where the kernel has them. The first is for ext4, which looks for its checksum by
/// an alias that takes modprobe(8).
const WANTED: [&str; 7] = [
    "crc32c_generic",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
    "virtio_mmio",
];
/// The most modules, those that others depend on included.
const MAX_MODULES: usize = 64;
/// The most bytes of all modules, unpacked.
const MAX_TOTAL: usize = 128 << 20;
/// The most bytes of the agent.
const MAX_AGENT: usize = 64 << 20;

/// Why an initramfs cannot be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are the path in question, and the messages say the rest")]
pub enum InitramfsError {
    /// A file of the kernel's cannot be read.
    #[error("{path:?} of the kernel cannot be read: {source}")]
    Read { path: PathBuf, source: io::Error },
    /// A file of the kernel's is larger than any is.
    #[error("{path:?} of the kernel is larger than {limit} bytes")]
    TooLarge { path: PathBuf, limit: u64 },
    /// The modules are more than fit.
    #[error("the modules that the kernel needs for its root are too many")]
    TooMany,
    /// The kernel cannot be used.
    #[error("the kernel has no {0}, neither built in nor as a module: it cannot reach its root")]
    Missing(String),
    /// The agent cannot run before there are libraries.
    #[error(
        "the agent's program is not a statically linked one for this kind of processor: it cannot be the first program"
    )]
    Agent,
    /// The archive cannot be written.
    #[error("the initramfs cannot be written: {0}")]
    Write(#[from] io::Error),
}

/// Writes an initramfs: the agent's program, and the modules of the kernel whose directory is `modules` below `root`, such as
/// `lib/modules/6.12.48+deb13-amd64`. `filesystem` is the root's, a module's name such as `ext4`. Returns the names of the
/// modules in the order in which they will be loaded.
///
/// # Errors
/// [`InitramfsError`].
pub fn write(
    agent: &[u8],
    root: &dyn Tree,
    modules: &Path,
    filesystem: &str,
    out: impl Write,
) -> Result<Vec<String>, InitramfsError> {
    if agent.len() > MAX_AGENT || !elf::is_static(agent) {
        return Err(InitramfsError::Agent);
    }
    let source = Source::new(root, modules);
    let known = Modules::parse(&source.text("modules.dep")?, &source.text("modules.builtin")?);
    let chosen = choose(&known, filesystem)?;

    let mut archive = Archive::new(out);
    for dir in ["dev", "proc", "sys", NEW_ROOT.trim_start_matches('/'), MODULES.trim_start_matches('/')] {
        archive.directory(dir)?;
    }
    // The kernel opens the first as the standard descriptors of the first program, before that can mount anything.
    archive.device("dev/console", 5, 1)?;
    archive.device("dev/null", 1, 3)?;
    archive.file("init", 0o755, agent)?;
    let mut list = String::new();
    let mut total = 0;
    for (path, name) in &chosen {
        let bytes = source.module(path)?;
        total += bytes.len();
        if total > MAX_TOTAL {
            return Err(InitramfsError::TooMany);
        }
        archive.file(&format!("{}/{name}.ko", MODULES.trim_start_matches('/')), 0o644, &bytes)?;
        list.push_str(&format!("{name}.ko\n"));
    }
    archive.file(&format!("{}/{MODULE_LIST}", MODULES.trim_start_matches('/')), 0o644, list.as_bytes())?;
    archive.finish()?;
    Ok(chosen.into_iter().map(|(_, name)| name).collect())
}

/// Writes what one boot is told, as an archive of its own, to stand behind the kernel's initramfs: the kernel unpacks
/// archives that follow each other (Linux' Documentation/driver-api/early-userspace/buffer-format.rst).
///
/// # Errors
/// As the writer; a path that is no UTF-8 cannot be told either.
pub fn append_setup(setup: &Setup, out: impl Write) -> io::Result<()> {
    let mut archive = Archive::new(out);
    archive.file(SETUP.trim_start_matches('/'), 0o600, &serde_json::to_vec(setup)?)?;
    archive.finish()
}

/// The modules to take, those that others depend on first: their paths and names.
fn choose(known: &Modules, filesystem: &str) -> Result<Vec<(String, String)>, InitramfsError> {
    let mut chosen = Vec::new();
    for name in NEEDED.iter().chain(&WANTED).copied().chain([filesystem]) {
        let needed = NEEDED.contains(&name) || name == filesystem;
        if !known.choose(name, &mut chosen) && needed && !known.is_built_in(name) {
            return Err(InitramfsError::Missing(name.to_owned()));
        }
        if chosen.len() > MAX_MODULES {
            return Err(InitramfsError::TooMany);
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests;
