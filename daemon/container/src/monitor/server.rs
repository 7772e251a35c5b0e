//! The monitor's loop while the container runs.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use duet_sys::process::Namespaces;
use duet_sys::{process, socket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::WaitIdOptions;

use super::cgroups::Cgroups;
use super::connection::Connection;
use super::console::Console;
use super::hotplug::{self, Outcome};
use super::props::Dev;
use super::stage::Stage;
use super::task::{self, News, Purpose, Task, TaskId};
use super::{boot, clock, ending, stop};
use crate::inside::Confinement;
use crate::protocol::{self, ErrorKind, ErrorReply, ExitReason, ExitRecord, Reply, Request, Status};
use crate::spec::{IdMap, Rlimit, check_target};
use crate::step::{Step, StepError};

/// How many clients may be connected. The daemon needs a handful, and one for each program that runs.
const CONNECTION_LIMIT: usize = 1024;

/// How long no client is accepted after that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A running container.
pub(super) struct Running {
    pub name: String,
    pub init_pid: u32,
    pub init: OwnedFd,
    pub idmap: Option<IdMap>,
    pub rlimits: BTreeMap<String, Rlimit>,
    pub confinement: Confinement,
    pub apparmor: Option<String>,
    pub run_dir: OwnedFd,
    pub listener: OwnedFd,
    pub cgroups: Cgroups,
    pub console: Console,
    pub devpts: OwnedFd,
    pub dev: Dev,
    pub userns: Option<OwnedFd>,
    pub netns: OwnedFd,
    /// Where init says that the system is up.
    pub notify: OwnedFd,
    /// Whether it has.
    pub ready: bool,
    pub stage: Stage,
    pub started_at: f64,
    pub timings: Vec<(String, f64)>,
    pub notes: BTreeMap<String, Option<String>>,
    /// How many nodes were added outside /dev, for their names.
    pub nodes: u64,
}

impl Running {
    /// What a program joins. The PID namespace is not among them: the monitor's children are born into it.
    pub fn joined_namespaces(&self) -> Namespaces {
        self.mount_namespaces().and(Namespaces::NET).and(Namespaces::IPC).and(Namespaces::UTS).and(Namespaces::CGROUP)
    }

    /// What a helper that changes mounts joins. A privileged container has no user namespace of its own, and one's own
    /// cannot be joined (setns(2)).
    pub fn mount_namespaces(&self) -> Namespaces {
        if self.idmap.is_some() { Namespaces::MOUNT.and(Namespaces::USER) } else { Namespaces::MOUNT }
    }
}

/// What woke the loop.
#[derive(Clone, Copy)]
enum Source {
    Init,
    Notify,
    Listener,
    ConsoleOutput,
    ConsoleInput,
    ConsoleClient,
    Connection(u64),
    TaskLink(TaskId),
    TaskEnd(TaskId),
}

struct Server {
    running: Running,
    connections: BTreeMap<u64, Connection>,
    tasks: BTreeMap<TaskId, Task>,
    next_id: u64,
    /// When clients are accepted again, after that failed.
    accept_from: Option<Instant>,
}

/// Serves until the container ends.
pub(super) fn serve(running: Running) -> Result<(), StepError> {
    let mut server =
        Server { running, connections: BTreeMap::new(), tasks: BTreeMap::new(), next_id: 1, accept_from: None };
    while !server.turn()? {}
    server.end()
}

impl Server {
    /// Waits for something to happen and acts on it. Says whether init has ended.
    fn turn(&mut self) -> Result<bool, StepError> {
        let events = self.wait()?;
        for (source, flags) in events {
            match source {
                // Last of all: the tasks that ended with init are told first.
                Source::Init => {}
                Source::Listener => self.accept(),
                Source::Notify => self.notified(),
                Source::ConsoleOutput => self.running.console.drain(),
                Source::ConsoleInput => self.running.console.feed(),
                Source::ConsoleClient => self.running.console.client_ready(flags),
                Source::Connection(id) => self.connection_ready(id, flags),
                Source::TaskLink(id) => self.hear(id),
                Source::TaskEnd(id) => self.task_ended(id),
            }
            if matches!(source, Source::Init) {
                return Ok(true);
            }
        }
        self.running.console.expire();
        self.kill_late_tasks();
        self.bury_connections();
        Ok(false)
    }

    fn wait(&self) -> Result<Vec<(Source, PollFlags)>, StepError> {
        let mut sources = Vec::new();
        let mut fds = Vec::new();
        let mut watch = |source, fd, flags| {
            sources.push(source);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        for (id, connection) in &self.connections {
            watch(Source::Connection(*id), connection.as_fd(), connection.interest());
        }
        for (id, task) in &self.tasks {
            if let Some(link) = &task.link {
                watch(Source::TaskLink(*id), link.as_fd(), PollFlags::IN);
            }
            watch(Source::TaskEnd(*id), task.pidfd.as_fd(), PollFlags::IN);
        }
        let console = self.running.console.interest();
        if let Some((output, flags)) = console.output {
            watch(Source::ConsoleOutput, output, flags);
        }
        if let Some((input, flags)) = console.input {
            watch(Source::ConsoleInput, input, flags);
        }
        if let Some((client, flags)) = console.client {
            watch(Source::ConsoleClient, client, flags);
        }
        if self.accept_from.is_none_or(|from| from <= Instant::now()) {
            watch(Source::Listener, self.running.listener.as_fd(), PollFlags::IN);
        }
        watch(Source::Notify, self.running.notify.as_fd(), PollFlags::IN);
        watch(Source::Init, self.running.init.as_fd(), PollFlags::IN);

        let timeout = self.timeout();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error).step("wait for events"),
        }
        Ok(sources.into_iter().zip(&fds).map(|(s, fd)| (s, fd.revents())).filter(|(_, f)| !f.is_empty()).collect())
    }

    /// How long nothing may happen until something is due.
    fn timeout(&self) -> Option<Timespec> {
        let tasks = self.tasks.values().filter(|task| task.link.is_some()).map(|task| task.deadline);
        let accept = self.accept_from.filter(|from| *from > Instant::now());
        let due = tasks.chain(self.running.console.deadline()).chain(accept).min()?;
        Timespec::try_from(due.saturating_duration_since(Instant::now())).ok()
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn accept(&mut self) {
        loop {
            match socket::accept(&self.running.listener) {
                Ok(None) => return,
                Ok(Some(socket)) if self.connections.len() < CONNECTION_LIMIT => {
                    let id = self.new_id();
                    self.connections.insert(id, Connection::new(socket));
                }
                // Closed at once.
                Ok(Some(_)) => {}
                Err(error) => {
                    // No descriptors or memory left: clients wait in the queue, and the loop must not spin over them.
                    super::say(format_args!("accept a client: {error}"));
                    self.accept_from = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn connection_ready(&mut self, id: u64, flags: PollFlags) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if flags.contains(PollFlags::OUT) {
            connection.flush();
        }
        if flags.contains(PollFlags::IN) {
            match connection.receive() {
                Some(Ok((packet, fds))) => self.packet(id, &packet, fds),
                Some(Err(error)) => connection.refuse(ErrorKind::Invalid, error),
                None => {}
            }
        } else if flags.intersects(PollFlags::HUP | PollFlags::ERR) {
            connection.dead = true;
        }
    }

    fn packet(&mut self, id: u64, packet: &[u8], fds: Vec<OwnedFd>) {
        let reply = match protocol::parse_request(packet, fds.len()) {
            Ok(request) => self.request(id, request, fds),
            Err(error) => Err(invalid(error)),
        };
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match reply {
            Ok(Some((reply, fds))) => connection.send(&reply, fds),
            Ok(None) => {}
            Err(error) => connection.send(&Reply::Error(error), Vec::new()),
        }
    }

    /// Carries a request out. `None` if a task does it and the reply comes later.
    fn request(
        &mut self,
        id: u64,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<Option<(Reply, Vec<OwnedFd>)>, ErrorReply> {
        let ok = Ok(Some((Reply::Ok, Vec::new())));
        match request {
            Request::Status => self.status().map(Some).map_err(system),
            Request::Exec(exec) => {
                if self.connections.get(&id).is_some_and(|connection| connection.program.is_some()) {
                    return Err(invalid("this connection runs a program already"));
                }
                let task = Task::run_program(&self.running, &exec, fds, id)?;
                self.adopt(task);
                Ok(None)
            }
            Request::ExecSignal { signal } => {
                let program = self.connections.get(&id).and_then(|connection| connection.program);
                let task = program.and_then(|program| self.tasks.get(&program));
                let task = task.ok_or_else(|| not_found("this connection runs no program"))?;
                task.signal(signal).map_err(system)?;
                ok
            }
            Request::Console { force } => self.attach_console(id, force).map(|fd| Some((Reply::Console, vec![fd]))),
            Request::ConsoleResize(size) => {
                self.running.console.resize(size).map_err(system)?;
                ok
            }
            Request::SignalInit { signal } => {
                process::signal(&self.running.init, signal).map_err(system)?;
                ok
            }
            Request::Stop => {
                process::signal(&self.running.init, stop::signal_for(self.running.init_pid)).map_err(system)?;
                ok
            }
            Request::AttachMount(mount) => {
                check_target(&mount.target).map_err(invalid)?;
                let source = fds.into_iter().next().ok_or_else(|| invalid("no mount came along"))?;
                let outcome = hotplug::attach_mount(&mut self.running, &mount, source, id);
                self.go_on(outcome)
            }
            Request::DetachMount { target } => {
                check_target(&target).map_err(invalid)?;
                let outcome = hotplug::detach_mount(&self.running, &target, id);
                self.go_on(outcome)
            }
            Request::AttachDevice(device) => {
                check_target(&device.target).map_err(invalid)?;
                let outcome = hotplug::attach_device(&mut self.running, &device, id);
                self.go_on(outcome)
            }
            Request::DetachDevice { target } => {
                check_target(&target).map_err(invalid)?;
                let outcome = hotplug::detach_device(&self.running, &target, id);
                self.go_on(outcome)
            }
            Request::ExecResize(_) | Request::GuestState | Request::Files | Request::Archive => {
                Err(invalid("this is a container: only a virtual machine's monitor does that"))
            }
            Request::Watch => {
                let ready = self.is_ready();
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.watching = true;
                    connection.send(&Reply::Ok, Vec::new());
                    if ready {
                        connection.send(&Reply::Ready, Vec::new());
                    }
                }
                Ok(None)
            }
        }
    }

    fn is_ready(&self) -> bool {
        self.running.ready || !stop::announces_readiness(self.running.init_pid)
    }

    /// Hears what init says of itself; the first time that it is ready, the watchers are told.
    fn notified(&mut self) {
        if !duet_sys::notify::heard_ready(&self.running.notify) || self.running.ready {
            return;
        }
        self.running.ready = true;
        for connection in self.connections.values_mut().filter(|connection| connection.watching) {
            connection.send(&Reply::Ready, Vec::new());
        }
    }

    fn status(&self) -> Result<(Reply, Vec<OwnedFd>), StepError> {
        let running = &self.running;
        let init = running.init.try_clone().step("share init's descriptor")?;
        let netlink = boot::netlink_in(&running.netns)?;
        let status = Status {
            name: running.name.clone(),
            init_pid: running.init_pid,
            monitor_pid: std::process::id(),
            started_at: running.started_at,
            start_timings: running.timings.clone(),
            console_attached: running.console.is_attached(),
            ready: self.is_ready(),
            notes: running.notes.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Ok((Reply::Status(status), vec![init, netlink]))
    }

    fn attach_console(&mut self, id: u64, force: bool) -> Result<OwnedFd, ErrorReply> {
        if self.running.console.is_attached() {
            if !force {
                let message = "another client is attached to the console".to_owned();
                return Err(ErrorReply { kind: ErrorKind::Busy, message });
            }
            for other in self.connections.values_mut().filter(|other| other.has_console) {
                other.has_console = false;
                other.send(&Reply::ConsoleTaken, Vec::new());
            }
        }
        let stream = self.running.console.attach().map_err(system)?;
        for (other, connection) in &mut self.connections {
            connection.has_console = *other == id;
        }
        Ok(stream)
    }

    fn go_on(&mut self, outcome: Result<Outcome, StepError>) -> Result<Option<(Reply, Vec<OwnedFd>)>, ErrorReply> {
        match outcome.map_err(system)? {
            Outcome::Done => Ok(Some((Reply::Ok, Vec::new()))),
            Outcome::Started(task) => {
                self.adopt(task);
                Ok(None)
            }
        }
    }

    /// Takes a task in; its connection waits for it.
    fn adopt(&mut self, task: Task) {
        let id = self.new_id();
        if let Some(connection) = task.connection.and_then(|connection| self.connections.get_mut(&connection)) {
            connection.waits_for = Some(id);
        }
        self.tasks.insert(id, task);
    }

    /// Hears from a task that has not reported yet.
    fn hear(&mut self, id: TaskId) {
        loop {
            let Some(task) = self.tasks.get_mut(&id) else { return };
            let (reply, fds) = match task.hear() {
                News::Quiet => return,
                News::Terminal(terminal) => {
                    task.terminal = Some(terminal);
                    continue;
                }
                News::Closed => match task.purpose {
                    Purpose::Program { .. } => {
                        task.started = true;
                        let terminal = task.terminal.take();
                        (Reply::ExecStarted { pid: task.pid.unsigned_abs() }, Vec::from_iter(terminal))
                    }
                    Purpose::Attach { .. } | Purpose::Change => {
                        (Reply::Error(system("the helper in the container died")), Vec::new())
                    }
                },
                News::Done => (Reply::Ok, Vec::new()),
                News::Failed(error) => (Reply::Error(error), Vec::new()),
            };
            self.report(id, &reply, fds);
            return;
        }
    }

    /// Gives a task's connection the reply that it waits for.
    fn report(&mut self, id: TaskId, reply: &Reply, fds: Vec<OwnedFd>) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if let Purpose::Attach { offered } = &task.purpose
            && let Err(error) = self.running.stage.withdraw(offered)
        {
            super::say(error);
        }
        let connection = task.connection.and_then(|connection| self.connections.get_mut(&connection));
        if let Some(connection) = connection {
            connection.waits_for = None;
            connection.program = task.started.then_some(id);
            connection.send(reply, fds);
        }
    }

    fn task_ended(&mut self, id: TaskId) {
        self.hear(id);
        let Some(status) = self.tasks.get(&id).and_then(Task::reap) else { return };
        let Some(task) = self.tasks.remove(&id) else { return };
        let connection = task.connection.and_then(|connection| self.connections.get_mut(&connection));
        if let Some(connection) = connection.filter(|_| task.started) {
            connection.program = None;
            connection.send(&Reply::ExecExited { status }, Vec::new());
        }
    }

    fn kill_late_tasks(&mut self) {
        let now = Instant::now();
        for task in self.tasks.values().filter(|task| task.link.is_some() && task.deadline <= now) {
            let _ = process::signal(&task.pidfd, libc::SIGKILL);
        }
    }

    /// Closes the connections that are dead, and what hung on them.
    fn bury_connections(&mut self) {
        let dead: Vec<u64> = self.connections.iter().filter(|(_, c)| c.dead).map(|(id, _)| *id).collect();
        for id in dead {
            let Some(connection) = self.connections.remove(&id) else { continue };
            if connection.has_console {
                self.running.console.detach();
            }
            for task in self.tasks.values_mut().filter(|task| task.connection == Some(id)) {
                task.connection = None;
                if matches!(task.purpose, Purpose::Program { interactive: true }) {
                    let _ = task.signal(libc::SIGKILL);
                }
            }
        }
    }

    /// Init has ended, and with it every process of the container.
    fn end(mut self) -> Result<(), StepError> {
        let status = task::reap(self.running.init.as_fd(), WaitIdOptions::EXITED)
            .ok_or_else(|| StepError::new("take init's exit status", "there is none"))?;
        let record = ExitRecord { reason: ExitReason::from_wait(status), at: clock::now() };
        self.running.console.drain_all();
        for id in self.tasks.keys().copied().collect::<Vec<_>>() {
            self.task_ended(id);
        }
        // Those who are there are told even where it cannot be written down, as on a full disk.
        let recorded = ending::record(&self.running.run_dir, &record);
        ending::announce(&self.running.run_dir, &mut self.connections, &record)?;
        recorded
    }
}

fn system(error: impl ToString) -> ErrorReply {
    ErrorReply { kind: ErrorKind::System, message: error.to_string() }
}

fn invalid(error: impl ToString) -> ErrorReply {
    ErrorReply { kind: ErrorKind::Invalid, message: error.to_string() }
}

fn not_found(error: impl ToString) -> ErrorReply {
    ErrorReply { kind: ErrorKind::NotFound, message: error.to_string() }
}
