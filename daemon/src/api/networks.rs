//! `/1.0/networks`.

use std::collections::HashMap;

use axum::extract::State;
use axum::http::HeaderMap;
use duet_client::api::{Network, NetworkLease, NetworkPatch, NetworkPost, NetworkPut, NetworkState, NetworksPost};
use serde_json::Value;

use super::Recursion;
use super::describe::{Conflict, Created, Empty, IfMatch, Listing, Many, NetworkName, Sync, Tagged};
use super::extract::{Input, Path, Query};
use super::response::{Answer, created, empty, etag, if_match, sync, tagged};
use crate::app::App;
use crate::error::{Error, Result};
use crate::inventory::NetworkRow;
use crate::networks;

fn wire(row: NetworkRow, used_by: Vec<String>) -> Network {
    Network {
        config: row.config,
        description: row.description,
        name: row.name,
        kind: row.kind,
        used_by,
        managed: true,
        status: "Created".into(),
        locations: Some(vec!["none".into()]),
        project: "default".into(),
    }
}

/// Managed networks, then the host's other links.
async fn all(app: &App) -> Result<Vec<Network>> {
    let mut users: HashMap<String, Vec<String>> = networks::users(app)?;
    let mut list: Vec<Network> = app
        .inventory
        .networks()?
        .into_iter()
        .map(|row| {
            let used_by = users.remove(&row.name).unwrap_or_default();
            wire(row, used_by)
        })
        .collect();
    for link in app.network.host_interfaces().await.map_err(networks::error)? {
        if list.iter().all(|n| n.name != link.name) {
            list.push(Network {
                name: link.name,
                kind: link.kind.to_string(),
                project: "default".into(),
                ..Network::default()
            });
        }
    }
    list.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(list)
}

async fn find(app: &App, name: &str) -> Result<Network> {
    let found = all(app).await?.into_iter().find(|n| n.name == name);
    found.ok_or_else(|| Error::not_found("Network not found"))
}

async fn find_managed(app: &App, name: &str) -> Result<Network> {
    let network = find(app, name).await?;
    if network.managed {
        Ok(network)
    } else {
        Err(Error::invalid(format!("{name} is a link of the host that Duet does not manage")))
    }
}

fn writable(network: &Network) -> NetworkPut {
    NetworkPut { config: network.config.clone(), description: network.description.clone() }
}

/// Lists the networks, and the host's other links.
#[utoipa::path(get, path = "/1.0/networks", params(Recursion), responses(Listing<Network>))]
pub(super) async fn list(State(app): State<App>, Query(query): Query<Recursion>) -> Answer {
    query.answer(all(&app).await?, |network| format!("/1.0/networks/{}", network.name))
}

/// Shows a network.
#[utoipa::path(get, path = "/1.0/networks/{name}", params(NetworkName), responses(Tagged<Network>))]
pub(super) async fn get(State(app): State<App>, Path(name): Path<String>) -> Answer {
    let network = find(&app, &name).await?;
    let tag = etag(&writable(&network));
    Ok(tagged(network, &tag))
}

/// Makes a network.
#[utoipa::path(post, path = "/1.0/networks", request_body = NetworksPost, responses(Created, Conflict))]
pub(super) async fn create(State(app): State<App>, Input(body): Input<NetworksPost>) -> Answer {
    if !matches!(body.kind.as_str(), "" | "bridge") {
        return Err(Error::invalid(format!("the network type \"{}\" is not served: use bridge", body.kind)));
    }
    let name = body.name.clone();
    networks::create(&app, &body.name, body.description, body.config).await?;
    let path = format!("/1.0/networks/{name}");
    app.events.lifecycle("network-created", path.clone(), Value::Null);
    Ok(created(&path))
}

/// Replaces a network's configuration.
#[utoipa::path(
    put,
    path = "/1.0/networks/{name}",
    params(NetworkName, IfMatch),
    request_body = NetworkPut,
    responses(Empty)
)]
pub(super) async fn put(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Input(body): Input<NetworkPut>,
) -> Answer {
    let _turn = app.edits.lock().await;
    let current = writable(&find_managed(&app, &name).await?);
    if_match(&headers, &etag(&current))?;
    networks::update(&app, &name, body.description, body.config).await?;
    Ok(empty())
}

/// Changes what is present of a network's configuration.
#[utoipa::path(
    patch,
    path = "/1.0/networks/{name}",
    params(NetworkName, IfMatch),
    request_body = NetworkPatch,
    responses(Empty)
)]
pub(super) async fn patch(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Input(body): Input<NetworkPatch>,
) -> Answer {
    let _turn = app.edits.lock().await;
    let mut next = writable(&find_managed(&app, &name).await?);
    if_match(&headers, &etag(&next))?;
    super::merge(&mut next.config, body.config.unwrap_or_default());
    let description = body.description.unwrap_or(next.description);
    networks::update(&app, &name, description, next.config).await?;
    Ok(empty())
}

/// Renames a network that nothing uses.
#[utoipa::path(
    post,
    path = "/1.0/networks/{name}",
    params(NetworkName),
    request_body = NetworkPost,
    responses(Created, Conflict)
)]
pub(super) async fn rename(
    State(app): State<App>,
    Path(name): Path<String>,
    Input(body): Input<NetworkPost>,
) -> Answer {
    find_managed(&app, &name).await?;
    networks::rename(&app, &name, &body.name).await?;
    let path = format!("/1.0/networks/{}", body.name);
    app.events.lifecycle("network-renamed", path.clone(), serde_json::json!({ "old_name": name }));
    Ok(created(&path))
}

/// Deletes a network that nothing uses.
#[utoipa::path(delete, path = "/1.0/networks/{name}", params(NetworkName), responses(Empty))]
pub(super) async fn delete(State(app): State<App>, Path(name): Path<String>) -> Answer {
    find_managed(&app, &name).await?;
    networks::delete(&app, &name).await?;
    app.events.lifecycle("network-deleted", format!("/1.0/networks/{name}"), Value::Null);
    Ok(empty())
}

/// Lists the addresses that a network gave out.
#[utoipa::path(get, path = "/1.0/networks/{name}/leases", params(NetworkName), responses(Sync<Many<NetworkLease>>))]
pub(super) async fn leases(State(app): State<App>, Path(name): Path<String>) -> Answer {
    find_managed(&app, &name).await?;
    Ok(sync(networks::leases(&app, &name).await?))
}

/// Shows the link of a network: its addresses and what went through it.
#[utoipa::path(get, path = "/1.0/networks/{name}/state", params(NetworkName), responses(Sync<NetworkState>))]
pub(super) async fn state(State(app): State<App>, Path(name): Path<String>) -> Answer {
    find(&app, &name).await?;
    Ok(sync(app.network.network_state(&name).await.map_err(networks::error)?))
}
