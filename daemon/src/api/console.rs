//! `/1.0/instances/{name}/console`.

use axum::extract::{Path, State};
use axum::http::header;
use axum::response::IntoResponse;
use duet_client::api::InstanceConsolePost;

use super::response::{Answer, Input, accepted, empty};
use crate::app::App;
use crate::instances::console;

pub(super) async fn attach(
    State(app): State<App>,
    Path(name): Path<String>,
    Input(body): Input<InstanceConsolePost>,
) -> Answer {
    let operation = console::attach(&app, &name, body).await?;
    Ok(accepted(&operation))
}

/// What was written since boot, as it is.
pub(super) async fn log(State(app): State<App>, Path(name): Path<String>) -> Answer {
    let bytes = console::log(&app, &name).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}

pub(super) async fn clear(State(app): State<App>, Path(name): Path<String>) -> Answer {
    console::clear(&app, &name).await?;
    Ok(empty())
}
