//! A program that is started in the running container: what the forked child does until it executes it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use duet_sys::process::{self, Namespaces};
use duet_sys::pty;
use rustix::fs::FileType;

use super::Confinement;
use super::link::{Link, Report};
use crate::monitor::props;
use crate::protocol::{ExecRequest, PtySize};
use crate::spec::{IdMap, Rlimit};
use crate::step::{Step, StepError};

/// What the child inherits from the monitor. Everything that allocates was prepared by the parent.
pub(crate) struct Plan<'a> {
    pub link: Link,
    /// Refers to init, whose namespaces are joined.
    pub init: BorrowedFd<'a>,
    pub namespaces: Namespaces,
    /// The `tasks` files of the v1 hierarchies.
    pub tasks: Vec<OwnedFd>,
    pub rlimits: &'a BTreeMap<String, Rlimit>,
    pub confinement: Confinement,
    pub apparmor: Option<&'a str>,
    pub devpts: BorrowedFd<'a>,
    pub idmap: Option<IdMap>,
    /// Standard input, output and error, unless a pty was asked for.
    pub stdio: Option<[OwnedFd; 3]>,
    pub program: Program,
}

/// The program, ready for execve(2).
pub(crate) struct Program {
    /// Where to look for it, in this order.
    candidates: Vec<CString>,
    argv: Vec<CString>,
    environment: Vec<CString>,
    cwd: Option<CString>,
    uid: u32,
    gid: u32,
    pty: Option<PtySize>,
}

impl Program {
    /// Prepares a request; `None` if it has no program, or a string with a zero byte.
    pub fn prepare(request: &ExecRequest) -> Option<Self> {
        let environment = environment(request);
        let c_string = |text: &str| CString::new(text).ok();
        let name = request.argv.first().filter(|name| !name.is_empty())?;
        let candidates = if name.contains('/') {
            vec![c_string(name)?]
        } else {
            let path = environment.get("PATH").map_or(super::DEFAULT_PATH, |path| path);
            path.split(':')
                .map(|dir| c_string(&format!("{}/{name}", if dir.is_empty() { "." } else { dir })))
                .collect::<Option<_>>()?
        };
        Some(Self {
            candidates,
            argv: request.argv.iter().map(|word| c_string(word)).collect::<Option<_>>()?,
            environment: environment.iter().map(|(k, v)| c_string(&format!("{k}={v}"))).collect::<Option<_>>()?,
            cwd: match &request.cwd {
                Some(cwd) => Some(CString::new(cwd.as_os_str().as_bytes()).ok()?),
                None => None,
            },
            uid: request.uid,
            gid: request.gid,
            pty: request.pty,
        })
    }
}

/// The environment with the defaults that Incus sets.
fn environment(request: &ExecRequest) -> BTreeMap<String, String> {
    let mut all = BTreeMap::from([("PATH", super::DEFAULT_PATH), ("LANG", "C.UTF-8")]);
    if request.uid == 0 {
        all.extend([("HOME", "/root"), ("USER", "root")]);
    }
    let mut all: BTreeMap<_, _> = all.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    all.extend(
        request
            .environment
            .iter()
            .filter(|(k, _)| !k.is_empty() && !k.contains('='))
            .map(|(k, v)| (k.clone(), v.clone())),
    );
    all
}

/// Becomes the program, or reports why not and ends the process.
pub(crate) fn run(plan: Plan<'_>) -> ! {
    let report = match start(&plan) {
        Ok(never) => match never {},
        Err(report) => report,
    };
    // If the monitor is gone there is nobody to tell.
    let _ = plan.link.send(&report, &[]);
    process::exit_now(127)
}

fn start(plan: &Plan<'_>) -> Result<Infallible, Report> {
    let program = &plan.program;
    enter(plan).map_err(Report::Failed)?;
    connect(plan).map_err(Report::Failed)?;
    keep_only(&plan.link).map_err(Report::Failed)?;
    // Only now that no descriptor of the host is left does the child follow a path of the caller's choice: a working
    // directory like /proc/self/fd/7 leads nowhere.
    change_directory(program).map_err(Report::Failed)?;
    super::reset_process();
    Err(execute(program))
}

/// Joins the container and gives up what its processes do not have.
fn enter(plan: &Plan<'_>) -> Result<(), StepError> {
    super::join_cgroups(&plan.tasks)?;
    super::reset_oom_score();
    // The host's: in the container's, its root can put a file in the place of any other.
    let proc = plan.apparmor.map(|_| super::open_proc()).transpose()?;
    super::set_rlimits(plan.rlimits, None)?;
    give_pipes(plan)?;
    process::enter(plan.init, plan.namespaces).step("join the container")?;
    plan.confinement.apply()?;
    super::become_user(plan.program.uid, plan.program.gid)?;
    match (proc, plan.apparmor) {
        (Some(proc), Some(label)) => super::label_next_program(&proc, label),
        _ => Ok(()),
    }
}

/// Makes the program's user the owner of the pipes that are its standard descriptors: opening /dev/stdout means opening
/// such a pipe anew, by its permissions (proc_pid_fd(5)). Files and terminals of the host stay as they are.
fn give_pipes(plan: &Plan<'_>) -> Result<(), StepError> {
    let (uid, gid) = props::host_ids(plan.idmap, plan.program.uid, plan.program.gid);
    for fd in plan.stdio.iter().flatten() {
        let stat = rustix::fs::fstat(fd).step("look at a standard descriptor")?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
            rustix::fs::fchown(fd, Some(uid), Some(gid)).step("hand over a pipe")?;
        }
    }
    Ok(())
}

/// Sets up the session and the standard descriptors.
fn connect(plan: &Plan<'_>) -> Result<(), StepError> {
    rustix::process::setsid().step("start a session")?;
    let connect = |fds: [BorrowedFd<'_>; 3]| {
        rustix::stdio::dup2_stdin(fds[0])?;
        rustix::stdio::dup2_stdout(fds[1])?;
        rustix::stdio::dup2_stderr(fds[2])
    };
    if let Some([stdin, stdout, stderr]) = &plan.stdio {
        return connect([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]).step("connect the standard descriptors");
    }
    // Made after the change of user, to whom the terminal then belongs.
    let terminal = pty::open(plan.devpts).step("make a terminal")?;
    if let Some(size) = plan.program.pty {
        pty::resize(&terminal.master, size.columns, size.rows).step("size the terminal")?;
    }
    pty::make_controlling(&terminal.slave).step("take the terminal")?;
    plan.link.send(&Report::Terminal, &[terminal.master.as_fd()]).step("hand over the terminal")?;
    let slave = terminal.slave.as_fd();
    connect([slave, slave, slave]).step("connect the terminal")
}

/// Closes every descriptor but the standard ones and the link.
fn keep_only(link: &Link) -> Result<(), StepError> {
    let number = u32::try_from(link.as_fd().as_raw_fd()).map_err(|error| StepError::new("close descriptors", error))?;
    // SAFETY: the process uses nothing but the standard descriptors and the link from here on, and ends by execve(2) or
    // _exit(2), so no owner of a closed descriptor is ever dropped.
    unsafe { process::close_all_but(number) }.step("close descriptors")
}

fn change_directory(program: &Program) -> Result<(), StepError> {
    if let Some(cwd) = &program.cwd {
        return rustix::process::chdir(cwd).step_at("enter the working directory", cwd);
    }
    let home = if program.uid == 0 { c"/root" } else { c"/" };
    rustix::process::chdir(home).or_else(|_| rustix::process::chdir(c"/")).step("enter /")
}

/// Executes the first candidate that can be, like execvp(3). Returns what went wrong.
fn execute(program: &Program) -> Report {
    let mut denied = None;
    for path in &program.candidates {
        let error = process::exec(path, &program.argv, &program.environment);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            Some(libc::EACCES) => denied = Some(error),
            Some(libc::ENOEXEC) => {
                // A script without an interpreter line is the shell's, as execvp(3) has it.
                let mut argv = vec![c"/bin/sh".to_owned(), path.clone()];
                argv.extend(program.argv.iter().skip(1).cloned());
                let _ = process::exec(c"/bin/sh", &argv, &program.environment);
                return Report::NotExecutable(error.to_string());
            }
            _ => return Report::NotExecutable(error.to_string()),
        }
    }
    match denied {
        Some(error) => Report::NotExecutable(error.to_string()),
        None => Report::NotFound(std::io::Error::from_raw_os_error(libc::ENOENT).to_string()),
    }
}
