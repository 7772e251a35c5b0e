//! Modules: those that the initramfs brings, and those of a disk for what comes after the boot.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use rustix::mount::{MountFlags, mount};

use super::cmdline::Root;
use super::{MODULE_LIST, root, warn};

/// The serial number of the disk with a kernel's modules.
const DISK: &str = "duet-modules";

/// How long that is waited for. The root's disk was found before, and this one comes with it.
const WAIT: Duration = Duration::from_secs(3);

/// Loads them in the order of the list. One that cannot be loaded may be for a device that this machine does not have;
/// whether the root is reached shows what it was worth.
pub(super) fn load_all(dir: &Path) {
    let list = match fs::read_to_string(dir.join(MODULE_LIST)) {
        Ok(list) => list,
        Err(error) => return warn(&format!("the list of modules cannot be read: {error}")),
    };
    for name in list.lines() {
        match load(&dir.join(name)) {
            Ok(()) => {}
            // It is there already: built in, or loaded.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => warn(&format!("the module {name} cannot be loaded: {error}")),
        }
    }
}

fn load(path: &Path) -> io::Result<()> {
    let file = fs::File::open(path)?;
    Ok(rustix::system::finit_module(&file, &CString::default(), 0)?)
}

/// Mounts the disk with the running kernel's modules where modprobe(8) looks for them, unless the root has them itself.
pub(super) fn mount_disk() {
    let system = rustix::system::uname();
    let release = system.release().to_string_lossy();
    let target = directory(Path::new("/"), &release);
    if target.join("modules.dep").exists() {
        return;
    }
    let mounted = root::wait_for(&Root::Serial { serial: DISK.to_owned(), partition: None }, WAIT).and_then(|device| {
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        // A root that is read-only can have it already.
        let made = fs::create_dir_all(&target).and_then(|()| Ok(mount(&device, &target, "ext4", flags, None)?));
        made.map_err(|error| format!("{} cannot be mounted on {}: {error}", device.display(), target.display()))
    });
    if let Err(failure) = mounted {
        warn(&format!("there are no modules of the kernel {release}: {failure}"));
    }
}

/// Where a root has a kernel's modules. /lib is no link to usr/lib in old images, which may have a /usr/lib/modules for
/// other things.
fn directory(root: &Path, release: &str) -> PathBuf {
    let link = fs::symlink_metadata(root.join("lib")).map_or(true, |lib| lib.is_symlink());
    root.join(if link { "usr/lib/modules" } else { "lib/modules" }).join(release)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_lie_in_lib_or_where_it_leads() {
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("usr/lib", root.path().join("lib")).unwrap();
        assert_eq!(directory(root.path(), "6.1"), root.path().join("usr/lib/modules/6.1"));
        fs::remove_file(root.path().join("lib")).unwrap();
        fs::create_dir(root.path().join("lib")).unwrap();
        assert_eq!(directory(root.path(), "6.1"), root.path().join("lib/modules/6.1"));
    }
}
