//! Process 1 of the initramfs: from the kernel's first program to the image's own init.
//!
//! ```text
//!  mount /dev, /proc, /sys ── load modules ── wait for the root's device ── mount it on /root
//!    ── move the mounts there, make it / ── free the initramfs ── start the agent ── execute the image's init
//! ```
//!
//! It understands these words of the kernel's command line:
//!
//! | word | meaning |
//! |---|---|
//! | `duet.root=/dev/vda` | the root's device |
//! | `duet.root=serial:NAME`, `serial:NAME/2` | the disk with this serial number, or its second partition |
//! | `duet.wait=60` | for how many seconds the device is waited for |
//! | `duet.panic` | end in a kernel panic when the root cannot be reached, instead of power off |
//! | `rootfstype=ext4`, `rootflags=...`, `ro`, `rw` | how it is mounted, as the kernel itself has them |
//! | `init=/sbin/init` | the image's init, as the kernel itself has it |

mod cmdline;
mod modules;
mod root;
mod switch;

use std::convert::Infallible;
use std::fmt::Display;
use std::io::Write;
use std::path::Path;

use rustix::mount::{MountFlags, mount};

use crate::agent;
use cmdline::CommandLine;

/// The directory of the initramfs on which the root is mounted.
pub(crate) const NEW_ROOT: &str = "/root";
/// The directory of the initramfs that holds the modules.
pub(crate) const MODULES: &str = "/modules";
/// The file in it that names them, one in a line, in the order in which they are loaded.
pub(crate) const MODULE_LIST: &str = "list";

/// Why the root cannot be reached: one sentence.
type Failure = String;

/// Boots, or ends the machine with a sentence on the console.
pub fn run() -> ! {
    let failure = match boot() {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    // If the console is gone there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "\nduet: {failure}");
    if CommandLine::read().is_ok_and(|line| line.panic) {
        // The end of process 1 is a panic.
        duet_sys::process::exit_now(1);
    }
    let error = agent::end_now(false);
    let _ = writeln!(std::io::stderr(), "duet: the machine cannot be switched off: {error:?}");
    duet_sys::process::exit_now(1)
}

fn boot() -> Result<Infallible, Failure> {
    for (kind, target, flags) in [
        ("devtmpfs", "/dev", MountFlags::NOSUID),
        ("proc", "/proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC),
        ("sysfs", "/sys", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC),
    ] {
        // A kernel can be built to mount the first by itself.
        match mount(kind, target, kind, flags, None) {
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(error) => return Err(format!("{kind} cannot be mounted on {target}: {error}")),
        }
    }
    furnish_dev();
    let line = CommandLine::read().map_err(saying("the kernel's command line cannot be read"))?;
    modules::load_all(Path::new(MODULES));
    root::mount_root(&line, Path::new(NEW_ROOT))?;
    switch::switch_root(Path::new(NEW_ROOT))?;
    switch::start_agent()?;
    switch::become_init(line.init.as_deref())
}

/// Completes /dev as a container's is, for images whose init leaves that to who runs it. An init that makes these things itself
/// leaves what is there.
fn furnish_dev() {
    for (target, name) in [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ] {
        if let Err(error) = std::os::unix::fs::symlink(target, Path::new("/dev").join(name)) {
            warn(&format!("/dev/{name} cannot be made: {error}"));
        }
    }
    // Those that systemd has (its src/shared/mount-setup.c); group 5 is tty.
    let nosuid = MountFlags::NOSUID;
    for (kind, target, flags, options) in [
        ("devpts", "/dev/pts", nosuid | MountFlags::NOEXEC, c"mode=620,gid=5,ptmxmode=000"),
        ("tmpfs", "/dev/shm", nosuid | MountFlags::NODEV, c"mode=1777"),
    ] {
        let made = std::fs::create_dir(target).and_then(|()| Ok(mount(kind, target, kind, flags, options)?));
        if let Err(error) = made {
            warn(&format!("{target} cannot be made: {error}"));
        }
    }
}

fn saying<E: Display>(what: &str) -> impl FnOnce(E) -> Failure {
    move |error| format!("{what}: {error}")
}

/// A sentence on the console that is no failure.
fn warn(what: &str) {
    let _ = writeln!(std::io::stderr(), "duet: {what}");
}
