//! Background operations.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{StatusCode, Timestamp};

/// What kind of work an operation is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum OperationClass {
    /// Runs by itself.
    #[default]
    Task,
    /// Waits for its websockets to be connected (exec, console).
    Websocket,
    /// Holds a secret for somebody to use (image tokens).
    Token,
}

wire! {
    /// `GET /1.0/operations/{id}`; also the metadata of async answers and of operation events.
    pub struct Operation {
        /// Its UUID.
        pub id: String,
        /// What kind of work it is.
        pub class: OperationClass,
        /// A few words for people, such as "Creating instance".
        pub description: String,
        /// When it was made.
        pub created_at: Timestamp,
        /// When it last changed.
        pub updated_at: Timestamp,
        /// The status in words.
        pub status: String,
        /// The status as a code.
        pub status_code: StatusCode,
        /// The URLs of what it works on, by kind ("instances", "images", ...).
        pub resources: BTreeMap<String, Vec<String>>,
        /// Progress and results; `null` until there are any.
        pub metadata: Option<Map<String, Value>>,
        /// Whether DELETE would cancel it.
        pub may_cancel: bool,
        /// Why it failed, or empty.
        pub err: String,
        /// The cluster member it runs on; "none" without a cluster.
        pub location: String,
    }

    /// The `progress` entry of an operation's metadata; numbers travel as text.
    pub struct OperationProgress {
        /// 0 to 100.
        pub percent: String,
        /// Bytes per second.
        pub speed: String,
        /// The stage's name; the text for people is under `<stage>_progress`.
        pub stage: String,
    }
}

impl Operation {
    /// A text result from the metadata.
    pub fn metadata_text(&self, key: &str) -> Option<&str> {
        self.metadata.as_ref()?.get(key)?.as_str()
    }

    /// What the operation has to say about its progress: the value of the first key that ends in `_progress`.
    pub fn progress_text(&self) -> Option<&str> {
        let metadata = self.metadata.as_ref()?;
        metadata.iter().filter(|(key, _)| key.ends_with("_progress")).find_map(|(_, value)| value.as_str())
    }
}

/// `GET /1.0/operations`: paths by lower-case status ("running", "success", ...).
pub type OperationList = BTreeMap<String, Vec<String>>;

/// `GET /1.0/operations?recursion=1`: operations by lower-case status.
pub type OperationMap = BTreeMap<String, Vec<Operation>>;
