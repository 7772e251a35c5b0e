//! Snapshots of instances.

use std::collections::BTreeMap;

use super::Timestamp;

wire! {
    /// `GET /1.0/instances/{name}/snapshots/{snapshot}`.
    pub struct InstanceSnapshot {
        /// When it is deleted; the zero time for never.
        pub expires_at: Timestamp,
        /// The architecture.
        pub architecture: String,
        /// The keys the instance had.
        pub config: BTreeMap<String, String>,
        /// When it was taken.
        pub created_at: Timestamp,
        /// The devices the instance had.
        pub devices: BTreeMap<String, BTreeMap<String, String>>,
        /// Whether the instance was ephemeral.
        pub ephemeral: bool,
        /// The keys with its profiles applied.
        pub expanded_config: BTreeMap<String, String>,
        /// The devices with its profiles applied.
        pub expanded_devices: BTreeMap<String, BTreeMap<String, String>>,
        /// When it was last used.
        pub last_used_at: Timestamp,
        /// Its own name, without the instance's.
        pub name: String,
        /// The profiles the instance had.
        pub profiles: Vec<String>,
        /// Whether the running state was saved.
        pub stateful: bool,
        /// Its size in bytes; -1 where the pool cannot tell.
        pub size: i64,
    }

    /// `POST /1.0/instances/{name}/snapshots`.
    pub struct InstanceSnapshotsPost {
        /// Its name; empty lets the daemon choose by `snapshots.pattern`.
        pub name: String,
        /// Whether the running state is saved.
        pub stateful: bool,
        /// When it is deleted; `null` for what `snapshots.expiry` says, the zero time for never.
        pub expires_at: Option<Timestamp>,
    }

    /// `PUT /1.0/instances/{name}/snapshots/{snapshot}`.
    pub struct InstanceSnapshotPut {
        /// When it is deleted; the zero time for never.
        pub expires_at: Timestamp,
    }

    /// `PATCH /1.0/instances/{name}/snapshots/{snapshot}`: only what is present changes.
    pub struct InstanceSnapshotPatch {
        /// When it is deleted; the zero time for never.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub expires_at: Option<Timestamp>,
    }

    /// `POST /1.0/instances/{name}/snapshots/{snapshot}`: rename.
    pub struct InstanceSnapshotPost {
        /// The new name.
        pub name: String,
        /// Whether this is a copy to another server.
        pub migration: bool,
        /// The server to push to.
        pub target: Option<serde_json::Value>,
        /// Whether the running state comes along.
        #[serde(skip_serializing_if = "super::is_default")]
        pub live: bool,
    }
}
