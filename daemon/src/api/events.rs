//! `GET /1.0/events`: the events websocket.

use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use serde::Deserialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use utoipa::IntoParams;

use super::describe::Websocket;
use super::extract::Query;
use super::response::Answer;
use crate::app::App;
use crate::error::Error;
use crate::events::{Event, Type};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    /// `operation`, `lifecycle` and `logging`, joined by commas; all where it is absent.
    r#type: Option<String>,
}

/// Upgrades to a stream of events.
///
/// Each is one text frame with an `Event`.
#[utoipa::path(get, path = "/1.0/events", params(Filter), responses(Websocket))]
pub(super) async fn listen(
    State(app): State<App>,
    Query(filter): Query<Filter>,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Answer {
    let types = match filter.r#type.as_deref() {
        None | Some("") => vec![Type::Operation, Type::Lifecycle, Type::Logging],
        Some(words) => words
            .split(',')
            .map(|word| {
                Type::parse(word).ok_or_else(|| {
                    Error::invalid(format!("\"{word}\" is no event type: use operation, lifecycle or logging"))
                })
            })
            .collect::<Result<_, _>>()?,
    };
    let upgrade = upgrade.map_err(|e| Error::invalid(format!("events come by websocket: {e}")))?;
    // Subscribed before the answer: what happens once the client knows of the upgrade is not missed.
    let receiver = app.events.listen();
    // Little is ever read from it.
    Ok(upgrade.read_buffer_size(4 << 10).on_upgrade(move |socket| forward(socket, receiver, types)))
}

async fn forward(mut socket: WebSocket, mut events: Receiver<Event>, types: Vec<Type>) {
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Ok(event) if types.contains(&event.kind) => {
                    let text = Message::Text(event.text.as_ref().into());
                    if socket.send(text).await.is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                Err(RecvError::Lagged(lost)) => tracing::warn!(lost, "an events listener is too slow"),
                Err(RecvError::Closed) => return,
            },
            message = socket.recv() => match message {
                None | Some(Err(_) | Ok(Message::Close(_))) => return,
                Some(Ok(_)) => {}
            },
        }
    }
}
