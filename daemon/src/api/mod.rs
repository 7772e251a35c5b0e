//! The REST API, `/1.0`: one file for each resource. Handlers translate and never decide.
//!
//! Paths, bodies and status codes are Incus' (its `doc/rest-api.yaml`); what is ours carries an extension name that
//! begins with `duet_`.

mod console;
mod events;
mod exec;
mod extensions;
mod files;
mod filter;
mod image_aliases;
mod images;
mod instance_metadata;
mod instance_state;
mod instances;
mod logs;
mod networks;
mod operations;
mod profiles;
mod projects;
pub(crate) mod response;
mod server;
mod sftp;
mod snapshots;
mod storage_pools;
mod warnings;

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{Method, Uri};
use axum::middleware::Next;
use axum::response::Response;
use axum::routing::{get, post, put};
use serde::Deserialize;

use crate::app::App;
use crate::error::{Error, Kind};

/// The query parameters that every listing takes.
#[derive(Deserialize, Default)]
pub(crate) struct Recursion {
    #[serde(default)]
    recursion: Option<String>,
    #[serde(default)]
    filter: Option<String>,
}

impl Recursion {
    /// Whether objects are wanted instead of their paths.
    fn deep(&self) -> bool {
        self.level() > 0
    }

    /// 0: paths, 1: objects, 2: objects with their state. What is not a number counts as 0, as in Incus.
    fn level(&self) -> u8 {
        self.recursion.as_deref().and_then(|r| r.parse().ok()).unwrap_or(0)
    }

    /// What lets through the objects that are wanted. None: all are.
    fn filter(&self) -> Option<&str> {
        self.filter.as_deref().map(str::trim).filter(|filter| !filter.is_empty())
    }

    /// Whether the paths of all objects are wanted, which need not be looked at for that.
    fn all_paths(&self) -> bool {
        !self.deep() && self.filter().is_none()
    }

    /// The objects that are wanted, or their paths.
    ///
    /// # Errors
    /// A filter that cannot be understood.
    fn answer<T: serde::Serialize>(&self, items: Vec<T>, path: impl Fn(&T) -> String) -> response::Answer {
        let kept = filter::keep(self.filter(), items)?;
        Ok(if self.deep() { response::sync(kept) } else { response::sync(kept.iter().map(path).collect::<Vec<_>>()) })
    }
}

/// Merges `changes` into `config`; an empty value removes a key.
fn merge(config: &mut BTreeMap<String, String>, changes: BTreeMap<String, String>) {
    for (key, value) in changes {
        if value.is_empty() {
            config.remove(&key);
        } else {
            config.insert(key, value);
        }
    }
}

/// Undoes percent-encoding and `+` (the form of URL queries). None: what comes out is not UTF-8.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = |at: usize| tail.get(at).and_then(|b| char::from(*b).to_digit(16));
        match (first, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push(u8::try_from(high * 16 + low).ok()?);
                rest = &tail[2..];
            }
            (b'+', ..) => {
                bytes.push(b' ');
                rest = tail;
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

/// Every route.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/", get(server::versions))
        .route("/internal/ready", get(server::ready))
        .route("/internal/shutdown", put(server::shutdown))
        .route("/1.0", get(server::get).put(server::put).patch(server::patch))
        .route("/1.0/resources", get(server::resources))
        .route("/1.0/events", get(events::listen))
        .route("/1.0/metadata/configuration", get(projects::configuration))
        .route("/1.0/cluster", get(projects::cluster))
        .route("/1.0/projects", get(projects::list).post(projects::create))
        .route(
            "/1.0/projects/{name}",
            get(projects::get)
                .put(projects::put)
                .patch(projects::patch)
                .post(projects::rename)
                .delete(projects::delete),
        )
        .route("/1.0/projects/{name}/state", get(projects::state))
        .merge(operation_routes())
        .merge(profile_routes())
        .merge(network_routes())
        .merge(storage_routes())
        .merge(image_routes())
        .merge(instance_routes())
        .route("/1.0/warnings", get(warnings::list))
        .route(
            "/1.0/warnings/{uuid}",
            get(warnings::get).put(warnings::put).patch(warnings::put).delete(warnings::delete),
        )
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        // Bodies are bounded where they are read; images and files have no bound.
        .layer(DefaultBodyLimit::disable())
        .layer(axum::middleware::from_fn(observe))
        .with_state(app)
}

fn operation_routes() -> Router<App> {
    Router::new()
        .route("/1.0/operations", get(operations::list))
        .route("/1.0/operations/{id}", get(operations::get).delete(operations::cancel))
        .route("/1.0/operations/{id}/wait", get(operations::wait))
        .route("/1.0/operations/{id}/websocket", get(operations::websocket))
}

fn profile_routes() -> Router<App> {
    Router::new().route("/1.0/profiles", get(profiles::list).post(profiles::create)).route(
        "/1.0/profiles/{name}",
        get(profiles::get).put(profiles::put).patch(profiles::patch).post(profiles::rename).delete(profiles::delete),
    )
}

fn network_routes() -> Router<App> {
    Router::new()
        .route("/1.0/networks", get(networks::list).post(networks::create))
        .route(
            "/1.0/networks/{name}",
            get(networks::get)
                .put(networks::put)
                .patch(networks::patch)
                .post(networks::rename)
                .delete(networks::delete),
        )
        .route("/1.0/networks/{name}/leases", get(networks::leases))
        .route("/1.0/networks/{name}/state", get(networks::state))
}

fn storage_routes() -> Router<App> {
    Router::new()
        .route("/1.0/storage-pools", get(storage_pools::list).post(storage_pools::create))
        .route(
            "/1.0/storage-pools/{name}",
            get(storage_pools::get).put(storage_pools::put).patch(storage_pools::patch).delete(storage_pools::delete),
        )
        .route("/1.0/storage-pools/{name}/resources", get(storage_pools::resources))
}

fn image_routes() -> Router<App> {
    Router::new()
        .route("/1.0/images", get(images::list).post(images::create))
        .route("/1.0/images/aliases", get(image_aliases::list).post(image_aliases::create))
        // Alias names hold slashes: `debian/13`.
        .route(
            "/1.0/images/aliases/{*name}",
            get(image_aliases::get)
                .put(image_aliases::put)
                .patch(image_aliases::patch)
                .post(image_aliases::rename)
                .delete(image_aliases::delete),
        )
        .route(
            "/1.0/images/{fingerprint}",
            get(images::get).put(images::put).patch(images::patch).delete(images::delete),
        )
        .route("/1.0/images/{fingerprint}/export", get(images::export))
}

fn instance_routes() -> Router<App> {
    Router::new()
        .route("/1.0/instances", get(instances::list).post(instances::create).put(instance_state::put_all))
        .route(
            "/1.0/instances/{name}",
            get(instances::get)
                .put(instances::put)
                .patch(instances::patch)
                .post(instances::rename)
                .delete(instances::delete),
        )
        .route("/1.0/instances/{name}/state", get(instance_state::get).put(instance_state::put))
        .route("/1.0/instances/{name}/wait", get(instance_state::wait))
        .route("/1.0/instances/{name}/exec", post(exec::post))
        .route("/1.0/instances/{name}/console", get(console::log).post(console::attach).delete(console::clear))
        .route("/1.0/instances/{name}/files", get(files::get).head(files::head).post(files::post).delete(files::delete))
        .route("/1.0/instances/{name}/sftp", get(sftp::connect))
        .route("/1.0/instances/{name}/snapshots", get(snapshots::list).post(snapshots::create))
        .route(
            "/1.0/instances/{name}/snapshots/{snapshot}",
            get(snapshots::get)
                .put(snapshots::put)
                .patch(snapshots::patch)
                .post(snapshots::rename)
                .delete(snapshots::delete),
        )
        .route("/1.0/instances/{name}/logs", get(logs::list))
        .route("/1.0/instances/{name}/logs/exec-output", get(logs::list_output))
        .route("/1.0/instances/{name}/logs/exec-output/{file}", get(logs::get_output).delete(logs::delete_output))
        .route("/1.0/instances/{name}/logs/{file}", get(logs::get).delete(logs::delete))
        .route(
            "/1.0/instances/{name}/metadata",
            get(instance_metadata::get).put(instance_metadata::put).patch(instance_metadata::patch),
        )
        .route(
            "/1.0/instances/{name}/metadata/templates",
            get(instance_metadata::templates)
                .post(instance_metadata::write_template)
                .delete(instance_metadata::delete_template),
        )
}

async fn unknown(uri: Uri) -> Error {
    Error::not_found(format!("there is nothing at {}", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Error {
    Error::new(Kind::Unsupported, format!("{method} is not served at {}", uri.path()))
}

/// Logs each request, and refuses projects other than the one there is.
async fn observe(request: Request, next: Next) -> Result<Response, Error> {
    tracing::debug!(method = %request.method(), uri = %request.uri(), "request");
    let query = request.uri().query().unwrap_or_default();
    let project = query.split('&').find_map(|pair| pair.strip_prefix("project=")).unwrap_or("default");
    if !matches!(project, "" | "default") {
        return Err(Error::not_found(format!("Project \"{project}\" not found: the only project is \"default\"")));
    }
    Ok(next.run(request).await)
}
