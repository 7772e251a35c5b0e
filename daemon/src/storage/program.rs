//! Running the programs of filesystems.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::process::{Command, Stdio};

use super::{Error, Result};

/// Runs a program to its end and gives what it printed. `package` is what brings it.
///
/// # Errors
/// [`Error::Backing`] with what it said where it failed.
pub(super) fn run<A: AsRef<OsStr>>(program: &str, arguments: &[A], package: &str) -> Result<String> {
    let output = Command::new(program).args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).output();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Error::Backing(format!("{program} is not installed: install {package}")));
        }
        Err(error) => return Err(Error::Backing(format!("cannot run {program}: {error}"))),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said.lines().map(|line| line.trim_start_matches("ERROR: ").trim()).collect();
    let said = lines.iter().filter(|line| !line.is_empty()).copied().collect::<Vec<_>>().join("; ");
    let said = if said.is_empty() { output.status.to_string() } else { said };
    Err(Error::Backing(format!("{program}: {said}")))
}
