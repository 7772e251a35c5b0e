//! Keys that Incus has and Duet has not, with the reason that the user is told.

use super::Scope;

/// A name, or a beginning when it ends in a dot, and what to say about it.
type Row = (&'static str, &'static str);

const INSTANCE: &[Row] = &[
    ("agent.", "it belongs to virtual machines with Incus' agent"),
    ("boot.autorestart", "use Restart= in the instance's own init"),
    (
        "boot.host_shutdown_action",
        "instances are always shut down cleanly, then killed after boot.host_shutdown_timeout",
    ),
    ("cluster.", "there is no clustering"),
    ("limits.cpu.nodes", "pin CPUs with limits.cpu instead"),
    ("limits.hugepages.", "huge pages are not limited apart"),
    ("limits.kernel.", "set resource limits inside the instance"),
    ("limits.memory.hotplug", "memory is not added to running virtual machines"),
    ("limits.memory.hugepages", "memory is not backed by huge pages"),
    ("limits.memory.swap.priority", "use limits.memory.swap"),
    ("limits.network.", "network bandwidth is not limited"),
    ("linux.", "set it on the host, for example in /etc/modules-load.d or /etc/sysctl.d"),
    ("migration.", "running instances are not migrated"),
    ("nvidia.", "GPUs are not passed through"),
    ("oci.", "application containers are not run"),
    ("raw.", "there is no other engine behind it whose configuration this could be"),
    ("security.agent.", "it belongs to virtual machines with Incus' agent"),
    ("security.bpffs.", "BPF is not delegated to containers"),
    ("security.csm", "it belongs to virtual machines with a BIOS"),
    ("security.guestapi", "instances have no API socket inside"),
    ("security.devlxd", "instances have no API socket inside"),
    ("security.idmap.base", "the base of an isolated range is chosen by the daemon; use security.idmap.isolated"),
    ("security.idmap.size", "every container has 65536 ids"),
    ("security.iommu", "it belongs to virtual machines"),
    ("security.promiscuous", "it belongs to virtual machines"),
    ("security.protection.shift", "Duet never changes the owners of files on disk"),
    ("security.secureboot", "it belongs to virtual machines with firmware"),
    ("security.sev", "it belongs to virtual machines"),
    ("security.syscalls.", "system calls are filtered by a fixed list"),
    ("smbios11.", "it belongs to virtual machines with firmware"),
    ("systemd.credential", "pass credentials as files"),
];

const NETWORK: &[Row] = &[
    ("bgp.", "routes are not announced by BGP"),
    ("dns.nameservers", "instances always ask the bridge's own DNS"),
    ("dns.zone.", "there are no DNS zones"),
    ("bridge.mode", "there are no fan bridges"),
    ("fan.", "there are no fan bridges"),
    ("ipv4.dhcp.gateway", "the gateway is always the bridge; set ipv4.routing=false for none"),
    ("ipv4.dhcp.routes", "use raw.dnsmasq"),
    ("ipv4.nat.", "packets always leave under the address of the outgoing link"),
    ("ipv4.ovn.ranges", "there is no OVN"),
    ("ipv4.routes", "set routes on the host"),
    ("ipv6.nat.", "packets always leave under the address of the outgoing link"),
    ("ipv6.ovn.ranges", "there is no OVN"),
    ("ipv6.routes", "set routes on the host"),
    ("network", "only bridges are managed"),
    ("parent", "only bridges are managed; use bridge.external_interfaces"),
    ("security.acls", "there are no network ACLs"),
    ("tunnel.", "tunnels are not made; add one as bridge.external_interfaces"),
    ("vlan", "VLANs are not made; add one as bridge.external_interfaces"),
];

const POOL: &[Row] = &[
    ("rsync.", "nothing is copied with rsync"),
    ("volume.", "there are no custom volumes"),
    ("btrfs.", "btrfs pools have no such setting"),
    ("zfs.", "zfs pools have no such setting"),
    ("lvm.", "there is no LVM driver"),
    ("ceph.", "there is no Ceph driver"),
];

const SERVER: &[Row] = &[
    ("acme.", "there is no remote access"),
    ("backups.", "there are no backups"),
    ("cluster.", "there is no clustering"),
    ("core.", "the daemon answers on its unix socket only, and has no such setting"),
    ("images.", "images come from build, import and publish only"),
    ("instances.", "the daemon has no such setting"),
    ("loki.", "logs go to the daemon's standard error"),
    ("logging.", "logs go to the daemon's standard error"),
    ("maas.", "there is no MAAS"),
    ("network.", "there is no OVN"),
    ("oidc.", "there is no remote access"),
    ("openfga.", "there is no remote access"),
    ("storage.", "there are no custom volumes"),
];

const DISK: &[Row] = &[
    ("size.state", "there is no saved state"),
    ("attached", "add or remove the device instead"),
    ("boot.priority", "it belongs to virtual machines"),
    ("ceph.", "there is no Ceph"),
    ("dependent", "there are no custom volumes"),
    ("initial.", "volumes have no settings"),
    ("io.", "it belongs to virtual machines"),
    ("propagation", "mounts are always private; use recursive=true to show the ones that exist"),
    ("raw.mount.options", "use readonly, recursive and shift"),
    ("wwn", "it belongs to virtual machines"),
];

const NIC: &[Row] = &[
    ("attached", "add or remove the device instead"),
    ("boot.priority", "it belongs to virtual machines"),
    ("connected", "add or remove the device instead"),
    ("io.bus", "it belongs to virtual machines"),
    ("ipv4.", "addresses are given by DHCP; see ipv4.address"),
    ("ipv6.", "addresses are given by DHCPv6; see ipv6.address"),
    ("limits.", "network bandwidth is not limited"),
    ("queue.tx.length", "the kernel's own length is used"),
    ("security.", "traffic between instances of a bridge is not filtered"),
    ("vlan", "make a bridge on the VLAN and name it as parent"),
    ("vlan.", "make a bridge on the VLAN and name it as parent"),
];

fn find(rows: &[Row], key: &str) -> Option<&'static str> {
    let matches = |name: &str| {
        if name.ends_with('.') { key.starts_with(name) } else { key == name }
    };
    rows.iter().find(|(name, _)| matches(name)).map(|(_, reason)| *reason)
}

/// Why a key of Incus' is not taken, when it is one.
pub(in super::super) fn foreign_key(scope: Scope, key: &str) -> Option<&'static str> {
    if scope.keys().iter().any(|row| row.covers(key)) {
        return None;
    }
    let rows = match scope {
        Scope::Instance => INSTANCE,
        Scope::Network => NETWORK,
        Scope::Pool => POOL,
        Scope::Server => SERVER,
    };
    find(rows, key)
}

/// Why an option of a device of Incus' is not taken, when it is one.
pub(in super::super) fn foreign_device_option(kind: &str, option: &str) -> Option<&'static str> {
    match kind {
        "disk" => find(DISK, option),
        "nic" if NIC_KNOWN.contains(&option) => None,
        "nic" => find(NIC, option),
        _ => None,
    }
}

/// Options that fall under one of the beginnings in [`NIC`] and are nevertheless taken.
const NIC_KNOWN: [&str; 2] = ["ipv4.address", "ipv6.address"];
