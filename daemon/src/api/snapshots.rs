//! `/1.0/instances/{name}/snapshots`.

use axum::extract::State;
use axum::http::HeaderMap;
use duet_client::api::{
    InstanceSnapshot, InstanceSnapshotPatch, InstanceSnapshotPost, InstanceSnapshotPut, InstanceSnapshotsPost,
    Timestamp,
};

use super::Depth;
use super::describe::{Accepted, IfMatch, InstanceName, Listing, SnapshotName, Tagged};
use super::extract::{Input, Path, Query};
use super::instances::spawn;
use super::response::{Answer, accepted, etag, if_match, sync, tagged};
use crate::app::App;
use crate::error::{Error, Result};
use crate::instances::lifecycle::Request;
use crate::instances::snapshot::{self, Ends};
use crate::instances::{expand, state};
use crate::inventory::SnapshotRow;
use crate::operations::Plan;

fn find(app: &App, name: &str, wanted: &str) -> Result<SnapshotRow> {
    let row = expand::find_row(app, name)?;
    snapshot::find(app, &row, wanted)
}

/// Lists the snapshots of an instance.
#[utoipa::path(
    get,
    path = "/1.0/instances/{name}/snapshots",
    params(InstanceName, Depth),
    responses(Listing<InstanceSnapshot>)
)]
pub(super) async fn list(State(app): State<App>, Path(name): Path<String>, Query(query): Query<Depth>) -> Answer {
    let row = expand::find_row(&app, &name)?;
    let snapshots = app.inventory.snapshots(row.id)?;
    if query.deep() {
        return Ok(sync(state::render_snapshots(&app, snapshots)?));
    }
    Ok(sync(snapshots.iter().map(|s| snapshot::path(&name, &s.name)).collect::<Vec<_>>()))
}

/// Shows a snapshot.
#[utoipa::path(
    get,
    path = "/1.0/instances/{name}/snapshots/{snapshot}",
    params(InstanceName, SnapshotName),
    responses(Tagged<InstanceSnapshot>)
)]
pub(super) async fn get(State(app): State<App>, Path((name, wanted)): Path<(String, String)>) -> Answer {
    let found = find(&app, &name, &wanted)?;
    let tag = etag(&found.expires_at);
    let rendered = state::render_snapshots(&app, vec![found])?;
    Ok(tagged(rendered.into_iter().next(), &tag))
}

/// Takes a snapshot.
#[utoipa::path(
    post,
    path = "/1.0/instances/{name}/snapshots",
    params(InstanceName),
    request_body = InstanceSnapshotsPost,
    responses(Accepted)
)]
pub(super) async fn create(
    State(app): State<App>,
    Path(name): Path<String>,
    Input(body): Input<InstanceSnapshotsPost>,
) -> Answer {
    if body.stateful {
        return Err(Error::invalid("stateful snapshots are not served for containers: leave --stateful out"));
    }
    let ends = match body.expires_at {
        None => Ends::AsConfigured,
        Some(at) if at.is_set() => Ends::At(at.0),
        Some(_) => Ends::Never,
    };
    let plan = Plan::new("Snapshotting instance");
    // One without a name gets it when it is taken.
    let plan = if body.name.is_empty() { plan.instance(&name) } else { plan.snapshot(&name, &body.name) };
    let operation = spawn(&app, plan, name, Request::Snapshot, async move |app, held, name| {
        snapshot::take(&app, &held, &name, &body.name, ends).await.map(drop)
    })?;
    Ok(accepted(&operation))
}

/// Says when a snapshot ends.
#[utoipa::path(
    put,
    path = "/1.0/instances/{name}/snapshots/{snapshot}",
    params(InstanceName, SnapshotName, IfMatch),
    request_body = InstanceSnapshotPut,
    responses(Accepted)
)]
pub(super) async fn put(
    State(app): State<App>,
    Path(of): Path<(String, String)>,
    headers: HeaderMap,
    Input(body): Input<InstanceSnapshotPut>,
) -> Answer {
    edit(&app, of, headers, Some(body.expires_at))
}

/// Changes when a snapshot ends, where that is present.
#[utoipa::path(
    patch,
    path = "/1.0/instances/{name}/snapshots/{snapshot}",
    params(InstanceName, SnapshotName, IfMatch),
    request_body = InstanceSnapshotPatch,
    responses(Accepted)
)]
pub(super) async fn patch(
    State(app): State<App>,
    Path(of): Path<(String, String)>,
    headers: HeaderMap,
    Input(body): Input<InstanceSnapshotPatch>,
) -> Answer {
    edit(&app, of, headers, body.expires_at)
}

/// Says when a snapshot ends. None leaves that as it is.
fn edit(app: &App, (name, wanted): (String, String), headers: HeaderMap, expires_at: Option<Timestamp>) -> Answer {
    if_match(&headers, &etag(&find(app, &name, &wanted)?.expires_at))?;
    let plan = Plan::new("Updating snapshot").snapshot(&name, &wanted);
    let working = app.clone();
    let operation = app.operations.spawn(plan, |_| async move {
        let _turn = working.edits.lock().await;
        // Once more, now that nobody else can change it.
        if_match(&headers, &etag(&find(&working, &name, &wanted)?.expires_at))?;
        let Some(at) = expires_at else { return Ok(()) };
        snapshot::edit(&working, &name, &wanted, at.is_set().then_some(at.0)).await
    });
    Ok(accepted(&operation))
}

/// Renames a snapshot.
#[utoipa::path(
    post,
    path = "/1.0/instances/{name}/snapshots/{snapshot}",
    params(InstanceName, SnapshotName),
    request_body = InstanceSnapshotPost,
    responses(Accepted)
)]
pub(super) async fn rename(
    State(app): State<App>,
    Path((name, wanted)): Path<(String, String)>,
    Input(body): Input<InstanceSnapshotPost>,
) -> Answer {
    find(&app, &name, &wanted)?;
    if body.migration {
        return Err(Error::invalid("copying snapshots to other servers is not served"));
    }
    let plan = Plan::new("Renaming snapshot").snapshot(&name, &wanted);
    let working = app.clone();
    let operation =
        app.operations.spawn(plan, |_| async move { snapshot::rename(&working, &name, &wanted, &body.name).await });
    Ok(accepted(&operation))
}

/// Deletes a snapshot.
#[utoipa::path(
    delete,
    path = "/1.0/instances/{name}/snapshots/{snapshot}",
    params(InstanceName, SnapshotName),
    responses(Accepted)
)]
pub(super) async fn delete(State(app): State<App>, Path((name, wanted)): Path<(String, String)>) -> Answer {
    find(&app, &name, &wanted)?;
    let plan = Plan::new("Deleting snapshot").snapshot(&name, &wanted);
    let working = app.clone();
    let operation = app.operations.spawn(plan, |_| async move { snapshot::delete(&working, &name, &wanted).await });
    Ok(accepted(&operation))
}
