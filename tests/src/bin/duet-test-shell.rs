//! A shell on a test host, for looking at things by hand: `duet-test-shell [IMAGE...] [-c SCRIPT]`.
//!
//! The host has a running daemon and the images named (`busybox` if none is); `duet` is on the PATH. It is swept when
//! the shell ends, without the checks that end a test.

use std::process::{Command, ExitCode};

use duet_tests::{Host, images};

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let script = arguments.iter().position(|argument| argument == "-c").map(|at| arguments.split_off(at));
    if arguments.is_empty() {
        arguments.push(images::BUSYBOX.to_owned());
    }
    let wanted: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let host = Host::with_images(&wanted);
    let mut shell = Command::new("bash");
    shell.args(script.unwrap_or_default());
    let status = host.foreground(shell).status().expect("running bash");
    host.abandon();
    ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1))
}
