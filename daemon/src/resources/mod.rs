//! The host's hardware, for `GET /1.0/resources`: what sysfs(5), /proc and DMI say of it at this moment.
//!
//! | file | subject |
//! |---|---|
//! | [`cpu`] | sockets, cores, threads, caches |
//! | [`memory`] | memory, huge pages, NUMA nodes |
//! | [`network`] | network cards and their ports |
//! | [`storage`] | disks and partitions |
//! | [`pci`] | the PCI bus, and the names of what is on it |
//! | [`system`] | the machine as a whole, and how busy it is |
//! | [`tree`] | reading small files below a root |

mod cpu;
mod memory;
mod network;
mod pci;
mod storage;
mod system;
mod tree;

use std::path::Path;

use duet_client::api::{Resources, ResourcesDevices, ResourcesGpu};

use self::tree::Tree;

/// Reads everything. What the host does not tell is left empty.
pub fn read() -> Resources {
    read_below(Path::new("/"))
}

fn read_below(root: &Path) -> Resources {
    let tree = Tree::new(root);
    let names = pci::Names::read(&tree);
    Resources {
        cpu: cpu::read(&tree),
        memory: memory::read(&tree),
        gpu: ResourcesGpu::default(),
        network: network::read(&tree, &names),
        storage: storage::read(&tree),
        usb: ResourcesDevices::default(),
        pci: pci::read(&tree, &names),
        system: system::read(&tree),
        load: system::load(&tree),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A host as sysfs would show it: two threads of one core, one virtio card and disk.
    fn host() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let link = |target: &str, path: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(target, path).unwrap();
        };
        for cpu in 0..2 {
            let at = format!("sys/devices/system/cpu/cpu{cpu}");
            for (name, value) in [("physical_package_id", "0"), ("core_id", "0"), ("die_id", "0")] {
                write(&format!("{at}/topology/{name}"), value);
            }
            write(&format!("{at}/cache/index0/level"), "1\n");
            write(&format!("{at}/cache/index0/type"), "Data\n");
            write(&format!("{at}/cache/index0/size"), "48K\n");
            write(&format!("{at}/node0/x"), "");
        }
        write("sys/devices/system/cpu/cpu1/online", "0");
        write("sys/devices/system/cpu/isolated", "1-3\n");
        write(
            "proc/cpuinfo",
            "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nflags\t\t: fpu vme\n\nprocessor\t: 1\n",
        );
        write(
            "proc/meminfo",
            "MemTotal: 1000 kB\nMemFree: 400 kB\nBuffers: 50 kB\nCached: 100 kB\nHugepagesize: 2048 kB\n",
        );
        write("proc/loadavg", "0.50 0.25 0.10 3/120 4711\n");
        let card = "sys/devices/pci0000:00/0000:00:03.0";
        write(&format!("{card}/vendor"), "0x1af4\n");
        write(&format!("{card}/device"), "0x1041\n");
        write(&format!("{card}/numa_node"), "-1\n");
        link("../../../bus/pci/drivers/virtio-pci", &format!("{card}/driver"));
        link("../../../devices/pci0000:00/0000:00:03.0", "sys/bus/pci/devices/0000:00:03.0");
        write(&format!("{card}/virtio1/net/eth0/address"), "02:00:00:00:00:01\n");
        write(&format!("{card}/virtio1/net/eth0/type"), "1\n");
        write(&format!("{card}/virtio1/net/eth0/carrier"), "1\n");
        link("../../../virtio1", &format!("{card}/virtio1/net/eth0/device"));
        link("../../devices/pci0000:00/0000:00:03.0/virtio1/net/eth0", "sys/class/net/eth0");
        write("sys/devices/virtual/net/lo/type", "772\n");
        link("../../devices/virtual/net/lo", "sys/class/net/lo");
        let disk = "sys/devices/pci0000:00/0000:00:02.0/virtio0/block/vda";
        for (name, value) in [("dev", "254:0"), ("size", "2048"), ("ro", "0"), ("removable", "0")] {
            write(&format!("{disk}/{name}"), value);
        }
        write(&format!("{disk}/vda1/partition"), "1");
        write(&format!("{disk}/vda1/size"), "1024");
        link("../../../virtio0", &format!("{disk}/device"));
        link("../../../../bus/virtio", "sys/devices/pci0000:00/0000:00:02.0/virtio0/subsystem");
        link("../../devices/pci0000:00/0000:00:02.0/virtio0/block/vda", "sys/class/block/vda");
        link("../../devices/pci0000:00/0000:00:02.0/virtio0/block/vda/vda1", "sys/class/block/vda1");
        write(
            "usr/share/misc/pci.ids",
            "# ids\n1af4  Red Hat, Inc.\n\t1041  Virtio network device\n\t\t1af4 1100  x\n",
        );
        dir
    }

    #[test]
    fn a_host_is_read_as_it_is() {
        let dir = host();
        let found = read_below(dir.path());
        assert_eq!(found.cpu.total, 2);
        let socket = &found.cpu.sockets[0];
        assert_eq!((socket.vendor.as_str(), socket.name.as_str()), ("AuthenticAMD", "AMD EPYC"));
        assert_eq!((socket.cache.len(), socket.cache[0].size), (1, 48 << 10));
        let threads = &socket.cores[0].threads;
        let seen: Vec<_> = threads.iter().map(|t| (t.id, t.thread, t.online, t.isolated)).collect();
        assert_eq!(seen, [(0, 0, true, false), (1, 1, false, true)]);
        assert_eq!(socket.cores[0].flags, ["fpu", "vme"]);
        assert_eq!((found.memory.total, found.memory.used), (1000 << 10, 450 << 10));
        assert_eq!(found.network.total, 1);
        let card = &found.network.cards[0];
        assert_eq!((card.pci_address.as_str(), card.driver.as_str()), ("0000:00:03.0", "virtio-pci"));
        assert_eq!((card.vendor.as_str(), card.product.as_str()), ("Red Hat, Inc.", "Virtio network device"));
        assert_eq!((card.ports[0].id.as_str(), card.ports[0].link_detected), ("eth0", true));
        let disk = &found.storage.disks[0];
        assert_eq!((disk.id.as_str(), disk.kind.as_str(), disk.size), ("vda", "virtio", 1 << 20));
        assert_eq!((disk.partitions.len(), disk.partitions[0].id.as_str()), (1, "vda1"));
        assert_eq!(disk.pci_address, "0000:00:02.0");
        assert_eq!((found.pci.total, found.pci.devices[0].vendor_id.as_str()), (1, "1af4"));
        assert_eq!((found.load.processes, found.load.average_1_min), (120, 0.5));
    }

    #[test]
    fn a_host_that_says_nothing_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let found = read_below(dir.path());
        assert_eq!((found.cpu.total, found.network.total, found.storage.total, found.pci.total), (0, 0, 0, 0));
    }
}
