//! The API extensions that are ours, and their bodies. Everything else is Incus'.

/// `GET /1.0/instances/{name}/wait?for=running,ipv4&timeout=SECONDS` answers once every named condition holds, with
/// the [`super::InstanceState`] as metadata; 408 and a sentence when the time has passed. Without `timeout` the
/// daemon waits 60 seconds; `-1` waits without limit.
pub const EXTENSION_WAIT: &str = "duet_wait";

/// `POST /1.0/images` with `"source": {"type": "build", "recipe": "debian/13"}` builds an image from a recipe.
pub const EXTENSION_IMAGE_BUILD: &str = "duet_image_build";

/// `GET /1.0/instances/{name}/state` says, in `duet_pressure`, for how much of the time a running instance waits for CPUs,
/// memory, input and output ([`super::InstanceStatePressure`]).
pub const EXTENSION_PRESSURE: &str = "duet_pressure";

/// When the kernel has killed processes of an instance because its memory was used up, there is a lifecycle event
/// `instance-oom`, whose context says how many (`killed`) and how many since its start (`killed_since_start`), and a
/// warning of the type `Instance ran out of memory` about the instance.
pub const EXTENSION_OOM: &str = "duet_instance_oom";

/// How long [`EXTENSION_WAIT`] waits when no `timeout` is given, in seconds.
pub const WAIT_DEFAULT_SECONDS: i64 = 60;

/// A condition that `wait` knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WaitCondition {
    /// The instance runs.
    Running,
    /// It has a global IPv4 address.
    Ipv4,
    /// It has a global IPv6 address.
    Ipv6,
    /// Its init reports that the system is up.
    Ready,
    /// It is stopped.
    Stopped,
}

impl WaitCondition {
    /// Every condition.
    pub const ALL: [Self; 5] = [Self::Running, Self::Ipv4, Self::Ipv6, Self::Ready, Self::Stopped];

    /// The name on the wire and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Ready => "ready",
            Self::Stopped => "stopped",
        }
    }
}

impl std::fmt::Display for WaitCondition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for WaitCondition {
    type Err = UnknownCondition;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|c| c.name() == text).ok_or_else(|| UnknownCondition(text.to_owned()))
    }
}

/// A name that is not a [`WaitCondition`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown condition {0:?}; the conditions are running, ipv4, ipv6, ready and stopped")]
pub struct UnknownCondition(pub String);
