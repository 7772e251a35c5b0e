//! The device types and their options.

use super::{DeviceOption, DeviceType, Kind};

const fn option(name: &'static str, kind: Kind, short: &'static str) -> DeviceOption {
    DeviceOption { name, kind, default: "", required: "no", short, long: "" }
}

impl DeviceOption {
    const fn default(mut self, default: &'static str) -> Self {
        self.default = default;
        self
    }

    const fn required(mut self, required: &'static str) -> Self {
        self.required = required;
        self
    }

    const fn long(mut self, long: &'static str) -> Self {
        self.long = long;
        self
    }
}

/// Ids inside a container lie in its map of 65536.
const ID: Kind = Kind::Int(0, 65_535);

/// A directory or file of the host, or the root filesystem itself.
pub(in super::super) static DISK: DeviceType = DeviceType {
    name: "disk",
    heading: "disk",
    options: &[
        option("path", Kind::Path, "Where the disk appears in the instance")
            .required("yes")
            .long("/ for the root filesystem."),
        option("source", Kind::Path, "The directory or file of the host that is shown there")
            .required("yes, except for the root filesystem"),
        option("pool", Kind::Pool, "The storage pool that holds the root filesystem")
            .required("for the root filesystem"),
        option("size", Kind::Size, "How large the root filesystem may become").default("volume.size of the pool").long(
            "Enforced while the instance runs and when it is changed, in pools that can: btrfs, zfs, and overlay on a \
                filesystem with project quotas.",
        ),
        option("readonly", Kind::Bool, "Whether the instance can only read it").default("false"),
        option("limits.max", Kind::DiskRate, "How much may be read and written in a second")
            .default("no limit")
            .long("The same as limits.read and limits.write; it takes the place of both."),
        option("limits.read", Kind::DiskRate, "How much may be read in a second").default("no limit").long(
            "Bytes such as 10MiB, or operations such as 500iops. It holds for the block device under the disk, \
                whichever way it is read; of several disks on one device the mean holds. The host needs cgroup version 2.",
        ),
        option("limits.write", Kind::DiskRate, "How much may be written in a second")
            .default("no limit")
            .long("As limits.read."),
        option("recursive", Kind::Bool, "Whether mounts below the source are shown too").default("false"),
        option("required", Kind::Bool, "Whether the instance fails to start when the source does not exist")
            .default("true"),
        option("shift", Kind::Bool, "Whether owners are translated into the container's id range")
            .default("false")
            .long(
                "With true, a file of the host's user 1000 belongs to the container's user 1000; \
                without, it belongs to nobody there.",
            ),
    ],
};

/// A network interface on a bridge.
pub(in super::super) static NIC: DeviceType = DeviceType {
    name: "nic",
    heading: "nic_bridged",
    options: &[
        option("network", Kind::Link, "The managed network to join").required("unless nictype and parent are given"),
        option("nictype", Kind::Enum(&["bridged"]), "The way in which the link is made").default("that of the network"),
        option("parent", Kind::Link, "The bridge of the host to join").required("with nictype"),
        option("name", Kind::Link, "The link's name in the instance").default("the next free of eth0, eth1, ..."),
        option("hwaddr", Kind::Mac, "The link's MAC address").default("chosen once, then kept"),
        option("mtu", Kind::Int(68, 65_535), "The largest packet, in bytes").default("that of the bridge"),
        option("host_name", Kind::Link, "The name of the link's end on the host").default("chosen at each start"),
        option("ipv4.address", Kind::Address4, "The IPv4 address that DHCP gives to the instance")
            .default("any free one")
            .long("Needs a managed network."),
        option("ipv6.address", Kind::Address6, "The IPv6 address that DHCPv6 gives to the instance")
            .default("its own choice")
            .long("Needs a managed network with ipv6.dhcp.stateful."),
    ],
};

/// A character device of the host.
pub(in super::super) static UNIX_CHAR: DeviceType = DeviceType {
    name: "unix-char",
    heading: "unix-char",
    options: &[
        option("source", Kind::Path, "The device's path on the host")
            .required("unless path is given")
            .default("the value of path"),
        option("path", Kind::Path, "The device's path in the container")
            .required("unless source is given")
            .default("the value of source"),
        option("major", Kind::Int(0, 4095), "The device's major number").default("that of the source"),
        option("minor", Kind::Int(0, 1_048_575), "The device's minor number").default("that of the source"),
        option("uid", ID, "The device's owner in the container").default("0"),
        option("gid", ID, "The device's group in the container").default("0"),
        option("mode", Kind::Mode, "The device's permissions in the container, in octal").default("0660"),
        option("required", Kind::Bool, "Whether the container fails to start when the device does not exist")
            .default("true"),
    ],
};

/// Hides a device of the same name that a profile brings.
static NONE: DeviceType = DeviceType { name: "none", heading: "none", options: &[] };

/// Every type, in the order of their documentation.
pub(in super::super) static TYPES: [&DeviceType; 4] = [&DISK, &NIC, &UNIX_CHAR, &NONE];
