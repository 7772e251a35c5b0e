//! Running programs in an instance: pipes or a terminal on one side, websockets on the other.
//!
//! The monitor starts the program and tells how it ended; bytes never pass through it. With a terminal there is one
//! stream, `0`, both ways; without, `0`, `1` and `2` are standard input, output and error. Binary frames carry data, an
//! empty text frame marks an end. `control` carries window sizes and signals, and is optional: pylxd does without.
//!
//! When the program has ended, what it left in the pipes is still delivered, but a daemon that it left behind with its
//! output open does not keep the session.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use duet_client::api::{InstanceExecPost, SessionControl};
use duet_control::client::MonitorClient;
use duet_control::protocol::{ErrorKind, ExecRequest, ExecStatus, PtySize, Reply};
use serde_json::{Value, json};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::watch;

use super::live::Live;
use crate::app::App;
use crate::config::InstanceSettings;
use crate::error::{Context, Error, Result, blocking};
use crate::operations::{Operation, Plan, Socket, Sockets};
use crate::readiness::register;

/// How long a client may take to connect its websockets.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How long a client may take to close its side of a stream.
pub(super) const LAST_FRAME: Duration = Duration::from_secs(2);
/// Bytes moved at a time.
const CHUNK: usize = 64 << 10;

/// Starts a session: checks the request, and answers with an operation.
///
/// # Errors
/// Where the instance does not run, or the request makes no sense.
pub fn exec(app: &App, name: &str, post: InstanceExecPost) -> Result<Arc<Operation>> {
    let expanded = super::expand::find(app, name)?;
    let live = running(app, expanded.row.id)?;
    if post.command.is_empty() || post.command[0].is_empty() {
        return Err(Error::invalid("the command is empty: name a program to run"));
    }
    if post.record_output && (post.wait_for_websocket || post.interactive) {
        return Err(Error::invalid("output is recorded only without websockets and without a terminal"));
    }
    if let Some(map) = live.idmap()
        && let Some(unknown) = [post.user, post.group].into_iter().find(|id| *id >= map.range)
    {
        return Err(Error::invalid(format!(
            "there is no id {unknown} in the instance: its ids are 0 to {}",
            map.range - 1
        )));
    }
    let settings = InstanceSettings::from_config(&expanded.config).map_err(|e| Error::invalid(e.to_string()))?;
    let environment = environment(settings.environment, &post, live.is_machine());
    let request = ExecRequest {
        argv: post.command.clone(),
        environment: environment.clone(),
        cwd: (!post.cwd.is_empty()).then(|| PathBuf::from(&post.cwd)),
        uid: post.user,
        gid: post.group,
        pty: post.interactive.then_some(PtySize { columns: post.width, rows: post.height }),
    };
    app.events.lifecycle("instance-exec", format!("/1.0/instances/{name}"), json!({ "command": post.command }));
    let plan = Plan::new("Executing command")
        .instance(name)
        .with("command", json!(post.command))
        .with("environment", json!(environment))
        .with("interactive", json!(post.interactive));
    if !post.wait_for_websocket {
        let recording = post.record_output.then(|| Recording::new(app, name));
        return Ok(app.operations.spawn(plan, |operation| detached(live, request, recording, operation)));
    }
    if post.interactive {
        let (sockets, [terminal, control]) = Sockets::new(["0", "control"]);
        let plan = plan.with_sockets(sockets);
        return Ok(app.operations.spawn(plan, |operation| interactive(live, request, terminal, control, operation)));
    }
    let (sockets, [stdin, stdout, stderr, control]) = Sockets::new(["0", "1", "2", "control"]);
    let plan = plan.with_sockets(sockets);
    Ok(app.operations.spawn(plan, |operation| piped(live, request, [stdin, stdout, stderr], control, operation)))
}

/// What runs of an instance that is neither stopped nor frozen.
pub(super) fn running(app: &App, id: i64) -> Result<Arc<Live>> {
    match app.instances.slot(id).live() {
        None => Err(Error::invalid("Instance is not running")),
        Some(live) if live.is_frozen() => Err(Error::invalid("Instance is frozen")),
        Some(live) => Ok(live),
    }
}

/// The instance's own variables, then the request's, then what every program may count on (Incus' defaults).
fn environment(own: BTreeMap<String, String>, post: &InstanceExecPost, machine: bool) -> BTreeMap<String, String> {
    let mut environment = own;
    environment.extend(post.environment.iter().map(|(key, value)| (key.clone(), value.clone())));
    let mut default = |key: &str, value: &str| {
        environment.entry(key.to_owned()).or_insert_with(|| value.to_owned());
    };
    default("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    default("LANG", "C.UTF-8");
    if !machine {
        // As its init has it: systemd and others look there for where they are.
        default("container", "lxc");
    }
    if post.user == 0 {
        default("HOME", "/root");
        default("USER", "root");
    }
    environment
}

/// A program that was started.
struct Session {
    monitor: Arc<AsyncFd<MonitorClient>>,
    pty: Option<OwnedFd>,
    ended: watch::Receiver<Option<i32>>,
}

/// Starts the program; a task then waits for its end.
async fn begin(
    live: &Arc<Live>,
    request: ExecRequest,
    stdio: Option<[OwnedFd; 3]>,
    operation: &Arc<Operation>,
) -> Result<Session> {
    let run_dir = live.run_dir.clone();
    let started = blocking(move || {
        let run = || {
            let client = MonitorClient::connect(&run_dir)?;
            let executed = client.exec(request, stdio.as_ref().map(|fds| fds.each_ref().map(AsFd::as_fd)))?;
            Ok((client, executed))
        };
        Ok::<_, Error>(run())
    })
    .await?;
    let (client, executed) = match started {
        Ok(started) => started,
        Err(duet_control::client::ClientError::Refused(refused)) => {
            let (code, words) = match refused.kind {
                ErrorKind::CommandNotFound => (127, "Command not found".to_owned()),
                ErrorKind::CommandNotExecutable => (126, "Command not executable".to_owned()),
                ErrorKind::Invalid | ErrorKind::Busy | ErrorKind::NotFound | ErrorKind::System | ErrorKind::Other => {
                    (-1, refused.message)
                }
            };
            operation.update([("return".to_owned(), json!(code))]);
            return Err(Error::invalid(words));
        }
        Err(error) => return Err(Error::internal(error)),
    };
    let monitor = Arc::new(register(client)?);
    let (said, ended) = watch::channel(None);
    let waiting = Arc::clone(&monitor);
    tokio::spawn(async move {
        let status = wait_exit(&waiting).await;
        said.send_replace(Some(status));
    });
    Ok(Session { monitor, pty: executed.pty, ended })
}

/// The exit status as a shell has it; -1 when the instance ended under the program.
async fn wait_exit(monitor: &AsyncFd<MonitorClient>) -> i32 {
    loop {
        let Ok(mut ready) = monitor.readable().await else { return -1 };
        match monitor.get_ref().try_receive() {
            Ok(Some((Reply::ExecExited { status }, _))) => {
                return match status {
                    ExecStatus::Code(code) => code,
                    ExecStatus::Signal(signal) => 128 + signal,
                };
            }
            // The answers to signals that were sent.
            Ok(Some(_)) => {}
            Ok(None) => ready.clear_ready(),
            Err(_) => return -1,
        }
    }
}

/// Waits until the program has ended.
async fn over(ended: &mut watch::Receiver<Option<i32>>) -> i32 {
    ended.wait_for(Option::is_some).await.map_or(-1, |status| status.unwrap_or(-1))
}

/// As [`over`], or never.
async fn gone(ended: Option<&mut watch::Receiver<Option<i32>>>) {
    match ended {
        Some(ended) => drop(over(ended).await),
        None => std::future::pending().await,
    }
}

impl Session {
    async fn wait(&mut self) -> i32 {
        over(&mut self.ended).await
    }
}

fn finish(operation: &Operation, code: i32) {
    operation.update([("return".to_owned(), json!(code))]);
}

async fn connected(socket: Socket, operation: &Operation) -> Result<WebSocket> {
    tokio::select! {
        socket = tokio::time::timeout(CONNECT_DEADLINE, socket) => match socket {
            Ok(Ok(socket)) => Ok(socket),
            _ => Err(Error::invalid("Timed out waiting for websockets to connect")),
        },
        () = operation.cancelled().cancelled() => Err(Error::invalid("the session was cancelled before it began")),
    }
}

async fn interactive(
    live: Arc<Live>,
    request: ExecRequest,
    terminal: Socket,
    control: Socket,
    operation: Arc<Operation>,
) -> Result<()> {
    let mut terminal = connected(terminal, &operation).await?;
    let mut session = match begin(&live, request, None, &operation).await {
        Ok(session) => session,
        Err(error) => {
            close(terminal).await;
            return Err(error);
        }
    };
    let pty = session.pty.take().ok_or_else(|| Error::internal("the monitor gave no terminal"))?;
    let pty = Arc::new(Pty::new(pty)?);
    let controlled = tokio::spawn(serve_control(control, Arc::clone(&session.monitor), Some(Arc::clone(&pty))));
    let mut buffer = vec![0; CHUNK];
    let mut ended = session.ended.clone();
    // What the terminal has not taken yet. A program that waits for its output to be read takes no input meanwhile, so
    // that neither may wait for the other.
    let mut input = axum::body::Bytes::new();
    loop {
        tokio::select! {
            biased;
            read = pty.read(&mut buffer) => match read {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    let data = axum::body::Bytes::copy_from_slice(&buffer[..count]);
                    if !tell(&mut terminal, data, &operation).await {
                        break;
                    }
                }
            },
            written = pty.write(&input), if !input.is_empty() => match written {
                Ok(count) => drop(input.split_to(count)),
                Err(_) => break,
            },
            message = terminal.recv(), if input.is_empty() => match message {
                Some(Ok(Message::Binary(data))) => input = data,
                // A text frame says that the client's input has ended; a terminal has no such thing, and stays.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Text(_))) => {}
                // The client went away: the terminal closes, and what runs in it gets SIGHUP.
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
            },
            // Everything there was to read has been read (biased), and the program is gone: a child that keeps the
            // terminal open does not keep the session. A virtual machine's stream ends by itself, when all of it is here.
            _ = over(&mut ended), if !live.is_machine() => break,
            () = operation.cancelled().cancelled() => break,
        }
    }
    // A program that reads its terminal ends with it.
    drop(pty);
    controlled.abort();
    let over = *session.ended.borrow();
    if over.is_none() {
        let _ = session.monitor.get_ref().send_exec_signal(libc::SIGHUP);
    }
    let code = match tokio::time::timeout(Duration::from_secs(5), session.wait()).await {
        Ok(code) => code,
        Err(_) => {
            let _ = session.monitor.get_ref().send_exec_signal(libc::SIGKILL);
            session.wait().await
        }
    };
    if operation.cancelled().is_cancelled() {
        // Whoever cancels it need not be who reads it.
        tokio::spawn(tokio::time::timeout(LAST_FRAME, close(terminal)));
    } else {
        close(terminal).await;
    }
    finish(&operation, code);
    Ok(())
}

/// Sends output to a client, which may read it late or never. False: it is gone, or the operation was cancelled.
pub(super) async fn tell(socket: &mut WebSocket, data: axum::body::Bytes, operation: &Operation) -> bool {
    tokio::select! {
        sent = socket.send(Message::Binary(data)) => sent.is_ok(),
        () = operation.cancelled().cancelled() => false,
    }
}

/// The end of a stream as Incus' clients expect it: an empty text frame, then a closed connection. The connection stays
/// for a moment, so that the client can close its side too (RFC 6455, 7.1.1), but nobody waits for that.
async fn close(mut socket: WebSocket) {
    if socket.send(Message::Text("".into())).await.is_ok() && socket.send(Message::Close(None)).await.is_ok() {
        tokio::spawn(tokio::time::timeout(LAST_FRAME, async move { while let Some(Ok(_)) = socket.recv().await {} }));
    }
}

async fn piped(
    live: Arc<Live>,
    request: ExecRequest,
    sockets: [Socket; 3],
    control: Socket,
    operation: Arc<Operation>,
) -> Result<()> {
    let [stdin, stdout, stderr] = sockets;
    let (stdin, stdout, stderr) = (
        connected(stdin, &operation).await?,
        connected(stdout, &operation).await?,
        connected(stderr, &operation).await?,
    );
    let (input_read, input_write) = pipe_pair()?;
    let (output_read, output_write) = pipe_pair()?;
    let (error_read, error_write) = pipe_pair()?;
    let stdio = [input_read, output_write, error_write];
    let mut session = match begin(&live, request, Some(stdio), &operation).await {
        Ok(session) => session,
        Err(error) => {
            close(stdout).await;
            close(stderr).await;
            return Err(error);
        }
    };
    let controlled = tokio::spawn(serve_control(control, Arc::clone(&session.monitor), None));
    let input = tokio::spawn(feed(stdin, pipe::Sender::from_owned_fd(input_write)?));
    // A virtual machine's streams end by themselves, when all of them is here.
    let ended = (!live.is_machine()).then(|| session.ended.clone());
    let output = tokio::spawn(drain(stdout, pipe::Receiver::from_owned_fd(output_read)?, ended.clone()));
    let error = tokio::spawn(drain(stderr, pipe::Receiver::from_owned_fd(error_read)?, ended));
    let mut output_gone = false;
    let code = tokio::select! {
        code = session.wait() => code,
        () = operation.cancelled().cancelled() => {
            let _ = session.monitor.get_ref().send_exec_signal(libc::SIGKILL);
            output_gone = true;
            session.wait().await
        }
    };
    input.abort();
    if !output_gone {
        let all = async { (output.await, error.await) };
        tokio::select! {
            _ = all => {}
            () = operation.cancelled().cancelled() => {}
        }
    }
    controlled.abort();
    finish(&operation, code);
    if operation.cancelled().is_cancelled() { Err(Error::invalid("the session was cancelled")) } else { Ok(()) }
}

fn pipe_pair() -> Result<(OwnedFd, OwnedFd)> {
    // Close-on-exec for us; the monitor gives its ends to the program by dup2, which clears it. The daemon's end is
    // made non-blocking by tokio, the program's stays blocking: each end has its own open file description.
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).doing("cannot make a pipe")
}

/// Moves a websocket into the program's standard input.
async fn feed(mut socket: WebSocket, mut input: pipe::Sender) {
    while let Some(Ok(message)) = socket.recv().await {
        match message {
            Message::Binary(data) => {
                if input.write_all(&data).await.is_err() {
                    break;
                }
            }
            Message::Text(_) | Message::Close(_) => break,
            Message::Ping(_) | Message::Pong(_) => {}
        }
    }
    drop(input);
    // The socket stays until the client closes it: some take an early close for a failure.
    while let Some(Ok(_)) = socket.recv().await {}
}

/// Moves the program's output into a websocket, until its end or, where that is to be known, until the program is gone and
/// the pipe is empty.
async fn drain(mut socket: WebSocket, mut output: pipe::Receiver, mut ended: Option<watch::Receiver<Option<i32>>>) {
    let mut buffer = vec![0; CHUNK];
    let mut receiving = true;
    loop {
        let read = tokio::select! {
            biased;
            read = output.read(&mut buffer) => read,
            message = socket.recv(), if receiving => {
                // Nothing but its end is expected from the client here; reading answers its pings.
                receiving = matches!(message, Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Text(_) | Message::Binary(_))));
                continue;
            }
            () = gone(ended.as_mut()) => break,
        };
        match read {
            Ok(count) if count > 0 => {
                let data = axum::body::Bytes::copy_from_slice(&buffer[..count]);
                if socket.send(Message::Binary(data)).await.is_err() {
                    return;
                }
            }
            _ => break,
        }
    }
    close(socket).await;
}

/// Carries out what the client says about window sizes and signals.
async fn serve_control(control: Socket, monitor: Arc<AsyncFd<MonitorClient>>, pty: Option<Arc<Pty>>) {
    let Ok(mut control) = control.await else { return };
    loop {
        let Some(Ok(message)) = control.recv().await else {
            // The client vanished instead of closing, as Incus tells it too: nobody waits for the program any more.
            let _ = monitor.get_ref().send_exec_signal(libc::SIGKILL);
            return;
        };
        let text = match &message {
            Message::Text(text) => text.as_bytes(),
            Message::Binary(data) => data,
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) => continue,
        };
        let Ok(message) = serde_json::from_slice::<SessionControl>(text) else { continue };
        match message.command.as_str() {
            "window-resize" => {
                if let (Some(pty), Some(size)) = (&pty, window(&message))
                    && !pty.resize(size)
                {
                    let _ = monitor.get_ref().send_exec_resize(size);
                }
            }
            "signal" => {
                let _ = monitor.get_ref().send_exec_signal(message.signal);
            }
            other => tracing::debug!(command = other, "an unknown control message"),
        }
    }
}

/// The size in a window-resize message.
pub(super) fn window(message: &SessionControl) -> Option<PtySize> {
    let number = |key: &str| message.args.get(key)?.parse().ok();
    Some(PtySize { columns: number("width")?, rows: number("height")? })
}

/// The master side of a terminal.
pub(super) struct Pty {
    fd: AsyncFd<OwnedFd>,
}

impl Pty {
    pub(super) fn new(fd: OwnedFd) -> Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true).doing("cannot set up the terminal")?;
        Ok(Self { fd: register(fd)? })
    }

    /// Reads what there is; `EIO` means that nobody has the other side open.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let mut ready = self.fd.readable().await?;
            match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *buffer)?)) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Writes what fits. Nothing is written where this is dropped before it is done.
    async fn write(&self, data: &[u8]) -> std::io::Result<usize> {
        loop {
            let mut ready = self.fd.writable().await?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), data)?)) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Sets the window's size. False: a virtual machine has the terminal, and here is only a stream to it.
    fn resize(&self, size: PtySize) -> bool {
        let size = rustix::termios::Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        match rustix::termios::tcsetwinsize(self.fd.get_ref(), size) {
            Err(rustix::io::Errno::NOTTY | rustix::io::Errno::OPNOTSUPP) => return false,
            Err(error) => tracing::debug!(%error, "a terminal could not be resized"),
            Ok(()) => {}
        }
        true
    }
}

/// Where the output of a session without websockets goes.
struct Recording {
    dir: PathBuf,
    url: String,
}

impl Recording {
    fn new(app: &App, name: &str) -> Self {
        Self { dir: app.paths.logs(name).join("exec-output"), url: format!("/1.0/instances/{name}/logs/exec-output") }
    }
}

/// A session without websockets: no input, output recorded or dropped.
async fn detached(
    live: Arc<Live>,
    request: ExecRequest,
    recording: Option<Recording>,
    operation: Arc<Operation>,
) -> Result<()> {
    let request = ExecRequest { pty: None, ..request };
    let null = || std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    let mut copies = Vec::new();
    let (stdio, urls) = match &recording {
        None => ([null()?, null()?, null()?], None),
        Some(recording) => {
            let doing = format!("cannot keep the output in {}", recording.dir.display());
            std::fs::create_dir_all(&recording.dir).doing(&doing)?;
            let mut file = |stream: &str| -> Result<(OwnedFd, String)> {
                let name = format!("exec_{}.{stream}", operation.id());
                let file = std::fs::File::create(recording.dir.join(&name)).doing(&doing)?;
                let url = format!("{}/{name}", recording.url);
                if !live.is_machine() {
                    return Ok((file.into(), url));
                }
                // Its end is the end of what a virtual machine's program wrote, which comes later than that of the program.
                let (read, write) = pipe_pair()?;
                let mut read = pipe::Receiver::from_owned_fd(read)?;
                copies.push(tokio::spawn(async move {
                    tokio::io::copy(&mut read, &mut tokio::fs::File::from_std(file)).await
                }));
                Ok((write, url))
            };
            let ((out, out_url), (err, err_url)) = (file("stdout")?, file("stderr")?);
            ([null()?, out, err], Some(json!({ "1": out_url, "2": err_url })))
        }
    };
    let mut session = begin(&live, request, Some(stdio), &operation).await?;
    let code = session.wait().await;
    for copy in copies {
        copy.await?.doing("cannot keep the output")?;
    }
    let mut values: Vec<(String, Value)> = vec![("return".to_owned(), json!(code))];
    values.extend(urls.map(|urls| ("output".to_owned(), urls)));
    operation.update(values);
    Ok(())
}
