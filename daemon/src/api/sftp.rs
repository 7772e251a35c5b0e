//! `/1.0/instances/{name}/sftp`: the connection becomes an SFTP session of the instance's files.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use hyper_util::rt::TokioIo;

use super::describe::InstanceName;
use super::extract::Path;
use super::response::Answer;
use crate::app::App;
use crate::error::Error;
use crate::instances::files;
use crate::instances::sftp::Sftp;

/// Upgrades to an SFTP session of an instance's files.
#[utoipa::path(
    get,
    path = "/1.0/instances/{name}/sftp",
    params(InstanceName, ("Upgrade" = String, Header, description = "`sftp`, and `Connection: Upgrade`.")),
    responses((status = 101, description = "The connection is an SFTP session from here on."))
)]
pub(super) async fn connect(State(app): State<App>, Path(name): Path<String>, mut request: Request) -> Answer {
    let asked = request.headers().get(header::UPGRADE).is_some_and(|value| value.as_bytes() == b"sftp");
    if !asked {
        return Err(Error::invalid(
            "this is an SFTP session: ask for it with \"Connection: Upgrade\" and \"Upgrade: sftp\"",
        ));
    }
    let files = files::open(&app, &name, files::Access::Write).await?;
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgraded.await {
            Ok(stream) => russh_sftp::server::run(TokioIo::new(stream), Sftp::new(files)).await,
            Err(error) => tracing::debug!(%error, "an SFTP client went away"),
        }
    });
    let headers = [(header::CONNECTION, "Upgrade"), (header::UPGRADE, "sftp")];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response())
}
