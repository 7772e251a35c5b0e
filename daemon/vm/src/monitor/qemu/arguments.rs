//! QEMU's command line (qemu-system-x86_64(1)). Where it takes JSON it is given JSON, in which no text of ours can be taken
//! for another option.

use std::ffi::OsString;
use std::os::fd::RawFd;

use serde_json::{Value, json};

use crate::spec::{DiskSpec, LayerFormat, VmSpec};

/// How much translated code is kept, in MiB. It is memory besides the guest's own.
const TRANSLATED: u32 = 256;

/// The descriptors that QEMU inherits.
#[derive(Debug)]
pub(super) struct Wiring {
    pub kernel: RawFd,
    pub initrd: RawFd,
    pub qmp: RawFd,
    pub console: RawFd,
    pub agent: RawFd,
    /// As in the specification.
    pub disks: Vec<Vec<LayerFile>>,
    pub taps: Vec<RawFd>,
}

/// A layer's file.
#[derive(Debug)]
pub(super) struct LayerFile {
    pub fd: RawFd,
    /// Whether it is a block device.
    pub block: bool,
}

/// All arguments, the program's own name first.
pub(super) fn arguments(spec: &VmSpec, wiring: &Wiring) -> Vec<OsString> {
    let memory = spec.whole_memory();
    let mut all: Vec<OsString> = vec![spec.program.clone().into()];
    let mut add = |option: &str, value: String| all.extend([option.into(), value.into()]);
    add("-name", format!("guest={}", spec.name));
    // One thread for all CPUs: with one for each, QEMU 7.2 fails an assertion of its own (iotlb_to_section) now and then.
    add("-accel", format!("tcg,thread=single,tb-size={TRANSLATED}"));
    // No controllers of disks, keyboards and mice, for which the guest would look.
    add("-machine", "q35,memory-backend=memory,vmport=off,smm=off,sata=off,i8042=off".to_owned());
    add("-cpu", "max".to_owned());
    add("-smp", spec.cpus.to_string());
    add("-m", format!("{memory}B"));
    add("-object", json!({"qom-type": "memory-backend-memfd", "id": "memory", "size": memory}).to_string());
    add("-display", "none".to_owned());
    add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned());
    add("-kernel", format!("/proc/self/fd/{}", wiring.kernel));
    add("-initrd", format!("/proc/self/fd/{}", wiring.initrd));
    add("-append", format!("{} {}", super::super::boot::CONSOLE_WORDS, spec.command_line));
    add("-chardev", format!("socket,id=qmp,fd={}", wiring.qmp));
    add("-mon", "chardev=qmp,mode=control".to_owned());
    add("-chardev", format!("socket,id=console,fd={}", wiring.console));
    add("-serial", "chardev:console".to_owned());
    add("-chardev", format!("socket,id=agent,fd={},server=on,wait=off", wiring.agent));
    for (index, (disk, files)) in spec.disks.iter().zip(&wiring.disks).enumerate() {
        for (option, value) in disk_arguments(index, disk, files) {
            add(option, value);
        }
    }
    for (index, (nic, tap)) in spec.nics.iter().zip(&wiring.taps).enumerate() {
        let [a, b, c, d, e, f] = nic.mac;
        add("-netdev", format!("tap,id=net{index},fd={tap}"));
        // Without the program by which firmware would boot from the network.
        let device = json!({
            "driver": "virtio-net-pci", "netdev": format!("net{index}"), "host_mtu": nic.mtu, "romfile": "",
            "mac": format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
        });
        add("-device", device.to_string());
    }
    for device in [
        json!({"driver": "virtio-serial-pci", "max_ports": 2}),
        json!({"driver": "virtserialport", "chardev": "agent", "name": "org.duet.agent"}),
        json!({"driver": "virtio-rng-pci"}),
        json!({"driver": "virtio-balloon-pci", "free-page-reporting": true}),
        json!({"driver": "pvpanic"}),
    ] {
        add("-device", device.to_string());
    }
    all.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(OsString::from));
    all
}

/// The layers, from the lowest on, each on the one before; and the disk of them.
fn disk_arguments(index: usize, disk: &DiskSpec, files: &[LayerFile]) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    let mut below: Option<String> = None;
    for (depth, (layer, file)) in disk.layers.iter().zip(files).enumerate().rev() {
        let set = file.fd;
        let read_only = disk.read_only || depth > 0;
        // QEMU numbers sets of descriptors as it is told.
        all.push(("-add-fd", format!("fd={set},set={set}")));
        let node = format!("disk{index}-{depth}");
        let mut driver = json!({
            "node-name": node, "read-only": read_only, "discard": "unmap",
            "file": {
                "driver": if file.block { "host_device" } else { "file" },
                "filename": format!("/dev/fdset/{set}"), "read-only": read_only, "discard": "unmap",
            },
        });
        driver["driver"] = match layer.format {
            LayerFormat::Raw => json!("raw"),
            LayerFormat::Qcow2 => {
                // Said even where there is nothing, so that no name in the file is followed.
                driver["backing"] = below.map_or(Value::Null, Value::String);
                json!("qcow2")
            }
        };
        all.push(("-blockdev", driver.to_string()));
        below = Some(node);
    }
    let device = json!({"driver": "virtio-blk-pci", "drive": below, "serial": disk.serial});
    all.push(("-device", device.to_string()));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::example;

    fn wiring() -> Wiring {
        let file = |fd| LayerFile { fd, block: false };
        Wiring {
            kernel: 10,
            initrd: 11,
            qmp: 12,
            console: 13,
            agent: 14,
            disks: vec![vec![file(15), file(16)], vec![LayerFile { fd: 17, block: true }]],
            taps: vec![18],
        }
    }

    /// The values of an option, in order.
    fn values(all: &[OsString], option: &str) -> Vec<String> {
        let pairs = all.windows(2).filter(|pair| pair[0] == option);
        pairs.map(|pair| pair[1].clone().into_string().unwrap()).collect()
    }

    #[test]
    fn the_command_line_says_what_the_specification_says() {
        let all = arguments(&example(), &wiring());
        assert_eq!(all[0], "/usr/bin/qemu-system-x86_64");
        assert_eq!(values(&all, "-smp"), ["2"]);
        assert_eq!(values(&all, "-m"), ["536870912B"]);
        assert_eq!(values(&all, "-append"), ["console=ttyS0 duet.root=serial:root, rw"]);
        assert_eq!(values(&all, "-kernel"), ["/proc/self/fd/10"]);
        assert_eq!(values(&all, "-netdev"), ["tap,id=net0,fd=18"]);
        let sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
        assert_eq!(values(&all, "-sandbox"), [sandbox]);
        for option in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            assert!(all.iter().any(|word| word == option));
        }
        let devices: Vec<Value> =
            values(&all, "-device").iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        assert_eq!(devices[0], json!({"driver": "virtio-blk-pci", "drive": "disk0-0", "serial": "root,=\"x"}));
        assert_eq!(devices[2]["mac"], "02:00:00:00:00:ab");
        assert_eq!(devices[2]["host_mtu"], 1450);
    }

    #[test]
    fn layers_lie_on_each_other_and_no_name_is_followed() {
        let all = arguments(&example(), &wiring());
        let blocks: Vec<Value> =
            values(&all, "-blockdev").iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        let file = |driver, fd: i32, read_only: bool| {
            let filename = format!("/dev/fdset/{fd}");
            json!({"driver": driver, "filename": filename, "read-only": read_only, "discard": "unmap"})
        };
        assert_eq!(
            blocks,
            [
                json!({"driver": "raw", "node-name": "disk0-1", "read-only": true, "discard": "unmap",
                "file": file("file", 16, true)}),
                json!({"driver": "qcow2", "node-name": "disk0-0", "read-only": false, "discard": "unmap",
                "file": file("file", 15, false), "backing": "disk0-1"}),
                json!({"driver": "raw", "node-name": "disk1-0", "read-only": true, "discard": "unmap",
                "file": file("host_device", 17, true)}),
            ]
        );
        let mut spec = example();
        spec.disks[0].layers.truncate(1);
        let alone = disk_arguments(0, &spec.disks[0], &wiring().disks[0]);
        assert!(alone[1].1.contains("\"backing\":null"), "{alone:?}");
    }
}
