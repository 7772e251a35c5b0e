//! The system-container runtime.
//!
//! A container is a [`spec::ContainerSpec`]. The daemon runs one `duet-monitor` process for it ([`runtime`]), which
//! builds the container, is the parent of its PID 1, owns its console and answers on a socket until the container ends
//! ([`duet_control`]). The monitor outlives the daemon, which finds it again by that socket.
//!
//! Nothing here knows of HTTP, SQL or configuration keys, and nothing here is asynchronous.

pub mod cgroup;
pub mod confine;
pub mod handshake;
mod inside;
pub mod monitor;
pub mod rootfs;
pub mod runtime;
pub mod spec;
pub mod stats;
mod step;

pub use duet_control::{ClientError, MonitorClient, client, protocol};
pub use duet_files as files;
pub use runtime::{Created, MonitorBinary, StartError, Started, Starting, start};
pub use spec::ContainerSpec;
