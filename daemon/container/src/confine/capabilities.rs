//! Capabilities by name, and the ones that no container has.

use rustix::thread::CapabilitySet;

/// Every capability of capabilities(7), by its name without the `CAP_` prefix.
const NAMES: [(&str, CapabilitySet); 41] = [
    ("audit_control", CapabilitySet::AUDIT_CONTROL),
    ("audit_read", CapabilitySet::AUDIT_READ),
    ("audit_write", CapabilitySet::AUDIT_WRITE),
    ("block_suspend", CapabilitySet::BLOCK_SUSPEND),
    ("bpf", CapabilitySet::BPF),
    ("checkpoint_restore", CapabilitySet::CHECKPOINT_RESTORE),
    ("chown", CapabilitySet::CHOWN),
    ("dac_override", CapabilitySet::DAC_OVERRIDE),
    ("dac_read_search", CapabilitySet::DAC_READ_SEARCH),
    ("fowner", CapabilitySet::FOWNER),
    ("fsetid", CapabilitySet::FSETID),
    ("ipc_lock", CapabilitySet::IPC_LOCK),
    ("ipc_owner", CapabilitySet::IPC_OWNER),
    ("kill", CapabilitySet::KILL),
    ("lease", CapabilitySet::LEASE),
    ("linux_immutable", CapabilitySet::LINUX_IMMUTABLE),
    ("mac_admin", CapabilitySet::MAC_ADMIN),
    ("mac_override", CapabilitySet::MAC_OVERRIDE),
    ("mknod", CapabilitySet::MKNOD),
    ("net_admin", CapabilitySet::NET_ADMIN),
    ("net_bind_service", CapabilitySet::NET_BIND_SERVICE),
    ("net_broadcast", CapabilitySet::NET_BROADCAST),
    ("net_raw", CapabilitySet::NET_RAW),
    ("perfmon", CapabilitySet::PERFMON),
    ("setfcap", CapabilitySet::SETFCAP),
    ("setgid", CapabilitySet::SETGID),
    ("setpcap", CapabilitySet::SETPCAP),
    ("setuid", CapabilitySet::SETUID),
    ("sys_admin", CapabilitySet::SYS_ADMIN),
    ("sys_boot", CapabilitySet::SYS_BOOT),
    ("sys_chroot", CapabilitySet::SYS_CHROOT),
    ("sys_module", CapabilitySet::SYS_MODULE),
    ("sys_nice", CapabilitySet::SYS_NICE),
    ("sys_pacct", CapabilitySet::SYS_PACCT),
    ("sys_ptrace", CapabilitySet::SYS_PTRACE),
    ("sys_rawio", CapabilitySet::SYS_RAWIO),
    ("sys_resource", CapabilitySet::SYS_RESOURCE),
    ("sys_time", CapabilitySet::SYS_TIME),
    ("sys_tty_config", CapabilitySet::SYS_TTY_CONFIG),
    ("syslog", CapabilitySet::SYSLOG),
    ("wake_alarm", CapabilitySet::WAKE_ALARM),
];

/// What containers do not have: the security policy, the clock, the modules and the ports belong to the host.
pub const ALWAYS_DROPPED: CapabilitySet = CapabilitySet::MAC_ADMIN
    .union(CapabilitySet::MAC_OVERRIDE)
    .union(CapabilitySet::SYS_TIME)
    .union(CapabilitySet::SYS_MODULE)
    .union(CapabilitySet::SYS_RAWIO);

/// Finds a capability by its name in any case, with or without `CAP_`.
pub fn capability_by_name(name: &str) -> Option<CapabilitySet> {
    let name = name.to_ascii_lowercase();
    let name = name.strip_prefix("cap_").unwrap_or(&name);
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, capability)| *capability)
}
