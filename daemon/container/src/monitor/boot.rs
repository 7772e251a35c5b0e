//! The start, from the specification to the execution of init's program.
//!
//! Init and the monitor work side by side: while the one sets up what is inside its namespaces, the other makes what
//! the container is mounted from, and the daemon, told of the process id as soon as there is one, attaches the network.
//!
//! ```text
//! monitor                                   init
//! own mount namespace, clone           ->   join v1 groups, cgroup namespace
//! id maps, netlink            "mapped" ->   become root, host name, loopback
//!   (created: daemon attaches NICs)
//! root, /dev, mounts, stage   "staged" ->   own mount namespace, mount everything
//!                                      <- "ready" console, devpts
//!   (daemon says go)             "go"  ->   execute
//!                     end of stream    <-
//! ```

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use duet_sys::process::{self, Fork, Namespaces};
use duet_sys::pty::Pty;
use duet_sys::{link as netdev, socket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::process::{Pid, WaitId, WaitIdOptions};

use super::cgroups::Cgroups;
use super::clock::StartClock;
use super::console::{Console, ConsoleLog};
use super::handshake::Handshake;
use super::props::{self, Dev};
use super::server::Running;
use super::stage::{self, Props, Stage};
use crate::handshake::{HandshakeEvent, HandshakeRequest};
use crate::inside;
use crate::inside::link::{Command, Link, Report};
use crate::protocol::{EXIT_FILE, SOCKET_NAME};
use crate::rootfs;
use crate::spec::{ContainerSpec, IdMap};
use crate::step::{Step, StepError};

/// How long init may take from the stage to its readiness, and from the go to its execution.
const INIT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the daemon may take to attach the network.
const GO_TIMEOUT: Duration = Duration::from_secs(60);
/// How many connections may wait to be accepted.
const BACKLOG: i32 = 64;

/// What the monitor holds on to of the host.
struct Host {
    run_dir: OwnedFd,
    listener: OwnedFd,
    cgroups: Cgroups,
    console_log: ConsoleLog,
    socket: SocketFile,
}

/// Starts the container and tells the daemon. If this fails, nothing of it is left.
pub(super) fn boot(
    handshake: &Handshake,
    spec: ContainerSpec,
    fds: Vec<OwnedFd>,
    mut clock: StartClock,
) -> Result<Running, StepError> {
    let host = open_host(&spec)?;
    let tasks = host.cgroups.open_tasks()?;
    stage::split()?;
    clock.lap("prepare");

    let (link, theirs) = Link::pair().step("make the line to init")?;
    let confinement = inside::Confinement::of(&spec);
    // SAFETY: the process has a single thread.
    let fork = unsafe { host.cgroups.fork(namespaces(spec.idmap)) }.step("create the container's namespaces")?;
    let init = match fork {
        Fork::Child => {
            // Else init would hold the monitor's end of its own line open and never see it close.
            drop(link);
            inside::init::run(&inside::init::Plan { spec: &spec, link: theirs, tasks, confinement })
        }
        Fork::Parent { pid, pidfd } => Init { pid, pidfd: Some(pidfd) },
    };
    drop((theirs, tasks));
    clock.lap("clone");
    // After the clone, so that init does not inherit it; a host that does not allow it does without.
    super::protect_from_oom();
    if let Some(map) = spec.idmap {
        write_maps(init.pid, map)?;
    }
    link.send(&Command::Mapped, &[]).step("talk to init")?;
    let userns = spec.idmap.map(|_| open_namespace(init.pid, "user")).transpose()?;
    let netns = open_namespace(init.pid, "net")?;
    let (netlink, notify) = in_network(&netns, || {
        Ok((netdev::address_monitor()?, duet_sys::notify::listen(inside::NOTIFY_NAME.as_bytes())?))
    })?;
    let created = HandshakeEvent::Created { init_pid: init.pid.unsigned_abs() };
    handshake.send(&created, &[init.pidfd(), netlink.as_fd()])?;
    drop(netlink);
    clock.lap("maps");

    let userns_fd = userns.as_ref().map(AsFd::as_fd);
    let dev = Dev::make(&spec)?;
    let root = rootfs::open_detached(&spec.root, userns_fd, spec.root_read_only, spec.idmap.is_some())
        .map_err(|error| StepError::new("open the root filesystem", error))?;
    clock.lap("root");
    let mounts = props::open_mounts(&spec, fds, userns_fd)?;
    clock.lap("mounts");
    let mut stage = Stage::set(&spec.run_dir, &Props { root, dev: dev.mount.as_fd(), mounts })?;
    link.send(&Command::Staged, &[]).step("talk to init")?;
    clock.lap("stage");

    let (console, devpts) = wait_ready(handshake, &link, &mut clock)?;
    inside::set_rlimits(&spec.rlimits, Pid::from_raw(init.pid))?;
    link.send(&Command::Go, &[]).step("talk to init")?;
    wait_executed(handshake, &link)?;
    clock.lap("execute");
    process::enter(init.pidfd(), Namespaces::PID).step("join the container's PID namespace")?;
    let console = Console::new(console, host.console_log).step("set up the console")?;
    let started_at = super::clock::now();
    handshake.send(&HandshakeEvent::Started, &[])?;

    // The container runs: nothing from here on may end it.
    if let Err(error) = stage.clear() {
        super::say(error);
    }
    host.socket.keep();
    Ok(Running {
        init_pid: init.pid.unsigned_abs(),
        init: init.release(),
        idmap: spec.idmap,
        name: spec.name,
        rlimits: spec.rlimits,
        notes: spec.notes,
        confinement,
        apparmor: spec.apparmor,
        run_dir: host.run_dir,
        listener: host.listener,
        cgroups: host.cgroups,
        console,
        devpts,
        dev,
        userns,
        netns,
        notify,
        ready: false,
        stage,
        started_at,
        timings: clock.finish(),
        nodes: 0,
    })
}

/// Opens what lies on the host's mounts, which the monitor is about to leave.
fn open_host(spec: &ContainerSpec) -> Result<Host, StepError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let run_dir =
        rustix::fs::open(&spec.run_dir, flags, Mode::empty()).step_at("open the run directory", &spec.run_dir)?;
    match rustix::fs::unlinkat(&run_dir, EXIT_FILE, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error).step("remove the record of the last end"),
    }
    let console_log = ConsoleLog::create(&spec.console_log, spec.console_log_limit)
        .step_at("create the console log", &spec.console_log)?;
    let cgroups = Cgroups::open(&spec.cgroups)?;
    let listener = socket::listen_in(&run_dir, SOCKET_NAME.as_ref(), BACKLOG).step("listen in the run directory")?;
    let socket = SocketFile { dir: Some(run_dir.try_clone().step("share the run directory")?) };
    Ok(Host { run_dir, listener, cgroups, console_log, socket })
}

/// The control socket's file, which is removed if the start fails.
struct SocketFile {
    dir: Option<OwnedFd>,
}

impl SocketFile {
    fn keep(mut self) {
        self.dir = None;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Some(dir) = &self.dir {
            // It may be gone with its directory, which is as good.
            let _ = rustix::fs::unlinkat(dir, SOCKET_NAME, AtFlags::empty());
        }
    }
}

/// Init while the start may still fail: killed and reaped when dropped.
struct Init {
    pid: i32,
    pidfd: Option<OwnedFd>,
}

impl Init {
    fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_ref().map(AsFd::as_fd).expect("only released at the end of the start")
    }

    fn release(mut self) -> OwnedFd {
        self.pidfd.take().expect("only released at the end of the start")
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.pidfd {
            // It may have ended on its own.
            let _ = process::signal(pidfd, libc::SIGKILL);
            // Returns once every process of its PID namespace has ended (pid_namespaces(7)).
            let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
        }
    }
}

fn namespaces(idmap: Option<IdMap>) -> Namespaces {
    let all = Namespaces::PID.and(Namespaces::NET).and(Namespaces::IPC).and(Namespaces::UTS);
    if idmap.is_some() { all.and(Namespaces::USER) } else { all }
}

fn write_maps(pid: i32, map: IdMap) -> Result<(), StepError> {
    let write = |file: &str, base: u32| {
        std::fs::write(format!("/proc/{pid}/{file}"), format!("0 {base} {}\n", map.range)).step_at("write the", &file)
    };
    write("uid_map", map.host_base_uid)?;
    write("gid_map", map.host_base_gid)
}

fn open_namespace(pid: i32, name: &str) -> Result<OwnedFd, StepError> {
    let open = File::open(format!("/proc/{pid}/ns/{name}"));
    Ok(open.step_at("open the container's namespace", &name)?.into())
}

/// Makes a netlink socket in another network namespace, and returns from there.
pub(super) fn netlink_in(netns: &OwnedFd) -> Result<OwnedFd, StepError> {
    in_network(netns, netdev::address_monitor)
}

/// Makes sockets in another network namespace, and returns from there.
fn in_network<T>(netns: &OwnedFd, make: impl FnOnce() -> std::io::Result<T>) -> Result<T, StepError> {
    let own = File::open("/proc/self/ns/net").step("open the host's network namespace")?;
    process::enter(netns, Namespaces::NET).step("enter the container's network namespace")?;
    let sockets = make();
    // A monitor that stays there would open the next socket in the wrong place; but that cannot be refused.
    process::enter(&own, Namespaces::NET).step("return to the host's network namespace")?;
    sockets.step("listen in the container's network namespace")
}

/// Waits until init is ready and the daemon has said go. Returns the console's ends and the root of devpts.
fn wait_ready(handshake: &Handshake, link: &Link, clock: &mut StartClock) -> Result<(Pty, OwnedFd), StepError> {
    let begun = Instant::now();
    let mut ready = None;
    let mut go = false;
    loop {
        if go && let Some(ready) = ready.take() {
            return Ok(ready);
        }
        let (step, timeout) = if ready.is_none() {
            ("wait for init to build its mounts", INIT_TIMEOUT)
        } else {
            ("wait for the daemon to attach the network", GO_TIMEOUT)
        };
        let (from_init, from_daemon) = wait(link, handshake, begun + timeout, step)?;
        if from_init {
            ready = Some(receive_ready(link)?);
            clock.lap("inside");
        }
        if from_daemon {
            match handshake.try_receive(step)? {
                Some((HandshakeRequest::Go, _)) => {
                    go = true;
                    clock.lap("go");
                }
                Some((HandshakeRequest::Start { .. }, _)) => {
                    return Err(StepError::new(step, "the daemon sent a second specification"));
                }
                None => {}
            }
        }
    }
}

fn receive_ready(link: &Link) -> Result<(Pty, OwnedFd), StepError> {
    let ended = || StepError::new("wait for init to build its mounts", "init ended without a word");
    match link.receive().step("hear from init")?.ok_or_else(ended)? {
        (Report::Ready, fds) => {
            let [master, slave, devpts] =
                fds.try_into().map_err(|_| StepError::new("take the console", "init did not pass it"))?;
            Ok((Pty { master, slave }, devpts))
        }
        (Report::Failed(error), _) => Err(error),
        _ => Err(StepError::new("hear from init", "it said something out of order")),
    }
}

/// Waits until init's end of the line closes, by its execution.
fn wait_executed(handshake: &Handshake, link: &Link) -> Result<(), StepError> {
    let step = "execute init";
    let deadline = Instant::now() + INIT_TIMEOUT;
    loop {
        let (from_init, from_daemon) = wait(link, handshake, deadline, step)?;
        if from_init {
            return match link.receive().step(step)? {
                None => Ok(()),
                Some((Report::Failed(error), _)) => Err(error),
                Some(_) => Err(StepError::new(step, "init said something out of order")),
            };
        }
        if from_daemon && handshake.try_receive(step)?.is_some() {
            return Err(StepError::new(step, "the daemon said go twice"));
        }
    }
}

/// Waits for either line until a deadline.
fn wait(link: &Link, handshake: &Handshake, deadline: Instant, step: &str) -> Result<(bool, bool), StepError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(|error| StepError::new(step, error))?;
        let mut fds = [PollFd::new(link, PollFlags::IN), PollFd::new(handshake, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) if left.is_zero() => return Err(StepError::new(step, "it took too long")),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok((!fds[0].revents().is_empty(), !fds[1].revents().is_empty())),
            Err(error) => return Err(error).step(step),
        }
    }
}
