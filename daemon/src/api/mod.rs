//! The REST API, `/1.0`: one file for each resource. Handlers translate and never decide.
//!
//! Paths, bodies and status codes are Incus' (its `doc/rest-api.yaml`); what is ours carries an extension name that
//! begins with `duet_`.

mod console;
mod describe;
mod events;
mod exec;
mod extensions;
mod extract;
mod files;
pub mod filter;
mod image_aliases;
mod images;
mod instance_metadata;
mod instance_state;
mod instances;
mod linger;
mod logs;
mod networks;
mod openapi;
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
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{Method, Uri};
use axum::middleware::Next;
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;

use self::openapi::served;
use crate::app::App;
use crate::error::{Error, Kind};

/// How much of each object is wanted: 0 for its path, 1 for itself, 2 for its state as well. What is not a number counts
/// as 0, as in Incus.
fn level(recursion: Option<&str>) -> u8 {
    recursion.and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// The query parameter of what cannot be filtered.
#[derive(Deserialize, Default, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Depth {
    /// 0: paths, or the instance alone; 1: objects, or the instance with its state and snapshots.
    #[serde(default)]
    recursion: Option<String>,
}

impl Depth {
    /// Whether the objects are wanted whole.
    fn deep(&self) -> bool {
        level(self.recursion.as_deref()) > 0
    }
}

/// The query parameters of listings.
#[derive(Deserialize, Default, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Recursion {
    /// 0: paths, 1: objects, 2: instances with their state and snapshots.
    #[serde(default)]
    recursion: Option<String>,
    /// Which objects are wanted, in Incus' form of OData: `name eq c1 and not status eq Running`.
    #[serde(default)]
    filter: Option<String>,
}

impl Recursion {
    /// Whether objects are wanted instead of their paths.
    fn deep(&self) -> bool {
        self.level() > 0
    }

    /// See [`level`].
    fn level(&self) -> u8 {
        level(self.recursion.as_deref())
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

    /// The objects that are wanted of a JSON array of all of them.
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    fn answer_written(&self, all: String) -> response::Answer {
        if self.filter().is_none() {
            return Ok(response::sync_written(&all));
        }
        let all: Vec<serde_json::Value> = serde_json::from_str(&all).map_err(Error::internal)?;
        Ok(response::sync(filter::keep(self.filter(), all)?))
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

// Every handler that is served; where it is served stands on it.
served! {
    openapi::get,
    server::versions,
    server::ready,
    server::resources,
    server::shutdown,
    server::get,
    server::put,
    server::patch,
    events::listen,
    projects::list,
    projects::create,
    projects::get,
    projects::put,
    projects::patch,
    projects::rename,
    projects::delete,
    projects::state,
    projects::cluster,
    projects::configuration,
    operations::list,
    operations::get,
    operations::cancel,
    operations::wait,
    operations::websocket,
    profiles::list,
    profiles::get,
    profiles::create,
    profiles::put,
    profiles::patch,
    profiles::rename,
    profiles::delete,
    networks::list,
    networks::get,
    networks::create,
    networks::put,
    networks::patch,
    networks::rename,
    networks::delete,
    networks::leases,
    networks::state,
    storage_pools::list,
    storage_pools::get,
    storage_pools::create,
    storage_pools::put,
    storage_pools::patch,
    storage_pools::delete,
    storage_pools::resources,
    images::list,
    images::get,
    images::put,
    images::patch,
    images::delete,
    images::create,
    images::export,
    image_aliases::list,
    image_aliases::get,
    image_aliases::create,
    image_aliases::put,
    image_aliases::patch,
    image_aliases::rename,
    image_aliases::delete,
    instances::list,
    instances::get,
    instances::create,
    instances::put,
    instances::patch,
    instances::rename,
    instances::delete,
    instance_state::get,
    instance_state::put,
    instance_state::put_all,
    instance_state::wait,
    exec::post,
    console::attach,
    console::log,
    console::clear,
    files::head,
    files::get,
    files::post,
    files::delete,
    sftp::connect,
    snapshots::list,
    snapshots::get,
    snapshots::create,
    snapshots::put,
    snapshots::patch,
    snapshots::rename,
    snapshots::delete,
    logs::list,
    logs::get,
    logs::delete,
    logs::list_output,
    logs::get_output,
    logs::delete_output,
    instance_metadata::get,
    instance_metadata::put,
    instance_metadata::patch,
    instance_metadata::templates,
    instance_metadata::write_template,
    instance_metadata::delete_template,
    warnings::list,
    warnings::get,
    warnings::put,
    warnings::delete,
}

/// Every route, and what is the same for all of them.
pub fn router(app: App) -> Router {
    routes()
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        // Bodies are bounded where they are read; images and files have no bound.
        .layer(DefaultBodyLimit::disable())
        .layer(axum::middleware::from_fn_with_state(app.clone(), once_ready))
        .layer(axum::middleware::from_fn(observe))
        .with_state(app)
}

async fn unknown(uri: Uri) -> Error {
    Error::not_found(format!("there is nothing at {}", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Error {
    Error::new(Kind::Unsupported, format!("{method} is not served at {}", uri.path()))
}

/// Holds what changes something back until the daemon's start is over, and answers lookups before: an inventory of
/// hundreds is there at once, their networks are not.
async fn once_ready(State(app): State<App>, request: Request, next: Next) -> Response {
    let lookup = matches!(*request.method(), Method::GET | Method::HEAD);
    if !lookup || request.uri().path() == server::READY {
        app.ready.cancelled().await;
    }
    next.run(request).await
}

/// Logs each request, reads it to its end whatever it is answered, and refuses projects other than the one there is.
async fn observe(request: Request, next: Next) -> Result<Response, Error> {
    tracing::debug!(method = %request.method(), uri = %request.uri(), "request");
    let request = request.map(linger::body);
    let query = request.uri().query().unwrap_or_default();
    let project = query.split('&').find_map(|pair| pair.strip_prefix("project=")).unwrap_or("default");
    if !matches!(project, "" | "default") {
        return Err(Error::not_found(format!("Project \"{project}\" not found: the only project is \"default\"")));
    }
    Ok(next.run(request).await)
}
