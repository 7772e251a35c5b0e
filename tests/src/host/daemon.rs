//! The host's daemon: started, stopped as an admin would, and killed as a crash would.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::Host;
use crate::api::Request;
use crate::command::wait;
use crate::wait::poll_closely;

/// How long a daemon may take to answer, adopting what ran before.
const UP: Duration = Duration::from_secs(60);
/// How long it may take to end.
const DOWN: Duration = Duration::from_secs(60);

/// What the start of a daemon took.
pub struct Started {
    /// Until it listed its instances.
    pub answered: Duration,
    /// Until it would change something: its networks are up.
    pub ready: Duration,
}

impl Host {
    /// Starts the daemon and waits until it is ready.
    #[track_caller]
    pub fn start_daemon(&mut self) -> Started {
        let started = Instant::now();
        self.spawn_daemon();
        self.first_answer("/1.0/instances?recursion=1");
        let answered = started.elapsed();
        self.first_answer("/internal/ready");
        Started { answered, ready: started.elapsed() }
    }

    /// Asks a daemon that was just started until it answers.
    #[track_caller]
    fn first_answer(&mut self, path: &str) {
        let answer = poll_closely(UP, || {
            let ended = self.daemon.as_mut().and_then(|daemon| daemon.try_wait().ok().flatten());
            assert!(ended.is_none(), "the daemon ended at its start ({ended:?}): {}", self.daemon_log());
            let answer = Request::new(&self.socket(), "GET", path).try_send().ok()?;
            (answer.status == 200).then_some(())
        });
        assert!(answer.is_some(), "the daemon did not answer within {UP:?}: {}", self.daemon_log());
    }

    /// Starts a daemon that is expected to refuse, and gives how it ended and what it said.
    #[track_caller]
    pub fn daemon_refuses(&mut self) -> (ExitStatus, String) {
        self.spawn_daemon();
        let mut daemon = self.daemon.take().expect("it was just started");
        let Some(status) = wait(&mut daemon, DOWN) else {
            let _ = daemon.kill();
            let _ = daemon.wait();
            panic!("the daemon was to refuse, and runs: {}", self.daemon_log());
        };
        (status, self.daemon_log())
    }

    fn spawn_daemon(&mut self) {
        assert!(self.daemon.is_none(), "a daemon runs already");
        let log = OpenOptions::new().create(true).append(true).open(self.daemon_log_path()).expect("the daemon's log");
        let mut command = Command::new(self.binaries.join("duetd"));
        command
            .args(self.verbose.then_some("--debug"))
            .env("DUET_DIR", self.state())
            .env("HOME", self.folder.join("home"))
            .env("RUST_BACKTRACE", "1")
            .env_remove("RUST_LOG")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the daemon's log"))
            .stderr(log);
        self.entrance.attach(&mut command);
        self.daemon = Some(command.spawn().expect("starting duetd"));
    }

    fn daemon_log_path(&self) -> PathBuf {
        self.folder.join("duetd.log")
    }

    /// Everything that the host's daemons have logged so far.
    pub fn daemon_log(&self) -> String {
        std::fs::read_to_string(self.daemon_log_path()).unwrap_or_default()
    }

    /// The daemon's process.
    #[track_caller]
    pub fn daemon_pid(&self) -> i32 {
        let daemon = self.daemon.as_ref().expect("no daemon runs");
        i32::try_from(daemon.id()).expect("a pid")
    }

    /// Ends the daemon with SIGTERM, as systemd does, and asserts that it ends well.
    #[track_caller]
    pub fn stop_daemon(&mut self) -> Duration {
        let started = Instant::now();
        self.signal_daemon(nix::sys::signal::Signal::SIGTERM);
        let mut daemon = self.daemon.take().expect("no daemon runs");
        let status = wait(&mut daemon, DOWN);
        if status.is_none() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        assert!(status.is_some_and(|status| status.success()), "the daemon did not end well: {status:?}");
        started.elapsed()
    }

    /// Stops every instance and then the daemon, as systemd does when the host goes down, and asserts that it ends well.
    #[track_caller]
    pub fn shut_down(&mut self) {
        self.ok("admin shutdown");
        let mut daemon = self.daemon.take().expect("no daemon runs");
        let status = wait(&mut daemon, DOWN);
        assert!(
            status.is_some_and(|status| status.success()),
            "the daemon ended so: {status:?}\n{}",
            self.daemon_log()
        );
    }

    /// Kills the daemon with SIGKILL.
    #[track_caller]
    pub fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().expect("no daemon runs");
        daemon.kill().expect("killing the daemon");
        daemon.wait().expect("reaping the daemon");
    }

    /// Ends the daemon and starts it again.
    #[track_caller]
    pub fn restart_daemon(&mut self) {
        self.stop_daemon();
        self.start_daemon();
    }

    fn signal_daemon(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.daemon_pid()), signal).expect("signalling the daemon");
    }
}
