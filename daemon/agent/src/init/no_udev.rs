//! Images without udev, as they are made for containers.
//!
//! systemd then knows no device: it waits 90 seconds for the console's before it runs a login on it, and
//! systemd-networkd waits for ever for udev to have looked at a network interface. In a container neither waits,
//! because /sys is read-only there, which says that nobody manages devices (<https://systemd.io/CONTAINER_INTERFACE/>;
//! `device_supported` in systemd's src/core/device.c, `udev_available` in its src/shared/udev-util.c). So it is read-only
//! here as well: device units fail at once or are not asked for. `mount -o remount,rw /sys` makes it writable.
//!
//! The login of a console is then the one that containers have, which needs no device unit. Units for that lie in /run,
//! which systemd keeps when it is mounted already, so nothing is written to the image.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{Access, access};
use rustix::mount::{MountFlags, mount, mount_remount};

use super::warn;

/// Where udev's daemon lies in distributions, systemd's and eudev's.
const UDEV: [&str; 6] = [
    "usr/lib/systemd/systemd-udevd",
    "lib/systemd/systemd-udevd",
    "usr/lib/udev/udevd",
    "lib/udev/udevd",
    "usr/sbin/udevd",
    "sbin/udevd",
];

/// Where systemd's units lie.
const UNITS: [&str; 2] = ["usr/lib/systemd/system", "lib/systemd/system"];

/// Units of the running system; those in /etc come before them, those of the image after them (systemd.unit(5)).
const OURS: &str = "run/systemd/system";

/// Prepares a system whose init is this program, if that is systemd and the image has no udev.
pub(super) fn prepare(init: &Path) {
    let systemd = fs::canonicalize(init).is_ok_and(|real| real.file_name() == Some("systemd".as_ref()));
    let root = Path::new("/");
    if !systemd || has_udev(root) {
        return;
    }
    let kept = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if let Err(error) = mount_remount("/sys", MountFlags::BIND | MountFlags::RDONLY | kept, "") {
        warn(&format!("/sys cannot be made read-only, as it is without udev: {error}"));
    }
    // As systemd mounts it (its src/shared/mount-setup.c).
    let run = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::STRICTATIME;
    let consoles = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    if let Err(error) = mount("tmpfs", "/run", "tmpfs", run, c"mode=0755,size=20%,nr_inodes=800k") {
        return warn(&format!("/run cannot be mounted: {error}"));
    }
    if let Err(error) = furnish(root, &consoles) {
        warn(&format!("there may be no login on the console: {error}"));
    }
    if let Err(error) = vouch(root) {
        warn(&format!("systemd-networkd may wait for udev: {error}"));
    }
}

fn has_udev(root: &Path) -> bool {
    UDEV.iter().any(|path| access(root.join(path), Access::EXEC_OK).is_ok())
}

/// Has the console's login be that of containers, which is for /dev/console, instead of those for the terminals behind
/// it.
fn furnish(root: &Path, consoles: &str) -> io::Result<()> {
    let login = "console-getty.service";
    let Some(units) = UNITS.iter().find(|units| root.join(units).join(login).exists()) else { return Ok(()) };
    let wants = root.join(OURS).join("getty.target.wants");
    fs::create_dir_all(&wants)?;
    symlink(Path::new("/").join(units).join(login), wants.join(login))?;
    for console in consoles.split_whitespace().filter(|console| !console.contains('/')) {
        symlink("/dev/null", root.join(OURS).join(format!("serial-getty@{console}.service")))?;
    }
    Ok(())
}

/// Says in udev's name that it has looked at the network interfaces. The DHCP client of older versions of
/// systemd-networkd asks that whatever /sys is (Debian 11's, 247, otherwise fails with "Device or resource busy"). An
/// interface is taken for looked at when udev has an entry for it (`device_read_db` in systemd's
/// src/libsystemd/sd-device/sd-device.c), in which `I` is the time, in microseconds.
fn vouch(root: &Path) -> io::Result<()> {
    let entries = root.join("run/udev/data");
    fs::create_dir_all(&entries)?;
    for interface in fs::read_dir(root.join("sys/class/net"))? {
        let number = fs::read_to_string(interface?.path().join("ifindex"))?;
        fs::write(entries.join(format!("n{}", number.trim())), "I:1\n")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn udev_is_seen_where_it_can_run() {
        let root = tempfile::tempdir().unwrap();
        let lib = root.path().join("usr/lib/systemd");
        fs::create_dir_all(&lib).unwrap();
        assert!(!has_udev(root.path()));
        symlink("../../bin/udevadm", lib.join("systemd-udevd")).unwrap();
        assert!(!has_udev(root.path()), "a link to nothing");
        let program = root.path().join("usr/bin/udevadm");
        fs::create_dir_all(root.path().join("usr/bin")).unwrap();
        fs::write(&program, "").unwrap();
        assert!(!has_udev(root.path()), "no program");
        fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        assert!(has_udev(root.path()));
    }

    #[test]
    fn the_login_of_containers_takes_the_place_of_the_consoles() {
        let root = tempfile::tempdir().unwrap();
        furnish(root.path(), "tty0 ttyS0\n").unwrap();
        assert!(!root.path().join("run").exists(), "an image without such a login is left alone");
        fs::create_dir_all(root.path().join("lib/systemd/system")).unwrap();
        fs::write(root.path().join("lib/systemd/system/console-getty.service"), "").unwrap();
        furnish(root.path(), "tty0 ttyS0\n").unwrap();
        let link = |path: &str| fs::read_link(root.path().join(OURS).join(path)).unwrap();
        let unit = Path::new("/lib/systemd/system/console-getty.service");
        assert_eq!(link("getty.target.wants/console-getty.service"), unit);
        assert_eq!(link("serial-getty@ttyS0.service"), Path::new("/dev/null"));
    }

    #[test]
    fn interfaces_have_an_entry() {
        let root = tempfile::tempdir().unwrap();
        vouch(root.path()).unwrap_err();
        fs::create_dir_all(root.path().join("sys/class/net/eth0")).unwrap();
        fs::write(root.path().join("sys/class/net/eth0/ifindex"), "2\n").unwrap();
        vouch(root.path()).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("run/udev/data/n2")).unwrap(), "I:1\n");
    }
}
