//! Events: one broadcast channel that every listener of `GET /1.0/events` reads, and what is said on it.
//!
//! A listener that cannot keep up loses the oldest events and is told how many (the channel is bounded, so a
//! vanished reader never makes the daemon grow).

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::broadcast;

/// How many events a slow listener may lag behind.
const BACKLOG: usize = 1024;

/// The three sorts that `?type=` filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// An operation changed.
    Operation,
    /// Something was made, changed or removed.
    Lifecycle,
    /// The daemon's log.
    Logging,
}

impl Type {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Operation => "operation",
            Self::Lifecycle => "lifecycle",
            Self::Logging => "logging",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Operation, Self::Lifecycle, Self::Logging].into_iter().find(|t| t.as_str() == word)
    }
}

/// One event, its text rendered once for all listeners.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its sort.
    pub kind: Type,
    /// The JSON text that goes out.
    pub text: std::sync::Arc<str>,
}

/// Where events are said.
#[derive(Clone)]
pub struct Events {
    sender: broadcast::Sender<Event>,
}

impl Default for Events {
    fn default() -> Self {
        Self { sender: broadcast::channel(BACKLOG).0 }
    }
}

impl Events {
    /// Listens from now on.
    pub fn listen(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }

    /// Says something; without listeners nothing is rendered.
    pub fn send(&self, kind: Type, metadata: impl FnOnce() -> Value) {
        if self.sender.receiver_count() == 0 {
            return;
        }
        let mut body = json!({
            "type": kind.as_str(),
            "timestamp": Timestamp::now(),
            "metadata": metadata(),
            "location": "none",
        });
        if kind != Type::Logging {
            body["project"] = Value::from("default");
        }
        // No receiver left meanwhile is no failure.
        let _ = self.sender.send(Event { kind, text: body.to_string().into() });
    }

    /// Says that something happened to an object: `action` such as `instance-started`, `source` its path.
    pub fn lifecycle(&self, action: &str, source: String, context: Value) {
        self.send(Type::Lifecycle, || {
            let name = source.rsplit('/').next().unwrap_or_default().to_owned();
            let mut metadata = json!({
                "action": action,
                "source": source,
                "requestor": { "username": "root", "protocol": "unix", "address": "@" },
                "name": name,
                "project": "default",
            });
            if !context.is_null() {
                metadata["context"] = context;
            }
            metadata
        });
    }
}
