//! Running the programs of others that we need: found, run with a deadline, their complaint brought back.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use thiserror::Error;
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

/// Where administrators' programs live even if PATH, as a plain user's or cron's, doesn't say so.
const SYSTEM_DIRS: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"];
/// None of our programs has long work to do.
const DEADLINE: Duration = Duration::from_secs(20);

/// Why a program did not run.
#[derive(Debug, Error)]
pub enum Error {
    /// It is not installed.
    #[error("{program} is not installed; install the package {package:?}")]
    Missing {
        /// Its name.
        program: &'static str,
        /// The package that holds it on Debian and Ubuntu.
        package: &'static str,
    },
    /// It could not be started, or did not end in time.
    #[error("cannot run {program}: {source}")]
    Run {
        /// Its name.
        program: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// The result of running a program.
pub type Result<T> = std::result::Result<T, Error>;

/// A program and the package that holds it on Debian and Ubuntu.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// Its file name.
    pub name: &'static str,
    /// The package.
    pub package: &'static str,
}

impl Program {
    /// Its path.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub fn find(&self) -> Result<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::env::split_paths(&path).chain(SYSTEM_DIRS.iter().map(PathBuf::from));
        dirs.map(|dir| dir.join(self.name))
            .find(|file| is_executable(file))
            .ok_or(Error::Missing { program: self.name, package: self.package })
    }

    /// Runs it without input to its end, however long that takes, and blocks meanwhile.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub fn run_blocking(&self, args: &[&std::ffi::OsStr]) -> Result<Output> {
        let mut command = std::process::Command::new(self.find()?);
        command.args(args).env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
        command.output().map_err(|source| Error::Run { program: self.name, source })
    }

    /// Runs it with `input` on its standard input and waits for it and for the end of its output.
    ///
    /// # Errors
    /// Where it did not run; how it ended is in the output.
    pub async fn run(&self, args: &[&std::ffi::OsStr], input: &str) -> Result<Output> {
        let path = self.find()?;
        let fail = |source: io::Error| Error::Run { program: self.name, source };
        let mut child = Command::new(path)
            .args(args)
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(fail)?;
        let stdin = child.stdin.take();
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A program that ends without reading its input says why in its status and output.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let both = async { tokio::join!(feed, child.wait_with_output()).1 };
        match timeout(DEADLINE, both).await {
            Ok(output) => output.map_err(fail),
            Err(_) => Err(fail(io::Error::from(io::ErrorKind::TimedOut))),
        }
    }
}

/// What a failed program said, on one line.
pub fn complaint(output: &Output) -> String {
    let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    let text = String::from_utf8_lossy(said);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { output.status.to_string() } else { lines.join("; ") }
}

fn is_executable(file: &Path) -> bool {
    file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}
