//! `/1.0/images/aliases`.

use axum::extract::State;
use axum::http::HeaderMap;
use duet_client::api::{
    ImageAliasesEntry, ImageAliasesEntryPatch, ImageAliasesEntryPost, ImageAliasesEntryPut, ImageAliasesPost,
};
use serde_json::{Value, json};

use super::Depth;
use super::describe::{AliasName, Conflict, Created, Empty, IfMatch, Listing, Tagged};
use super::extract::{Input, Path, Query};
use super::response::{Answer, created, empty, etag, if_match, sync, tagged};
use crate::app::App;
use crate::config;
use crate::error::{Error, Result};
use crate::images;
use crate::inventory::{self, AliasRow};

fn wire(row: AliasRow) -> ImageAliasesEntry {
    ImageAliasesEntry { description: row.description, target: row.fingerprint, name: row.name, kind: row.kind }
}

fn find(app: &App, name: &str) -> Result<AliasRow> {
    app.inventory.alias(name)?.ok_or_else(|| Error::not_found("Image alias not found"))
}

fn path(name: &str) -> String {
    format!("/1.0/images/aliases/{name}")
}

/// Lists the aliases of images.
#[utoipa::path(get, path = "/1.0/images/aliases", params(Depth), responses(Listing<ImageAliasesEntry>))]
pub(super) async fn list(State(app): State<App>, Query(query): Query<Depth>) -> Answer {
    let rows = app.inventory.aliases()?;
    if query.deep() {
        return Ok(sync(rows.into_iter().map(wire).collect::<Vec<_>>()));
    }
    Ok(sync(rows.iter().map(|row| path(&row.name)).collect::<Vec<_>>()))
}

/// Shows an alias.
#[utoipa::path(get, path = "/1.0/images/aliases/{*name}", params(AliasName), responses(Tagged<ImageAliasesEntry>))]
pub(super) async fn get(State(app): State<App>, Path(name): Path<String>) -> Answer {
    let entry = wire(find(&app, &name)?);
    let tag = etag(&entry);
    Ok(tagged(entry, &tag))
}

/// Makes an alias.
#[utoipa::path(post, path = "/1.0/images/aliases", request_body = ImageAliasesPost, responses(Created, Conflict))]
pub(super) async fn create(State(app): State<App>, Input(body): Input<ImageAliasesPost>) -> Answer {
    config::validate_alias_name(&body.name).map_err(|e| Error::invalid(e.to_string()))?;
    if body.target.is_empty() {
        return Err(Error::invalid("an alias needs a target: the fingerprint of an image"));
    }
    let image = images::find(&app, &body.target)?;
    let row = AliasRow {
        name: body.name.clone(),
        fingerprint: image.fingerprint,
        description: body.description,
        kind: image.kind,
    };
    let target = row.fingerprint.clone();
    app.inventory.write(move |tx| row.insert(tx)).await.map_err(|e| taken(e, &body.name))?;
    app.events.lifecycle("image-alias-created", path(&body.name), json!({ "target": target }));
    Ok(created(&path(&body.name)))
}

fn taken(error: inventory::Error, name: &str) -> Error {
    match error {
        inventory::Error::Exists => Error::conflict(format!("Alias \"{name}\" already exists")),
        inventory::Error::InUse => Error::not_found("the image was deleted meanwhile"),
        other => other.into(),
    }
}

async fn store(app: &App, name: &str, row: AliasRow) -> Result<()> {
    let (old, new) = (name.to_owned(), row.name.clone());
    app.inventory.write(move |tx| row.update(tx, &old)).await.map_err(|e| taken(e, &new))
}

/// Replaces what an alias points at, and its description.
#[utoipa::path(
    put,
    path = "/1.0/images/aliases/{*name}",
    params(AliasName, IfMatch),
    request_body = ImageAliasesEntryPut,
    responses(Empty)
)]
pub(super) async fn put(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Input(body): Input<ImageAliasesEntryPut>,
) -> Answer {
    let _turn = app.edits.lock().await;
    let mut row = find(&app, &name)?;
    if_match(&headers, &etag(&wire(row.clone())))?;
    row.fingerprint = images::find(&app, &body.target)?.fingerprint;
    row.description = body.description;
    let target = row.fingerprint.clone();
    store(&app, &name, row).await?;
    app.events.lifecycle("image-alias-updated", path(&name), json!({ "target": target }));
    Ok(empty())
}

/// Changes what is present of an alias.
#[utoipa::path(
    patch,
    path = "/1.0/images/aliases/{*name}",
    params(AliasName, IfMatch),
    request_body = ImageAliasesEntryPatch,
    responses(Empty)
)]
pub(super) async fn patch(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Input(body): Input<ImageAliasesEntryPatch>,
) -> Answer {
    let _turn = app.edits.lock().await;
    let mut row = find(&app, &name)?;
    if_match(&headers, &etag(&wire(row.clone())))?;
    if let Some(target) = body.target {
        row.fingerprint = images::find(&app, &target)?.fingerprint;
    }
    row.description = body.description.unwrap_or(row.description);
    let target = row.fingerprint.clone();
    store(&app, &name, row).await?;
    app.events.lifecycle("image-alias-updated", path(&name), json!({ "target": target }));
    Ok(empty())
}

/// Renames an alias.
#[utoipa::path(
    post,
    path = "/1.0/images/aliases/{*name}",
    params(AliasName),
    request_body = ImageAliasesEntryPost,
    responses(Created, Conflict)
)]
pub(super) async fn rename(
    State(app): State<App>,
    Path(name): Path<String>,
    Input(body): Input<ImageAliasesEntryPost>,
) -> Answer {
    config::validate_alias_name(&body.name).map_err(|e| Error::invalid(e.to_string()))?;
    let mut row = find(&app, &name)?;
    row.name.clone_from(&body.name);
    store(&app, &name, row).await?;
    app.events.lifecycle("image-alias-renamed", path(&body.name), json!({ "old_name": name }));
    Ok(created(&path(&body.name)))
}

/// Deletes an alias; the image stays.
#[utoipa::path(delete, path = "/1.0/images/aliases/{*name}", params(AliasName), responses(Empty))]
pub(super) async fn delete(State(app): State<App>, Path(name): Path<String>) -> Answer {
    find(&app, &name)?;
    let gone = name.clone();
    app.inventory.write(move |tx| inventory::images::delete_alias(tx, &gone)).await?;
    app.events.lifecycle("image-alias-deleted", path(&name), Value::Null);
    Ok(empty())
}
