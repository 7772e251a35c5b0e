//! Init, from the fork to the execution of its program.
//!
//! It begins with the host's capabilities only within its new user namespace, on the monitor's stage, and waits three
//! times for the monitor: for the id maps, for the stage, and for leave to go. The end of the line at any of these
//! means that the start was given up, and it ends.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

use duet_sys::{link as netdev, process};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use rustix::thread::UnshareFlags;

use super::Confinement;
use super::link::{Command, Link, Report};
use super::mounts;
use crate::spec::{ContainerSpec, DEFAULT_INITS};
use crate::step::{Step, StepError};

/// What init inherits from the monitor.
pub(crate) struct Plan<'a> {
    pub spec: &'a ContainerSpec,
    pub link: Link,
    /// The `tasks` files of the v1 hierarchies.
    pub tasks: Vec<OwnedFd>,
    pub confinement: Confinement,
}

/// Becomes the container's init, or reports why not and ends the process.
pub(crate) fn run(plan: &Plan<'_>) -> ! {
    let error = match start(plan) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    // If the monitor is gone there is nobody to tell.
    let _ = plan.link.send(&Report::Failed(error), &[]);
    process::exit_now(1)
}

fn start(plan: &Plan<'_>) -> Result<Infallible, StepError> {
    let Plan { spec, link, tasks, confinement } = plan;
    super::join_cgroups(tasks)?;
    // SAFETY: the process has a single thread, and no descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP) }.step("make the cgroup namespace")?;
    let Command::Mapped = next(link)? else { return Err(out_of_order()) };
    super::become_user(0, 0)?;
    // After the change of user, which clears it (prctl(2)). A monitor that died before is noticed by the waits below.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).step("tie init to its monitor")?;
    rustix::system::sethostname(spec.hostname.as_bytes()).step("set the host name")?;
    netdev::raise_loopback().step("bring up the loopback interface")?;

    let Command::Staged = next(link)? else { return Err(out_of_order()) };
    let built = mounts::build(spec)?;
    let ends = [built.console.master.as_fd(), built.console.slave.as_fd(), built.devpts.as_fd()];
    link.send(&Report::Ready, &ends).step("report to the monitor")?;
    mounts::set_sysctls(spec)?;
    confinement.apply()?;
    super::reset_process();
    let programs = programs(spec)?;
    let environment = environment(spec)?;
    rustix::process::setsid().step("start a session")?;
    // By its name, so that programs find it by its name (ttyname(3)); and not as the controlling terminal: that is for
    // the login or shell that init starts on it.
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let console = rustix::fs::open(c"/dev/console", flags, Mode::empty()).step("open the console")?;
    drop(built);
    if let Some(label) = &spec.apparmor {
        super::label_next_program(&super::open_proc()?, label)?;
    }

    let Command::Go = next(link)? else { return Err(out_of_order()) };
    rustix::stdio::dup2_stdin(&console).step("connect the console")?;
    rustix::stdio::dup2_stdout(&console).step("connect the console")?;
    rustix::stdio::dup2_stderr(&console).step("connect the console")?;
    Err(execute(&programs, &environment))
}

/// Executes the first of the programs that exists.
fn execute(programs: &[Vec<CString>], environment: &[CString]) -> StepError {
    let mut last = std::io::Error::from_raw_os_error(libc::ENOENT);
    for program in programs {
        let Some(path) = program.first() else { continue };
        last = process::exec(path, program, environment);
        if last.raw_os_error() != Some(libc::ENOENT) {
            return StepError::new(format_args!("execute init {}", display(path)), last);
        }
    }
    let tried: Vec<_> = programs.iter().filter_map(|p| p.first()).map(|p| display(p)).collect();
    StepError::new(format_args!("execute init (looked for {})", tried.join(", ")), last)
}

fn display(path: &CStr) -> String {
    path.to_string_lossy().into_owned()
}

/// Waits for the monitor.
fn next(link: &Link) -> Result<Command, StepError> {
    match link.receive().step("wait for the monitor")? {
        Some((command, _)) => Ok(command),
        // The monitor gave up or died; nobody reads the report of this error.
        None => process::exit_now(1),
    }
}

fn out_of_order() -> StepError {
    StepError::new("start", "the monitor's commands came out of order")
}

fn programs(spec: &ContainerSpec) -> Result<Vec<Vec<CString>>, StepError> {
    if spec.init.is_empty() {
        return DEFAULT_INITS.iter().map(|path| Ok(vec![c_string(path)?])).collect();
    }
    Ok(vec![spec.init.iter().map(|word| c_string(word)).collect::<Result<_, _>>()?])
}

fn environment(spec: &ContainerSpec) -> Result<Vec<CString>, StepError> {
    // systemd tells its manager so when it has reached its default target; sd_notify(3) spells an abstract name with "@".
    let notify = format!("@{}", super::NOTIFY_NAME);
    let mut all = std::collections::BTreeMap::from([
        ("PATH", super::DEFAULT_PATH),
        ("container", "lxc"),
        ("NOTIFY_SOCKET", notify.as_str()),
    ]);
    all.extend(spec.environment.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    all.iter().map(|(key, value)| c_string(&format!("{key}={value}"))).collect()
}

fn c_string(text: &str) -> Result<CString, StepError> {
    CString::new(text).map_err(|_| StepError::new("prepare init", format_args!("{text:?} contains a zero byte")))
}
