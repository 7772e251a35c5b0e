//! Disks: the block devices of /sys/class/block that have hardware (kernel: Documentation/ABI/stable/sysfs-block).

use std::fs;
use std::path::Path;

use duet_client::api::{ResourcesStorage, ResourcesStorageDisk, ResourcesStoragePartition};

use super::tree::{self, Tree};

/// Sizes in sysfs are in sectors of this many bytes, whatever the disk's own are.
const SECTOR: u64 = 512;

pub(super) fn read(tree: &Tree) -> ResourcesStorage {
    let disks: Vec<_> = tree
        .list("sys/class/block")
        .iter()
        .filter(|dir| dir.join("device").exists() && !dir.join("partition").exists())
        .map(|dir| disk(tree, dir))
        .collect();
    ResourcesStorage { total: disks.len() as u64, disks }
}

fn disk(tree: &Tree, dir: &Path) -> ResourcesStorageDisk {
    let number = |file: &str| tree::number(&dir.join(file)).unwrap_or(0);
    let text = |file: &str| tree::text(&dir.join(file)).unwrap_or_default();
    let id = tree::name(dir);
    let subsystem = tree::link_name(&dir.join("device/subsystem")).unwrap_or_default();
    let kind = if id.starts_with("sr") { "cdrom".to_owned() } else { subsystem };
    let (pci, pci_address) = tree::pci_device(dir).unzip();
    ResourcesStorageDisk {
        device: text("dev"),
        model: text("device/model"),
        kind,
        read_only: number("ro") == 1,
        size: number("size").saturating_mul(SECTOR),
        removable: number("removable") == 1,
        numa_node: pci.and_then(|dir| tree::number(&dir.join("numa_node"))).unwrap_or(0),
        block_size: number("queue/physical_block_size"),
        rpm: number("queue/rotational"),
        device_id: by_id(tree, &id),
        partitions: tree::list(dir)
            .iter()
            .filter(|dir| dir.join("partition").exists())
            .map(|dir| partition(dir))
            .collect(),
        serial: text("device/serial"),
        pci_address: pci_address.unwrap_or_default(),
        id,
    }
}

fn partition(dir: &Path) -> ResourcesStoragePartition {
    let number = |file: &str| tree::number(&dir.join(file)).unwrap_or(0);
    ResourcesStoragePartition {
        id: tree::name(dir),
        device: tree::text(&dir.join("dev")).unwrap_or_default(),
        read_only: number("ro") == 1,
        size: number("size").saturating_mul(SECTOR),
        partition: number("partition"),
    }
}

/// The name that udev gives a disk by what it says of itself.
fn by_id(tree: &Tree, id: &str) -> String {
    let leads_here = |path: &std::path::PathBuf| fs::read_link(path).is_ok_and(|target| tree::name(&target) == id);
    tree.list("dev/disk/by-id").iter().find(|path| leads_here(path)).map(|path| tree::name(path)).unwrap_or_default()
}
