//! Virtual machines as the daemon runs them: one monitor for each, which runs the machine and asks its guest.
//!
//! A virtual machine is a [`spec::VmSpec`]. The daemon runs one `duet-vm-monitor` process for it ([`runtime`]), which runs
//! the machine as its child, owns its console, speaks with the guest's agent ([`duet_agent::client`]) and answers on a
//! socket until the machine ends ([`duet_control`]). The monitor outlives the daemon, which finds it again by that socket.
//!
//! Nothing here knows of HTTP, SQL or configuration keys, and nothing here is asynchronous.

pub mod handshake;
pub mod monitor;
pub mod runtime;
pub mod spec;

pub use runtime::{Launched, StartError, Started, Starting};
pub use spec::VmSpec;
