//! Websockets over the daemon's socket, and the stream of events.

use futures_util::StreamExt as _;
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::{Client, Error, Url};
use crate::api;

/// Bytes read at a time. The library's 128 KiB cost `duet exec`, which opens four of them, more in page faults than they
/// save it in system calls.
const READ_BUFFER: usize = 32 << 10;

/// A websocket to the daemon.
pub type WebSocket = WebSocketStream<UnixStream>;

impl Client {
    /// Opens a websocket.
    pub async fn websocket(&self, url: &Url) -> Result<WebSocket, Error> {
        let target = self.target(url);
        let failed = |source: WsError| Error::WebSocket { path: target.to_string(), source: Box::new(source) };
        let request = format!("ws://unix.socket{target}").into_client_request().map_err(failed)?;
        let stream = self.connect().await?;
        let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER);
        match tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await {
            Ok((socket, _)) => {
                self.trace(format_args!("websocket {target}"));
                Ok(socket)
            }
            Err(WsError::Http(response)) => {
                let code = response.status();
                let body = response.body().as_deref().unwrap_or_default();
                let message = serde_json::from_slice::<api::Response>(body)
                    .map(|envelope| envelope.error)
                    .unwrap_or_else(|_| format!("the websocket {target} was refused with {code}"));
                Err(Error::Refused { code, message })
            }
            Err(source) => Err(failed(source)),
        }
    }

    /// Subscribes to events of these kinds (comma separated), or to all.
    pub async fn events(&self, kinds: Option<&str>) -> Result<Events, Error> {
        let mut url = Url::new(&["1.0", "events"]);
        if let Some(kinds) = kinds {
            url = url.query("type", kinds);
        }
        Ok(Events { socket: self.websocket(&url).await?, path: url.to_string() })
    }
}

/// The stream of events.
#[derive(Debug)]
pub struct Events {
    socket: WebSocket,
    path: String,
}

impl Events {
    /// The next event as it came, or `None` when the daemon ended the stream.
    pub async fn next_text(&mut self) -> Result<Option<String>, Error> {
        loop {
            match self.socket.next().await {
                None | Some(Ok(Message::Close(_))) | Some(Err(WsError::ConnectionClosed)) => return Ok(None),
                Some(Ok(Message::Text(text))) => return Ok(Some(text.as_str().to_owned())),
                Some(Ok(_)) => {}
                Some(Err(source)) => {
                    return Err(Error::WebSocket { path: self.path.clone(), source: Box::new(source) });
                }
            }
        }
    }

    /// The next event, or `None` when the daemon ended the stream.
    pub async fn next(&mut self) -> Result<Option<api::Event>, Error> {
        let Some(text) = self.next_text().await? else { return Ok(None) };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| Error::Garbled { request: self.path.clone(), detail: error.to_string() })
    }
}
