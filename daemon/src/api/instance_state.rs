//! `/1.0/instances/{name}/state` and `/wait`: starting, stopping, pausing, and what an instance is doing.

use std::sync::Arc;

use axum::extract::State;
use duet_client::api::{InstanceState, InstanceStatePut, InstancesPut, WaitCondition};
use serde::Deserialize;
use utoipa::IntoParams;

use super::describe::{Accepted, InstanceName, RequestTimeout, Sync};
use super::extract::{Input, Path, Query};
use super::instances::spawn;
use super::response::{Answer, accepted, sync};
use crate::app::App;
use crate::error::{Error, Result};
use crate::instances::lifecycle::{Observed, Request};
use crate::instances::stop::{self, How};
use crate::instances::{expand, start, state, wait};
use crate::operations::{Operation, Plan};

/// Shows what an instance is doing.
#[utoipa::path(get, path = "/1.0/instances/{name}/state", params(InstanceName), responses(Sync<InstanceState>))]
pub(super) async fn get(State(app): State<App>, Path(name): Path<String>) -> Answer {
    let expanded = expand::find(&app, &name)?;
    Ok(sync(state::state(&app, &expanded).await?))
}

#[derive(Clone, Copy)]
enum Action {
    Start,
    Stop(How),
    Restart(How),
    Freeze,
    Unfreeze,
}

impl Action {
    fn parse(put: &InstanceStatePut) -> Result<Self> {
        if put.stateful {
            return Err(Error::invalid("stateful start and stop are not served for containers: leave --stateful out"));
        }
        let how = How::from_api(put.timeout, put.force);
        match put.action.as_str() {
            "start" => Ok(Self::Start),
            "stop" => Ok(Self::Stop(how)),
            "restart" => Ok(Self::Restart(how)),
            "freeze" => Ok(Self::Freeze),
            "unfreeze" => Ok(Self::Unfreeze),
            other => {
                Err(Error::invalid(format!("Unknown action \"{other}\": use start, stop, restart, freeze or unfreeze")))
            }
        }
    }

    fn plan(self) -> Plan {
        Plan::new(match self {
            Self::Start => "Starting instance",
            Self::Stop(_) => "Stopping instance",
            Self::Restart(_) => "Restarting instance",
            Self::Freeze => "Freezing instance",
            Self::Unfreeze => "Unfreezing instance",
        })
    }

    fn request(self) -> Request {
        match self {
            Self::Start => Request::Start,
            Self::Stop(_) => Request::Stop,
            Self::Restart(_) => Request::Restart,
            Self::Freeze => Request::Freeze,
            Self::Unfreeze => Request::Unfreeze,
        }
    }

    async fn run(self, app: App, held: crate::instances::slot::Held, name: String) -> Result<()> {
        match self {
            Self::Start => start::start(&app, &held, &name).await,
            Self::Stop(how) => {
                stop::stop(&app, &held, &name, how).await?;
                let slot = Arc::clone(held.slot());
                drop(held);
                stop::delete_if_ephemeral(&app, &slot, &name).await;
                Ok(())
            }
            Self::Restart(how) => {
                stop::end(&app, &held, how).await?;
                start::start(&app, &held, &name).await?;
                app.events.lifecycle("instance-restarted", format!("/1.0/instances/{name}"), serde_json::Value::Null);
                Ok(())
            }
            Self::Freeze => stop::freeze(&app, &held, &name).await,
            Self::Unfreeze => stop::unfreeze(&app, &held, &name).await,
        }
    }
}

/// Starts, stops, restarts, pauses or resumes an instance.
#[utoipa::path(
    put,
    path = "/1.0/instances/{name}/state",
    params(InstanceName),
    request_body = InstanceStatePut,
    responses(Accepted)
)]
pub(super) async fn put(
    State(app): State<App>,
    Path(name): Path<String>,
    Input(body): Input<InstanceStatePut>,
) -> Answer {
    let action = Action::parse(&body)?;
    expand::find_row(&app, &name)?;
    let operation = begin(&app, action, name)?;
    Ok(accepted(&operation))
}

fn begin(app: &App, action: Action, name: String) -> Result<Arc<Operation>> {
    let plan = action.plan().instance(&name);
    spawn(app, plan, name, action.request(), move |app, held, name| action.run(app, held, name))
}

/// Starts, stops, restarts, pauses or resumes all instances that it makes sense for.
#[utoipa::path(put, path = "/1.0/instances", request_body = InstancesPut, responses(Accepted))]
pub(super) async fn put_all(State(app): State<App>, Input(body): Input<InstancesPut>) -> Answer {
    let put = body.state.ok_or_else(|| Error::invalid("the body has no \"state\""))?;
    let action = Action::parse(&put)?;
    let wanted = |observed: Observed| match action {
        Action::Start => observed == Observed::Stopped,
        Action::Stop(_) | Action::Restart(_) => observed != Observed::Stopped,
        Action::Freeze => observed == Observed::Running,
        Action::Unfreeze => observed == Observed::Frozen,
    };
    let rows = app.inventory.instances()?;
    let names: Vec<String> =
        rows.into_iter().filter(|row| wanted(app.instances.slot(row.id).observed())).map(|row| row.name).collect();
    let mut plan = action.plan();
    for name in &names {
        plan = plan.instance(name);
    }
    let working = app.clone();
    let operation = app.operations.spawn(plan, |_| async move {
        let mut failures = Vec::new();
        let mut running = Vec::new();
        for name in names {
            running.push((name.clone(), begin(&working, action, name)?));
        }
        for (name, operation) in running {
            operation.wait().await;
            let outcome = operation.render();
            if !outcome.err.is_empty() {
                failures.push(format!("{name}: {}", outcome.err));
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(Error::invalid(failures.join("; "))) }
    });
    Ok(accepted(&operation))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WaitQuery {
    /// The conditions, joined by commas: `running`, `ipv4`, `ipv6`, `ready`, `stopped`.
    #[serde(default)]
    #[param(required = true)]
    r#for: String,
    /// Seconds; 60 where it is absent, -1 for ever.
    timeout: Option<i64>,
}

/// Answers once all conditions hold.
///
/// Extension `duet_wait`.
#[utoipa::path(
    get,
    path = "/1.0/instances/{name}/wait",
    params(InstanceName, WaitQuery),
    responses(Sync<InstanceState>, RequestTimeout)
)]
pub(super) async fn wait(State(app): State<App>, Path(name): Path<String>, Query(query): Query<WaitQuery>) -> Answer {
    let words = query.r#for.split(',').filter(|word| !word.is_empty());
    let conditions: Vec<WaitCondition> = words
        .map(|word| word.parse().map_err(|e: duet_client::api::UnknownCondition| Error::invalid(e.to_string())))
        .collect::<Result<_>>()?;
    if conditions.is_empty() {
        return Err(Error::invalid("say what to wait for: ?for=running,ipv4"));
    }
    Ok(sync(wait::wait(&app, &name, &conditions, query.timeout).await?))
}
