//! `/` and `/1.0`: the server itself.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use duet_client::api::{Resources, Server, ServerEnvironment, ServerPut, ServerStorageDriver};

use super::describe::{Empty, IfMatch, Many, Sync, Tagged, Text};
use super::extensions::EXTENSIONS;
use super::extract::Input;
use super::response::{Answer, empty, etag, if_match, sync, tagged};
use crate::app::App;
use crate::config;
use crate::error::{Error, Result, blocking};
use crate::instances::shutdown;
use crate::storage;

/// Lists the versions of the API.
#[utoipa::path(get, path = "/", responses(Sync<Many<Text>>))]
pub(super) async fn versions() -> Response {
    sync(["/1.0"])
}

/// Where readiness is asked for.
pub(super) const READY: &str = "/internal/ready";

/// Answers once the daemon is ready.
///
/// Lookups are answered before, changes wait until then. `admin waitready` asks this.
#[utoipa::path(get, path = "/internal/ready", responses(Empty))]
pub(super) async fn ready() -> Response {
    empty()
}

/// Shows the host's hardware.
#[utoipa::path(get, path = "/1.0/resources", responses(Sync<Resources>))]
pub(super) async fn resources() -> Answer {
    let found = blocking(|| Ok::<_, Error>(crate::resources::read())).await?;
    Ok(sync(found))
}

/// Stops all instances, then the daemon.
///
/// `admin shutdown` asks for this.
#[utoipa::path(put, path = "/internal/shutdown", responses(Empty))]
pub(super) async fn shutdown(State(app): State<App>) -> Answer {
    let stopping = app.clone();
    // A client that goes away changes nothing.
    tokio::spawn(async move {
        let outcome = shutdown::stop_all(&stopping).await;
        stopping.leaving.cancel();
        outcome
    })
    .await??;
    Ok(empty())
}

/// Shows the server: its configuration, what it can do and where it runs.
#[utoipa::path(get, path = "/1.0", responses(Tagged<Server>))]
pub(super) async fn get(State(app): State<App>) -> Answer {
    let config = app.inventory.server_config()?;
    let tag = etag(&config);
    let server = Server {
        config,
        api_extensions: EXTENSIONS.iter().map(|&e| e.to_owned()).collect(),
        api_status: "stable".into(),
        api_version: "1.0".into(),
        auth: "trusted".into(),
        public: false,
        auth_methods: vec!["tls".into()],
        auth_user_name: "root".into(),
        auth_user_method: "unix".into(),
        environment: environment(&app)?,
    };
    Ok(tagged(server, &tag))
}

fn environment(app: &App) -> Result<ServerEnvironment> {
    let rows = app.inventory.pools()?;
    let mut used: Vec<storage::Kind> = rows.iter().filter_map(|row| row.driver.parse().ok()).collect();
    used.sort_by_key(|kind| kind.name());
    used.dedup();
    let kernel = rustix::system::uname();
    let text = |c: &std::ffi::CStr| c.to_string_lossy().into_owned();
    let machine = text(kernel.machine());
    let (os_name, os_version) = os_release();
    let architectures = match machine.as_str() {
        "x86_64" => vec!["x86_64".to_owned(), "i686".to_owned()],
        _ => vec![machine.clone()],
    };
    let always = |names: &[&str]| -> BTreeMap<String, String> {
        names.iter().map(|&name| (name.to_owned(), "true".to_owned())).collect()
    };
    Ok(ServerEnvironment {
        addresses: Vec::new(),
        architectures,
        certificate: String::new(),
        certificate_fingerprint: String::new(),
        driver: "duet".into(),
        driver_version: crate::VERSION.into(),
        firewall: "nftables".into(),
        kernel: "Linux".into(),
        kernel_architecture: machine,
        // What the runtime cannot do without; the daemon would not have come this far on a kernel lacking it.
        kernel_features: always(&["idmapped_mounts", "unpriv_fscaps"]),
        kernel_version: text(kernel.release()),
        lxc_features: always(&["cgroup2", "devpts_fd", "idmapped_mounts_v2", "pidfd"]),
        os_name,
        os_version,
        project: "default".into(),
        server: "incus".into(),
        server_clustered: false,
        server_event_mode: "full-mesh".into(),
        server_name: text(kernel.nodename()),
        server_pid: i64::from(std::process::id()),
        server_version: crate::API_COMPATIBLE_VERSION.into(),
        storage: used.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(" | "),
        storage_version: used.iter().map(|kind| kind.version()).collect::<Vec<_>>().join(" | "),
        storage_supported_drivers: storage::Kind::ALL
            .into_iter()
            .filter(|kind| kind.available().is_ok())
            .map(|kind| ServerStorageDriver { name: kind.name().into(), version: kind.version().into(), remote: false })
            .collect(),
    })
}

/// `NAME` and `VERSION_ID` of os-release(5).
fn os_release() -> (String, String) {
    let text = std::fs::read_to_string("/etc/os-release")
        .or_else(|_| std::fs::read_to_string("/usr/lib/os-release"))
        .unwrap_or_default();
    let field = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .map(|value| value.trim_matches(['"', '\'']).to_owned())
            .unwrap_or_default()
    };
    (field("NAME"), field("VERSION_ID"))
}

/// Replaces the server's configuration.
#[utoipa::path(put, path = "/1.0", params(IfMatch), request_body = ServerPut, responses(Empty))]
pub(super) async fn put(State(app): State<App>, headers: HeaderMap, Input(body): Input<ServerPut>) -> Answer {
    let _turn = app.edits.lock().await;
    let current = app.inventory.server_config()?;
    if_match(&headers, &etag(&current))?;
    store(&app, body.config).await
}

/// Merges keys into the server's configuration.
///
/// An empty value removes a key.
#[utoipa::path(patch, path = "/1.0", params(IfMatch), request_body = ServerPut, responses(Empty))]
pub(super) async fn patch(State(app): State<App>, headers: HeaderMap, Input(body): Input<ServerPut>) -> Answer {
    let _turn = app.edits.lock().await;
    let mut config = app.inventory.server_config()?;
    if_match(&headers, &etag(&config))?;
    super::merge(&mut config, body.config);
    store(&app, config).await
}

async fn store(app: &App, mut config: config::ConfigMap) -> Answer {
    config::drop_unset(&mut config);
    config::validate_server_config(&config).map_err(|e| Error::invalid(e.to_string()))?;
    app.inventory.set_server_config(config).await?;
    app.events.lifecycle("config-updated", "/1.0".into(), serde_json::Value::Null);
    Ok(empty())
}
