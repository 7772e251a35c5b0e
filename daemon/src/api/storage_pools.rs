//! `/1.0/storage-pools`.

use axum::extract::State;
use axum::http::HeaderMap;
use duet_client::api::{
    StoragePool, StoragePoolPatch, StoragePoolPut, StoragePoolResources, StoragePoolUsage, StoragePoolsPost,
};
use serde_json::Value;

use super::Recursion;
use super::describe::{Conflict, Created, Empty, IfMatch, Listing, PoolName, Sync, Tagged};
use super::extract::{Input, Path, Query};
use super::response::{Answer, created, empty, etag, if_match, sync, tagged};
use crate::app::App;
use crate::error::{Error, Result, blocking};
use crate::inventory::PoolRow;
use crate::pools;

fn wire(app: &App, row: PoolRow) -> Result<StoragePool> {
    let available = app.pools.get(&row.name).is_ok();
    let mut config = row.config;
    // Incus shows where a pool is even where nobody said so.
    config.entry("source".into()).or_insert_with(|| app.paths.pool(&row.name).display().to_string());
    Ok(StoragePool {
        used_by: pools::used_by(app, &row.name)?,
        config,
        description: row.description,
        name: row.name,
        driver: row.driver,
        status: if available { "Created" } else { "Unavailable" }.into(),
        locations: Some(vec!["none".into()]),
    })
}

fn find(app: &App, name: &str) -> Result<StoragePool> {
    let row = app.inventory.pool(name)?.ok_or_else(|| Error::not_found("Storage pool not found"))?;
    wire(app, row)
}

fn writable(pool: &StoragePool) -> StoragePoolPut {
    StoragePoolPut { config: pool.config.clone(), description: pool.description.clone() }
}

/// Lists the storage pools.
#[utoipa::path(get, path = "/1.0/storage-pools", params(Recursion), responses(Listing<StoragePool>))]
pub(super) async fn list(State(app): State<App>, Query(query): Query<Recursion>) -> Answer {
    let rows = app.inventory.pools()?;
    if query.all_paths() {
        return Ok(sync(rows.iter().map(|row| format!("/1.0/storage-pools/{}", row.name)).collect::<Vec<_>>()));
    }
    let pools = rows.into_iter().map(|row| wire(&app, row)).collect::<Result<Vec<_>>>()?;
    query.answer(pools, |pool| format!("/1.0/storage-pools/{}", pool.name))
}

/// Shows a storage pool.
#[utoipa::path(get, path = "/1.0/storage-pools/{name}", params(PoolName), responses(Tagged<StoragePool>))]
pub(super) async fn get(State(app): State<App>, Path(name): Path<String>) -> Answer {
    let pool = find(&app, &name)?;
    let tag = etag(&writable(&pool));
    Ok(tagged(pool, &tag))
}

/// Makes a storage pool.
#[utoipa::path(post, path = "/1.0/storage-pools", request_body = StoragePoolsPost, responses(Created, Conflict))]
pub(super) async fn create(State(app): State<App>, Input(body): Input<StoragePoolsPost>) -> Answer {
    pools::create(&app, &body.name, &body.driver, body.description, body.config).await?;
    let path = format!("/1.0/storage-pools/{}", body.name);
    app.events.lifecycle("storage-pool-created", path.clone(), Value::Null);
    Ok(created(&path))
}

async fn store(app: &App, name: &str, description: String, mut config: super::BTreeMap<String, String>) -> Answer {
    // The shown default is not a choice.
    let shown = app.paths.pool(name).display().to_string();
    let chosen = app.inventory.pool(name)?.is_some_and(|row| row.config.contains_key("source"));
    if !chosen && config.get("source") == Some(&shown) {
        config.remove("source");
    }
    pools::update(app, name, description, config).await?;
    app.events.lifecycle("storage-pool-updated", format!("/1.0/storage-pools/{name}"), Value::Null);
    Ok(empty())
}

/// Replaces a storage pool's configuration.
#[utoipa::path(
    put,
    path = "/1.0/storage-pools/{name}",
    params(PoolName, IfMatch),
    request_body = StoragePoolPut,
    responses(Empty)
)]
pub(super) async fn put(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Input(body): Input<StoragePoolPut>,
) -> Answer {
    let _turn = app.edits.lock().await;
    if_match(&headers, &etag(&writable(&find(&app, &name)?)))?;
    store(&app, &name, body.description, body.config).await
}

/// Changes what is present of a storage pool's configuration.
#[utoipa::path(
    patch,
    path = "/1.0/storage-pools/{name}",
    params(PoolName, IfMatch),
    request_body = StoragePoolPatch,
    responses(Empty)
)]
pub(super) async fn patch(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Input(body): Input<StoragePoolPatch>,
) -> Answer {
    let _turn = app.edits.lock().await;
    let mut next = writable(&find(&app, &name)?);
    if_match(&headers, &etag(&next))?;
    super::merge(&mut next.config, body.config.unwrap_or_default());
    store(&app, &name, body.description.unwrap_or(next.description), next.config).await
}

/// Deletes a storage pool that nothing uses.
#[utoipa::path(delete, path = "/1.0/storage-pools/{name}", params(PoolName), responses(Empty))]
pub(super) async fn delete(State(app): State<App>, Path(name): Path<String>) -> Answer {
    pools::delete(&app, &name).await?;
    app.events.lifecycle("storage-pool-deleted", format!("/1.0/storage-pools/{name}"), Value::Null);
    Ok(empty())
}

/// Shows how full a storage pool is.
#[utoipa::path(
    get,
    path = "/1.0/storage-pools/{name}/resources",
    params(PoolName),
    responses(Sync<StoragePoolResources>)
)]
pub(super) async fn resources(State(app): State<App>, Path(name): Path<String>) -> Answer {
    if app.inventory.pool(&name)?.is_none() {
        return Err(Error::not_found("Storage pool not found"));
    }
    let pool = app.pools.get(&name)?;
    let resources = blocking(move || pool.resources()).await?;
    Ok(sync(StoragePoolResources {
        space: StoragePoolUsage { used: resources.space_used, total: resources.space_total },
        inodes: StoragePoolUsage { used: resources.inodes_used, total: resources.inodes_total },
    }))
}
