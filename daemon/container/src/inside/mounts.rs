//! Init's mount namespace: from the stage that the monitor set to the tree that the container sees.
//!
//! Init starts on the monitor's stage (see [`crate::monitor::stage`]), a small mount namespace of the host's. Splitting
//! its own copy off crosses into the container's user namespace, at which the kernel locks every attribute of every
//! mount (mount_namespaces(7), "Restrictions on mount namespaces"): from here on nobody in the container can make the
//! root honour device nodes, or a read-only disk writable. Clones of locked mounts keep their locked attributes, but can
//! be moved and unmounted; clones are what the tree is built of.
//!
//! proc, sysfs, cgroup2, devpts and mqueue belong to the container's namespaces and are therefore made here. A user
//! namespace may mount proc and sysfs only where it already sees a whole one; the stage has both for that reason.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use duet_sys::mount::{self, Change, NODEV, NOEXEC, NOSUID, RDONLY};
use duet_sys::pty::{self, Pty};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::mount::UnmountFlags;
use rustix::thread::UnshareFlags;

use super::files;
use super::paths::{self, Kind};
use crate::confine;
use crate::monitor::stage;
use crate::spec::ContainerSpec;
use crate::step::{Step, StepError};

/// Where a new mount for hot plug shows up in the container.
pub(crate) const HOTPLUG_DIR: &str = "/dev/.duet-mounts";

/// Where the nodes of devices lie whose target is not below /dev.
pub(crate) const NODES_DIR: &str = ".duet-nodes";

/// What the monitor keeps of the container's mounts.
pub(crate) struct Built {
    /// The console.
    pub console: Pty,
    /// The root directory of the container's devpts instance.
    pub devpts: OwnedFd,
}

/// Leaves the stage for a mount namespace of its own and builds the container's tree there.
pub(crate) fn build(spec: &ContainerSpec) -> Result<Built, StepError> {
    // SAFETY: the process has a single thread, and no descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.step("make the mount namespace")?;
    let downstream = Change { propagation: libc::MS_SLAVE, recursive: true, ..Change::default() };
    mount::change_at(CWD, c"/", downstream).step("cut the mount namespace off")?;
    let stage = super::open_root()?;

    let root = mount::clone_tree(&stage, Path::new(stage::ROOT), false).step("clone the root filesystem")?;
    mount::attach_at(&root, &stage, stage::NEW_ROOT).step("attach the root filesystem")?;
    rustix::process::fchdir(&root).step("enter the root filesystem")?;
    // The old root comes to lie over the new one and is reached by `stage` until it is detached below.
    rustix::process::pivot_root(c".", c".").step("change the root")?;

    let tree = Tree { root, stage };
    files::write(&tree.root, &spec.files)?;
    let built = tree.mount_system(spec)?;
    tree.mount_specified(spec)?;
    tree.protect(spec)?;

    rustix::process::fchdir(&tree.stage).step("return to the stage")?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH).step("leave the stage")?;
    rustix::process::chdir(c"/").step("enter the root directory")?;
    Ok(built)
}

/// The tree while it is built.
struct Tree {
    root: OwnedFd,
    stage: OwnedFd,
}

impl Tree {
    /// Attaches a mount at a path of the container, making the path if need be.
    fn attach(&self, mount: BorrowedFd<'_>, target: &Path, kind: Kind) -> io::Result<()> {
        mount::attach(mount, paths::open_or_make(&self.root, target, kind)?)
    }

    fn mount_new(
        &self,
        kind: &str,
        target: &str,
        options: &[(&str, Option<&str>)],
        attributes: u64,
    ) -> Result<OwnedFd, StepError> {
        let new = || {
            let mount = mount::new_filesystem(kind, options, attributes)?;
            self.attach(mount.as_fd(), Path::new(target), Kind::Directory)?;
            Ok::<_, io::Error>(mount)
        };
        new().step_at("mount", &target)
    }

    fn mount_system(&self, spec: &ContainerSpec) -> Result<Built, StepError> {
        let strict = NOSUID | NODEV | NOEXEC;
        self.mount_new("proc", "/proc", &[], strict)?;
        // Read-only: units that manage the host's hardware (udev) take that as the sign to stay away.
        self.mount_new("sysfs", "/sys", &[], strict | RDONLY)?;
        self.mount_new("cgroup2", "/sys/fs/cgroup", &[], strict)?;

        let dev = mount::clone_tree(&self.stage, Path::new(stage::DEV), false).step("clone /dev")?;
        self.attach(dev.as_fd(), Path::new("/dev"), Kind::Directory).step("mount /dev")?;
        let options = [("gid", Some("5")), ("mode", Some("620")), ("ptmxmode", Some("666")), ("max", Some("1024"))];
        let devpts = self.mount_new("devpts", "/dev/pts", &options, NOSUID | NOEXEC)?;
        let shm = self.mount_new("tmpfs", "/dev/shm", &[("mode", Some("1777"))], NOSUID | NODEV)?;
        self.give_boot_id(&shm).step("give the container a boot id")?;
        self.mount_new("mqueue", "/dev/mqueue", &[], strict)?;
        let hotplug =
            mount::clone_tree(&self.stage, Path::new(stage::HOTPLUG), false).step("clone the hot plug directory")?;
        self.attach(hotplug.as_fd(), Path::new(HOTPLUG_DIR), Kind::Directory).step("mount the hot plug directory")?;
        if spec.nesting {
            self.mount_new("proc", "/dev/.lxc/proc", &[], strict)?;
            self.mount_new("sysfs", "/dev/.lxc/sys", &[], strict)?;
        }
        let console = self.make_console(&devpts).step("make the console")?;
        Ok(Built { console, devpts })
    }

    /// Covers the host's boot id (random(4), "/proc interfaces") by a fresh one: journald tells the boots of a machine
    /// apart by it. The file is made in `holder`, where no path leads to it any more afterwards.
    fn give_boot_id(&self, holder: &OwnedFd) -> io::Result<()> {
        let Some(target) = if_exists(paths::open(&self.root, Path::new("/proc/sys/kernel/random/boot_id")))? else {
            return Ok(());
        };
        let id = paths::read(&self.root, Path::new("/proc/sys/kernel/random/uuid"))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(holder, c"boot-id", flags, Mode::from_raw_mode(0o444))?;
        rustix::io::write(&file, &id)?;
        let cover = mount::clone_tree(&file, Path::new(""), false)?;
        mount::change(&cover, Change { set: NOSUID | NODEV | NOEXEC | RDONLY, ..Change::default() })?;
        mount::attach(cover, target)?;
        Ok(rustix::fs::unlinkat(holder, c"boot-id", AtFlags::empty())?)
    }

    fn make_console(&self, devpts: &OwnedFd) -> io::Result<Pty> {
        let console = pty::open(devpts)?;
        let node = mount::clone_tree(&console.slave, Path::new(""), false)?;
        self.attach(node.as_fd(), Path::new("/dev/console"), Kind::File)?;
        Ok(console)
    }

    fn mount_specified(&self, spec: &ContainerSpec) -> Result<(), StepError> {
        for (index, wanted) in spec.mounts.iter().enumerate() {
            let staged = stage::mount_path(index);
            let bind = || {
                let Some(mount) = if_exists(mount::clone_tree(&self.stage, &staged, wanted.recursive))? else {
                    return Ok(());
                };
                self.attach(mount.as_fd(), &wanted.target, paths::kind_of(&mount)?)
            };
            bind().step_at("mount", &wanted.target)?;
        }
        for (index, device) in spec.devices.iter().enumerate() {
            let node = Path::new("/dev").join(NODES_DIR).join(index.to_string());
            bind_node(self.root.as_fd(), &node, &device.target).step_at("bind the device", &device.target)?;
        }
        Ok(())
    }

    /// Hides and write-protects parts of /proc and /sys.
    fn protect(&self, spec: &ContainerSpec) -> Result<(), StepError> {
        let privileged = spec.idmap.is_none();
        let masked = spec.masked_paths.clone().unwrap_or_else(|| confine::default_masked_paths(privileged));
        for path in &masked {
            self.mask(path).step_at("hide", path)?;
        }
        let read_only = spec.read_only_paths.clone().unwrap_or_else(|| confine::default_read_only_paths(privileged));
        for path in &read_only {
            self.make_read_only(path).step_at("write-protect", path)?;
        }
        Ok(())
    }

    fn mask(&self, path: &Path) -> io::Result<()> {
        let Some(target) = if_exists(paths::open(&self.root, path))? else { return Ok(()) };
        let cover = match paths::kind_of(&target)? {
            Kind::File => mount::clone_tree(paths::open(&self.root, Path::new("/dev/null"))?, Path::new(""), false)?,
            Kind::Directory => {
                mount::new_filesystem("tmpfs", &[("size", Some("4k"))], NOSUID | NODEV | NOEXEC | RDONLY)?
            }
        };
        mount::attach(cover, target)
    }

    fn make_read_only(&self, path: &Path) -> io::Result<()> {
        let Some(target) = if_exists(paths::open(&self.root, path))? else { return Ok(()) };
        let clone = mount::clone_tree(&target, Path::new(""), true)?;
        mount::change(&clone, Change { set: RDONLY, recursive: true, ..Change::default() })?;
        mount::attach(clone, target)
    }
}

/// Binds a device node that lies in the container's /dev to a target elsewhere; does nothing if there is no such node
/// (the target is below /dev and is the node itself).
pub(crate) fn bind_node(root: BorrowedFd<'_>, node: &Path, target: &Path) -> io::Result<()> {
    let Some(node) = if_exists(paths::open(root, node))? else { return Ok(()) };
    let clone = mount::clone_tree(node, Path::new(""), false)?;
    mount::attach(clone, paths::open_or_make(root, target, Kind::File)?)
}

/// Sets sysctls. The names come with dots, as for sysctl(8), or with slashes.
pub(crate) fn set_sysctls(spec: &ContainerSpec) -> Result<(), StepError> {
    for (name, value) in &spec.sysctls {
        let file = if name.contains('/') { name.clone() } else { name.replace('.', "/") };
        let write = || {
            let path = CString::new(
                PathBuf::from("/proc/sys").join(file.trim_start_matches('/')).into_os_string().into_encoded_bytes(),
            )?;
            let file = rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            rustix::io::write(file, value.as_bytes())?;
            Ok::<_, io::Error>(())
        };
        write().step_at("set the sysctl", name)?;
    }
    Ok(())
}

fn if_exists<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
