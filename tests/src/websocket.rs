//! The daemon's websockets: the event stream, and the streams of an operation.

use std::io::{self, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

/// A websocket to the daemon.
#[derive(Debug)]
pub struct Socket {
    inner: WebSocket<UnixStream>,
}

impl Socket {
    /// Opens the websocket at `path`, such as `/1.0/events`.
    #[track_caller]
    pub fn open(socket: &Path, path: &str) -> Self {
        let stream = UnixStream::connect(socket).expect("connecting to the daemon");
        let (inner, _) = tungstenite::client(format!("ws://duet{path}"), stream)
            .unwrap_or_else(|error| panic!("upgrading {path}: {error}"));
        Self { inner }
    }

    /// The websocket behind an answer that switched to it.
    pub fn upgraded(reader: BufReader<UnixStream>) -> Self {
        let read = reader.buffer().to_vec();
        Self { inner: WebSocket::from_partially_read(reader.into_inner(), read, Role::Client, None) }
    }

    /// Two hands on the same connection: what is read with the first, and what is sent with the second.
    pub fn split(self) -> (Self, Self) {
        let stream = self.inner.get_ref().try_clone().expect("a second descriptor");
        let other = WebSocket::from_raw_socket(stream, Role::Client, None);
        (self, Self { inner: other })
    }

    /// Sends any frame, unless the daemon closed already.
    pub fn send_frame(&mut self, frame: Message) {
        let _ = self.inner.send(frame);
    }

    /// The next frame of any kind; `None` when the connection ended or the deadline passed.
    pub fn frame(&mut self, deadline: Duration) -> Option<Message> {
        self.inner.get_ref().set_read_timeout(Some(deadline)).ok()?;
        let frame = self.inner.read().ok()?;
        // What the library answers by itself is queued and goes out with this.
        let _ = self.inner.flush();
        Some(frame)
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        self.inner.send(Message::binary(bytes.to_vec())).expect("sending to the daemon");
    }

    /// Sends text: for the ends of streams, which are an empty text frame, and for control messages.
    pub fn send_text(&mut self, text: &str) {
        self.inner.send(Message::text(text.to_owned())).expect("sending to the daemon");
    }

    /// Closes it.
    pub fn close(mut self) {
        let _ = self.inner.close(None);
        let _ = self.inner.flush();
    }

    /// The next message of text or bytes; `None` when the daemon closed or the deadline passed.
    pub fn next(&mut self, deadline: Duration) -> Option<Message> {
        let end = Instant::now() + deadline;
        loop {
            let left = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            self.inner.get_ref().set_read_timeout(Some(left)).ok()?;
            match self.inner.read() {
                Ok(message @ (Message::Text(_) | Message::Binary(_))) => return Some(message),
                Ok(Message::Close(_)) => {
                    // The answer to it is queued by the library and goes out with the next flush.
                    let _ = self.inner.flush();
                    return None;
                }
                Ok(_) => {}
                Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }

    /// All bytes until the stream's end: an empty text frame, which is how the protocol marks it, or the close.
    pub fn read_to_end(&mut self, deadline: Duration) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(message) = self.next(deadline) {
            match message {
                Message::Text(text) if text.is_empty() => return bytes,
                other => bytes.extend_from_slice(&other.into_data()),
            }
        }
        bytes
    }

    /// The next event for which `wanted` holds.
    #[track_caller]
    pub fn event(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Some(message) = self.next(left) else {
                panic!("the event '{what}' did not come");
            };
            let event: Value = serde_json::from_slice(&message.into_data()).expect("an event is JSON");
            if wanted(&event) {
                return event;
            }
        }
    }

    /// The next lifecycle event with this action and, where it is not empty, this instance name in its source.
    #[track_caller]
    pub fn lifecycle(&mut self, action: &str, name: &str) -> Value {
        self.event(&format!("{action} {name}"), |event| {
            event["type"] == "lifecycle"
                && event["metadata"]["action"] == action
                && event["metadata"]["source"].as_str().is_some_and(|source| source.contains(name))
        })
    }
}
