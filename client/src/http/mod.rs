//! The client: HTTP/1.1 and websockets over the daemon's unix socket.
//!
//! [`Client`] connects when it is first asked something and keeps that one connection for the JSON requests that
//! follow, one at a time. Whatever streams (files, images, websockets) gets a connection of its own, so that it never
//! stands in the way of a request. There is no greeting: the first bytes on the socket are the request itself.
//!
//! Everything runs on the caller's runtime; a current-thread one is enough and starts fastest.

mod client;
mod error;
mod files;
mod images;
mod operations;
mod session;
mod url;
mod websocket;

pub use client::{Body, Client, Outcome, Reply, default_directory, empty_body, json_body, stream_body};
pub use error::Error;
pub use files::{FileContent, FileOwner, RemoteFile};
pub use images::{ExportedPart, ImageUpload};
pub use session::Session;
pub use url::Url;
pub use websocket::{Events, WebSocket};
