//! Devices of instances and profiles.

use std::collections::BTreeMap;

use duetd::config::{DeviceMap, DevicesOf, InstanceKind, device_changes, validate_devices};

use crate::assert_sentence;

/// Takes lines of `device.option=value`.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut devices = DeviceMap::new();
    for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
        let (device, option) = name.split_once('.').unwrap_or((name, "type"));
        devices.entry(device.to_owned()).or_default().insert(option.to_owned(), value.to_owned());
    }
    let kinds = [
        DevicesOf::Profile,
        DevicesOf::Instance(InstanceKind::Container),
        DevicesOf::Instance(InstanceKind::VirtualMachine),
    ];
    for kind in kinds {
        match validate_devices(&devices, kind) {
            Ok(typed) => {
                assert!(typed.keys().eq(devices.keys()));
                let _ = device_changes(&BTreeMap::new(), &typed);
            }
            Err(error) => assert_sentence(&error.to_string()),
        }
    }
}

/// A set of each type.
pub fn seeds() -> Vec<Vec<u8>> {
    [
        "root.type=disk\nroot.path=/\nroot.pool=default\nroot.size=10GiB\n",
        "data.type=disk\ndata.source=/srv\ndata.path=/mnt\ndata.readonly=true\ndata.shift=true\ndata.recursive=1\n",
        "eth0.type=nic\neth0.network=duetbr0\neth0.name=eth0\neth0.hwaddr=10:66:6a:00:00:01\neth0.ipv4.address=10.1.2.3\n",
        "eth0.type=nic\neth0.nictype=bridged\neth0.parent=br0\neth0.mtu=1400\neth0.host_name=x\neth0.ipv6.address=fd42::2\n",
        "fuse.type=unix-char\nfuse.source=/dev/fuse\nfuse.path=/dev/fuse\nfuse.major=10\nfuse.minor=229\nfuse.mode=0666\nfuse.required=false\n",
        "gone.type=none\nproxy.type=proxy\ngpu.type=gpu\n",
    ]
    .map(Into::into)
    .into()
}
