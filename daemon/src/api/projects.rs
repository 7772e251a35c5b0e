//! What there is one of: `/1.0/projects` (the project `default`), `/1.0/cluster` (none) and the description of every
//! configuration key.

use std::collections::BTreeMap;

use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use duet_client::api::{Cluster, Project, ProjectPut, ProjectState, ProjectStateResource};

use super::Recursion;
use super::response::{Answer, Input, empty, etag, if_match, sync, tagged};
use crate::app::App;
use crate::config;
use crate::error::{Error, Result};

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
    used_by.extend(app.inventory.instances()?.into_iter().map(|i| format!("/1.0/instances/{}", i.name)));
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

pub(super) async fn list(State(app): State<App>, Query(query): Query<Recursion>) -> Answer {
    if query.all_paths() {
        return Ok(sync(["/1.0/projects/default"]));
    }
    query.answer(vec![default_project(&app)?], |_| "/1.0/projects/default".to_owned())
}

pub(super) async fn get(State(app): State<App>, Path(name): Path<String>) -> Answer {
    exists(&name)?;
    let project = default_project(&app)?;
    let tag = etag(&(&project.config, &project.description));
    Ok(tagged(project, &tag))
}

/// `PUT` and `PATCH /1.0/projects/default`, by which clients bring a server to a configuration that they saved: what is
/// as it has to be is fine.
pub(super) async fn put(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Input(body): Input<ProjectPut>,
) -> Answer {
    exists(&name)?;
    let project = default_project(&app)?;
    if_match(&headers, &etag(&(&project.config, &project.description)))?;
    if let Some((key, value)) = body.config.iter().find(|(key, value)| project.config.get(*key) != Some(value)) {
        return Err(Error::invalid(format!(
            "{key}={value}: the project \"default\" is the only one and its configuration cannot be changed"
        )));
    }
    Ok(empty())
}

pub(super) async fn state(State(app): State<App>, Path(name): Path<String>) -> Answer {
    exists(&name)?;
    let count = |n: usize| ProjectStateResource { limit: -1, usage: i64::try_from(n).unwrap_or(i64::MAX) };
    let instances = app.inventory.instances()?.len();
    let resources = BTreeMap::from([
        ("containers".to_owned(), count(instances)),
        ("instances".to_owned(), count(instances)),
        ("networks".to_owned(), count(app.inventory.networks()?.len())),
        ("virtual-machines".to_owned(), count(0)),
    ]);
    Ok(sync(ProjectState { resources }))
}

/// A server on its own.
pub(super) async fn cluster() -> Response {
    let cluster = Cluster::default();
    let tag = etag(&cluster);
    tagged(cluster, &tag)
}

/// `GET /1.0/metadata/configuration`.
pub(super) async fn configuration() -> Response {
    sync(config::metadata_configuration())
}
