//! Limits of the kernel that are too small for a host of many system containers, raised when the daemon starts.
//!
//! All unprivileged containers share one range of ids, and the kernel counts inotify instances and keys by the owner's
//! id: Debian's defaults (128 instances, 200 keys) are used up by some twenty containers that run systemd. Values are
//! only ever raised; what an admin set higher stays. Facts: Documentation/admin-guide/sysctl/fs.rst,
//! Documentation/security/keys/core.rst.

use std::path::Path;

/// What is raised, to what.
const FLOORS: &[(&str, u64)] = &[
    ("fs/inotify/max_user_instances", 65_536),
    ("fs/inotify/max_user_watches", 1_048_576),
    ("kernel/keys/maxkeys", 20_000),
    ("kernel/keys/maxbytes", 2_000_000),
];

/// Raises each limit that is lower. A host that does not let us keeps what it has: `duet doctor` tells.
pub fn raise_limits() {
    for (name, floor) in FLOORS {
        let path = Path::new("/proc/sys").join(name);
        let current = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u64>().ok());
        if current.is_some_and(|current| current < *floor)
            && let Err(error) = std::fs::write(&path, floor.to_string())
        {
            tracing::warn!(%error, sysctl = name, "a limit of the kernel could not be raised");
        }
    }
}
