//! The rules of a profile.
//!
//! A container is held by its namespaces, its user namespace, its cgroup's device rules and the system call filter. The
//! profile allows what these allow, so that a system boots in it with every sandbox of its services, and takes away some
//! ways around them: what is hidden in /proc stays hidden where it is, interfaces of the kernel as a whole are not
//! written, and no process leaves the profile. It says nothing of what is mounted: AppArmor is not told the type of a
//! filesystem that is mounted by fsmount(2), so such rules would keep out old programs only. Hence it makes no boundary
//! of a privileged container either.

use std::fmt::Write as _;

use duet_container::confine;

/// What a profile depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Whether the container's root is the host's.
    pub privileged: bool,
    /// Whether it runs containers of its own, with profiles of their own.
    pub nesting: bool,
}

/// What is never written, whoever root is. Paths as in apparmor.d(5).
const NEVER_WRITTEN: [&str; 9] = [
    "/proc/sysrq-trigger",
    "/proc/kcore",
    "/proc/kmem",
    "/proc/mem",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/vm/panic_on_oom",
    "/sys/firmware/**",
    "/sys/kernel/uevent_helper",
];

/// What a root that is the host's may not write besides.
const NOT_BY_HOST_ROOT: [&str; 8] = [
    "/proc/acpi/**",
    "/proc/bus/**",
    "/proc/irq/**",
    "/proc/sys/{abi,debug,dev,fs,vm}/**",
    "/proc/sys/kernel/**",
    "/sys/{block,bus,dev,hypervisor,module,power}/**",
    "/sys/devices/{[^sv]*,system}/**",
    "/sys/kernel/[^s]*/**",
];

/// A profile in the language of apparmor.d(5). With nesting it may change to those of the instance's own policy
/// namespace: of all of them, it sees no other.
pub(super) fn text(name: &str, rules: Rules) -> String {
    let Rules { privileged, nesting } = rules;
    // The features of Linux 5.4, which every parser knows; what others added is not mediated, so that the profile means
    // the same everywhere (apparmor.d(5), "Feature ABI"). Sockets are among that: Linux 6.1 has no rule by which a
    // process may lock one (file_lock of a socketpair), as systemd does for DynamicUser= and PrivateNetwork=. The flags:
    // an overlay, and mounts of other namespaces, show files whose paths do not lead to the root.
    let mut text =
        format!("abi <abi/kernel-5.4-vanilla>,\nprofile \"{name}\" flags=(attach_disconnected,mediate_deleted) {{\n");
    for allowed in ["capability", "file", "mount", "pivot_root", "ptrace", "signal", "umount"] {
        let _ = writeln!(text, "  {allowed},");
    }
    for hidden in confine::default_masked_paths(privileged) {
        let hidden = hidden.display();
        let _ = writeln!(text, "  deny \"{hidden}{{,/**}}\" rwklx,\n  deny umount \"{hidden}{{,/**}}\",");
    }
    let more: &[&str] = if privileged { &NOT_BY_HOST_ROOT } else { &[] };
    for path in NEVER_WRITTEN.iter().chain(more) {
        let _ = writeln!(text, "  deny {path} wkl,");
    }
    if nesting {
        text.push_str("  change_profile -> \":*_*:*\",\n  change_profile -> \":*_*://*\",\n");
    }
    text.push_str("}\n");
    text
}
