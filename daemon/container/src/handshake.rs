//! The conversation of a start, on a socket pair of which the monitor's end is its standard input.
//!
//! The daemon sends [`HandshakeRequest::Start`] with the
//! descriptors of the spec's mounts; the monitor answers [`HandshakeEvent::Created`] with two descriptors, init's pidfd
//! and a netlink socket of the container's network namespace; the daemon moves the network interfaces in and sends
//! [`HandshakeRequest::Go`]; the monitor answers [`HandshakeEvent::Started`] once init's program runs. In place of each
//! answer there can be [`HandshakeEvent::Failed`]. If either side closes its end before `Started`, everything made so
//! far is undone. The packets are those of [`crate::protocol`].

use serde::{Deserialize, Serialize};

use crate::spec::ContainerSpec;
#[cfg(doc)]
use crate::spec::MountSource;

/// What the daemon says on the handshake socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum HandshakeRequest {
    /// Create the container and wait. The descriptors are those that [`MountSource::Fd`] speaks of.
    Start {
        /// The container.
        spec: Box<ContainerSpec>,
    },
    /// The network is attached: run init.
    Go,
}

/// What the monitor says on the handshake socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum HandshakeEvent {
    /// The namespaces exist. Beside it travel init's pidfd and the netlink socket.
    Created {
        /// Init's process id on the host.
        init_pid: u32,
    },
    /// Init's program was executed.
    Started,
    /// The start ended here and nothing is left of it.
    Failed {
        /// What was being done.
        step: String,
        /// What went wrong, without the step.
        error: String,
    },
}
