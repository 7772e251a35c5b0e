//! What needs mounts that are attached somewhere: in a mount namespace that lives as long as one thread.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use duet_sys::mount::{self, Change};
use rustix::fs::{CWD, Mode};
use rustix::mount::{FsOpenFlags, fsconfig_set_string, fsopen};
use rustix::thread::UnshareFlags;

use super::{Layers, RootError, assume_owner, create, overlay_error};

/// Does what [`super::stack_detached`] does, for kernels that want the layers attached.
pub(super) fn stack(layers: &Layers, shifted: bool, attributes: u64) -> Result<OwnedFd, RootError> {
    let failed = |step, source| RootError::Overlay { step, source };
    privately(failed, || stack_here(layers, shifted, attributes))
}

/// A directory at the top of a filesystem, as a detached mount. Kernels before 6.15 clone nothing but what is attached.
pub(super) fn directory_in(kind: &str, source: &Path, directory: &Path) -> Result<OwnedFd, RootError> {
    let failed = |step, error| RootError::Mount { filesystem: source.to_owned(), step, source: error };
    privately(failed, || {
        let filesystem = mount::block_filesystem(kind, source, &[]).map_err(|e| failed("mount", e))?;
        mount::attach_at(&filesystem, CWD, c"/proc").map_err(|e| failed("attach", e))?;
        mount::clone_tree(&filesystem, directory, false)
            .map_err(|source_error| RootError::Layer { path: source.join(directory), source: source_error })
    })
}

/// Runs something on a thread with a mount namespace of its own.
fn privately<T: Send>(
    failed: impl Fn(&'static str, io::Error) -> RootError + Sync,
    work: impl FnOnce() -> Result<T, RootError> + Send,
) -> Result<T, RootError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("mounts".into())
            .stack_size(128 * 1024)
            .spawn_scoped(scope, || {
                leave_mounts().map_err(|(step, source)| failed(step, source))?;
                work()
            })
            .map_err(|source| failed("thread", source))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Gives the calling thread a mount namespace of its own, and so a working directory of its own.
fn leave_mounts() -> Result<(), (&'static str, io::Error)> {
    // SAFETY: only attributes of this thread are split off (CLONE_FS, CLONE_NEWNS); no descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }
        .map_err(|error| ("unshare", error.into()))?;
    let everything = Change { propagation: libc::MS_PRIVATE, recursive: true, ..Change::default() };
    mount::change_at(CWD, c"/", everything).map_err(|error| ("private mounts", error))
}

fn stack_here(layers: &Layers, shifted: bool, attributes: u64) -> Result<OwnedFd, RootError> {
    let io_error = |step| move |source: io::Error| RootError::Overlay { step, source };
    let scratch = mount::new_filesystem("tmpfs", &[("size", Some("64k"))], 0).map_err(io_error("scratch tmpfs"))?;
    mount::attach_at(&scratch, CWD, c"/proc").map_err(io_error("attach scratch"))?;
    rustix::process::fchdir(&scratch).map_err(overlay_error("chdir"))?;

    let _user = assume_owner(layers, shifted)?;
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(overlay_error("fsopen"))?;
    // Paths are relative and short: fsconfig(2) takes at most 255 bytes in one string.
    let mut names = Vec::new();
    for (index, layer) in layers.lower.iter().enumerate() {
        let name = index.to_string();
        attach_as(layer, &name).map_err(io_error("attach layer"))?;
        names.push(name);
    }
    fsconfig_set_string(&context, "lowerdir", names.join(":")).map_err(overlay_error("lowerdir"))?;
    if let Some(upper) = &layers.upper {
        attach_as(&upper.parent, "u").map_err(io_error("attach upper layer"))?;
        let below = |path: &Path| Path::new("u").join(path);
        fsconfig_set_string(&context, "upperdir", below(&upper.upper)).map_err(overlay_error("upperdir"))?;
        fsconfig_set_string(&context, "workdir", below(&upper.work)).map_err(overlay_error("workdir"))?;
    }
    create(context.as_fd(), layers.upper.is_some(), attributes)
}

fn attach_as(layer: &OwnedFd, name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    rustix::fs::mkdirat(CWD, &name, Mode::RWXU)?;
    mount::attach_at(layer, CWD, &name)
}
