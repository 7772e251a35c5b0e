//! What `admin init --dump` prints and `--preseed` reads.

use std::collections::BTreeMap;

use super::{NetworksPost, ProfilesPost, ProjectsPost, StoragePoolsPost, is_default};

wire! {
    /// The settings of a server in one document.
    pub struct InitPreseed {
        /// The server's keys.
        pub config: BTreeMap<String, String>,
        /// The networks.
        pub networks: Vec<InitNetwork>,
        /// The storage pools.
        pub storage_pools: Vec<StoragePoolsPost>,
        /// The profiles.
        pub profiles: Vec<InitProfile>,
        /// The projects.
        pub projects: Vec<ProjectsPost>,
    }

    /// A network of a preseed.
    pub struct InitNetwork {
        /// Its keys.
        pub config: BTreeMap<String, String>,
        /// Words for people.
        pub description: String,
        /// Its name.
        pub name: String,
        /// "bridge", also when empty.
        #[serde(rename = "type")]
        pub kind: String,
        /// The project it is in; left out when empty.
        #[serde(skip_serializing_if = "is_default")]
        pub project: String,
    }

    /// A profile of a preseed.
    pub struct InitProfile {
        /// Its keys.
        pub config: BTreeMap<String, String>,
        /// Words for people.
        pub description: String,
        /// Its devices.
        pub devices: BTreeMap<String, BTreeMap<String, String>>,
        /// Its name.
        pub name: String,
        /// The project it is in; left out when empty.
        #[serde(skip_serializing_if = "is_default")]
        pub project: String,
    }
}

impl From<InitNetwork> for NetworksPost {
    fn from(value: InitNetwork) -> Self {
        Self { config: value.config, description: value.description, name: value.name, kind: value.kind }
    }
}

impl From<InitProfile> for ProfilesPost {
    fn from(value: InitProfile) -> Self {
        Self { config: value.config, description: value.description, devices: value.devices, name: value.name }
    }
}
