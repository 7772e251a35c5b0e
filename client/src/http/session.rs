//! Opening exec and console sessions: the request, then one websocket per stream.
//!
//! The daemon starts the command once every stream is connected, so they are connected side by side. What goes over
//! them is the caller's business.

use futures_util::future::try_join_all;

use super::{Client, Error, Outcome, Url, WebSocket};
use crate::api::{InstanceConsoleMetadata, InstanceConsolePost, InstanceExecMetadata, InstanceExecPost, Operation};

/// An open session.
#[derive(Debug)]
pub struct Session {
    /// The operation behind it; waiting for it gives the exit status.
    pub operation: Operation,
    /// Carries [`crate::api::SessionControl`] messages to the daemon.
    pub control: WebSocket,
    /// Stream 0 for a terminal; 0, 1 and 2 otherwise.
    pub streams: Vec<WebSocket>,
}

impl Client {
    /// Runs a command in an instance; `wait_for_websocket` must be set in the request.
    pub async fn exec(&self, instance: &str, request: &InstanceExecPost) -> Result<Session, Error> {
        let url = Url::new(&["1.0", "instances", instance, "exec"]);
        let operation = self.start_session(&url, self.post(&url, request).await?)?;
        let metadata: InstanceExecMetadata = metadata_of(&url, &operation)?;
        let names: &[&str] = if request.interactive { &["0"] } else { &["0", "1", "2"] };
        let fds = metadata.fds.unwrap_or_default();
        self.connect_session(&url, operation, |name| fds.get(name).cloned(), names).await
    }

    /// Attaches to an instance's console.
    pub async fn console(&self, instance: &str, request: &InstanceConsolePost) -> Result<Session, Error> {
        let url = Url::new(&["1.0", "instances", instance, "console"]);
        let operation = self.start_session(&url, self.post(&url, request).await?)?;
        let metadata: InstanceConsoleMetadata = metadata_of(&url, &operation)?;
        self.connect_session(&url, operation, |name| metadata.fds.get(name).cloned(), &["0"]).await
    }

    fn start_session(&self, url: &Url, outcome: Outcome) -> Result<Operation, Error> {
        match outcome {
            Outcome::Background(operation) => Ok(operation),
            Outcome::Done(_) => Err(garbled(url, "there is no operation in it")),
        }
    }

    async fn connect_session(
        &self,
        url: &Url,
        operation: Operation,
        secret: impl Fn(&str) -> Option<String>,
        names: &[&str],
    ) -> Result<Session, Error> {
        let mut targets = Vec::with_capacity(names.len() + 1);
        for name in ["control"].iter().chain(names) {
            let secret = secret(name).ok_or_else(|| garbled(url, &format!("there is no stream {name:?} in it")))?;
            targets.push(Url::new(&["1.0", "operations", &operation.id, "websocket"]).query("secret", &secret));
        }
        let mut sockets = try_join_all(targets.iter().map(|target| self.websocket(target))).await?;
        let streams = sockets.split_off(1);
        let control = sockets.pop().ok_or_else(|| garbled(url, "there is no control stream in it"))?;
        Ok(Session { operation, control, streams })
    }
}

fn garbled(url: &Url, detail: &str) -> Error {
    Error::Garbled { request: format!("POST {url}"), detail: detail.to_owned() }
}

fn metadata_of<T: serde::de::DeserializeOwned>(url: &Url, operation: &Operation) -> Result<T, Error> {
    let metadata = operation.metadata.clone().unwrap_or_default();
    serde_json::from_value(metadata.into()).map_err(|error| garbled(url, &error.to_string()))
}
