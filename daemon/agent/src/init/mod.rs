//! Process 1 of the initramfs: from the kernel's first program to the image's own init.
//!
//! ```text
//!  mount /dev, /proc, /sys ── load modules ── wait for the root's device ── mount it on /root ── let it grow
//!    ── move the mounts there, make it / ── free the initramfs ── apply what the host told this boot
//!    ── start the agent ── execute the image's init, or with `duet.serve` stay
//! ```
//!
//! What the host tells a boot is a [`crate::setup::Setup`].
//!
//! It understands these words of the kernel's command line:
//!
//! | word | meaning |
//! |---|---|
//! | `duet.root=/dev/vda` | the root's device |
//! | `duet.root=serial:NAME`, `serial:NAME/2` | the disk with this serial number, or its second partition |
//! | `duet.wait=60` | for how many seconds the device is waited for |
//! | `duet.modules` | a disk with the serial number `duet-modules` holds an ext4 with a directory of modules |
//! | `duet.serve` | the image's init is not executed: the agent serves the root as it lies, and ends the machine |
//! | `duet.panic` | end in a kernel panic when the root cannot be reached, instead of power off |
//! | `rootfstype=ext4`, `rootflags=...`, `ro`, `rw` | how it is mounted, as the kernel itself has them |
//! | `init=/sbin/init` | the image's init, as the kernel itself has it |

mod cmdline;
mod grow;
mod modules;
mod nics;
mod no_udev;
mod root;
mod serve;
mod setup;
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
    let setup = setup::take();
    modules::load_all(Path::new(MODULES));
    let device = root::mount_root(&line, Path::new(NEW_ROOT))?;
    if !line.read_only {
        grow::grow(&device, Path::new(NEW_ROOT));
    }
    switch::switch_root(Path::new(NEW_ROOT))?;
    if line.serve {
        return serve::stay(switch::start_agent()?);
    }
    if line.modules {
        modules::mount_disk();
    }
    setup::apply(&setup);
    let inits = switch::inits(line.init.as_deref());
    if let Some(init) = inits.iter().map(Path::new).find(|init| init.exists()) {
        no_udev::prepare(init);
    }
    switch::start_agent()?;
    switch::become_init(&inits)
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
