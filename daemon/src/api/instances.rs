//! `/1.0/instances`: list, make, read, change, rename, delete.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use duet_client::api::{Instance, InstanceFull, InstancePatch, InstancePost, InstancePut, InstancesPost};

use super::describe::{Accepted, Conflict, Either, Empty, IfMatch, InstanceName, Many, Sync, Tagged, Text};
use super::extract::{Input, Path, Query};
use super::response::{Answer, accepted, empty, if_match, sync, tagged};
use super::{Depth, Recursion};
use crate::app::App;
use crate::error::{Error, Result};
use crate::instances::lifecycle::{Observed, Request};
use crate::instances::{create, delete, expand, expand_all, listing, snapshot, state, update};
use crate::operations::{Operation, Plan};

/// Lists the instances.
#[utoipa::path(
    get,
    path = "/1.0/instances",
    params(Recursion),
    responses(Sync<Either<Many<Text>, Either<Many<Instance>, Many<InstanceFull>>>>)
)]
pub(super) async fn list(State(app): State<App>, Query(query): Query<Recursion>) -> Answer {
    match query.level() {
        0 if query.all_paths() => {
            let names = app.inventory.instance_names()?;
            Ok(sync(names.iter().map(|(_, name)| format!("/1.0/instances/{name}")).collect::<Vec<_>>()))
        }
        0 => {
            let all = expand_all(&app)?.into_iter().map(|e| e.render(&app)).collect();
            query.answer(all, |instance| format!("/1.0/instances/{}", instance.name))
        }
        1 => query.answer_written(listing::plain(&app)?),
        _ => query.answer_written(listing::full(&app).await?),
    }
}

/// Shows an instance; with `recursion=1` with its state and snapshots.
#[utoipa::path(
    get,
    path = "/1.0/instances/{name}",
    params(InstanceName, Depth),
    responses(Tagged<Either<Instance, InstanceFull>>)
)]
pub(super) async fn get(State(app): State<App>, Path(name): Path<String>, Query(query): Query<Depth>) -> Answer {
    let expanded = expand::find(&app, &name)?;
    let tag = expanded.tag();
    if query.deep() {
        return Ok(tagged(state::full(&app, expanded).await?, &tag));
    }
    Ok(tagged(expanded.render(&app), &tag))
}

/// Makes an instance.
#[utoipa::path(post, path = "/1.0/instances", request_body = InstancesPost, responses(Accepted, Conflict))]
pub(super) async fn create(State(app): State<App>, Input(body): Input<InstancesPost>) -> Answer {
    let order = create::check(&app, body)?;
    let plan = Plan::new("Creating instance").instance(order.name.name());
    let working = app.clone();
    let operation =
        app.operations.spawn(plan, |operation| async move { create::run(&working, order, &operation).await });
    Ok(accepted(&operation))
}

/// Replaces the configuration, or goes back to a snapshot.
#[utoipa::path(
    put,
    path = "/1.0/instances/{name}",
    params(InstanceName, IfMatch),
    request_body = InstancePut,
    responses(Accepted)
)]
pub(super) async fn put(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Input(body): Input<InstancePut>,
) -> Answer {
    let expanded = expand::find(&app, &name)?;
    if !body.restore.is_empty() {
        let snapshot = snapshot_name(&name, &body.restore).to_owned();
        snapshot::find(&app, &expanded.row, &snapshot)?;
        let plan = Plan::new("Restoring snapshot").instance(&name);
        let operation = spawn(&app, plan, name, Request::Restore, async move |app, held, name| {
            snapshot::restore(&app, &held, &name, &snapshot).await
        })?;
        return Ok(accepted(&operation));
    }
    if_match(&headers, &expanded.tag())?;
    let plan = Plan::new("Updating instance").instance(&name);
    let operation = spawn(&app, plan, name, Request::Update, async move |app, held, name| {
        // Once more, now that nobody else can change it.
        if_match(&headers, &expand::find(&app, &name)?.tag())?;
        update::update(&app, &held, &name, body).await
    })?;
    Ok(accepted(&operation))
}

/// `c1/snap0` and `snap0` name the same.
fn snapshot_name<'a>(instance: &str, restore: &'a str) -> &'a str {
    restore.strip_prefix(instance).and_then(|rest| rest.strip_prefix('/')).unwrap_or(restore)
}

/// Changes only what is present.
///
/// Unlike PUT this is finished when it answers.
#[utoipa::path(
    patch,
    path = "/1.0/instances/{name}",
    params(InstanceName, IfMatch),
    request_body = InstancePatch,
    responses(Empty, Conflict)
)]
pub(super) async fn patch(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Input(body): Input<InstancePatch>,
) -> Answer {
    let held = app.instances.slot(expand::find_row(&app, &name)?.id).claim(Request::Update)?;
    let expanded = expand::find(&app, &name)?;
    if_match(&headers, &expanded.tag())?;
    let mut next = expanded.writable();
    next.architecture = body.architecture.unwrap_or(next.architecture);
    next.description = body.description.unwrap_or(next.description);
    next.ephemeral = body.ephemeral.unwrap_or(next.ephemeral);
    next.profiles = body.profiles.or(next.profiles);
    super::merge(&mut next.config, body.config.unwrap_or_default());
    next.devices.extend(body.devices.unwrap_or_default());
    update::update(&app, &held, &name, next).await?;
    Ok(empty())
}

/// Renames a stopped instance.
#[utoipa::path(
    post,
    path = "/1.0/instances/{name}",
    params(InstanceName),
    request_body = InstancePost,
    responses(Accepted, Conflict)
)]
pub(super) async fn rename(
    State(app): State<App>,
    Path(name): Path<String>,
    Input(body): Input<InstancePost>,
) -> Answer {
    let row = expand::find_row(&app, &name)?;
    if body.target.as_ref().is_some_and(|t| !t.is_null()) || !body.pool.is_empty() || !body.project.is_empty() {
        return Err(Error::invalid("moving to another server, pool or project is not served: only renaming is"));
    }
    if body.name.is_empty() || body.name == name {
        return Err(Error::invalid("give the instance's new name"));
    }
    if app.inventory.instance(&body.name)?.is_some() {
        return Err(Error::conflict(format!("Name \"{}\" already in use", body.name)));
    }
    if app.instances.slot(row.id).observed() != Observed::Stopped {
        return Err(Error::invalid("Renaming of running instance not allowed"));
    }
    let plan = Plan::new("Renaming instance").instance(&name);
    let operation = spawn(&app, plan, name, Request::Rename, async move |app, held, name| {
        delete::rename(&app, &held, &name, &body.name).await
    })?;
    Ok(accepted(&operation))
}

/// Deletes a stopped instance, with its snapshots.
#[utoipa::path(delete, path = "/1.0/instances/{name}", params(InstanceName), responses(Accepted))]
pub(super) async fn delete(State(app): State<App>, Path(name): Path<String>) -> Answer {
    let row = expand::find_row(&app, &name)?;
    if app.instances.slot(row.id).observed() != Observed::Stopped {
        return Err(Error::invalid("Instance is running"));
    }
    let plan = Plan::new("Deleting instance").instance(&name);
    let operation =
        spawn(&app, plan, name, Request::Delete, async move |app, held, name| delete::delete(&app, held, &name).await)?;
    Ok(accepted(&operation))
}

/// Runs `work` in the background with the instance claimed for `request`. A refusal is the operation's failure, as it
/// is in Incus.
pub(super) fn spawn<W, F>(app: &App, plan: Plan, name: String, request: Request, work: W) -> Result<Arc<Operation>>
where
    W: FnOnce(App, crate::instances::slot::Held, String) -> F + Send + 'static,
    F: Future<Output = Result<()>> + Send + 'static,
{
    let id = expand::find_row(app, &name)?.id;
    let working = app.clone();
    Ok(app.operations.spawn(plan, move |_| async move {
        let held = working.instances.slot(id).claim(request)?;
        work(working, held, name).await
    }))
}
