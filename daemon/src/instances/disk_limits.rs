//! Limits of disks: from the options of disk devices to the block devices that the kernel limits.
//!
//! As in Incus, a limit holds for the block device under a disk, the whole one where it is a partition; of several disks on
//! one block device, the mean of their limits holds.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use duet_container::cgroup::IoLimit;
use rustix::fs::{major, makedev, minor};

use super::expand::Expanded;
use crate::app::App;
use crate::config::values::DiskRate;
use crate::config::{Device, DiskDevice, DiskLimits};
use crate::error::{Error, Result};

/// The limits of all disks of an instance, by block device.
///
/// # Errors
/// Where a disk with limits lies on no block device, as on a network filesystem.
pub fn of(app: &App, expanded: &Expanded, devices: &BTreeMap<String, Device>) -> Result<BTreeMap<(u32, u32), IoLimit>> {
    let mut wanted: BTreeMap<(u32, u32), Vec<DiskLimits>> = BTreeMap::new();
    for (name, device) in devices {
        let Device::Disk(disk) = device else { continue };
        if disk.limits() == DiskLimits::default() {
            continue;
        }
        let path = match disk {
            DiskDevice::Root { .. } => app.pools.get(&expanded.row.pool)?.directory().to_owned(),
            DiskDevice::Host { source, required, .. } if !required && !source.exists() => continue,
            DiskDevice::Host { source, .. } => source.clone(),
        };
        let device = block_device(&path).ok_or_else(|| {
            Error::invalid(format!(
                "device \"{name}\": its limits cannot be set: {} is not on a block device of this host",
                path.display()
            ))
        })?;
        wanted.entry(device).or_default().push(disk.limits());
    }
    Ok(wanted.into_iter().map(|(device, limits)| (device, mean(&limits))).collect())
}

/// The mean of what is limited.
fn mean(limits: &[DiskLimits]) -> IoLimit {
    let of = |pick: &dyn Fn(&DiskLimits) -> Option<u64>| {
        let values: Vec<u64> = limits.iter().filter_map(pick).collect();
        let sum: u128 = values.iter().map(|value| u128::from(*value)).sum();
        // No mean is above the largest of its values.
        (!values.is_empty()).then(|| u64::try_from(sum / values.len() as u128).unwrap_or(u64::MAX))
    };
    let bytes = |rate: Option<DiskRate>| match rate {
        Some(DiskRate::Bytes(bytes)) => Some(bytes),
        Some(DiskRate::Operations(_)) | None => None,
    };
    let operations = |rate: Option<DiskRate>| match rate {
        Some(DiskRate::Operations(operations)) => Some(operations),
        Some(DiskRate::Bytes(_)) | None => None,
    };
    IoLimit {
        read_bytes: of(&|disk| bytes(disk.read)),
        write_bytes: of(&|disk| bytes(disk.write)),
        read_operations: of(&|disk| operations(disk.read)),
        write_operations: of(&|disk| operations(disk.write)),
    }
}

/// The whole block device under a path, by its numbers.
fn block_device(path: &Path) -> Option<(u32, u32)> {
    let device = std::fs::metadata(path).ok()?.dev();
    // btrfs and others have made-up numbers, with a major of 0; the mount says what they lie on.
    let device = if major(device) == 0 { mounted_from(device)? } else { device };
    let entry = PathBuf::from(format!("/sys/dev/block/{}:{}", major(device), minor(device)));
    let numbers = if entry.join("partition").exists() { entry.join("../dev") } else { entry.join("dev") };
    let text = std::fs::read_to_string(numbers).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The block device that a filesystem with these numbers is mounted from (proc_pid_mountinfo(5)).
fn mounted_from(device: u64) -> Option<u64> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    table.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let (major, minor) = mount.split(' ').nth(2)?.split_once(':')?;
        if makedev(major.parse().ok()?, minor.parse().ok()?) != device {
            return None;
        }
        let source = std::fs::metadata(filesystem.split(' ').nth(1)?).ok()?;
        (source.rdev() != 0).then(|| source.rdev())
    })
}

#[cfg(test)]
mod tests {
    use duet_container::cgroup::IoLimit;

    use super::mean;
    use crate::config::DiskLimits;
    use crate::config::values::DiskRate;

    #[test]
    fn of_several_disks_the_mean_holds() {
        let disk = |read, write| DiskLimits { read, write };
        let limits = [
            disk(Some(DiskRate::Bytes(100)), Some(DiskRate::Operations(7))),
            disk(Some(DiskRate::Bytes(300)), None),
            disk(None, Some(DiskRate::Bytes(5))),
        ];
        let wanted =
            IoLimit { read_bytes: Some(200), write_bytes: Some(5), read_operations: None, write_operations: Some(7) };
        assert_eq!(mean(&limits), wanted);
    }
}
