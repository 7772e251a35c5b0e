//! `/1.0/instances/{name}/logs`: the monitor's log, the console's log and recorded output.

use std::path::PathBuf;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use super::describe::{Bytes, Empty, InstanceName, LogName, Many, Sync, Text};
use super::extract::Path;
use super::response::{Answer, empty, sync};
use crate::app::App;
use crate::error::{Context, Error, Result};
use crate::instances::expand;

/// The logs that exist in `dir`, as paths below `url`.
async fn names(dir: PathBuf, url: String) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut entries = match tokio::fs::read_dir(&dir).await {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(names),
        Err(error) => return Err(error).doing("cannot list the logs"),
    };
    while let Some(entry) = entries.next_entry().await? {
        if entry.file_type().await?.is_file() {
            names.push(format!("{url}/{}", entry.file_name().to_string_lossy()));
        }
    }
    names.sort();
    Ok(names)
}

/// A log's path; names are single components, and only of files that logs are made of.
fn file(dir: PathBuf, name: &str) -> Result<PathBuf> {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
    let known = name.ends_with(".log") || name.starts_with("exec_");
    if plain && known { Ok(dir.join(name)) } else { Err(Error::not_found(format!("there is no log \"{name}\""))) }
}

async fn read(path: PathBuf, name: &str) -> Answer {
    match tokio::fs::read(&path).await {
        Ok(bytes) => Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::not_found(format!("there is no log \"{name}\"")))
        }
        Err(error) => Err(error).doing("cannot read the log"),
    }
}

async fn remove(path: PathBuf, name: &str) -> Answer {
    match tokio::fs::remove_file(&path).await {
        Ok(()) => Ok(empty()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::not_found(format!("there is no log \"{name}\"")))
        }
        Err(error) => Err(error).doing("cannot remove the log"),
    }
}

/// Lists the logs of an instance.
#[utoipa::path(get, path = "/1.0/instances/{name}/logs", params(InstanceName), responses(Sync<Many<Text>>))]
pub(super) async fn list(State(app): State<App>, Path(name): Path<String>) -> Answer {
    expand::find_row(&app, &name)?;
    Ok(sync(names(app.paths.logs(&name), format!("/1.0/instances/{name}/logs")).await?))
}

/// Sends a log.
#[utoipa::path(get, path = "/1.0/instances/{name}/logs/{file}", params(InstanceName, LogName), responses(Bytes))]
pub(super) async fn get(State(app): State<App>, Path((name, log)): Path<(String, String)>) -> Answer {
    expand::find_row(&app, &name)?;
    read(file(app.paths.logs(&name), &log)?, &log).await
}

/// Deletes a log that is not being written.
#[utoipa::path(delete, path = "/1.0/instances/{name}/logs/{file}", params(InstanceName, LogName), responses(Empty))]
pub(super) async fn delete(State(app): State<App>, Path((name, log)): Path<(String, String)>) -> Answer {
    let row = expand::find_row(&app, &name)?;
    if matches!(log.as_str(), "monitor.log" | "console.log") && app.instances.slot(row.id).live().is_some() {
        return Err(Error::invalid(format!("\"{log}\" is being written: stop the instance first")));
    }
    remove(file(app.paths.logs(&name), &log)?, &log).await
}

/// Lists the recorded output of `exec`.
#[utoipa::path(get, path = "/1.0/instances/{name}/logs/exec-output", params(InstanceName), responses(Sync<Many<Text>>))]
pub(super) async fn list_output(State(app): State<App>, Path(name): Path<String>) -> Answer {
    expand::find_row(&app, &name)?;
    let dir = app.paths.logs(&name).join("exec-output");
    Ok(sync(names(dir, format!("/1.0/instances/{name}/logs/exec-output")).await?))
}

/// Sends recorded output of `exec`.
#[utoipa::path(
    get,
    path = "/1.0/instances/{name}/logs/exec-output/{file}",
    params(InstanceName, LogName),
    responses(Bytes)
)]
pub(super) async fn get_output(State(app): State<App>, Path((name, log)): Path<(String, String)>) -> Answer {
    expand::find_row(&app, &name)?;
    read(file(app.paths.logs(&name).join("exec-output"), &log)?, &log).await
}

/// Deletes recorded output of `exec`.
#[utoipa::path(
    delete,
    path = "/1.0/instances/{name}/logs/exec-output/{file}",
    params(InstanceName, LogName),
    responses(Empty)
)]
pub(super) async fn delete_output(State(app): State<App>, Path((name, log)): Path<(String, String)>) -> Answer {
    expand::find_row(&app, &name)?;
    remove(file(app.paths.logs(&name).join("exec-output"), &log)?, &log).await
}
