//! Instances.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{InstanceSnapshot, InstanceState, StatusCode, Timestamp, is_default};

/// Which kind of guest an instance is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum InstanceType {
    /// A system container. Also what an empty `type` means.
    #[default]
    #[serde(alias = "")]
    Container,
    /// A virtual machine.
    VirtualMachine,
}

impl InstanceType {
    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::VirtualMachine => "virtual-machine",
        }
    }
}

impl std::fmt::Display for InstanceType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

wire! {
    /// `GET /1.0/instances/{name}` and the elements of `GET /1.0/instances?recursion=1`.
    pub struct Instance {
        /// The architecture, such as "x86_64".
        pub architecture: String,
        /// The keys set on the instance itself, `volatile.*` and `image.*` among them.
        pub config: BTreeMap<String, String>,
        /// The devices set on the instance itself.
        pub devices: BTreeMap<String, BTreeMap<String, String>>,
        /// Whether it is deleted when it stops.
        pub ephemeral: bool,
        /// The profiles it uses, in the order of their application.
        pub profiles: Vec<String>,
        /// Whether there is a saved running state.
        pub stateful: bool,
        /// Words for people.
        pub description: String,
        /// When it was created.
        pub created_at: Timestamp,
        /// The keys after the profiles were applied.
        pub expanded_config: BTreeMap<String, String>,
        /// The devices after the profiles were applied.
        pub expanded_devices: BTreeMap<String, BTreeMap<String, String>>,
        /// Its name.
        pub name: String,
        /// The status in words, such as "Running".
        pub status: String,
        /// The status as a code.
        pub status_code: StatusCode,
        /// When it was last started; the Unix epoch (1970-01-01T00:00:00Z) if never.
        pub last_used_at: Timestamp,
        /// The cluster member; "none" without a cluster.
        pub location: String,
        /// Container or virtual machine.
        #[serde(rename = "type")]
        pub kind: InstanceType,
        /// The project it is in.
        pub project: String,
    }

    /// `PUT /1.0/instances/{name}`: the whole writable part, or a snapshot to go back to.
    pub struct InstancePut {
        /// The architecture.
        pub architecture: String,
        /// The keys.
        pub config: BTreeMap<String, String>,
        /// The devices.
        pub devices: BTreeMap<String, BTreeMap<String, String>>,
        /// Whether it is deleted when it stops.
        pub ephemeral: bool,
        /// The profiles; `null` and absence mean none.
        pub profiles: Option<Vec<String>>,
        /// The snapshot to restore; when set, all else is ignored.
        #[serde(skip_serializing_if = "is_default")]
        pub restore: String,
        /// Whether the running state is meant too (restore).
        pub stateful: bool,
        /// Words for people.
        pub description: String,
    }

    /// `PATCH /1.0/instances/{name}`: only what is present changes; maps are merged, an empty value unsets a key.
    pub struct InstancePatch {
        /// The architecture.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub architecture: Option<String>,
        /// Keys to add or change.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub config: Option<BTreeMap<String, String>>,
        /// Devices to add or change.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub devices: Option<BTreeMap<String, BTreeMap<String, String>>>,
        /// Whether it is deleted when it stops.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub ephemeral: Option<bool>,
        /// The profiles, as a whole.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub profiles: Option<Vec<String>>,
        /// Words for people.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub description: Option<String>,
    }

    /// `POST /1.0/instances`.
    pub struct InstancesPost {
        /// The architecture; empty for the image's.
        pub architecture: String,
        /// The keys.
        pub config: BTreeMap<String, String>,
        /// The devices.
        pub devices: BTreeMap<String, BTreeMap<String, String>>,
        /// Whether it is deleted when it stops.
        pub ephemeral: bool,
        /// The profiles; `null` means the image's, or "default".
        pub profiles: Option<Vec<String>>,
        /// Unused at creation; kept because Incus' clients share the struct.
        #[serde(skip_serializing_if = "is_default")]
        pub restore: String,
        /// Whether a running state comes along.
        pub stateful: bool,
        /// Words for people.
        pub description: String,
        /// The name; empty lets the daemon choose one.
        pub name: String,
        /// Where its root comes from.
        pub source: InstanceSource,
        /// A cloud's size name, such as "t2.micro"; usually empty.
        pub instance_type: String,
        /// Container or virtual machine.
        #[serde(rename = "type")]
        pub kind: InstanceType,
        /// Whether to start it once it is made.
        pub start: bool,
    }

    /// Where a new instance's root comes from.
    pub struct InstanceSource {
        /// "image", "copy", "none" or "migration".
        #[serde(rename = "type")]
        pub kind: String,
        /// A remote server's certificate; unused on one server.
        pub certificate: String,
        /// An image's alias (type "image").
        #[serde(skip_serializing_if = "is_default")]
        pub alias: String,
        /// An image's fingerprint, or a prefix of it (type "image").
        #[serde(skip_serializing_if = "is_default")]
        pub fingerprint: String,
        /// Properties the image must have (type "image").
        #[serde(skip_serializing_if = "is_default")]
        pub properties: BTreeMap<String, String>,
        /// A remote image server (type "image").
        #[serde(skip_serializing_if = "is_default")]
        pub server: String,
        /// The remote server's secret.
        #[serde(skip_serializing_if = "is_default")]
        pub secret: String,
        /// The remote server's protocol.
        #[serde(skip_serializing_if = "is_default")]
        pub protocol: String,
        /// The image that a copy's source was made from.
        #[serde(rename = "base-image", skip_serializing_if = "is_default")]
        pub base_image: String,
        /// "pull" or "push" (type "migration").
        #[serde(skip_serializing_if = "is_default")]
        pub mode: String,
        /// A remote operation (type "migration").
        #[serde(skip_serializing_if = "is_default")]
        pub operation: String,
        /// Its secrets (type "migration").
        #[serde(skip_serializing_if = "is_default")]
        pub secrets: BTreeMap<String, String>,
        /// "instance" or "instance/snapshot" (type "copy").
        #[serde(skip_serializing_if = "is_default")]
        pub source: String,
        /// Whether a running state comes along.
        #[serde(skip_serializing_if = "is_default")]
        pub live: bool,
        /// Whether snapshots stay behind (type "copy").
        #[serde(skip_serializing_if = "is_default")]
        pub instance_only: bool,
        /// What `lxc` calls `instance_only`.
        #[serde(skip_serializing_if = "is_default")]
        pub container_only: bool,
        /// Whether an existing copy is brought up to date.
        #[serde(skip_serializing_if = "is_default")]
        pub refresh: bool,
        /// With `refresh`: whether older snapshots stay behind.
        #[serde(skip_serializing_if = "is_default")]
        pub refresh_exclude_older: bool,
        /// The source's project (type "copy").
        #[serde(skip_serializing_if = "is_default")]
        pub project: String,
        /// Whether files may change while they are copied.
        pub allow_inconsistent: bool,
    }

    /// `POST /1.0/instances/{name}`: rename, or move.
    pub struct InstancePost {
        /// The new name.
        pub name: String,
        /// Whether this is a move between servers or pools.
        pub migration: bool,
        /// Whether the instance keeps running.
        pub live: bool,
        /// Whether snapshots stay behind.
        pub instance_only: bool,
        /// The server to push to.
        pub target: Option<serde_json::Value>,
        /// The pool to move to.
        pub pool: String,
        /// The project to move to.
        pub project: String,
        /// Whether files may change while they are copied.
        pub allow_inconsistent: bool,
    }

    /// `PUT /1.0/instances`: the same action for all instances.
    pub struct InstancesPut {
        /// What to do with them.
        pub state: Option<super::InstanceStatePut>,
    }

    /// One entry of an instance's `backups`.
    pub struct InstanceBackup {
        /// "instance/backup".
        pub name: String,
        /// When it is deleted.
        pub expires_at: Timestamp,
        /// When it was made.
        pub created_at: Timestamp,
        /// Whether snapshots were left out.
        pub instance_only: bool,
        /// Whether it is in the storage driver's own format.
        pub optimized_storage: bool,
    }
}

impl Instance {
    /// The part that PUT takes, as it stands.
    pub fn writable(&self) -> InstancePut {
        InstancePut {
            architecture: self.architecture.clone(),
            config: self.config.clone(),
            devices: self.devices.clone(),
            ephemeral: self.ephemeral,
            profiles: Some(self.profiles.clone()),
            restore: String::new(),
            stateful: self.stateful,
            description: self.description.clone(),
        }
    }
}

/// `GET /1.0/instances/{name}?recursion=1` and the elements of `GET /1.0/instances?recursion=2`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct InstanceFull {
    /// The instance itself; its fields stand beside the following ones.
    #[serde(flatten)]
    pub instance: Instance,
    /// Its backups; `null` when there are none.
    pub backups: Option<Vec<InstanceBackup>>,
    /// Its state.
    pub state: Option<InstanceState>,
    /// Its snapshots; `null` when there are none.
    pub snapshots: Option<Vec<InstanceSnapshot>>,
}
