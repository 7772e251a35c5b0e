//! Recorded exchanges of other people's clients with their own daemons, sent to ours and held against its answers.
//!
//! The recordings are in `tests/data/traces`, one file for each command. A [`Replay`] sends what a client sent, with
//! the ids that our daemon gave in place of those that the recorded one gave, and notes as [`Fault`]s where an answer
//! is not what the recorded one was: the status, the headers that clients read, and of JSON every member's type. Of
//! members that clients decide by, such as `status`, the value counts as well.

mod compare;
mod ids;
mod replay;
mod sftp;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

pub use replay::Replay;

/// What one command sent and got.
#[derive(Debug, Deserialize)]
pub struct Trace {
    /// The command, as it was called.
    pub command: String,
    /// In the order in which they began.
    pub exchanges: Vec<Exchange>,
}

/// A request, its answer, and what followed where the answer was to switch protocols.
#[derive(Debug, Deserialize)]
pub struct Exchange {
    /// What the client sent.
    pub request: Request,
    /// What it got.
    pub response: Response,
    /// The frames of a websocket, both ways.
    #[serde(default)]
    pub frames: Vec<Frame>,
    /// The packets of an SFTP session, both ways.
    #[serde(default)]
    pub sftp: Vec<Packet>,
}

/// A recorded request.
#[derive(Debug, Deserialize)]
pub struct Request {
    /// Such as `GET`.
    pub method: String,
    /// The path and query.
    pub target: String,
    /// Those that say something.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Absent: none.
    #[serde(default)]
    pub body: Option<Body>,
}

/// A recorded answer.
#[derive(Debug, Deserialize)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Those that say something.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Absent: none.
    #[serde(default)]
    pub body: Option<Body>,
}

/// A recorded body.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Body {
    /// JSON.
    Json(Value),
    /// Text that is not JSON.
    Text(String),
    /// Of bytes only the number was kept.
    Binary(u64),
}

/// Who sent something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The client.
    Client,
    /// The daemon.
    Server,
}

/// A frame of a websocket: who sent it, of which kind it is, and its content, which is JSON where it is a string of it.
#[derive(Debug, Deserialize)]
pub struct Frame(pub Side, pub String, pub Value);

/// A packet of SFTP: who sent it, its type's name, and what follows the type, in hexadecimal.
#[derive(Debug, Deserialize)]
pub struct Packet(pub Side, pub String, pub String);

/// Where an answer is not what the recorded one was.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The recording's name.
    pub trace: String,
    /// The request.
    pub request: String,
    /// What of the answer: `status`, a header, or a pointer into the JSON, with `*` for every item of a list.
    pub place: String,
    /// In words.
    pub says: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {} {}", self.trace, self.request, self.place, self.says)
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/traces")
}

impl Trace {
    /// Reads a recording.
    ///
    /// # Panics
    /// Where it is not there or not one.
    #[track_caller]
    pub fn read(name: &str) -> Self {
        let path = folder().join(format!("{name}.json"));
        let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// The names of all recordings.
    pub fn names() -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder())
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".json").map(str::to_owned))
            .collect();
        names.sort();
        names
    }
}

/// Whether `text` is what `pattern` says, in which `*` stands for anything.
pub fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            (0..=text.len()).filter(|at| text.is_char_boundary(*at)).any(|at| matches(rest, &text[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns() {
        assert!(matches("*", "") && matches("a*", "ab") && matches("a*c", "abc") && matches("a", "a"));
        assert!(matches("*/volatile.*", "/config/volatile.x"));
        assert!(!matches("a*c", "ab") && !matches("a", "ab") && !matches("", "a"));
    }
}
