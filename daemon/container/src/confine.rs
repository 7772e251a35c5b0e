//! What a container's processes may not do: capabilities, masked paths and the seccomp filter.

use std::path::PathBuf;

pub mod capabilities;
pub mod seccomp;

pub use capabilities::capability_by_name;

/// What is hidden in /proc and /sys unless the specification says otherwise.
///
/// In an unprivileged container the kernel keeps everybody from what only the host's root may read (kernel memory,
/// timers, keys of others); left to hide is what is readable by all and speaks of the host as a whole. In a privileged
/// container root is the host's root, so more is hidden; that keeps honest programs from harm, not a hostile root.
pub fn default_masked_paths(privileged: bool) -> Vec<PathBuf> {
    let always = ["/proc/latency_stats", "/proc/sched_debug"];
    let privileged_too = ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"];
    let more: &[&str] = if privileged { &privileged_too } else { &[] };
    always.iter().chain(more).map(PathBuf::from).collect()
}

/// What is read-only in /proc unless the specification says otherwise (/sys as a whole always is). In an unprivileged
/// container the kernel itself refuses writes to everything that does not belong to the container's namespaces.
pub fn default_read_only_paths(privileged: bool) -> Vec<PathBuf> {
    let list: &[&str] = if privileged {
        &[
            "/proc/bus",
            "/proc/fs",
            "/proc/irq",
            "/proc/sys/fs",
            "/proc/sys/kernel",
            "/proc/sys/vm",
            "/proc/sysrq-trigger",
        ]
    } else {
        &[]
    };
    list.iter().map(PathBuf::from).collect()
}
