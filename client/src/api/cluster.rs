//! The cluster's settings, as far as a server without one has any.

wire! {
    /// `GET /1.0/cluster`.
    pub struct Cluster {
        /// This member's name; empty without a cluster.
        pub server_name: String,
        /// Whether there is a cluster.
        pub enabled: bool,
        /// What a joining member would be asked.
        pub member_config: Vec<ClusterMemberConfigKey>,
    }

    /// One thing that a joining member would be asked.
    pub struct ClusterMemberConfigKey {
        /// "storage-pool" or "network".
        pub entity: String,
        /// The entity's name.
        pub name: String,
        /// The key.
        pub key: String,
        /// Its value.
        pub value: String,
        /// Words for people.
        pub description: String,
    }
}
