//! Programs of the host that the daemon runs.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{Check, said};

/// Where a program is: on PATH, or in the places for administration that PATH often leaves out.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|dir| dir.join(name)).find(|file| is_program(file))
}

pub(super) fn is_program(file: &std::path::Path) -> bool {
    file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}

pub(super) fn checks() -> Vec<Check> {
    vec![dnsmasq()]
}

fn dnsmasq() -> Check {
    const NAME: &str = "dnsmasq";
    const INSTALL: &str = "apt install dnsmasq-base";
    let Some(program) = find("dnsmasq") else {
        return Check::fail(NAME, "is not installed; instances would have no addresses and no names", INSTALL);
    };
    let output = Command::new(&program).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            // "Dnsmasq version 2.90  Copyright ..."
            let version = text.split_whitespace().nth(2).unwrap_or("of an unknown version");
            Check::ok(NAME, format!("{version} at {}", program.display()))
        }
        Ok(output) => Check::fail(NAME, format!("{} does not run: {}", program.display(), output.status), INSTALL),
        Err(error) => Check::fail(NAME, format!("{} does not run: {}", program.display(), said(error)), INSTALL),
    }
}
