//! What there is one of: `/1.0/projects` (the project `default`), `/1.0/cluster` (none) and the description of every
//! configuration key.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use duet_client::api::{Cluster, MetadataConfiguration, Project, ProjectPut, ProjectState, ProjectStateResource};

use super::Recursion;
use super::describe::{Empty, Forbidden, IfMatch, Listing, NotImplemented, ProjectName, Sync, Tagged};
use super::extract::{Input, Path, Query};
use super::response::{Answer, empty, etag, if_match, sync, tagged};
use crate::app::App;
use crate::config::values::CpuLimit;
use crate::config::{self, InstanceSettings};
use crate::error::{Error, Kind, Result};
use crate::instances::expand;
use crate::instances::plan::host_memory;

fn default_project(app: &App) -> Result<Project> {
    let features = [
        ("features.images", "true"),
        ("features.networks", "true"),
        ("features.networks.zones", "true"),
        ("features.profiles", "true"),
        ("features.storage.buckets", "true"),
        ("features.storage.volumes", "true"),
    ];
    let mut used_by = Vec::new();
    used_by.extend(app.inventory.images()?.into_iter().map(|i| format!("/1.0/images/{}", i.fingerprint)));
    used_by.extend(app.inventory.instance_names()?.into_iter().map(|(_, name)| format!("/1.0/instances/{name}")));
    used_by.extend(app.inventory.networks()?.into_iter().map(|n| format!("/1.0/networks/{}", n.name)));
    used_by.extend(app.inventory.profiles()?.into_iter().map(|p| format!("/1.0/profiles/{}", p.name)));
    Ok(Project {
        config: features.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        description: "Default Duet project".into(),
        name: "default".into(),
        used_by,
    })
}

fn exists(name: &str) -> Result<()> {
    if name == "default" { Ok(()) } else { Err(Error::not_found("Project not found")) }
}

/// Lists the projects: there is one, `default`.
#[utoipa::path(get, path = "/1.0/projects", params(Recursion), responses(Listing<Project>))]
pub(super) async fn list(State(app): State<App>, Query(query): Query<Recursion>) -> Answer {
    if query.all_paths() {
        return Ok(sync(["/1.0/projects/default"]));
    }
    query.answer(vec![default_project(&app)?], |_| "/1.0/projects/default".to_owned())
}

/// Shows a project.
#[utoipa::path(get, path = "/1.0/projects/{name}", params(ProjectName), responses(Tagged<Project>))]
pub(super) async fn get(State(app): State<App>, Path(name): Path<String>) -> Answer {
    exists(&name)?;
    let project = default_project(&app)?;
    let tag = etag(&(&project.config, &project.description));
    Ok(tagged(project, &tag))
}

/// Refuses to make a project.
#[utoipa::path(post, path = "/1.0/projects", responses(NotImplemented))]
pub(super) async fn create() -> Error {
    Error::new(Kind::Unsupported, "the project \"default\" is the only one that is served: others cannot be made")
}

/// Brings a project to a configuration that is what it has.
///
/// Clients use this to restore a server to a configuration that they saved: what is as it has to be is fine, any other
/// value is refused.
#[utoipa::path(
    put,
    path = "/1.0/projects/{name}",
    params(ProjectName, IfMatch),
    request_body = ProjectPut,
    responses(Empty)
)]
pub(super) async fn put(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Input(body): Input<ProjectPut>,
) -> Answer {
    let project = to_change(&app, &name, &headers)?;
    if let Some(key) = project.config.keys().find(|key| !body.config.contains_key(*key)) {
        return Err(fixed(&format!("{key} is missing")));
    }
    unchanged(&project, &body)
}

/// Brings a project to a configuration that is what it has, of what is named.
#[utoipa::path(
    patch,
    path = "/1.0/projects/{name}",
    params(ProjectName, IfMatch),
    request_body = ProjectPut,
    responses(Empty)
)]
pub(super) async fn patch(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Input(body): Input<ProjectPut>,
) -> Answer {
    let project = to_change(&app, &name, &headers)?;
    unchanged(&project, &body)
}

/// The project, as the client knows it.
fn to_change(app: &App, name: &str, headers: &HeaderMap) -> Result<Project> {
    exists(name)?;
    let project = default_project(app)?;
    if_match(headers, &etag(&(&project.config, &project.description)))?;
    Ok(project)
}

fn unchanged(project: &Project, body: &ProjectPut) -> Answer {
    match body.config.iter().find(|(key, value)| project.config.get(*key) != Some(value)) {
        Some((key, value)) => Err(fixed(&format!("{key}={value}"))),
        None => Ok(empty()),
    }
}

fn fixed(what: &str) -> Error {
    Error::invalid(format!("{what}: the configuration of the project \"default\" cannot be changed"))
}

/// Refuses to rename a project.
#[utoipa::path(post, path = "/1.0/projects/{name}", params(ProjectName), responses(Forbidden))]
pub(super) async fn rename(Path(name): Path<String>) -> Answer {
    exists(&name)?;
    Err(Error::new(Kind::Forbidden, "The 'default' project cannot be renamed"))
}

/// Refuses to delete a project.
#[utoipa::path(delete, path = "/1.0/projects/{name}", params(ProjectName), responses(Forbidden))]
pub(super) async fn delete(Path(name): Path<String>) -> Answer {
    exists(&name)?;
    Err(Error::new(Kind::Forbidden, "The 'default' project cannot be deleted"))
}

/// Shows how much of each resource there is.
///
/// Of processors, memory and processes that is what the instances are limited to, which is what a project's limits would
/// be held against.
#[utoipa::path(get, path = "/1.0/projects/{name}/state", params(ProjectName), responses(Sync<ProjectState>))]
pub(super) async fn state(State(app): State<App>, Path(name): Path<String>) -> Answer {
    exists(&name)?;
    let all = expand::expand_all(&app)?;
    let host = host_memory()?;
    let limits: Vec<InstanceSettings> =
        all.iter().filter_map(|instance| InstanceSettings::from_config(&instance.config).ok()).collect();
    let cpus = |limit: &CpuLimit| match limit {
        CpuLimit::Count(count) => u64::from(*count),
        CpuLimit::Set(set) => set.len() as u64,
    };
    let instances = all.len() as u64;
    let used = [
        ("containers", instances),
        ("cpu", limits.iter().filter_map(|limits| limits.cpu.as_ref()).map(cpus).sum()),
        // Roots are not limited in size.
        ("disk", 0),
        ("instances", instances),
        ("memory", limits.iter().filter_map(|limits| limits.memory.as_ref()).map(|limit| limit.bytes(host)).sum()),
        ("networks", app.inventory.networks()?.len() as u64),
        ("processes", limits.iter().filter_map(|limits| limits.processes).sum()),
        ("virtual-machines", 0),
    ];
    let resource = |used| ProjectStateResource { limit: -1, usage: i64::try_from(used).unwrap_or(i64::MAX) };
    let resources = used.into_iter().map(|(name, used)| (name.to_owned(), resource(used))).collect();
    Ok(sync(ProjectState { resources }))
}

/// Shows the cluster: this is a server on its own.
#[utoipa::path(get, path = "/1.0/cluster", responses(Tagged<Cluster>))]
pub(super) async fn cluster() -> Response {
    let cluster = Cluster::default();
    let tag = etag(&cluster);
    tagged(cluster, &tag)
}

/// Describes every configuration key.
#[utoipa::path(get, path = "/1.0/metadata/configuration", responses(Sync<MetadataConfiguration>))]
pub(super) async fn configuration() -> Response {
    sync(config::metadata_configuration())
}
