//! Finding and mounting the root.

use std::ffi::CString;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use duet_sys::socket::wait_readable;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use super::cmdline::{CommandLine, Root};
use super::{Failure, saying};
use crate::uevent::Uevents;

/// Waits for the root's device, which it returns, and mounts it.
pub(super) fn mount_root(line: &CommandLine, target: &Path) -> Result<PathBuf, Failure> {
    let Some(root) = &line.root else {
        return Err(
            "the kernel's command line names no root: it needs duet.root=/dev/... or duet.root=serial:...".into()
        );
    };
    let device = wait_for(root, line.wait).map_err(saying("there is no root"))?;
    let types = if line.types.is_empty() {
        types_of(&fs::read_to_string("/proc/filesystems").unwrap_or_default())
    } else {
        line.types.clone()
    };
    let flags = if line.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    let options =
        line.flags.as_deref().map(CString::new).transpose().map_err(saying("rootflags= cannot be options"))?;
    let mut failure = Errno::NODEV;
    for kind in &types {
        match mount(&device, target, kind.as_str(), flags, options.as_deref()) {
            Ok(()) => return Ok(device),
            // Another filesystem than this, or one that the kernel does not know: the next may be it.
            Err(Errno::INVAL | Errno::NODEV) if failure != Errno::NODEV => {}
            Err(errno) => failure = errno,
        }
    }
    Err(format!("the root {} cannot be mounted as {}: {failure}", device.display(), types.join(", ")))
}

/// The filesystems that have a device, ext4 first: as ext3 and ext2 it would be mounted with less.
fn types_of(filesystems: &str) -> Vec<String> {
    let mut types: Vec<_> =
        filesystems.lines().filter(|line| !line.starts_with("nodev")).map(|line| line.trim().to_owned()).collect();
    types.sort_by_key(|kind| kind != "ext4");
    types
}

/// Waits for a device to be there.
pub(super) fn wait_for(root: &Root, time: Duration) -> Result<PathBuf, Failure> {
    let deadline = Instant::now() + time;
    let events = Uevents::listen().map_err(saying("the kernel cannot be listened to for devices"))?;
    loop {
        if let Some(device) = find(root) {
            return Ok(device);
        }
        if !wait_readable(events.as_fd(), deadline).map_err(saying("devices cannot be waited for"))? {
            let wanted = match root {
                Root::Device(path) => path.display().to_string(),
                Root::Serial { serial, partition: None } => format!("a disk with the serial number {serial}"),
                Root::Serial { serial, partition: Some(number) } => {
                    format!("partition {number} of a disk with the serial number {serial}")
                }
            };
            return Err(format!("{wanted} did not appear within {time:?}; there is {}", disks().join(", ")));
        }
        events.take();
    }
}

fn find(root: &Root) -> Option<PathBuf> {
    let (disk, partition) = match root {
        Root::Device(path) => return path.exists().then(|| path.clone()),
        Root::Serial { serial, partition } => (disk_with(serial)?, *partition),
    };
    let name = match partition {
        None => disk,
        // vda1, nvme0n1p1 (the kernel's `bdevname`).
        Some(number) if disk.ends_with(|last: char| last.is_ascii_digit()) => format!("{disk}p{number}"),
        Some(number) => format!("{disk}{number}"),
    };
    Some(Path::new("/dev").join(name)).filter(|path| path.exists())
}

/// The serial number of a virtio disk is an attribute of it (Linux' drivers/block/virtio_blk.c, `serial_show`).
fn disk_with(serial: &str) -> Option<String> {
    disks().into_iter().find(|name| {
        let file = Path::new("/sys/block").join(name).join("serial");
        fs::read_to_string(file).is_ok_and(|found| found.trim_end_matches(['\n', '\0']) == serial)
    })
}

fn disks() -> Vec<String> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ext4_is_tried_first() {
        let types = types_of("nodev\tsysfs\n\text3\n\text2\n\text4\nnodev\toverlay\n\txfs\n");
        assert_eq!(types, ["ext4", "ext3", "ext2", "xfs"]);
    }
}
