//! Warnings.

use super::Timestamp;

wire! {
    /// `GET /1.0/warnings/{uuid}`.
    pub struct Warning {
        /// "new", "acknowledged" or "resolved".
        pub status: String,
        /// Its UUID.
        pub uuid: String,
        /// The cluster member; "none" without a cluster.
        pub location: String,
        /// The project; empty when it concerns the server.
        pub project: String,
        /// What it is about, in words.
        #[serde(rename = "type")]
        pub kind: String,
        /// How often it was seen.
        pub count: i64,
        /// When it was first seen.
        pub first_seen_at: Timestamp,
        /// When it was last seen.
        pub last_seen_at: Timestamp,
        /// What was said the last time.
        pub last_message: String,
        /// "low", "moderate" or "high".
        pub severity: String,
        /// The URL of what it concerns; empty for the server.
        pub entity_url: String,
    }

    /// `PUT` and `PATCH /1.0/warnings/{uuid}`.
    pub struct WarningPut {
        /// "new" or "acknowledged".
        pub status: String,
    }
}
