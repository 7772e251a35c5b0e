//! Leaving the initramfs.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::{env, fs, io};

use duet_sys::process::{self, Fork, Namespaces};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::mount::{UnmountFlags, mount_move, unmount};
use rustix::process::Pid;

use super::{Failure, saying, warn};
use crate::agent::{NAME, NOTIFY_SOCKET};

/// What is tried as the image's init, as the kernel does, with systemd where an image has no link to it.
const INITS: [&str; 5] = ["/sbin/init", "/lib/systemd/systemd", "/etc/init", "/bin/init", "/bin/sh"];

/// Makes the mounted root the root, and frees the memory of the initramfs.
///
/// The initramfs itself cannot be unmounted or pivoted away from (Linux' Documentation/filesystems/ramfs-rootfs-initramfs),
/// so the new root is moved on top of it.
pub(super) fn switch_root(root: &Path) -> Result<(), Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = rustix::fs::open("/", flags, Mode::empty()).map_err(saying("the initramfs cannot be opened"))?;
    for name in ["dev", "proc", "sys"] {
        let (from, to) = (Path::new("/").join(name), root.join(name));
        // A read-only root must have them; what is missing shows when something is mounted there.
        let _ = fs::create_dir(&to);
        if let Err(error) = mount_move(&from, &to) {
            warn(&format!("/{name} of the image cannot be mounted on: {error}"));
            unmount(&from, UnmountFlags::DETACH).map_err(saying("a mount of the initramfs cannot be undone"))?;
        }
    }
    rustix::process::chdir(root)
        .and_then(|()| mount_move(".", "/"))
        .and_then(|()| rustix::process::chroot("."))
        .and_then(|()| rustix::process::chdir("/"))
        .map_err(saying("the root cannot be entered"))?;
    if let Err(error) = free(&old) {
        warn(&format!("the memory of the initramfs is not free: {error}"));
    }
    Ok(())
}

/// Removes all files of a filesystem.
fn free(dir: &OwnedFd) -> io::Result<()> {
    let device = rustix::fs::fstat(dir)?.st_dev;
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if stat.st_dev != device {
            continue;
        }
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            free(&rustix::fs::openat(dir, name, flags, Mode::empty())?)?;
        }
        match rustix::fs::unlinkat(dir, name, if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() }) {
            // The new root's own mount lies over one, and holds it until it is moved.
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Leaves the agent running, in the new root, and returns its id.
pub(super) fn start_agent() -> Result<Pid, Failure> {
    let name = CString::new(NAME).map_err(saying("the agent has no name"))?;
    // SAFETY: this process has a single thread.
    match unsafe { process::fork_into(Namespaces::default(), None) }.map_err(saying("the agent cannot be started"))? {
        Fork::Parent { pid, .. } => Pid::from_raw(pid).ok_or_else(|| "the agent has no number".to_owned()),
        Fork::Child => {
            let error = become_agent(&name);
            warn(&format!("the agent cannot be started: {error}"));
            process::exit_now(1)
        }
    }
}

fn become_agent(name: &CStr) -> io::Error {
    let prepared = rustix::process::setsid().map_err(io::Error::from).and_then(|_| {
        let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(null.as_fd())?;
        rustix::stdio::dup2_stdout(null.as_fd())?;
        Ok(rustix::stdio::dup2_stderr(null.as_fd())?)
    });
    match prepared {
        // The program's own file is deleted, but not gone while it runs.
        Ok(()) => process::exec(c"/proc/self/exe", &[name.to_owned()], &[]),
        Err(error) => error,
    }
}

/// What is tried as the image's init, in this order.
pub(super) fn inits(named: Option<&str>) -> Vec<&str> {
    named.map_or_else(|| INITS.to_vec(), |named| vec![named])
}

/// Becomes the image's init, with the arguments and the environment that the kernel gave.
pub(super) fn become_init(candidates: &[&str]) -> Result<Infallible, Failure> {
    let arguments: Vec<CString> =
        env::args_os().skip(1).filter_map(|word| CString::new(word.into_vec()).ok()).collect();
    // systemd says there that the system is up (systemd(1), `$NOTIFY_SOCKET`).
    let ours = ("NOTIFY_SOCKET".into(), NOTIFY_SOCKET.into());
    let environment: Vec<CString> = env::vars_os()
        .chain([ours])
        .filter_map(|(key, value)| CString::new([key.into_vec(), value.into_vec()].join(&b'=')).ok())
        .collect();
    process::reset_signals();
    let mut failure = None;
    for candidate in candidates {
        let path = CString::new(*candidate).map_err(saying("init= is no path"))?;
        let mut argv = vec![path.clone()];
        argv.extend(arguments.iter().cloned());
        let error = process::exec(&path, &argv, &environment);
        if failure.is_none() || error.raw_os_error() != Some(libc::ENOENT) {
            failure = Some((*candidate, error));
        }
    }
    Err(match failure {
        Some((candidate, error)) => format!("the root has no init that can be executed ({candidate}: {error})"),
        None => "the root has no init".to_owned(),
    })
}
