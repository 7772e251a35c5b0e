//! Running a program that builds something, so that nothing of it can outlive us.
//!
//! It runs in a mount and PID namespace of its own (`unshare` from util-linux): its mounts are never seen by the host,
//! and when it is killed, every process that it started is killed with it, daemons included. It is told to die with the
//! thread that started it.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use crate::observe::Observer;
use crate::{ImageError, Result};

/// How often a cancellation is looked for while the program says nothing.
const LOOK: Duration = Duration::from_millis(100);
/// Lines that are kept for the error message.
const KEPT: usize = 40;

/// A program to run.
pub(crate) struct Job {
    command: Command,
    what: String,
}

/// How a program failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Its last lines.
    pub output: Vec<String>,
    /// How it ended: "exit status: 1".
    pub status: String,
}

impl Failure {
    /// The lines that say what is wrong, or else the last ones, as one line.
    pub(crate) fn summary(&self) -> String {
        let errors: Vec<&str> = self.output.iter().filter_map(|l| l.strip_prefix("E: ")).collect();
        let chosen = if errors.is_empty() {
            self.output.iter().rev().take(3).rev().map(String::as_str).collect()
        } else {
            errors
        };
        let text = chosen.into_iter().filter(|l| !l.trim().is_empty()).collect::<Vec<_>>().join("; ");
        if text.is_empty() { self.status.clone() } else { text }
    }
}

impl Job {
    /// A program in namespaces of its own, with a plain environment.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Job {
        let what = program.as_ref().to_string_lossy().into_owned();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]);
        command.args(["--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--"]);
        command.arg(program.as_ref());
        command.env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("LC_ALL", "C.UTF-8").env("HOME", "/root").env("DEBIAN_FRONTEND", "noninteractive");
        for (name, value) in std::env::vars_os() {
            let lower = name.to_string_lossy().to_ascii_lowercase();
            if lower.ends_with("_proxy") {
                command.env(name, value);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        Job { command, what }
    }

    pub(crate) fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Job {
        self.command.arg(arg);
        self
    }

    pub(crate) fn env(&mut self, name: &str, value: impl AsRef<OsStr>) -> &mut Job {
        self.command.env(name, value);
        self
    }

    /// Runs it to its end. `line` gets each line of output, both streams; an error of its ends the program.
    ///
    /// # Errors
    /// [`ImageError::File`] when it cannot be started, [`ImageError::Cancelled`], or what `line` returns.
    pub(crate) fn run(
        mut self,
        observer: &mut Observer<'_>,
        line: &mut dyn FnMut(&str, &mut Observer<'_>) -> Result<()>,
    ) -> Result<std::result::Result<(), Failure>> {
        let mut child = self.command.spawn().map_err(|e| ImageError::file("run", &self.what, e))?;
        let (sender, lines) = channel();
        let readers: Vec<_> = [
            child.stdout.take().map(|s| forward(s, sender.clone())),
            child.stderr.take().map(|s| forward(s, sender.clone())),
        ]
        .into_iter()
        .flatten()
        .collect();
        drop(sender);
        let mut output = VecDeque::new();
        let outcome = loop {
            match lines.recv_timeout(LOOK) {
                Ok(text) => {
                    if let Err(e) = observer.check().and_then(|()| line(&text, observer)) {
                        break Err(e);
                    }
                    if output.len() == KEPT {
                        output.pop_front();
                    }
                    output.push_back(text);
                }
                Err(RecvTimeoutError::Timeout) => {
                    if let Err(e) = observer.check() {
                        break Err(e);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break Ok(()),
            }
        };
        if outcome.is_err() {
            kill(&child);
        }
        let status = child.wait().map_err(|e| ImageError::file("wait for", &self.what, e))?;
        for reader in readers {
            let _ = reader.join(); // it only reads and sends
        }
        outcome?;
        Ok(if status.success() { Ok(()) } else { Err(Failure { output: output.into(), status: status.to_string() }) })
    }
}

/// Kills the group; the PID namespace goes with its first process.
fn kill(child: &Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(pid, Signal::KILL); // it may have ended by itself
    }
}

fn forward(stream: impl Read + Send + 'static, sender: Sender<String>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            match (&mut stream).take(64 << 10).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                    if sender.send(text).is_err() {
                        return;
                    }
                }
            }
        }
    })
}

/// Whether a program is on the path that jobs get.
pub(crate) fn find_program(name: &str) -> bool {
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .any(|dir| std::path::Path::new(dir).join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn shell(script: &str) -> Job {
        let mut job = Job::new("sh");
        job.arg("-c").arg(script);
        job
    }

    #[test]
    fn lines_and_failures() {
        let mut seen = Vec::new();
        let mut line = |text: &str, _: &mut Observer<'_>| {
            seen.push(text.to_owned());
            Ok(())
        };
        shell("echo a; echo b").run(&mut Observer::none(), &mut line).unwrap().unwrap();
        assert_eq!(seen, ["a", "b"]);
        let failure = shell("echo I: x; echo 'E: no such suite' >&2; exit 3")
            .run(&mut Observer::none(), &mut |_, _| Ok(()))
            .unwrap()
            .unwrap_err();
        assert_eq!(failure.summary(), "no such suite");
        assert!(failure.status.contains('3'));
    }

    #[test]
    fn cancelling_kills_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("alive");
        // The grandchild holds a lock on the file for as long as it lives.
        let script = format!("touch {0}; setsid flock {0} sleep 1000 & echo started; wait", mark.display());
        let stop = AtomicBool::new(false);
        let mut progress = |_| {};
        let cancelled = || stop.load(Ordering::Relaxed);
        let mut observer = Observer::new(&mut progress, &cancelled);
        let outcome = shell(&script).run(&mut observer, &mut |_, _| {
            stop.store(true, Ordering::Relaxed);
            Ok(())
        });
        assert!(matches!(outcome, Err(ImageError::Cancelled)), "{outcome:?}");
        let file = std::fs::File::open(&mark).unwrap();
        file.try_lock().expect("nobody is left who holds the lock");
    }
}
