//! What the events websocket sends.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Timestamp, is_default};

/// The kinds of events, as in `?type=`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum EventType {
    /// An operation was made or changed; the metadata is an `Operation`.
    #[default]
    Operation,
    /// Something was created, changed or deleted; the metadata is an `EventLifecycle`.
    Lifecycle,
    /// A line of the daemon's log; the metadata is an `EventLogging`.
    Logging,
    /// The log of network ACLs.
    NetworkAcl,
}

wire! {
    /// One text frame of `GET /1.0/events`.
    pub struct Event {
        /// Which kind it is.
        #[serde(rename = "type")]
        pub kind: EventType,
        /// When it happened.
        pub timestamp: Timestamp,
        /// The event itself.
        pub metadata: Value,
        /// The cluster member; left out when empty, "none" without a cluster.
        #[serde(skip_serializing_if = "is_default")]
        pub location: String,
        /// The project; left out when empty.
        #[serde(skip_serializing_if = "is_default")]
        pub project: String,
    }

    /// The metadata of a lifecycle event.
    pub struct EventLifecycle {
        /// What happened, such as "instance-created".
        pub action: String,
        /// The URL of what it happened to.
        pub source: String,
        /// Details; left out when there are none.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub context: Option<Map<String, Value>>,
        /// Who asked for it; left out when the daemon acted by itself.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub requestor: Option<EventRequestor>,
        /// The name of what it happened to; left out when empty.
        #[serde(skip_serializing_if = "is_default")]
        pub name: String,
        /// The project; left out when empty.
        #[serde(skip_serializing_if = "is_default")]
        pub project: String,
    }

    /// Who asked for something.
    pub struct EventRequestor {
        /// The user's name, or the certificate's fingerprint.
        pub username: String,
        /// How they came in: "unix" or "tls".
        pub protocol: String,
        /// From where; "@" for the unix socket.
        pub address: String,
    }

    /// The metadata of a logging event.
    pub struct EventLogging {
        /// The line.
        pub message: String,
        /// "debug", "info", "warning" or "error".
        pub level: String,
        /// Its fields.
        pub context: BTreeMap<String, String>,
    }
}
