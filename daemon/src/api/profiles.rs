//! `/1.0/profiles`.

use std::collections::HashMap;

use axum::extract::State;
use axum::http::HeaderMap;
use duet_client::api::{Profile, ProfilePatch, ProfilePost, ProfilePut, ProfilesPost};

use super::Recursion;
use super::describe::{Conflict, Created, Empty, Forbidden, IfMatch, Listing, ProfileName, Tagged};
use super::extract::{Input, Path, Query};
use super::response::{Answer, created, empty, etag, if_match, sync, tagged};
use crate::app::App;
use crate::config;
use crate::error::{Error, Result};
use crate::inventory::{self, ProfileRow};

fn wire(row: ProfileRow, used_by: Vec<String>) -> Profile {
    Profile {
        config: row.config,
        description: row.description,
        devices: row.devices,
        name: row.name,
        used_by,
        project: "default".into(),
    }
}

/// Paths of the instances that use each profile.
fn users(app: &App) -> Result<HashMap<String, Vec<String>>> {
    let mut users: HashMap<String, Vec<String>> = HashMap::new();
    for (profile, instance) in app.inventory.profile_users()? {
        users.entry(profile).or_default().push(format!("/1.0/instances/{instance}"));
    }
    Ok(users)
}

fn find(app: &App, name: &str) -> Result<Profile> {
    let row = app.inventory.profile(name)?.ok_or_else(|| Error::not_found("Profile not found"))?;
    let used_by = users(app)?.remove(name).unwrap_or_default();
    Ok(wire(row, used_by))
}

/// Lists the profiles.
#[utoipa::path(get, path = "/1.0/profiles", params(Recursion), responses(Listing<Profile>))]
pub(super) async fn list(State(app): State<App>, Query(query): Query<Recursion>) -> Answer {
    let rows = app.inventory.profiles()?;
    if query.all_paths() {
        return Ok(sync(rows.iter().map(|row| format!("/1.0/profiles/{}", row.name)).collect::<Vec<_>>()));
    }
    let mut users = users(&app)?;
    let profiles = rows
        .into_iter()
        .map(|row| {
            let used_by = users.remove(&row.name).unwrap_or_default();
            wire(row, used_by)
        })
        .collect::<Vec<_>>();
    query.answer(profiles, |profile| format!("/1.0/profiles/{}", profile.name))
}

/// Shows a profile.
#[utoipa::path(get, path = "/1.0/profiles/{name}", params(ProfileName), responses(Tagged<Profile>))]
pub(super) async fn get(State(app): State<App>, Path(name): Path<String>) -> Answer {
    let profile = find(&app, &name)?;
    let tag = etag(&profile.writable());
    Ok(tagged(profile, &tag))
}

/// Takes out what is unset, and checks the rest.
fn check(app: &App, put: &mut ProfilePut) -> Result<()> {
    config::drop_unset(&mut put.config);
    config::drop_unset_options(&mut put.devices);
    config::validate_profile_config(&put.config).map_err(|e| Error::invalid(e.to_string()))?;
    config::validate_devices(&put.devices, config::DevicesOf::Profile).map_err(|e| Error::invalid(e.to_string()))?;
    crate::instances::check_references(app, None, &put.devices)
}

/// Makes a profile.
#[utoipa::path(post, path = "/1.0/profiles", request_body = ProfilesPost, responses(Created, Conflict))]
pub(super) async fn create(State(app): State<App>, Input(body): Input<ProfilesPost>) -> Answer {
    config::validate_profile_name(&body.name).map_err(|e| Error::invalid(e.to_string()))?;
    let mut put = ProfilePut { config: body.config, description: body.description, devices: body.devices };
    check(&app, &mut put)?;
    let row =
        ProfileRow { name: body.name.clone(), description: put.description, config: put.config, devices: put.devices };
    app.inventory.write(move |tx| row.insert(tx)).await.map_err(|e| match e {
        inventory::Error::Exists => Error::conflict(format!("Profile \"{}\" already exists", body.name)),
        other => other.into(),
    })?;
    let path = format!("/1.0/profiles/{}", body.name);
    app.events.lifecycle("profile-created", path.clone(), serde_json::Value::Null);
    Ok(created(&path))
}

/// Replaces a profile.
///
/// Instances that use it change with it.
#[utoipa::path(
    put,
    path = "/1.0/profiles/{name}",
    params(ProfileName, IfMatch),
    request_body = ProfilePut,
    responses(Empty)
)]
pub(super) async fn put(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Input(body): Input<ProfilePut>,
) -> Answer {
    let _turn = app.edits.lock().await;
    let current = find(&app, &name)?.writable();
    if_match(&headers, &etag(&current))?;
    store(&app, &name, body).await
}

/// Changes what is present of a profile.
#[utoipa::path(
    patch,
    path = "/1.0/profiles/{name}",
    params(ProfileName, IfMatch),
    request_body = ProfilePatch,
    responses(Empty)
)]
pub(super) async fn patch(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Input(body): Input<ProfilePatch>,
) -> Answer {
    let _turn = app.edits.lock().await;
    let current = find(&app, &name)?.writable();
    if_match(&headers, &etag(&current))?;
    let mut next = current;
    super::merge(&mut next.config, body.config.unwrap_or_default());
    next.devices.extend(body.devices.unwrap_or_default());
    next.description = body.description.unwrap_or(next.description);
    store(&app, &name, next).await
}

async fn store(app: &App, name: &str, mut next: ProfilePut) -> Answer {
    check(app, &mut next)?;
    let row =
        ProfileRow { name: name.to_owned(), description: next.description, config: next.config, devices: next.devices };
    crate::instances::update::profile(app, row).await?;
    app.events.lifecycle("profile-updated", format!("/1.0/profiles/{name}"), serde_json::Value::Null);
    Ok(empty())
}

/// Renames a profile.
#[utoipa::path(
    post,
    path = "/1.0/profiles/{name}",
    params(ProfileName),
    request_body = ProfilePost,
    responses(Created, Forbidden, Conflict)
)]
pub(super) async fn rename(
    State(app): State<App>,
    Path(name): Path<String>,
    Input(body): Input<ProfilePost>,
) -> Answer {
    if name == "default" {
        return Err(Error::new(crate::error::Kind::Forbidden, "The \"default\" profile cannot be renamed"));
    }
    find(&app, &name)?;
    config::validate_profile_name(&body.name).map_err(|e| Error::invalid(e.to_string()))?;
    let (old, new) = (name.clone(), body.name.clone());
    app.inventory.write(move |tx| inventory::profiles::rename(tx, &old, &new)).await.map_err(|e| match e {
        inventory::Error::Exists => Error::conflict(format!("Profile \"{}\" already exists", body.name)),
        other => other.into(),
    })?;
    let path = format!("/1.0/profiles/{}", body.name);
    app.events.lifecycle("profile-renamed", path.clone(), serde_json::json!({ "old_name": name }));
    Ok(created(&path))
}

/// Deletes a profile that no instance uses.
#[utoipa::path(delete, path = "/1.0/profiles/{name}", params(ProfileName), responses(Empty, Forbidden))]
pub(super) async fn delete(State(app): State<App>, Path(name): Path<String>) -> Answer {
    if name == "default" {
        return Err(Error::new(crate::error::Kind::Forbidden, "The \"default\" profile cannot be deleted"));
    }
    find(&app, &name)?;
    let gone = name.clone();
    app.inventory.write(move |tx| inventory::profiles::delete(tx, &gone)).await.map_err(|e| match e {
        inventory::Error::InUse => Error::invalid("Profile is currently in use"),
        other => other.into(),
    })?;
    app.events.lifecycle("profile-deleted", format!("/1.0/profiles/{name}"), serde_json::Value::Null);
    Ok(empty())
}
