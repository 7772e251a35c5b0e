//! The console: attaching to it, and what was written to it since boot.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use duet_client::api::{InstanceConsolePost, SessionControl};
use duet_control::client::{ClientError, MonitorClient};
use duet_control::protocol::{ErrorKind, PtySize, Reply, Request};
use serde_json::json;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::{exec, expand};
use crate::app::App;
use crate::error::{Context, Error, Kind, Result, blocking};
use crate::operations::{Operation, Plan, Socket, Sockets};
use crate::readiness::register;

/// How long a client may take to connect its websockets.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Attaches to the console.
///
/// # Errors
/// Where the instance does not run, or somebody else has its console.
pub async fn attach(app: &App, name: &str, post: InstanceConsolePost) -> Result<Arc<Operation>> {
    if !matches!(post.kind.as_str(), "" | "console") {
        return Err(Error::invalid(format!("there is no \"{}\" console: use console", post.kind)));
    }
    let row = expand::find_row(app, name)?;
    let live = app.instances.slot(row.id).live().ok_or_else(|| Error::invalid("Instance is not running"))?;
    let run_dir = live.run_dir.clone();
    let size = PtySize { columns: post.width, rows: post.height };
    let (client, stream) = blocking(move || {
        let attach = || {
            let client = MonitorClient::connect(&run_dir)?;
            let stream = client.console(post.force)?;
            if size != PtySize::default() {
                client.resize_console(size)?;
            }
            Ok((client, stream))
        };
        attach().map_err(|error: ClientError| match error {
            ClientError::Refused(refused) if refused.kind == ErrorKind::Busy => {
                Error::new(Kind::Conflict, "This console is already connected. Force is required to take it over.")
            }
            other => Error::internal(other),
        })
    })
    .await?;
    let stream = std::os::unix::net::UnixStream::from(stream);
    stream.set_nonblocking(true)?;
    let stream = UnixStream::from_std(stream)?;
    app.events.lifecycle("instance-console", format!("/1.0/instances/{name}"), json!({ "type": "console" }));
    let (sockets, [data, control]) = Sockets::new(["0", "control"]);
    let plan = Plan::new("Showing console").instance(name).with_sockets(sockets);
    Ok(app.operations.spawn(plan, |operation| serve(client, stream, data, control, operation)))
}

async fn serve(
    client: MonitorClient,
    stream: UnixStream,
    data: Socket,
    control: Socket,
    operation: Arc<Operation>,
) -> Result<()> {
    let (mut data, control) = tokio::time::timeout(CONNECT_DEADLINE, async { (data.await, control.await) })
        .await
        .ok()
        .and_then(|(data, control)| Some((data.ok()?, control.ok()?)))
        .ok_or_else(|| Error::invalid("Timed out waiting for websockets to connect"))?;
    let client = Arc::new(register(client)?);
    let mut controlled = tokio::spawn(serve_control(control, Arc::clone(&client)));
    let mut buffer = vec![0; 16 << 10];
    let (mut output, mut console) = stream.into_split();
    // What the console has not taken yet; its output is read meanwhile.
    let mut input = axum::body::Bytes::new();
    loop {
        tokio::select! {
            read = output.read(&mut buffer) => match read {
                Ok(count) if count > 0 => {
                    let bytes = axum::body::Bytes::copy_from_slice(&buffer[..count]);
                    if !exec::tell(&mut data, bytes, &operation).await {
                        break;
                    }
                }
                // The instance ended, or somebody took the console by force.
                _ => break,
            },
            written = console.write(&input), if !input.is_empty() => match written {
                Ok(count) => drop(input.split_to(count)),
                Err(_) => break,
            },
            message = data.recv(), if input.is_empty() => match message {
                Some(Ok(Message::Binary(bytes))) => input = bytes,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Text(_) | Message::Close(_)) | Err(_)) | None => break,
            },
            () = operation.cancelled().cancelled() => break,
            // Incus' client detaches by closing its control side.
            _ = &mut controlled => return end(data).await,
        }
    }
    controlled.abort();
    end(data).await
}

async fn end(mut data: WebSocket) -> Result<()> {
    // The client may be gone already, or read nothing any more.
    let _ = tokio::time::timeout(exec::LAST_FRAME, data.send(Message::Close(None))).await;
    Ok(())
}

async fn serve_control(mut control: WebSocket, client: Arc<AsyncFd<MonitorClient>>) {
    loop {
        tokio::select! {
            message = control.recv() => {
                let text = match &message {
                    Some(Ok(Message::Text(text))) => text.as_bytes(),
                    Some(Ok(Message::Binary(data))) => data,
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                };
                let Ok(message) = serde_json::from_slice::<SessionControl>(text) else { continue };
                if let Some(size) = exec::window(&message).filter(|_| message.command == "window-resize") {
                    let _ = client.get_ref().send(&Request::ConsoleResize(size), &[]);
                }
            }
            ready = client.readable() => {
                let Ok(mut ready) = ready else { return };
                match client.get_ref().try_receive() {
                    Ok(Some((Reply::ConsoleTaken, _))) | Err(_) => return,
                    Ok(Some(_)) => {}
                    Ok(None) => ready.clear_ready(),
                }
            }
        }
    }
}

/// What was written to the console since boot.
///
/// # Errors
/// Where the instance is not there.
pub async fn log(app: &App, name: &str) -> Result<Vec<u8>> {
    expand::find_row(app, name)?;
    let path = app.paths.logs(name).join("console.log");
    match tokio::fs::read(&path).await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.doing("cannot read the console's log"),
    }
}

/// Empties the log.
///
/// # Errors
/// Where the instance is not there.
pub async fn clear(app: &App, name: &str) -> Result<()> {
    expand::find_row(app, name)?;
    let path = app.paths.logs(name).join("console.log");
    match tokio::fs::OpenOptions::new().write(true).truncate(true).open(&path).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).doing("cannot empty the console's log")
        }
        _ => Ok(()),
    }
}
