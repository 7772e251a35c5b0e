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
    Key::new("user.*", MISC, Kind::Text, "Free values of the user's own"),
];

/// Keys of storage pools, in the order of their documentation.
pub(super) const POOL: &[Key] = &[
    Key::new("source", COMMON, Kind::Path, "The directory that holds the pool")
        .default("a directory of the daemon's own")
        .long(
            "Its filesystem must carry overlay upper layers: ext4, xfs or btrfs. It cannot be \
                changed later.",
        ),
    Key::new("volatile.initial_source", COMMON, Kind::Text, "The source as it was given when the pool was made")
        .by_server(),
    Key::new("user.*", COMMON, Kind::Text, "Free values of the user's own"),
];
