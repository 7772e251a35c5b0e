//! What is left to QEMU of the host: its own program and data, read-only, no device but /dev/null, no network, no rights. duet-vmm
//! does the like by itself, further than a program of a distribution could be taken.

use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use duet_control::step::{Step, StepError};
use duet_sys::mount::{self, Change, NODEV, NOEXEC, NOSUID, RDONLY};
use duet_sys::process::Namespaces;
use rustix::fs::{CWD, Mode};
use rustix::mount::UnmountFlags;
use rustix::process::{Gid, Uid};

use crate::spec::UserSpec;

/// The namespaces that the process is made in, besides one of process ids.
pub(super) const NAMESPACES: Namespaces =
    Namespaces::MOUNT.and(Namespaces::NET).and(Namespaces::IPC).and(Namespaces::UTS);

/// Where programs and their libraries are. Where one is a symbolic link, it is made again.
const PROGRAMS: [&str; 7] = ["usr", "lib", "lib32", "lib64", "libx32", "bin", "sbin"];
/// Where the dynamic linker finds libraries that are in unusual places (ld.so(8)).
const LINKER_CACHE: &str = "/etc/ld.so.cache";

/// Leaves the host, for a root in which there is little, and becomes the user.
pub(super) fn enter(user: UserSpec) -> Result<(), StepError> {
    leave_host()?;
    become_user(user)
}

fn leave_host() -> Result<(), StepError> {
    let private = Change { propagation: libc::MS_PRIVATE, recursive: true, ..Change::default() };
    mount::change_at(CWD, c"/", private).step("cut the machine's mounts off")?;
    let trees = PROGRAMS.map(open_tree).into_iter().collect::<Result<Vec<_>, _>>()?;
    let cache = clone(Path::new(LINKER_CACHE)).ok();
    let null = mount::clone_tree(CWD, Path::new("/dev/null"), false).step("open /dev/null for the machine")?;
    let floor = mount::new_filesystem("tmpfs", &[("size", Some("64k")), ("mode", Some("755"))], NOSUID | NODEV)
        .step("make the machine's root")?;
    // Any directory will do, and this one is on each host.
    mount::attach_at(&floor, CWD, c"/proc").step("attach the machine's root")?;
    rustix::process::fchdir(&floor).step("enter the machine's root")?;
    rustix::process::pivot_root(c".", c".").step("change to the machine's root")?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH).step("leave the host's mounts")?;
    rustix::process::chdir(c"/").step("enter the machine's root")?;
    for (name, tree) in PROGRAMS.iter().zip(trees) {
        match tree {
            Tree::Missing => {}
            Tree::Link(target) => std::os::unix::fs::symlink(target, name).step_at("make the machine's", name)?,
            Tree::Mount(tree) => put(&tree, name)?,
        }
    }
    if let Some(cache) = cache {
        fs::create_dir("etc").and_then(|()| fs::write("etc/ld.so.cache", "")).step("make the machine's /etc")?;
        mount::attach_at(cache, CWD, c"etc/ld.so.cache").step("attach the dynamic linker's cache")?;
    }
    // On it QEMU finds out which locks there are.
    fs::create_dir("dev").and_then(|()| fs::write("dev/null", "")).step("make the machine's /dev")?;
    mount::attach_at(null, CWD, c"dev/null").step("attach the machine's /dev/null")?;
    let attributes = Change { set: RDONLY | NOSUID | NOEXEC, ..Change::default() };
    mount::change_at(CWD, c"dev/null", attributes).step("protect the machine's /dev/null")?;
    // The kernel and initramfs are opened by their descriptors' names. The namespace of process ids is the machine's own.
    let proc = mount::new_filesystem("proc", &[], NOSUID | NODEV | NOEXEC).step("make the machine's /proc")?;
    put(&proc, "proc")?;
    let read_only = Change { set: RDONLY, ..Change::default() };
    mount::change_at(CWD, c"/", read_only).step("protect the machine's root")
}

enum Tree {
    Missing,
    Link(std::path::PathBuf),
    Mount(OwnedFd),
}

fn open_tree(name: &str) -> Result<Tree, StepError> {
    let path = Path::new("/").join(name);
    match fs::symlink_metadata(&path) {
        Ok(found) if found.is_symlink() => fs::read_link(&path).map(Tree::Link).step_at("read", &path),
        Ok(found) if found.is_dir() => Ok(Tree::Mount(clone(&path)?)),
        _ => Ok(Tree::Missing),
    }
}

fn clone(path: &Path) -> Result<OwnedFd, StepError> {
    let tree = mount::clone_tree(CWD, path, true).step_at("open for the machine", &path)?;
    let attributes = Change { set: RDONLY | NOSUID | NODEV, recursive: true, ..Change::default() };
    mount::change(&tree, attributes).step_at("protect", &path)?;
    Ok(tree)
}

fn put(tree: &OwnedFd, name: &str) -> Result<(), StepError> {
    rustix::fs::mkdirat(CWD, name, Mode::from_raw_mode(0o755)).step_at("make the machine's", &name)?;
    let path = CString::new(name).step("name a directory")?;
    mount::attach_at(tree, CWD, &path).step_at("attach the machine's", &name)
}

/// Without root and its capabilities there is no way back.
fn become_user(user: UserSpec) -> Result<(), StepError> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_groups(&[]).step("leave the host's groups")?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).step("change the machine's group")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).step("change the machine's user")?;
    rustix::thread::set_no_new_privs(true).step("give up new privileges")
}

/// Whether everybody may read a file: also a process that is to open it by its descriptor's name, as that user.
pub(super) fn is_public(file: &fs::File) -> bool {
    file.metadata().is_ok_and(|found| found.mode() & 0o004 != 0)
}
