//! The keys of instances and profiles.

use super::{Key, Kind, Live};

const BOOT: &str = "boot";
const CLOUD_INIT: &str = "cloud-init";
const LIMITS: &str = "resource-limits";
const MISC: &str = "miscellaneous";
const SECURITY: &str = "security";
const SNAPSHOTS: &str = "snapshots";
const VOLATILE: &str = "volatile";

/// Priorities between instances.
const PRIORITY: Kind = Kind::Int(i32::MIN as i64, i32::MAX as i64);
/// A time to wait, in seconds: up to a day.
const SECONDS: Kind = Kind::Int(0, 86_400);

/// In the order of their documentation. Families come last, so that no family hides a key.
pub(super) const INSTANCE: &[Key] = &[
    Key::new("boot.autostart", BOOT, Kind::Bool, "Whether the instance starts together with the daemon")
        .default("the state that it was in before")
        .live(Live::NextStart)
        .long("When unset, an instance that ran before the host went down is started again."),
    Key::new("boot.autostart.delay", BOOT, SECONDS, "Seconds to wait after this instance before the next one starts")
        .default("0")
        .live(Live::NextStart),
    Key::new("boot.autostart.priority", BOOT, PRIORITY, "Place in the order of starting, highest first")
        .default("0")
        .live(Live::NextStart),
    Key::new(
        "boot.host_shutdown_timeout",
        BOOT,
        SECONDS,
        "Seconds that the instance has to shut down before it is killed",
    )
    .default("30")
    .long("Also used for a stop request that names no timeout of its own."),
    Key::new("boot.stop.priority", BOOT, PRIORITY, "Place in the order of stopping, highest first").default("0"),
    Key::new("cloud-init.network-config", CLOUD_INIT, Kind::Yaml, "Network configuration for cloud-init")
        .live(Live::NextStart)
        .long("Handed to the image's templates; it works in images that have cloud-init."),
    Key::new("cloud-init.user-data", CLOUD_INIT, Kind::Text, "User data for cloud-init")
        .live(Live::NextStart)
        .long("Handed to the image's templates; it works in images that have cloud-init."),
    Key::new("cloud-init.vendor-data", CLOUD_INIT, Kind::Text, "Vendor data for cloud-init")
        .live(Live::NextStart)
        .long("As user data, with lower precedence."),
    Key::new("limits.cpu", LIMITS, Kind::Cpu, "How many CPUs there are, or which ones").default("all CPUs").long(
        "A number such as 2 gives that many CPUs; a set such as 0-3,5 pins the instance to \
                these. Write 2-2 for CPU 2 alone.",
    ),
    Key::new("limits.cpu.allowance", LIMITS, Kind::CpuAllowance, "How much CPU time the instance gets")
        .default("100%")
        .containers_only()
        .long(
            "A percentage such as 50% is a share that counts when CPUs are short; time per period \
                such as 25ms/100ms is a hard limit at any time.",
        ),
    Key::new(
        "limits.cpu.priority",
        LIMITS,
        Kind::Int(0, 10),
        "Precedence over instances with the same allowance when CPUs are short",
    )
    .default("10")
    .containers_only()
    .long("From 0 to 10, the highest being served first."),
    Key::new(
        "limits.disk.priority",
        LIMITS,
        Kind::Int(0, 10),
        "Precedence over other instances when they use a disk at the same time",
    )
    .default("5")
    .containers_only()
    .long("From 0 to 10, the highest being served first. The host needs cgroup version 2."),
    Key::new("limits.memory", LIMITS, Kind::Memory, "How much memory the instance may use")
        .default("all memory")
        .long("A size such as 512MiB, or a percentage of the host's memory such as 10%."),
    Key::new("limits.memory.enforce", LIMITS, Kind::Enum(&["hard", "soft"]), "Whether the memory limit always holds")
        .default("hard")
        .containers_only()
        .long("With soft, the instance may exceed its limit while the host has memory to spare."),
    Key::new("limits.memory.swap", LIMITS, Kind::Swap, "Whether the instance's memory may be swapped out, or how much")
        .default("true")
        .containers_only()
        .long("A size such as 512MiB is what may be swapped out beside what limits.memory allows."),
    Key::new(
        "limits.processes",
        LIMITS,
        Kind::Int(1, 4_194_304),
        "How many processes and threads may exist in the instance",
    )
    .default("no limit")
    .containers_only(),
    Key::new(
        "security.idmap.isolated",
        SECURITY,
        Kind::Bool,
        "Whether the container has user ids that no other instance has",
    )
    .default("false")
    .containers_only()
    .live(Live::NextStart)
    .long("Other unprivileged containers share one range of ids on the host."),
    Key::new("security.nesting", SECURITY, Kind::Bool, "Whether containers can be run inside the container")
        .default("false")
        .containers_only()
        .live(Live::NextStart),
    Key::new("security.privileged", SECURITY, Kind::Bool, "Whether root in the container is root on the host")
        .default("false")
        .containers_only()
        .live(Live::NextStart)
        .long(
            "A privileged container is not a security boundary: run only what you would run on the \
                host itself.",
        ),
    Key::new("security.protection.delete", SECURITY, Kind::Bool, "Whether deleting the instance is refused")
        .default("false"),
    Key::new("snapshots.expiry", SNAPSHOTS, Kind::Expiry, "How long new snapshots are kept")
        .default("for ever")
        .long("Spans such as 12H or \"2w 3d\": M minutes, H hours, d days, w weeks, m months, y years."),
    Key::new("snapshots.pattern", SNAPSHOTS, Kind::Pattern, "What snapshots are called that were given no name")
        .default("snap%d")
        .long(
            "%d is the next free number, {{ creation_date|date:'2006-01-02' }} the time in a layout \
                of Go's.",
        ),
    Key::new("snapshots.schedule", SNAPSHOTS, Kind::Schedule, "When snapshots are taken by themselves")
        .default("never")
        .long(
            "Five cron fields such as \"0 6 * * *\", or a comma list of @hourly, @daily, @midnight, \
                @weekly, @monthly, @annually, @yearly, @startup and @never.",
        ),
    Key::new(
        "snapshots.schedule.stopped",
        SNAPSHOTS,
        Kind::Bool,
        "Whether the schedule goes on while the instance is stopped",
    )
    .default("false"),
    Key::new("volatile.apply_template", VOLATILE, Kind::Text, "Which of the image's templates the next start applies")
        .by_server(),
    Key::new(
        "volatile.base_image",
        VOLATILE,
        Kind::Text,
        "The fingerprint of the image that the instance was made from",
    )
    .by_server(),
    Key::new("volatile.cloud-init.instance-id", VOLATILE, Kind::Text, "The instance id that cloud-init sees")
        .by_server(),
    Key::new("volatile.vm.engine", VOLATILE, Kind::Text, "What runs the virtual machine: kvm or emulation").by_server(),
    Key::new("volatile.idmap.base", VOLATILE, Kind::Text, "The first host id of the instance's range").by_server(),
    Key::new("volatile.idmap.current", VOLATILE, Kind::Text, "The id map that the instance runs with").by_server(),
    Key::new("volatile.idmap.next", VOLATILE, Kind::Text, "The id map that the next start uses").by_server(),
    Key::new("volatile.last_state.idmap", VOLATILE, Kind::Text, "The id map in which the root filesystem is stored")
        .by_server(),
    Key::new("volatile.last_state.power", VOLATILE, Kind::Text, "Whether the instance ran when it was last seen")
        .by_server(),
    Key::new("volatile.last_state.ready", VOLATILE, Kind::Text, "Whether the instance had said that it is ready")
        .by_server(),
    Key::new("volatile.uuid", VOLATILE, Kind::Uuid, "The instance's UUID").by_server(),
    Key::new(
        "volatile.uuid.generation",
        VOLATILE,
        Kind::Uuid,
        "A UUID that changes when the instance's state is put back in time",
    )
    .by_server(),
    // A user may choose an interface's address here, as it is the same as doing so in the device.
    Key::new("volatile.<device>.hwaddr", VOLATILE, Kind::Mac, "The MAC address of a NIC that was given none")
        .live(Live::NextStart),
    Key::new(
        "volatile.<device>.name",
        VOLATILE,
        Kind::Link,
        "The name inside the instance of a NIC that was given none",
    )
    .by_server(),
    Key::new("volatile.<device>.host_name", VOLATILE, Kind::Link, "The name of a NIC's host end").by_server(),
    Key::new(
        "volatile.<device>.last_state.created",
        VOLATILE,
        Kind::Text,
        "Whether the device was made for the instance",
    )
    .by_server(),
    Key::new("volatile.<device>.last_state.hwaddr", VOLATILE, Kind::Text, "The MAC address that a device had before")
        .by_server(),
    Key::new("volatile.<device>.last_state.mtu", VOLATILE, Kind::Text, "The MTU that a device had before").by_server(),
    Key::new("environment.*", MISC, Kind::Text, "Environment variables of the instance")
        .live(Live::NextExec)
        .long("Given to commands that are run with exec, and to the container's init at its next start."),
    Key::new("image.*", MISC, Kind::Text, "Properties of the image that the instance was made from")
        .live(Live::NextStart),
    Key::new("user.*", MISC, Kind::Text, "Free values of the user's own").long("They can be used to filter lists."),
];
