//! The description of every configuration key, `GET /1.0/metadata/configuration`.

use std::collections::BTreeMap;

wire! {
    /// The whole description.
    pub struct MetadataConfiguration {
        /// By entity ("instance", "device-nic", "network-bridge", ...), then by group.
        pub configs: BTreeMap<String, BTreeMap<String, MetadataConfigGroup>>,
    }

    /// One group of keys.
    pub struct MetadataConfigGroup {
        /// Its keys; each map has one entry, the key's name and its description.
        pub keys: Vec<BTreeMap<String, MetadataConfigKey>>,
    }

    /// The description of one key; what is empty is left out.
    pub struct MetadataConfigKey {
        /// When it applies, such as "container".
        #[serde(skip_serializing_if = "super::is_default")]
        pub condition: String,
        /// Its default, in words.
        #[serde(skip_serializing_if = "super::is_default")]
        pub defaultdesc: String,
        /// Whether a change takes effect at once: "yes", "no" or in words.
        #[serde(skip_serializing_if = "super::is_default")]
        pub liveupdate: String,
        /// What it does, at length.
        #[serde(skip_serializing_if = "super::is_default")]
        pub longdesc: String,
        /// "global" or "local", for a server's keys.
        #[serde(skip_serializing_if = "super::is_default")]
        pub scope: String,
        /// What it does, in a few words.
        #[serde(skip_serializing_if = "super::is_default")]
        pub shortdesc: String,
        /// Its type, such as "bool", "integer" or "string".
        #[serde(rename = "type", skip_serializing_if = "super::is_default")]
        pub kind: String,
    }
}
