//! Short-lived helpers that change the mounts of a running container from within, with the powers of its own root and
//! no more: whatever paths the container arranges, they resolve within it.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use duet_sys::mount::{self, Change};
use duet_sys::process::{self, Namespaces};

use super::link::{Link, Report};
use super::{mounts, paths};
use crate::step::{Step, StepError};

/// What to do.
#[derive(Debug)]
pub(crate) enum Action {
    /// Take the mount of this name from the hot plug directory to the target.
    Attach { name: String, target: PathBuf, recursive: bool },
    /// Undo the mount at the target.
    Detach { target: PathBuf },
    /// Bind a device node in /dev to a target elsewhere.
    BindNode { node: PathBuf, target: PathBuf },
}

/// Does it and ends the process.
pub(crate) fn run(link: &Link, init: BorrowedFd<'_>, namespaces: Namespaces, action: &Action) -> ! {
    let report = match perform(init, namespaces, action) {
        Ok(()) => Report::Done,
        Err(error) => Report::Failed(error),
    };
    // If the monitor is gone there is nobody to tell.
    let _ = link.send(&report, &[]);
    process::exit_now(0)
}

fn perform(init: BorrowedFd<'_>, namespaces: Namespaces, action: &Action) -> Result<(), StepError> {
    process::enter(init, namespaces).step("join the container")?;
    super::become_user(0, 0)?;
    super::reset_process();
    let root = super::open_root()?;
    match action {
        Action::Attach { name, target, recursive } => {
            let source = Path::new(mounts::HOTPLUG_DIR).join(name);
            let source = paths::open(&root, &source).step("find the new mount in /dev/.duet-mounts")?;
            let clone = mount::clone_tree(source, Path::new(""), *recursive).step("clone the new mount")?;
            let private = Change { propagation: libc::MS_PRIVATE, recursive: true, ..Change::default() };
            mount::change(&clone, private).step("cut the new mount off")?;
            let kind = paths::kind_of(&clone).step("look at the new mount")?;
            let target_fd = paths::open_or_make(&root, target, kind).step_at("make", target)?;
            mount::attach(clone, target_fd).step_at("mount", target)
        }
        Action::Detach { target } => paths::unmount(&root, target).step_at("unmount", target),
        Action::BindNode { node, target } => {
            use std::os::fd::AsFd;
            mounts::bind_node(root.as_fd(), node, target).step_at("bind the device", target)
        }
    }
}
