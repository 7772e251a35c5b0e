//! Moving bytes between a session's websockets and the user's standard streams.

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::api::SessionControl;
use crate::http::WebSocket;

/// The half that sends.
pub(crate) type Sender = SplitSink<WebSocket, Message>;

/// The half that receives.
pub(crate) type Receiver = SplitStream<WebSocket>;

/// How the end of the input is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// By an empty text frame: the command finds its input closed.
    Closed,
    /// By the character that a terminal's user types for it (ctrl+d). Closing a terminal would hang the command up.
    Typed,
    /// Not at all: a console has no end of input.
    Untold,
}

/// Sends chunks as binary frames, then the end. A daemon that no longer listens ends it early: the command has closed
/// its input, or is gone.
pub(crate) async fn send_all(mut sender: Sender, mut chunks: mpsc::Receiver<Bytes>, end: End) {
    while let Some(chunk) = chunks.recv().await {
        if sender.send(Message::Binary(chunk)).await.is_err() {
            return;
        }
    }
    let last = match end {
        End::Closed => Message::Text("".into()),
        End::Typed => Message::Binary(Bytes::from_static(b"\x04")),
        End::Untold => return,
    };
    let _ = sender.send(last).await;
}

/// Writes what comes until the end is marked or the websocket closes. Where the output cannot be written any more
/// (its reader is gone), the websocket is closed: the command finds its own output closed, as it would here.
pub(crate) async fn receive_all<W>(mut receiver: Receiver, mut output: W) -> anyhow::Result<()>
where
    W: AsyncWrite + Unpin,
{
    while let Some(message) = receiver.next().await {
        match message {
            Ok(Message::Binary(bytes)) => {
                let written = async {
                    output.write_all(&bytes).await?;
                    output.flush().await
                };
                if written.await.is_err() {
                    break;
                }
            }
            Ok(Message::Text(_) | Message::Close(_)) => break,
            Ok(_) => {}
            Err(WsError::ConnectionClosed | WsError::AlreadyClosed | WsError::Protocol(_)) => break,
            Err(error) => return Err(error).context("the connection to the session broke"),
        }
    }
    Ok(())
}

/// Sends a control message.
pub(crate) async fn send_control(sender: &mut Sender, message: &SessionControl) -> anyhow::Result<()> {
    let text = serde_json::to_string(message)?;
    sender.send(Message::Text(text.into())).await.context("the session's control stream broke")
}

/// Answers the daemon's pings on a stream that carries nothing to us; never ends by itself.
pub(crate) async fn drain(mut receiver: Receiver) -> std::convert::Infallible {
    while let Some(Ok(_)) = receiver.next().await {}
    std::future::pending().await
}
