//! `duetd`: the daemon's command line.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

/// Manages system containers on this host and serves the Incus API for them.
#[derive(Parser)]
#[command(name = "duetd", version)]
struct Arguments {
    /// Where the state is kept.
    #[arg(long, env = "DUET_DIR", default_value = duetd::DEFAULT_DIR, value_name = "DIR")]
    dir: PathBuf,
    /// The group that may use the socket, beside root.
    #[arg(long, env = "DUET_GROUP", default_value = "duet", value_name = "GROUP")]
    group: String,
    /// The monitor's program; by default the one beside this program.
    #[arg(long, env = "DUET_MONITOR", value_name = "FILE")]
    monitor: Option<PathBuf>,
    /// Log every request and more.
    #[arg(long, short)]
    debug: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let level = if arguments.debug { "debug,hyper=info" } else { "info" };
    let filter = EnvFilter::try_from_env("DUET_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        // It would complain where it cannot write, which ends the program: the log may be a file on a full disk.
        .log_internal_errors(false)
        .init();
    // SAFETY: this is the program's beginning: nothing was opened yet but the standard streams.
    let passed = unsafe { duetd::service::Passed::take() };
    let outcome = passed.and_then(|passed| {
        let Arguments { dir, group, monitor, .. } = arguments;
        duetd::serve::run(duetd::serve::Options { dir, group, monitor, passed })
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "Error: {error}");
            ExitCode::FAILURE
        }
    }
}
