//! `/1.0/warnings`.

use axum::extract::State;
use duet_client::api::{Warning, WarningPut};

use super::Recursion;
use super::describe::{Empty, Listing, Tagged, WarningId};
use super::extract::{Input, Path, Query};
use super::response::{Answer, empty, etag, tagged};
use crate::app::App;
use crate::error::{Error, Result};
use crate::inventory::{self, WarningRow};

fn wire(row: WarningRow) -> Warning {
    Warning {
        status: row.status,
        uuid: row.uuid,
        location: "none".into(),
        project: if row.entity_url.is_empty() { String::new() } else { "default".into() },
        kind: row.kind,
        count: row.count,
        first_seen_at: row.first_seen_at.into(),
        last_seen_at: row.last_seen_at.into(),
        last_message: row.last_message,
        severity: row.severity,
        entity_url: row.entity_url,
    }
}

fn find(app: &App, uuid: &str) -> Result<WarningRow> {
    app.inventory.warning(uuid)?.ok_or_else(|| Error::not_found("Warning not found"))
}

/// Lists the warnings.
#[utoipa::path(get, path = "/1.0/warnings", params(Recursion), responses(Listing<Warning>))]
pub(super) async fn list(State(app): State<App>, Query(query): Query<Recursion>) -> Answer {
    let warnings = app.inventory.warnings()?.into_iter().map(wire).collect();
    query.answer(warnings, |warning: &duet_client::api::Warning| format!("/1.0/warnings/{}", warning.uuid))
}

/// Shows a warning.
#[utoipa::path(get, path = "/1.0/warnings/{uuid}", params(WarningId), responses(Tagged<Warning>))]
pub(super) async fn get(State(app): State<App>, Path(uuid): Path<String>) -> Answer {
    let warning = wire(find(&app, &uuid)?);
    let tag = etag(&warning);
    Ok(tagged(warning, &tag))
}

/// Acknowledges a warning, or makes it new again.
#[utoipa::path(
    method(put, patch),
    path = "/1.0/warnings/{uuid}",
    params(WarningId),
    request_body = WarningPut,
    responses(Empty)
)]
pub(super) async fn put(State(app): State<App>, Path(uuid): Path<String>, Input(body): Input<WarningPut>) -> Answer {
    find(&app, &uuid)?;
    if !matches!(body.status.as_str(), "new" | "acknowledged") {
        return Err(Error::invalid(format!("a warning's status is new or acknowledged, not \"{}\"", body.status)));
    }
    app.inventory.write(move |tx| inventory::warnings::set_status(tx, &uuid, &body.status)).await?;
    Ok(empty())
}

/// Deletes a warning.
#[utoipa::path(delete, path = "/1.0/warnings/{uuid}", params(WarningId), responses(Empty))]
pub(super) async fn delete(State(app): State<App>, Path(uuid): Path<String>) -> Answer {
    find(&app, &uuid)?;
    app.inventory.write(move |tx| inventory::warnings::delete(tx, &uuid)).await?;
    Ok(empty())
}
