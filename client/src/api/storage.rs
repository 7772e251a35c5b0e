//! Storage pools, and their volumes as far as they are listed.

use std::collections::BTreeMap;

use super::Timestamp;

wire! {
    /// `GET /1.0/storage-pools/{name}`.
    pub struct StoragePool {
        /// Its keys.
        pub config: BTreeMap<String, String>,
        /// Words for people.
        pub description: String,
        /// Its name.
        pub name: String,
        /// Its driver, such as "overlay".
        pub driver: String,
        /// The URLs of the instances and profiles that use it.
        pub used_by: Vec<String>,
        /// "Created", "Unavailable", ...
        pub status: String,
        /// The cluster members it is on; `["none"]` without a cluster.
        pub locations: Option<Vec<String>>,
    }

    /// `POST /1.0/storage-pools`.
    pub struct StoragePoolsPost {
        /// Its keys.
        pub config: BTreeMap<String, String>,
        /// Words for people.
        pub description: String,
        /// Its name.
        pub name: String,
        /// Its driver.
        pub driver: String,
    }

    /// `PUT /1.0/storage-pools/{name}`.
    pub struct StoragePoolPut {
        /// Its keys.
        pub config: BTreeMap<String, String>,
        /// Words for people.
        pub description: String,
    }

    /// `PATCH /1.0/storage-pools/{name}`: only what is present changes; keys are merged.
    pub struct StoragePoolPatch {
        /// Keys to add or change.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub config: Option<BTreeMap<String, String>>,
        /// Words for people.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub description: Option<String>,
    }

    /// `GET /1.0/storage-pools/{name}/resources`.
    #[cfg_attr(feature = "openapi", schema(as = ResourcesStoragePool))]
    pub struct StoragePoolResources {
        /// Bytes.
        pub space: StoragePoolUsage,
        /// Inodes.
        pub inodes: StoragePoolUsage,
    }

    /// Used and total of something.
    pub struct StoragePoolUsage {
        /// In use.
        pub used: u64,
        /// In all.
        pub total: u64,
    }

    /// One element of `GET /1.0/storage-pools/{name}/volumes?recursion=1`.
    pub struct StorageVolume {
        /// Its keys.
        pub config: BTreeMap<String, String>,
        /// Words for people.
        pub description: String,
        /// Its name.
        pub name: String,
        /// "container", "virtual-machine", "image" or "custom".
        #[serde(rename = "type")]
        pub kind: String,
        /// The URLs of what uses it.
        pub used_by: Vec<String>,
        /// The cluster member; "none" without a cluster.
        pub location: String,
        /// "filesystem" or "block".
        pub content_type: String,
        /// The project it is in.
        pub project: String,
        /// When it was made.
        pub created_at: Timestamp,
    }
}
