//! `/1.0/instances/{name}/exec`.

use axum::extract::{Path, State};
use duet_client::api::InstanceExecPost;

use super::response::{Answer, Input, accepted};
use crate::app::App;
use crate::instances::exec;

pub(super) async fn post(
    State(app): State<App>,
    Path(name): Path<String>,
    Input(body): Input<InstanceExecPost>,
) -> Answer {
    let operation = exec::exec(&app, &name, body)?;
    Ok(accepted(&operation))
}
