//! What the forked child does until it executes the program.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use duet_sys::{process, pty};
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit};
use rustix::thread::{Gid, Uid};

use crate::protocol::message::{self, ErrorKind, ErrorReply, ExecRequest};

/// The environment's default `PATH`, which a container's programs get too.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The bounds on open files that systemd gives to services (systemd-system.conf(5), `DefaultLimitNOFILE=`).
const OPEN_FILES: Rlimit = Rlimit { current: Some(1024), maximum: Some(524_288) };

/// A program, ready for execve(2).
pub(super) struct Command {
    /// Where to look for it, in this order.
    candidates: Vec<CString>,
    argv: Vec<CString>,
    environment: Vec<CString>,
    cwd: Option<CString>,
    uid: u32,
    gid: u32,
}

impl Command {
    /// Prepares a request; `None` if it has no program, or a string with a zero byte.
    pub fn prepare(request: &ExecRequest) -> Option<Self> {
        let environment = environment(request);
        let c_string = |text: &str| CString::new(text).ok();
        let name = request.argv.first().filter(|name| !name.is_empty())?;
        let candidates = if name.contains('/') {
            vec![c_string(name)?]
        } else {
            let path = environment.get("PATH").map_or(DEFAULT_PATH, |path| path);
            path.split(':')
                .map(|dir| c_string(&format!("{}/{name}", if dir.is_empty() { "." } else { dir })))
                .collect::<Option<_>>()?
        };
        Some(Self {
            candidates,
            argv: request.argv.iter().map(|word| c_string(word)).collect::<Option<_>>()?,
            environment: environment.iter().map(|(k, v)| c_string(&format!("{k}={v}"))).collect::<Option<_>>()?,
            cwd: match &request.cwd {
                Some(cwd) => Some(c_string(cwd)?),
                None => None,
            },
            uid: request.uid,
            gid: request.gid,
        })
    }
}

/// The environment with the defaults that Incus sets.
fn environment(request: &ExecRequest) -> BTreeMap<String, String> {
    let mut all = BTreeMap::from([("PATH", DEFAULT_PATH), ("LANG", "C.UTF-8")]);
    if request.uid == 0 {
        all.extend([("HOME", "/root"), ("USER", "root")]);
    }
    let mut all: BTreeMap<_, _> = all.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let named = request.environment.iter().filter(|(k, _)| !k.is_empty() && !k.contains('='));
    all.extend(named.map(|(k, v)| (k.clone(), v.clone())));
    all
}

/// Becomes the program, or reports why not and ends the process.
pub(super) fn run(command: &Command, stdio: [OwnedFd; 3], terminal: bool, report: &OwnedFd) -> ! {
    let error = match prepare(command, &stdio, terminal, report) {
        Ok(()) => execute(command),
        Err((step, error)) => ErrorReply::new(ErrorKind::System, format!("cannot {step}: {error}")),
    };
    // If the agent is gone there is nobody to tell.
    let _ = rustix::io::write(report, &message::encode(&error));
    process::exit_now(127)
}

/// Becomes the service for files: the one that a container has beside it, on a stream instead of packets. Ends with the
/// process.
pub(super) fn serve_files(socket: &OwnedFd, root: &OwnedFd, report: &OwnedFd) -> ! {
    let connected = rustix::process::setsid()
        .and_then(|_| rustix::stdio::dup2_stdin(socket))
        .and_then(|()| rustix::stdio::dup2_stdout(root));
    if let Err(error) = connected {
        let error = ErrorReply::new(ErrorKind::System, format!("cannot connect the service for files: {error}"));
        // As in `run`.
        let _ = rustix::io::write(report, &message::encode(&error));
        process::exit_now(127)
    }
    // As in `prepare`.
    let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    // With the report's end closed too, the agent learns that the service runs.
    // SAFETY: as in `prepare`; the service opens its own, and the process ends by _exit(2).
    if unsafe { process::close_all_but(u32::MAX) }.is_ok() {
        process::reset_signals();
        // It has told its client what went wrong, if something did.
        let _ = duet_files::server::main();
    }
    process::exit_now(0)
}

/// What was being done, and why it failed.
type Failed = (&'static str, std::io::Error);

fn prepare(command: &Command, stdio: &[OwnedFd; 3], terminal: bool, report: &OwnedFd) -> Result<(), Failed> {
    let at = |step| move |error: rustix::io::Errno| (step, std::io::Error::from(error));
    // The agent's own protects it; a kernel without it has none to undo.
    let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    let _ = rustix::process::setrlimit(Resource::Nofile, OPEN_FILES);
    rustix::process::setsid().map_err(at("start a session"))?;
    if terminal {
        pty::make_controlling(&stdio[0]).map_err(|error| ("take the terminal", error))?;
    }
    let [stdin, stdout, stderr] = stdio.each_ref().map(AsFd::as_fd);
    rustix::stdio::dup2_stdin(stdin)
        .and_then(|()| rustix::stdio::dup2_stdout(stdout))
        .and_then(|()| rustix::stdio::dup2_stderr(stderr))
        .map_err(at("connect the standard descriptors"))?;
    let kept =
        u32::try_from(report.as_raw_fd()).map_err(|error| ("close descriptors", std::io::Error::other(error)))?;
    // SAFETY: the process uses nothing but the standard descriptors and the report from here on, and ends by execve(2) or
    // _exit(2), so no owner of a closed descriptor is ever dropped.
    unsafe { process::close_all_but(kept) }.map_err(|error| ("close descriptors", error))?;
    become_user(command)?;
    change_directory(command)?;
    process::reset_signals();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Ok(())
}

fn become_user(command: &Command) -> Result<(), Failed> {
    let at = |step| move |error: rustix::io::Errno| (step, std::io::Error::from(error));
    match process::new_session_keyring() {
        Err(error) if error.raw_os_error() != Some(libc::ENOSYS) => return Err(("make a key ring", error)),
        _ => {}
    }
    let (uid, gid) = (Uid::from_raw(command.uid), Gid::from_raw(command.gid));
    rustix::thread::set_thread_groups(&[]).map_err(at("drop groups"))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(at("set the group"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(at("set the user"))
}

fn change_directory(command: &Command) -> Result<(), Failed> {
    let entered = match &command.cwd {
        Some(cwd) => rustix::process::chdir(cwd),
        None => {
            let home = if command.uid == 0 { c"/root" } else { c"/" };
            rustix::process::chdir(home).or_else(|_| rustix::process::chdir(c"/"))
        }
    };
    entered.map_err(|error| ("enter the working directory", error.into()))
}

/// Executes the first candidate that can be, like execvp(3). Returns what went wrong.
fn execute(command: &Command) -> ErrorReply {
    let mut denied = None;
    for path in &command.candidates {
        let error = process::exec(path, &command.argv, &command.environment);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            Some(libc::EACCES) => denied = Some(error),
            Some(libc::ENOEXEC) => {
                // A script without an interpreter line is the shell's, as execvp(3) has it.
                let mut argv = vec![c"/bin/sh".to_owned(), path.clone()];
                argv.extend(command.argv.iter().skip(1).cloned());
                let _ = process::exec(c"/bin/sh", &argv, &command.environment);
                return ErrorReply::new(ErrorKind::CommandNotExecutable, error);
            }
            _ => return ErrorReply::new(ErrorKind::CommandNotExecutable, error),
        }
    }
    match denied {
        Some(error) => ErrorReply::new(ErrorKind::CommandNotExecutable, error),
        None => ErrorReply::new(ErrorKind::CommandNotFound, std::io::Error::from_raw_os_error(libc::ENOENT)),
    }
}
