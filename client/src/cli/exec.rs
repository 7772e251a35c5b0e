//! `duet exec` and `duet shell`: run a command in an instance as if it ran here.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::IsTerminal as _;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use futures_util::StreamExt as _;
use futures_util::future::{select_all, try_join_all};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::context::Context;
use super::parse::{key_value, required_name};
use super::streams::{End, Sender, drain, receive_all, send_all, send_control};
use super::terminal::{self, RawMode};
use crate::api::{InstanceExecPost, SessionControl};
use crate::http::{Error, Session};

/// Whether the command gets a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// If standard input and output are terminals
    Auto,
    /// Yes
    Interactive,
    /// No
    NonInteractive,
}

/// Run a command in an instance
///
/// The command is not run by a shell; for pipes and variables write: duet exec c1 -- sh -c "...".
/// The exit status is the command's own; 127 if it does not exist, 126 if it cannot be executed.
#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// The instance
    #[arg(add = super::complete::instances())]
    instance: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
    #[command(flatten)]
    how: How,
}

/// How the command is run.
#[derive(Debug, Args)]
struct How {
    /// With a terminal
    #[arg(short = 't', long, conflicts_with_all = ["force_noninteractive", "mode"])]
    force_interactive: bool,
    /// Without a terminal
    #[arg(short = 'T', long, conflicts_with = "mode")]
    force_noninteractive: bool,
    /// Whether there is a terminal
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    mode: Mode,
    /// An environment variable (may be repeated)
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    env: Vec<(String, String)>,
    /// The directory to run in
    #[arg(long, default_value = "")]
    cwd: String,
    /// The user id to run as
    #[arg(long, default_value_t = 0)]
    user: u32,
    /// The group id to run as
    #[arg(long, default_value_t = 0)]
    group: u32,
    /// Give the command no input
    #[arg(short = 'n', long)]
    disable_stdin: bool,
}

impl Exec {
    /// Runs the command; its exit status is the result.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<u8> {
        run(context, required_name(&self.instance, "instance")?, self.command, self.how).await
    }
}

/// Open a shell in an instance: root's login shell
#[derive(Debug, Args)]
pub(crate) struct Shell {
    /// The instance
    #[arg(add = super::complete::instances())]
    instance: String,
    /// The user to log in as
    #[arg(long, default_value = "root")]
    login: String,
}

impl Shell {
    /// Runs the shell; its exit status is the result.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<u8> {
        let how = How {
            force_interactive: false,
            force_noninteractive: false,
            mode: Mode::Auto,
            env: Vec::new(),
            cwd: String::new(),
            user: 0,
            group: 0,
            disable_stdin: false,
        };
        let command = vec!["su".into(), "-l".into(), self.login];
        run(context, required_name(&self.instance, "instance")?, command, how).await
    }
}

impl How {
    fn interactive(&self) -> bool {
        match (self.force_interactive, self.force_noninteractive, self.mode) {
            (true, _, _) | (_, _, Mode::Interactive) => true,
            (_, true, _) | (_, _, Mode::NonInteractive) => false,
            (_, _, Mode::Auto) => std::io::stdin().is_terminal() && std::io::stdout().is_terminal(),
        }
    }
}

async fn run(context: &Context, instance: &str, command: Vec<String>, how: How) -> anyhow::Result<u8> {
    let interactive = how.interactive();
    let (width, height) = if interactive { terminal::size() } else { (0, 0) };
    let mut environment: BTreeMap<String, String> =
        std::env::var("TERM").ok().map(|value| ("TERM".to_owned(), value)).into_iter().collect();
    environment.extend(how.env);
    let program = command.first().cloned().unwrap_or_default();
    let request = InstanceExecPost {
        command,
        wait_for_websocket: true,
        interactive,
        environment,
        width,
        height,
        record_output: false,
        user: how.user,
        group: how.group,
        cwd: how.cwd,
    };
    // Signals that come while the session is being set up must reach the command too.
    let signals = Signals::listen(interactive)?;
    let session = context.client.exec(instance, &request).await?;
    let raw = if interactive { RawMode::enter().context("cannot set the terminal up")? } else { None };
    let result = attend(context, session, interactive, how.disable_stdin, signals).await;
    drop(raw);
    exit_status(&program, result)
}

/// Moves everything between the session and the user until the command has ended.
async fn attend(
    context: &Context,
    session: Session,
    interactive: bool,
    disable_stdin: bool,
    signals: Signals,
) -> anyhow::Result<i64> {
    let Session { operation, control, streams } = session;
    let (control_sender, control_receiver) = control.split();
    let mut outputs = Vec::new();
    let input = if disable_stdin { mpsc::channel(1).1 } else { terminal::stdin_chunks() };
    let mut input = Some(input);
    for (index, stream) in streams.into_iter().enumerate() {
        let (sender, receiver) = stream.split();
        match (index, input.take()) {
            (0, Some(input)) => {
                // Ends with the runtime: the command may end long before its input does.
                tokio::spawn(send_all(sender, input, if interactive { End::Typed } else { End::Closed }));
                if interactive {
                    outputs.push(tokio::spawn(receive_all(receiver, tokio::io::stdout())));
                } else {
                    tokio::spawn(drain(receiver));
                }
            }
            (2, _) => outputs.push(tokio::spawn(receive_all(receiver, tokio::io::stderr()))),
            _ => outputs.push(tokio::spawn(receive_all(receiver, tokio::io::stdout()))),
        }
    }
    tokio::spawn(drain(control_receiver));
    let finished = async {
        // Side by side: the answer to the wait is on its way while the last output is written.
        let (ended, written) = tokio::join!(context.client.wait(&operation), try_join_all(outputs));
        for result in written? {
            result?;
        }
        let ended = ended?;
        let status = ended.metadata.as_ref().and_then(|metadata| metadata.get("return")).and_then(|v| v.as_i64());
        status.context("the command ended but the daemon does not say how")
    };
    tokio::select! {
        biased;
        result = finished => result,
        never = signals.forward(control_sender) => match never? {},
    }
}

/// The command's exit status as our own; what the daemon refuses because of the command itself has one as well.
fn exit_status(program: &str, result: anyhow::Result<i64>) -> anyhow::Result<u8> {
    match result {
        // The daemon has no status to tell: nobody was left who could have said it.
        Ok(..0) => {
            eprintln!("Error: {program}: the instance ended under the command");
            Ok(255)
        }
        Ok(status) => Ok(u8::try_from(status).unwrap_or(255)),
        Err(error) => match error.downcast_ref::<Error>() {
            Some(Error::Failed { message, .. }) if message.to_lowercase().contains("command not found") => {
                eprintln!("Error: {program}: {message}");
                Ok(127)
            }
            Some(Error::Failed { message, .. }) if message.to_lowercase().contains("not executable") => {
                eprintln!("Error: {program}: {message}");
                Ok(126)
            }
            _ => Err(error),
        },
    }
}

/// The signals that are passed on to the command.
struct Signals {
    forwarded: Vec<(i32, tokio::signal::unix::Signal)>,
    resized: Option<tokio::signal::unix::Signal>,
}

impl Signals {
    /// Catches them from now on. With a terminal, ctrl+c is a byte for the command and no signal to us.
    fn listen(interactive: bool) -> anyhow::Result<Self> {
        let kinds = [
            SignalKind::terminate(),
            SignalKind::hangup(),
            SignalKind::interrupt(),
            SignalKind::quit(),
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
            SignalKind::from_raw(nix::sys::signal::Signal::SIGCONT as i32),
        ];
        let forwarded =
            kinds.into_iter().map(|kind| Ok((kind.as_raw_value(), signal(kind)?))).collect::<std::io::Result<Vec<_>>>();
        let resized = if interactive { Some(signal(SignalKind::window_change())) } else { None };
        match (forwarded, resized.transpose()) {
            (Ok(forwarded), Ok(resized)) => Ok(Self { forwarded, resized }),
            (Err(error), _) | (_, Err(error)) => bail!("cannot catch signals: {error}"),
        }
    }

    /// Passes them on; ends only if the control stream breaks.
    async fn forward(self, mut control: Sender) -> anyhow::Result<Infallible> {
        let Self { mut forwarded, mut resized } = self;
        loop {
            let next = select_all(forwarded.iter_mut().map(|(number, stream)| {
                Box::pin(async move {
                    stream.recv().await;
                    *number
                })
            }));
            let message = tokio::select! {
                (number, _, _) = next => SessionControl::signal(number),
                () = changed(&mut resized) => {
                    let (width, height) = terminal::size();
                    SessionControl::resize(width, height)
                }
            };
            if send_control(&mut control, &message).await.is_err() {
                // The command has ended; the rest of the session says how.
                return std::future::pending().await;
            }
        }
    }
}

async fn changed(resized: &mut Option<tokio::signal::unix::Signal>) {
    match resized {
        Some(stream) => {
            stream.recv().await;
        }
        None => std::future::pending().await,
    }
}
