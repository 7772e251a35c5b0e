//! Exec and console sessions: their requests, the metadata of their operations, their control messages.
//!
//! Both end as a websocket operation whose metadata holds `fds`: the secrets by which
//! `GET /1.0/operations/{id}/websocket?secret=...` connects to each stream. A stream carries binary frames; an empty
//! text frame marks its end. `control` carries the messages below as JSON text frames.

use std::collections::BTreeMap;

use super::is_default;

wire! {
    /// `POST /1.0/instances/{name}/exec`.
    pub struct InstanceExecPost {
        /// The program and its arguments.
        pub command: Vec<String>,
        /// Whether the streams are websockets; otherwise input is empty and output recorded or dropped.
        #[serde(rename = "wait-for-websocket")]
        pub wait_for_websocket: bool,
        /// Whether there is a terminal; then one stream, "0", carries both ways.
        pub interactive: bool,
        /// The environment, added to the defaults.
        pub environment: BTreeMap<String, String>,
        /// The terminal's width in columns, 0 for unknown.
        pub width: u16,
        /// The terminal's height in lines, 0 for unknown.
        pub height: u16,
        /// Whether output goes to log files (without websockets only).
        #[serde(rename = "record-output")]
        pub record_output: bool,
        /// The user id to run as.
        pub user: u32,
        /// The group id to run as.
        pub group: u32,
        /// The directory to run in; empty for the user's default.
        pub cwd: String,
    }

    /// The metadata of an exec operation.
    pub struct InstanceExecMetadata {
        /// The program and its arguments.
        pub command: Vec<String>,
        /// The whole environment it gets.
        pub environment: BTreeMap<String, String>,
        /// The secrets: "0", "1", "2" and "control", or "0" and "control" with a terminal. Left out without
        /// websockets.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub fds: Option<BTreeMap<String, String>>,
        /// Whether there is a terminal.
        pub interactive: bool,
        /// The exit status once it has ended: 0 to 255, 128 + n after signal n.
        #[serde(rename = "return", skip_serializing_if = "Option::is_none")]
        pub exit_status: Option<i32>,
        /// The URLs of recorded output by stream number; left out unless recorded.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub output: Option<BTreeMap<String, String>>,
    }

    /// A message on the `control` stream of an exec or console session.
    pub struct SessionControl {
        /// "window-resize" or "signal".
        pub command: String,
        /// For a resize: "width" and "height" as decimal text.
        pub args: BTreeMap<String, String>,
        /// For a signal: its number.
        #[serde(skip_serializing_if = "is_default")]
        pub signal: i32,
    }

    /// `POST /1.0/instances/{name}/console`.
    pub struct InstanceConsolePost {
        /// The terminal's width in columns, 0 for unknown.
        pub width: u16,
        /// The terminal's height in lines, 0 for unknown.
        pub height: u16,
        /// "console", or "vga" for a VM's screen; empty means "console".
        #[serde(rename = "type")]
        pub kind: String,
        /// Whether to take the console from whoever has it.
        pub force: bool,
    }

    /// The metadata of a console operation.
    pub struct InstanceConsoleMetadata {
        /// The secrets: "0" and "control".
        pub fds: BTreeMap<String, String>,
    }
}

impl SessionControl {
    /// The message for a terminal's new size.
    pub fn resize(width: u16, height: u16) -> Self {
        let args = [("width", width), ("height", height)];
        Self {
            command: "window-resize".into(),
            args: args.into_iter().map(|(key, value)| (key.to_owned(), value.to_string())).collect(),
            signal: 0,
        }
    }

    /// The message that sends a signal to the command.
    pub fn signal(signal: i32) -> Self {
        Self { command: "signal".into(), args: BTreeMap::new(), signal }
    }
}
