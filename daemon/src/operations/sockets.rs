//! The websockets that an operation waits for: each has a name (`0`, `1`, `2`, `control`) and a secret, and is
//! delivered once, to whoever runs the operation, when a client connects with that secret.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use axum::extract::ws::WebSocket;
use serde_json::{Map, Value};
use tokio::sync::oneshot;

use crate::error::{Error, Result};

/// A websocket to come.
pub type Socket = oneshot::Receiver<WebSocket>;

/// Who waits for which secret.
pub struct Sockets {
    secrets: Vec<(&'static str, String)>,
    waiting: Mutex<HashMap<String, oneshot::Sender<WebSocket>>>,
}

impl Sockets {
    /// Awaits one websocket for each name; they come back in the order of the names.
    pub fn new<const N: usize>(names: [&'static str; N]) -> (Self, [Socket; N]) {
        let mut secrets = Vec::with_capacity(N);
        let mut waiting = HashMap::with_capacity(N);
        let receivers = names.map(|name| {
            let secret = secret();
            let (sender, receiver) = oneshot::channel();
            secrets.push((name, secret.clone()));
            waiting.insert(secret, sender);
            receiver
        });
        (Self { secrets, waiting: Mutex::new(waiting) }, receivers)
    }

    /// Name -> secret, for the operation's metadata.
    pub fn secrets(&self) -> Value {
        let map: Map<String, Value> =
            self.secrets.iter().map(|(name, secret)| ((*name).to_owned(), Value::from(secret.as_str()))).collect();
        Value::Object(map)
    }

    /// Takes the place of `secret`, to be filled with the upgraded connection.
    ///
    /// # Errors
    /// Where the secret is wrong or its websocket has been taken.
    pub fn claim(&self, secret: &str) -> Result<oneshot::Sender<WebSocket>> {
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(secret)
            .ok_or_else(|| Error::new(crate::error::Kind::Forbidden, "Invalid websocket secret"))
    }
}

/// 32 random bytes in hexadecimal.
fn secret() -> String {
    rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect()
}
