//! What an instance is doing.

use std::collections::BTreeMap;

use super::{StatusCode, Timestamp};

wire! {
    /// `GET /1.0/instances/{name}/state`.
    pub struct InstanceState {
        /// The status in words.
        pub status: String,
        /// The status as a code.
        pub status_code: StatusCode,
        /// Usage by disk device; empty where the pool cannot tell.
        pub disk: BTreeMap<String, InstanceStateDisk>,
        /// Memory.
        pub memory: InstanceStateMemory,
        /// Links by the name they have inside; `null` unless running.
        pub network: Option<BTreeMap<String, InstanceStateNetwork>>,
        /// Its init's process id on the host; 0 unless running.
        pub pid: i64,
        /// How many processes it has.
        pub processes: i64,
        /// CPU time.
        pub cpu: InstanceStateCpu,
        /// When it was started; the zero time unless running.
        pub started_at: Timestamp,
        /// What its agent says about the system (virtual machines).
        pub os_info: Option<InstanceStateOsInfo>,
        /// For how much of the time it waits for what it lacks ([`super::EXTENSION_PRESSURE`]); absent unless running.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub duet_pressure: Option<InstanceStatePressure>,
    }

    /// For how much of the time an instance's processes wait, by what they wait for: the kernel's pressure stall
    /// information. Absent where the kernel does not count it.
    pub struct InstanceStatePressure {
        /// For a CPU.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub cpu: Option<InstanceStateStalls>,
        /// For memory.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub memory: Option<InstanceStateStalls>,
        /// For input and output.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub io: Option<InstanceStateStalls>,
    }

    /// Waiting for one resource.
    pub struct InstanceStateStalls {
        /// At least one of its tasks waited.
        pub some: InstanceStateStall,
        /// All of its tasks that were not idle waited at once.
        pub full: InstanceStateStall,
    }

    /// For how long something waited.
    pub struct InstanceStateStall {
        /// Per cent of the last 10 seconds.
        pub avg10: f64,
        /// Per cent of the last minute.
        pub avg60: f64,
        /// Per cent of the last five minutes.
        pub avg300: f64,
        /// Microseconds since the instance was started.
        pub total: i64,
    }

    /// CPU time of an instance.
    #[cfg_attr(feature = "openapi", schema(as = InstanceStateCPU))]
    pub struct InstanceStateCpu {
        /// Used so far, in nanoseconds.
        pub usage: i64,
        /// What it may use, in nanoseconds per second.
        pub allocated_time: i64,
    }

    /// Usage of one disk device, in bytes.
    pub struct InstanceStateDisk {
        /// Used.
        pub usage: i64,
        /// The limit; 0 without one.
        pub total: i64,
    }

    /// Memory of an instance, in bytes.
    pub struct InstanceStateMemory {
        /// Used now.
        pub usage: i64,
        /// The most that was ever used; 0 where the kernel does not tell.
        pub usage_peak: i64,
        /// The limit, or the host's memory without one.
        pub total: i64,
        /// Swap used now.
        pub swap_usage: i64,
        /// The most swap that was ever used.
        pub swap_usage_peak: i64,
    }

    /// One link of an instance.
    pub struct InstanceStateNetwork {
        /// Its addresses.
        pub addresses: Vec<InstanceStateNetworkAddress>,
        /// What went through it.
        pub counters: InstanceStateNetworkCounters,
        /// Its MAC address.
        pub hwaddr: String,
        /// The other end's name on the host.
        pub host_name: String,
        /// The largest packet, in bytes.
        pub mtu: i64,
        /// "up" or "down".
        pub state: String,
        /// "broadcast", "loopback" or "point-to-point".
        #[serde(rename = "type")]
        pub kind: String,
    }

    /// One address of a link.
    pub struct InstanceStateNetworkAddress {
        /// "inet" or "inet6".
        pub family: String,
        /// The address.
        pub address: String,
        /// The prefix length as text.
        pub netmask: String,
        /// "global", "link" or "local".
        pub scope: String,
    }

    /// What went through a link, seen from inside the instance.
    pub struct InstanceStateNetworkCounters {
        /// Bytes in.
        pub bytes_received: i64,
        /// Bytes out.
        pub bytes_sent: i64,
        /// Packets in.
        pub packets_received: i64,
        /// Packets out.
        pub packets_sent: i64,
        /// Broken packets in.
        pub errors_received: i64,
        /// Packets that failed to go out.
        pub errors_sent: i64,
        /// Packets dropped on the way out.
        pub packets_dropped_outbound: i64,
        /// Packets dropped on the way in.
        pub packets_dropped_inbound: i64,
    }

    /// What a guest's agent says about its system.
    #[cfg_attr(feature = "openapi", schema(as = InstanceStateOSInfo))]
    pub struct InstanceStateOsInfo {
        /// The distribution.
        pub os: String,
        /// Its version.
        pub os_version: String,
        /// The kernel.
        pub kernel_version: String,
        /// The host name.
        pub hostname: String,
        /// The full host name.
        pub fqdn: String,
    }

    /// `PUT /1.0/instances/{name}/state`.
    pub struct InstanceStatePut {
        /// "start", "stop", "restart", "freeze" or "unfreeze".
        pub action: String,
        /// How long a clean stop may take, in seconds; -1 for the default.
        pub timeout: i64,
        /// Whether to kill instead of asking.
        pub force: bool,
        /// Whether the running state is saved or restored.
        pub stateful: bool,
    }
}
