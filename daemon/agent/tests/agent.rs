//! The agent's program and the client, over a socket pair, on this system instead of in a guest.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio as Std};
use std::time::{Duration, Instant};

use duet_agent::client::{Client, ClientError, Exec, Stdio};
use duet_agent::mux::Link;
use duet_agent::protocol::message::{ErrorKind, ExecRequest, ExecStatus, PtySize};
use duet_files::{FileError, FileSession, WriteOptions};

const SOON: Duration = Duration::from_secs(30);

struct Agent {
    client: Client,
    process: Child,
}

impl Agent {
    fn start() -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_duet-agent"))
            .arg("--stdin")
            .stdin(Std::from(OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        let client = Client::connect(ours.into(), Link::Shared, SOON).unwrap();
        Self { client, process }
    }

    fn exec(&self, argv: &[&str]) -> Result<(Exec, [File; 3]), ClientError> {
        let (stdin, ours_in) = pipe();
        let (ours_out, stdout) = pipe();
        let (ours_err, stderr) = pipe();
        let exec = self.client.exec(request(argv), Stdio { stdin, stdout, stderr }, SOON)?;
        Ok((exec, [ours_in.into(), ours_out.into(), ours_err.into()]))
    }

    /// Runs a shell's command to its end.
    fn shell(&self, command: &str) -> (ExecStatus, String, String) {
        let (mut exec, [stdin, mut stdout, mut stderr]) = self.exec(&["sh", "-c", command]).unwrap();
        drop(stdin);
        let (mut out, mut err) = (String::new(), String::new());
        stdout.read_to_string(&mut out).unwrap();
        stderr.read_to_string(&mut err).unwrap();
        (exec.wait(SOON).unwrap().unwrap(), out, err)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn request(argv: &[&str]) -> ExecRequest {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    ExecRequest { argv: argv.iter().map(|word| (*word).to_owned()).collect(), uid, gid, ..ExecRequest::default() }
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

/// Programs of other users and terminals take root, as in a guest.
fn root() -> bool {
    let root = rustix::process::getuid().is_root();
    if !root {
        eprintln!("skipped: not root");
    }
    root
}

#[test]
fn programs_run_and_end_as_they_do() {
    if !root() {
        return;
    }
    let agent = Agent::start();
    assert_eq!(agent.shell("echo out; echo err >&2; exit 3"), (ExecStatus::Code(3), "out\n".into(), "err\n".into()));
    assert_eq!(agent.shell("kill -9 $$").0, ExecStatus::Signal(9));
    let (status, out, _) = agent.shell("umask; id -u; pwd; echo $HOME; echo to-stdout > /dev/stdout");
    assert_eq!((status, &*out), (ExecStatus::Code(0), "0022\n0\n/root\n/root\nto-stdout\n"));
    let kind = |argv: &[&str]| match agent.exec(argv) {
        Err(ClientError::Refused(error)) => error.kind,
        other => panic!("{other:?}"),
    };
    assert_eq!(kind(&["no-such-program"]), ErrorKind::CommandNotFound);
    assert_eq!(kind(&["/etc/passwd"]), ErrorKind::CommandNotExecutable);
    assert_eq!(kind(&["a\0b"]), ErrorKind::Invalid);
    assert_eq!(kind(&[]), ErrorKind::Invalid);
}

#[test]
fn another_user_is_another_user() {
    if !root() {
        return;
    }
    let agent = Agent::start();
    let (stdin, _ours_in) = pipe();
    let (ours_out, stdout) = pipe();
    let (_ours_err, stderr) = pipe();
    let words = ["sh", "-c", "id -u; id -g; id -G; echo x > /dev/stdout; echo $A; pwd"];
    let request = ExecRequest {
        uid: 65534,
        gid: 65533,
        environment: [("A".to_owned(), "b".to_owned())].into(),
        cwd: Some("/usr".to_owned()),
        ..request(&words)
    };
    let mut exec = agent.client.exec(request, Stdio { stdin, stdout, stderr }, SOON).unwrap();
    let mut out = String::new();
    File::from(ours_out).read_to_string(&mut out).unwrap();
    assert_eq!(out, "65534\n65533\n65533\nx\nb\n/usr\n");
    assert_eq!(exec.wait(SOON).unwrap(), Some(ExecStatus::Code(0)));
}

#[test]
fn much_is_carried_both_ways_while_others_run() {
    if !root() {
        return;
    }
    let agent = Agent::start();
    let (mut idle, _held) = agent.exec(&["sleep", "1000"]).unwrap();
    // Nobody reads what this one writes.
    let (flooding, _unread) = agent.exec(&["yes"]).unwrap();
    let (mut exec, [mut stdin, mut stdout, _stderr]) = agent.exec(&["cat"]).unwrap();
    let sent: Vec<u8> = (0..20_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let expected = sent.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent));
    let mut got = Vec::new();
    stdout.read_to_end(&mut got).unwrap();
    writer.join().unwrap().unwrap();
    assert!(got == expected);
    assert_eq!(exec.wait(SOON).unwrap(), Some(ExecStatus::Code(0)));

    assert_eq!(idle.wait(Duration::ZERO).unwrap(), None);
    idle.signal(15).unwrap();
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(idle.as_fd(), rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 30, tv_nsec: 0 })).unwrap();
    assert_eq!(idle.wait(Duration::ZERO).unwrap(), Some(ExecStatus::Signal(15)));
    // It hears that its reader is gone.
    let (pid, mut flooding) = (flooding.pid(), flooding);
    drop(_unread);
    assert_eq!(flooding.wait(SOON).unwrap(), Some(ExecStatus::Signal(13)), "{pid}");
}

#[test]
fn terminals_have_a_size_and_end_with_their_client() {
    if !root() {
        return;
    }
    let agent = Agent::start();
    let size = PtySize { columns: 100, rows: 30 };
    let (exec, terminal) = agent.client.exec_pty(request(&["sh"]), size, SOON).unwrap();
    let mut terminal = UnixStream::from(terminal);
    terminal.set_read_timeout(Some(SOON)).unwrap();
    let mut shown = String::new();
    let mut show = |terminal: &mut UnixStream, until: &str| {
        while !shown.contains(until) {
            let mut piece = [0; 1000];
            let length = terminal.read(&mut piece).unwrap();
            assert!(length > 0, "{shown}");
            shown.push_str(&String::from_utf8_lossy(&piece[..length]));
        }
        std::mem::take(&mut shown)
    };
    terminal.write_all(b"tty; stty size; echo d'o'ne\n").unwrap();
    let text = show(&mut terminal, "done\r\n");
    assert!(text.contains("/dev/pts/") && text.contains("30 100"), "{text}");
    exec.resize(PtySize { columns: 90, rows: 20 }).unwrap();
    terminal.write_all(b"stty size; echo d'o'ne\n").unwrap();
    assert!(show(&mut terminal, "done\r\n").contains("20 90"));
    // What is typed to interrupt does.
    terminal.write_all(b"trap 'echo c'aught INT; sleep 1000 & wait; echo d'o'ne\n").unwrap();
    show(&mut terminal, "wait; ");
    std::thread::scope(|_| {
        while !std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", exec.pid())).unwrap().contains(' ') {}
    });
    terminal.write_all(b"\x03").unwrap();
    show(&mut terminal, "caught\r\n");

    let pid = exec.pid();
    drop(exec);
    let deadline = Instant::now() + SOON;
    while std::path::Path::new(&format!("/proc/{pid}")).exists() {
        assert!(Instant::now() < deadline, "the shell is still there");
        std::thread::yield_now();
    }
}

#[test]
fn files_are_served_by_the_service_that_containers_have() {
    if !root() {
        return;
    }
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let content: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
    let mut session = FileSession::over(agent.client.files(SOON).unwrap()).unwrap();
    let options = WriteOptions { mode: Some(0o640), ..WriteOptions::default() };
    assert_eq!(session.write_from(&path, &mut &*content, &options).unwrap(), 3_000_000);
    assert!(std::fs::read(&path).unwrap() == content);
    let mut back = Vec::new();
    session.read_to(&path, &mut back).unwrap();
    assert!(back == content);
    let stat = session.stat(&path).unwrap();
    assert_eq!((stat.mode, stat.size), (0o640, 3_000_000));
    assert_eq!(session.names(dir.path()).unwrap(), ["file"]);
    assert!(matches!(session.stat(dir.path().join("no")), Err(FileError::NotFound { .. })));
    // A second one, while the first is there; and what is dropped takes its process with it.
    let mut other = FileSession::over(agent.client.files(SOON).unwrap()).unwrap();
    other.remove(&path).unwrap();
    assert!(!path.exists());
    drop((session, other));
    let children = format!("/proc/{0}/task/{0}/children", agent.process.id());
    let deadline = Instant::now() + SOON;
    while !std::fs::read_to_string(&children).unwrap().is_empty() {
        assert!(Instant::now() < deadline, "the service is still there");
        std::thread::yield_now();
    }
}

#[test]
fn state_is_told_and_the_end_noticed() {
    let mut agent = Agent::start();
    let state = agent.client.state(SOON).unwrap();
    assert!(state.network["lo"].loopback && state.processes > 1, "{state:?}");
    assert!(!agent.client.is_lost());
    agent.process.kill().unwrap();
    let error = agent.client.state(SOON).unwrap_err();
    assert!(matches!(error, ClientError::Lost(_)), "{error}");
    assert!(agent.client.is_lost());
}

#[test]
fn who_does_not_answer_is_not_waited_for() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let time = Duration::from_millis(50);
    let error = Client::connect(ours.into(), Link::Fresh, time).unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
    // One that greets and then says nothing.
    let (ours, silent) = UnixStream::pair().unwrap();
    let answering = std::thread::spawn(move || {
        let mut hello = [0; 32];
        { &silent }.read_exact(&mut hello).unwrap();
        { &silent }.write_all(&hello).unwrap();
        silent
    });
    let client = Client::connect(ours.into(), Link::Fresh, SOON).unwrap();
    let error = client.state(time).unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
    // And one that says what it was not asked.
    let mut silent = answering.join().unwrap();
    silent.write_all(&[1, 0, 0, 0, 9, 0, 0, 0]).unwrap();
    let error = client.state(SOON).unwrap_err();
    assert!(matches!(error, ClientError::Lost(_)), "{error}");
    drop(theirs.write_all(b"late"));
}
