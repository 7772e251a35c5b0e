//! Running a command on a test host, and saying everything about it when it does not do what was expected.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sched::{CloneFlags, setns};

/// What a child needs to move into a host between fork and exec, opened beforehand because nothing may be allocated
/// there.
#[derive(Debug)]
pub struct Entrance {
    /// One file per hierarchy; writing "0" moves the writer.
    pub cgroups: Vec<File>,
    /// The host's cgroup, network and mount namespaces, in the order in which they are to be entered: the mount
    /// namespace last, since its paths differ.
    pub namespaces: Vec<(OwnedFd, CloneFlags)>,
}

impl Entrance {
    /// Makes `command`'s child enter the host before it executes.
    pub fn attach(&self, command: &mut Command) {
        let cgroups: Vec<RawFd> = self.cgroups.iter().map(AsRawFd::as_raw_fd).collect();
        let namespaces: Vec<(RawFd, CloneFlags)> =
            self.namespaces.iter().map(|(fd, flag)| (fd.as_raw_fd(), *flag)).collect();
        let move_in = move || {
            for fd in &cgroups {
                // SAFETY: the descriptors outlive every child, since the entrance is dropped with its host.
                let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) };
                rustix::io::write(fd, b"0")?;
            }
            for (fd, flag) in &namespaces {
                // SAFETY: as above.
                let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) };
                setns(fd, *flag)?;
            }
            Ok(())
        };
        // SAFETY: the closure only makes system calls on descriptors opened before the fork and allocates nothing,
        // which is what a child of a process with threads may do.
        unsafe { command.pre_exec(move_in) };
    }
}

/// What became of a command.
#[derive(Clone)]
pub struct Output {
    /// As it was called.
    pub command: String,
    /// How it ended; `None` when the deadline passed and it was killed.
    pub status: Option<ExitStatus>,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
    /// How long it took.
    pub took: Duration,
}

impl Output {
    /// The exit status, if it exited.
    pub fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }

    /// Standard output as text, without trailing newlines.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Standard error as text, without trailing newlines.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }

    /// Asserts success.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert!(self.code() == Some(0), "was to succeed: {self:?}");
        self
    }

    /// Asserts a certain exit status.
    #[track_caller]
    pub fn exited(self, code: i32) -> Self {
        assert!(self.code() == Some(code), "was to exit with {code}: {self:?}");
        self
    }

    /// Asserts failure with `needle` in what it said, which has to be one sentence and not a panic or a trace.
    #[track_caller]
    pub fn failed_with(self, needle: &str) -> Self {
        let said = self.errors();
        assert!(self.code().is_some_and(|code| code != 0), "was to fail: {self:?}");
        assert!(said.to_lowercase().contains(&needle.to_lowercase()), "was to say something of '{needle}': {self:?}");
        assert!(!said.contains("panicked") && !said.contains("RUST_BACKTRACE"), "panicked: {self:?}");
        self
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.command)?;
        match self.status {
            None => writeln!(f, "did not end within {:?}", self.took)?,
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => writeln!(f, "exited with {code} after {:?}", self.took)?,
                (None, signal) => writeln!(f, "ended by signal {signal:?} after {:?}", self.took)?,
            },
        }
        for (name, bytes) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            let text = String::from_utf8_lossy(bytes);
            let shown: String = text.chars().take(4000).collect();
            writeln!(f, "--- {name}, {} bytes\n{shown}", bytes.len())?;
        }
        Ok(())
    }
}

/// A command to be run on a host.
#[derive(Debug)]
pub struct Run {
    command: Command,
    shown: String,
    stdin: Vec<u8>,
    deadline: Duration,
}

impl Run {
    /// Wraps a command that already enters its host. `shown` is how it is named in messages.
    pub(crate) fn new(command: Command, shown: String) -> Self {
        Self { command, shown, stdin: Vec::new(), deadline: Duration::from_secs(90) }
    }

    /// Feeds its standard input.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Adds one argument as it is.
    pub fn arg(mut self, argument: &str) -> Self {
        self.shown.push_str(&format!(" {argument:?}"));
        self.command.arg(argument);
        self
    }

    /// How long it may take.
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Starts it and leaves it running; its output is piped.
    pub fn spawn(mut self) -> Child {
        self.command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.shown))
    }

    /// Runs it to its end, or kills it at the deadline.
    pub fn run(self) -> Output {
        let (shown, stdin, deadline) = (self.shown.clone(), self.stdin.clone(), self.deadline);
        let started = Instant::now();
        let mut child = self.spawn();
        let feed = child.stdin.take();
        let feeder = thread::spawn(move || {
            // A command that ends without reading all of it is none of this thread's business.
            feed.map(|mut pipe| pipe.write_all(&stdin))
        });
        let stdout = drain(child.stdout.take());
        let stderr = drain(child.stderr.take());
        let status = wait(&mut child, deadline);
        if status.is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let took = started.elapsed();
        let _ = feeder.join();
        Output {
            command: shown,
            status,
            stdout: stdout.join().unwrap_or_default(),
            stderr: stderr.join().unwrap_or_default(),
            took,
        }
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

/// Waits for a child to end; `None` at the deadline.
pub fn wait(child: &mut Child, deadline: Duration) -> Option<ExitStatus> {
    if wait_pid(child.id(), deadline).ok()? { child.wait().ok() } else { None }
}

/// Waits for the process to end and says whether it did.
pub fn wait_pid(pid: u32, deadline: Duration) -> io::Result<bool> {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    let pidfd = match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(true),
        Err(error) => return Err(error.into()),
    };
    let timeout = PollTimeout::try_from(deadline).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut polled = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    Ok(nix::poll::poll(&mut polled, timeout)? == 1)
}

/// Splits a line into words: blanks separate, single and double quotes keep them together, nothing is expanded.
pub fn words(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => found.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    found.extend(word);
    found
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn words_are_split_at_blanks_outside_of_quotes() {
        assert_eq!(
            words("exec c1 -- sh -c 'echo \"a b\"  c' \"\" x"),
            ["exec", "c1", "--", "sh", "-c", "echo \"a b\"  c", "", "x"]
        );
        assert!(words("  ").is_empty());
    }
}
