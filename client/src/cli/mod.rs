//! The `duet` command: Incus' verbs and flags, and ours.
//!
//! One file per group of commands. Each has the arguments as a struct or enum and a `run` that asks the daemon through
//! [`crate::Client`] and prints. Everything runs on a current-thread runtime: most commands are one request.
//!
//! Results go to standard output; remarks, progress and errors go to standard error. An error is one sentence with its
//! cause, and the exit status is 1 (2 for a command line that is not understood).

mod admin;
mod complete;
mod completion;
mod config;
mod console;
mod context;
mod copy;
mod doctor;
mod editor;
mod exec;
mod file;
mod image;
mod info;
mod launch;
mod lifecycle;
mod list;
mod monitor;
mod network;
mod operation;
mod output;
mod parse;
mod profile;
mod project;
mod query;
mod snapshot;
mod storage;
mod streams;
mod terminal;
mod top;
mod version;
mod warning;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::http::{Client, default_directory};
use context::Context;

/// Run full systems in containers
#[derive(Debug, Parser)]
#[command(name = "duet", version, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

/// The flags that every command has.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Globals {
    /// The daemon's directory [env: DUET_DIR] [default: /var/lib/duet]
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The daemon's socket [env: DUET_SOCKET] [default: unix.socket in the daemon's directory]
    #[arg(long, global = true, value_name = "PATH", hide = true)]
    socket: Option<PathBuf>,
    /// The project (there is one, "default")
    #[arg(long, global = true, value_name = "PROJECT")]
    project: Option<String>,
    /// No progress and no remarks
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Show requests
    #[arg(short, long, global = true)]
    verbose: bool,
    /// Show requests
    #[arg(long, global = true, hide = true)]
    debug: bool,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    #[command(subcommand)]
    Admin(admin::Admin),
    #[command(subcommand)]
    Cluster(project::Cluster),
    Completion(completion::Completion),
    #[command(subcommand)]
    Config(config::Config),
    Console(console::Console),
    #[command(visible_alias = "cp")]
    Copy(copy::Copy),
    #[command(visible_alias = "init")]
    Create(launch::Create),
    #[command(visible_alias = "rm")]
    Delete(lifecycle::Delete),
    Doctor(doctor::Doctor),
    Exec(exec::Exec),
    #[command(subcommand)]
    File(file::File),
    #[command(subcommand)]
    Image(image::Image),
    Info(info::Info),
    Launch(launch::Launch),
    #[command(visible_alias = "ls")]
    List(list::List),
    #[command(name = "__man", hide = true)]
    Man(completion::Man),
    Monitor(monitor::Monitor),
    #[command(visible_alias = "mv")]
    Move(copy::Move),
    #[command(subcommand)]
    Network(network::Network),
    #[command(subcommand)]
    Operation(operation::Operation),
    Pause(lifecycle::Pause),
    #[command(subcommand)]
    Profile(profile::Profile),
    #[command(subcommand)]
    Project(project::Project),
    Publish(image::Publish),
    Query(query::Query),
    Rename(lifecycle::Rename),
    Restart(lifecycle::Restart),
    Resume(lifecycle::Resume),
    Shell(exec::Shell),
    #[command(subcommand)]
    Snapshot(snapshot::Snapshot),
    Start(lifecycle::Start),
    Stop(lifecycle::Stop),
    #[command(subcommand)]
    Storage(storage::Storage),
    Top(top::Top),
    Version(version::Version),
    Wait(lifecycle::Wait),
    #[command(subcommand)]
    Warning(warning::Warning),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    // Does nothing unless the shell asks for completions.
    clap_complete::CompleteEnv::with_factory(Cli::command).complete();
    // The arguments of commands that were not asked for are never put together: that took longer than most requests.
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        if error.kind() == ErrorKind::DisplayVersion {
            error.exit();
        }
        // Help, and suggestions for what was mistyped, need all of them.
        let mut whole = Cli::command();
        whole.build();
        whole.get_matches();
        Cli::parse()
    });
    let result = execute(cli);
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whoever read our output has seen enough (`duet list | head -1`).
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// A path from the environment; an empty one counts as none.
fn from_environment(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn directory_from_environment() -> PathBuf {
    from_environment("DUET_DIR").unwrap_or_else(|| default_directory().to_owned())
}

fn execute(cli: Cli) -> anyhow::Result<u8> {
    // A directory on the command line wins over a socket in the environment.
    let socket = cli.globals.socket.or_else(|| from_environment("DUET_SOCKET").filter(|_| cli.globals.dir.is_none()));
    let directory = cli.globals.dir.unwrap_or_else(directory_from_environment);
    let socket = socket.unwrap_or_else(|| directory.join("unix.socket"));
    let client =
        Client::new(socket).with_project(cli.globals.project).with_trace(cli.globals.verbose || cli.globals.debug);
    let context = Context { client, directory, quiet: cli.globals.quiet };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(dispatch(cli.command, &context));
    // A thread may still be reading standard input; nobody waits for that.
    runtime.shutdown_background();
    result
}

async fn dispatch(command: Command, context: &Context) -> anyhow::Result<u8> {
    let done = match command {
        Command::Console(command) => return command.run(context).await,
        Command::Doctor(command) => return command.run(context),
        Command::Exec(command) => return command.run(context).await,
        Command::Launch(command) => return command.run(context).await,
        Command::Restart(command) => return command.run(context).await,
        Command::Shell(command) => return command.run(context).await,
        Command::Start(command) => return command.run(context).await,
        Command::Admin(command) => command.run(context).await,
        Command::Cluster(command) => command.run(context).await,
        Command::Completion(command) => command.run(),
        Command::Config(command) => command.run(context).await,
        Command::Copy(command) => command.run(context).await,
        Command::Create(command) => command.run(context).await,
        Command::Delete(command) => command.run(context).await,
        Command::File(command) => command.run(context).await,
        Command::Image(command) => command.run(context).await,
        Command::Info(command) => command.run(context).await,
        Command::List(command) => command.run(context).await,
        Command::Man(command) => command.run(Cli::command()),
        Command::Monitor(command) => command.run(context).await,
        Command::Move(command) => command.run(context).await,
        Command::Network(command) => command.run(context).await,
        Command::Operation(command) => command.run(context).await,
        Command::Pause(command) => command.run(context).await,
        Command::Profile(command) => command.run(context).await,
        Command::Project(command) => command.run(context).await,
        Command::Publish(command) => command.run(context).await,
        Command::Query(command) => command.run(context).await,
        Command::Rename(command) => command.run(context).await,
        Command::Resume(command) => command.run(context).await,
        Command::Snapshot(command) => command.run(context).await,
        Command::Stop(command) => command.run(context).await,
        Command::Storage(command) => command.run(context).await,
        Command::Top(command) => command.run(context).await,
        Command::Version(command) => command.run(context).await,
        Command::Wait(command) => command.run(context).await,
        Command::Warning(command) => command.run(context).await,
    };
    done.map(|()| 0)
}
