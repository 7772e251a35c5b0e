//! Profiles.

use std::collections::BTreeMap;

wire! {
    /// `GET /1.0/profiles/{name}`.
    pub struct Profile {
        /// Its keys.
        pub config: BTreeMap<String, String>,
        /// Words for people.
        pub description: String,
        /// Its devices.
        pub devices: BTreeMap<String, BTreeMap<String, String>>,
        /// Its name.
        pub name: String,
        /// The URLs of the instances that use it.
        pub used_by: Vec<String>,
        /// The project it is in.
        pub project: String,
    }

    /// `POST /1.0/profiles`.
    pub struct ProfilesPost {
        /// Its keys.
        pub config: BTreeMap<String, String>,
        /// Words for people.
        pub description: String,
        /// Its devices.
        pub devices: BTreeMap<String, BTreeMap<String, String>>,
        /// Its name.
        pub name: String,
    }

    /// `PUT /1.0/profiles/{name}`.
    pub struct ProfilePut {
        /// Its keys.
        pub config: BTreeMap<String, String>,
        /// Words for people.
        pub description: String,
        /// Its devices.
        pub devices: BTreeMap<String, BTreeMap<String, String>>,
    }

    /// `PATCH /1.0/profiles/{name}`: only what is present changes; maps are merged.
    pub struct ProfilePatch {
        /// Keys to add or change.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub config: Option<BTreeMap<String, String>>,
        /// Words for people.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub description: Option<String>,
        /// Devices to add or change.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub devices: Option<BTreeMap<String, BTreeMap<String, String>>>,
    }

    /// `POST /1.0/profiles/{name}`: rename.
    pub struct ProfilePost {
        /// The new name.
        pub name: String,
    }
}

impl Profile {
    /// The part that PUT takes, as it stands.
    pub fn writable(&self) -> ProfilePut {
        ProfilePut { config: self.config.clone(), description: self.description.clone(), devices: self.devices.clone() }
    }
}
