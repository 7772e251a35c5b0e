//! The process that belongs to one container: its monitor, or with `files` the service for its files.

use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args_os().nth(1) {
        Some(argument) if argument == "files" => duet_container::files::server::main(),
        _ => {
            eprintln!("duet-monitor is started by duetd and takes what to do from it.");
            ExitCode::FAILURE
        }
    }
}
