//! Projects.

use std::collections::BTreeMap;

wire! {
    /// `GET /1.0/projects/{name}`.
    pub struct Project {
        /// Its keys.
        pub config: BTreeMap<String, String>,
        /// Words for people.
        pub description: String,
        /// Its name.
        pub name: String,
        /// The URLs of what is in it.
        pub used_by: Vec<String>,
    }

    /// What of a project can be changed.
    pub struct ProjectPut {
        /// Its configuration.
        pub config: BTreeMap<String, String>,
        /// What it is for.
        pub description: String,
    }

    /// `POST /1.0/projects`.
    pub struct ProjectsPost {
        /// Its keys.
        pub config: BTreeMap<String, String>,
        /// Words for people.
        pub description: String,
        /// Its name.
        pub name: String,
    }

    /// `GET /1.0/projects/{name}/state`.
    pub struct ProjectState {
        /// Limits and usage by resource: "instances", "memory", "networks", ...
        pub resources: BTreeMap<String, ProjectStateResource>,
    }

    /// The limit and usage of one resource.
    pub struct ProjectStateResource {
        /// The limit; -1 for none.
        #[serde(rename = "Limit")]
        pub limit: i64,
        /// The usage.
        #[serde(rename = "Usage")]
        pub usage: i64,
    }
}
