//! `/1.0/instances/{name}/console`.

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::IntoResponse;
use duet_client::api::InstanceConsolePost;

use super::describe::{Accepted, Bytes, Conflict, Empty, InstanceName};
use super::extract::{Input, Path};
use super::response::{Answer, accepted, disposition, empty};
use crate::app::App;
use crate::instances::console;

/// Attaches to an instance's console.
///
/// The operation's metadata is an `InstanceConsoleMetadata`.
#[utoipa::path(
    post,
    path = "/1.0/instances/{name}/console",
    params(InstanceName),
    request_body = InstanceConsolePost,
    responses(Accepted, Conflict)
)]
pub(super) async fn attach(
    State(app): State<App>,
    Path(name): Path<String>,
    Input(body): Input<InstanceConsolePost>,
) -> Answer {
    let operation = console::attach(&app, &name, body).await?;
    Ok(accepted(&operation))
}

/// Sends what was written to the console since boot, as it is.
#[utoipa::path(get, path = "/1.0/instances/{name}/console", params(InstanceName), responses(Bytes))]
pub(super) async fn log(State(app): State<App>, Path(name): Path<String>) -> Answer {
    let bytes = console::log(&app, &name).await?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::CONTENT_DISPOSITION, disposition("console.log")),
    ];
    Ok((headers, bytes).into_response())
}

/// Empties the console's log.
#[utoipa::path(delete, path = "/1.0/instances/{name}/console", params(InstanceName), responses(Empty))]
pub(super) async fn clear(State(app): State<App>, Path(name): Path<String>) -> Answer {
    console::clear(&app, &name).await?;
    Ok(empty())
}
