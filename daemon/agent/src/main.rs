//! The program in the initramfs: see the library.

use std::os::fd::AsFd;
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        duet_agent::init::run();
    }
    let mut arguments = std::env::args();
    let name = arguments.next().unwrap_or_default();
    let outcome = match arguments.next().as_deref() {
        None if name == duet_agent::agent::NAME => duet_agent::agent::run(),
        Some("--stdin") => std::io::stdin().as_fd().try_clone_to_owned().and_then(duet_agent::agent::run_on),
        _ => {
            eprintln!(
                "This is the agent of Duet's virtual machines, for their initramfs; with --stdin it serves the stream that \
                 is its standard input."
            );
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("duet-agent: {error}");
            ExitCode::FAILURE
        }
    }
}
