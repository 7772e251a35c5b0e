//! The keys of the daemon itself and of storage pools.

use super::{Key, Kind};

const MISC: &str = "miscellaneous";
const IMAGES: &str = "images";
const COMMON: &str = "common";

/// Keys of the daemon, in the order of their documentation.
pub(super) const SERVER: &[Key] = &[
    Key::new(
        "images.compression_algorithm",
        IMAGES,
        Kind::Enum(&["gzip", "xz", "zstd", "none"]),
        "How images that are published from instances are compressed",
    )
    .default("gzip"),
    Key::new("core.vm_kernel", MISC, Kind::Text, "The kernel of virtual machines whose image has none")
        .default("the newest of the host that has its modules")
        .long(
            "The path of a bzImage whose modules are in /lib/modules, as /boot/vmlinuz-6.12.48+deb13-cloud-amd64, or of a \
                directory with a vmlinuz and its modules.",
        ),
    Key::new("user.*", MISC, Kind::Text, "Free values of the user's own"),
];

/// Keys of storage pools, in the order of their documentation.
pub(super) const POOL: &[Key] = &[
    Key::new("source", COMMON, Kind::Source, "The directory, block device or ZFS dataset that holds the pool")
        .default("a directory of the daemon's own (overlay), or a file of its own (btrfs, zfs)")
        .long(
            "An overlay pool is in a directory of a filesystem that carries overlay upper layers: ext4, xfs or btrfs. A \
                btrfs pool is in an empty directory on btrfs, or on a block device, which is formatted. A zfs pool is on a \
                block device, on which a ZFS pool is made, or in an empty ZFS pool or dataset, such as tank/duet, which is \
                made if there is none. It cannot be changed later.",
        ),
    Key::new("size", COMMON, Kind::Size, "The size of the file that holds the pool")
        .default("a fifth of the filesystem, at least 5GiB and at most 30GiB")
        .long("Of btrfs and zfs pools without a source. It can be raised while the pool is in use, and not be lowered."),
    Key::new("source.wipe", COMMON, Kind::Bool, "Whether what is on the block device is lost")
        .default("false")
        .long("Only when the pool is made."),
    Key::new("zfs.pool_name", COMMON, Kind::Dataset, "The name of the ZFS pool or dataset")
        .default("the name of the storage pool, or the source")
        .long("Of zfs pools. It cannot be changed later."),
    Key::new("volume.size", COMMON, Kind::Size, "The size of root disks that have none of their own")
        .default("no limit")
        .long("Felt when an instance starts next. Of pools that enforce sizes."),
    Key::new("volatile.initial_source", COMMON, Kind::Text, "The source as it was given when the pool was made")
        .by_server(),
    Key::new("volatile.uuid", COMMON, Kind::Uuid, "The UUID of what was made for the pool").by_server(),
    Key::new("user.*", COMMON, Kind::Text, "Free values of the user's own"),
];
