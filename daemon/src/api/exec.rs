//! `/1.0/instances/{name}/exec`.

use axum::extract::State;
use duet_client::api::InstanceExecPost;

use super::describe::{Accepted, InstanceName};
use super::extract::{Input, Path};
use super::response::{Answer, accepted};
use crate::app::App;
use crate::instances::exec;

/// Runs a program in an instance.
///
/// The operation's metadata is an `InstanceExecMetadata`.
#[utoipa::path(
    post,
    path = "/1.0/instances/{name}/exec",
    params(InstanceName),
    request_body = InstanceExecPost,
    responses(Accepted)
)]
pub(super) async fn post(
    State(app): State<App>,
    Path(name): Path<String>,
    Input(body): Input<InstanceExecPost>,
) -> Answer {
    let operation = exec::exec(&app, &name, body)?;
    Ok(accepted(&operation))
}
