//! `/1.0/operations`: list, read, wait for, cancel and connect to background operations.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::{WebSocketUpgrade, rejection::WebSocketUpgradeRejection};
use duet_client::api::Operation;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Depth;
use super::describe::{Either, Empty, Forbidden, Grouped, OperationId, Sync, Text, Websocket};
use super::extract::{Path, Query};
use super::response::{Answer, empty, sync};
use crate::app::App;
use crate::error::{Error, Kind};

/// Bytes read from a stream at a time: one session has up to four, and the library's 128 KiB for each cost a short one
/// more in page faults than they save a long one in system calls.
const READ_BUFFER: usize = 32 << 10;

/// Lists the operations by status in lower case.
#[utoipa::path(
    get,
    path = "/1.0/operations",
    params(Depth),
    responses(Sync<Either<Grouped<Text>, Grouped<Operation>>>)
)]
pub(super) async fn list(State(app): State<App>, Query(query): Query<Depth>) -> Answer {
    let operations = app.operations.list();
    if query.deep() {
        let mut groups: BTreeMap<String, Vec<_>> = BTreeMap::new();
        for operation in operations {
            let wire = operation.render();
            groups.entry(wire.status.to_lowercase()).or_default().push(wire);
        }
        return Ok(sync(groups));
    }
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for operation in operations {
        groups.entry(operation.render().status.to_lowercase()).or_default().push(operation.path());
    }
    Ok(sync(groups))
}

/// Shows an operation.
#[utoipa::path(get, path = "/1.0/operations/{id}", params(OperationId), responses(Sync<Operation>))]
pub(super) async fn get(State(app): State<App>, Path(id): Path<String>) -> Answer {
    Ok(sync(app.operations.get(&id)?.render()))
}

/// Cancels an operation.
#[utoipa::path(delete, path = "/1.0/operations/{id}", params(OperationId), responses(Empty))]
pub(super) async fn cancel(State(app): State<App>, Path(id): Path<String>) -> Answer {
    app.operations.cancel(&id)?;
    Ok(empty())
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Wait {
    /// Seconds; -1 or absent: for ever.
    timeout: Option<i64>,
}

/// Answers once the operation has ended, or with its state when the time is over.
#[utoipa::path(get, path = "/1.0/operations/{id}/wait", params(OperationId, Wait), responses(Sync<Operation>))]
pub(super) async fn wait(State(app): State<App>, Path(id): Path<String>, Query(query): Query<Wait>) -> Answer {
    let operation = app.operations.get(&id)?;
    match query.timeout.and_then(|t| u64::try_from(t).ok()) {
        None => operation.wait().await,
        // Past the deadline the operation is shown as it is: the client sees that it still runs.
        Some(seconds) => {
            let _ = tokio::time::timeout(Duration::from_secs(seconds), operation.wait()).await;
        }
    }
    Ok(sync(operation.render()))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Secret {
    /// The stream's secret.
    #[serde(default)]
    #[param(required = true)]
    secret: String,
}

/// Connects to one of an operation's streams.
///
/// The secrets are in the operation's metadata, under `fds`. Streams carry binary frames, `control` takes text frames
/// with a `SessionControl`.
#[utoipa::path(
    get,
    path = "/1.0/operations/{id}/websocket",
    params(OperationId, Secret),
    responses(Websocket, Forbidden)
)]
pub(super) async fn websocket(
    State(app): State<App>,
    Path(id): Path<String>,
    Query(query): Query<Secret>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Answer {
    let operation = app.operations.get(&id)?;
    let sockets = operation
        .sockets()
        .ok_or_else(|| Error::new(Kind::Invalid, "This operation has no websocket to connect to"))?;
    let upgrade = upgrade.map_err(|e| Error::invalid(format!("this is a websocket: {e}")))?;
    let place = sockets.claim(&query.secret)?;
    Ok(upgrade.read_buffer_size(READ_BUFFER).on_upgrade(async move |socket| {
        // The operation may have ended meanwhile; the socket then closes.
        let _ = place.send(socket);
    }))
}
