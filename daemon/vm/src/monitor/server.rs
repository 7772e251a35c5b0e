//! The monitor's loop while the machine runs.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::Thread;
use std::time::{Duration, Instant};

use duet_agent::client::{Client, Exec};
use duet_agent::protocol::message;
use duet_control::monitor::console::Console;
use duet_control::monitor::{Connection, clock, ending, say};
use duet_control::protocol::{
    self, ErrorKind, ErrorReply, ExecStatus, ExitReason, ExitRecord, PtySize, Reply, Request, Status,
};
use duet_control::step::{Step, StepError};
use duet_sys::socket;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::agent::{self, Door, News};
use super::complaints::Complaints;
use super::machine::Machine;
use super::messages::{self, Message, Messages, Teller};
use super::task::{self, Outcome, Task, reply};

/// How many clients may be connected. The daemon needs a handful, and one for each program that runs.
const CONNECTION_LIMIT: usize = 1024;
/// How many requests may be on their way to the agent, each of which is a thread.
const TASK_LIMIT: usize = 64;
/// How long no client is accepted after that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A running virtual machine.
pub(super) struct Running {
    pub name: String,
    pub notes: BTreeMap<String, Option<String>>,
    pub machine: Machine,
    pub complaints: Complaints,
    pub run_dir: OwnedFd,
    pub listener: OwnedFd,
    pub console: Console,
    pub started_at: f64,
    pub timings: Vec<(String, f64)>,
}

/// A program that runs in the guest.
struct Program {
    exec: Exec,
    /// The connection that asked for it, while that lives.
    connection: Option<u64>,
    /// It has a terminal, and ends with its connection.
    interactive: bool,
}

/// What woke the loop.
#[derive(Clone, Copy)]
enum Source {
    Machine,
    Line,
    Complaints,
    Listener,
    Message,
    ConsoleOutput,
    ConsoleInput,
    ConsoleClient,
    Connection(u64),
    Program(u64),
}

struct Server {
    running: Running,
    connections: BTreeMap<u64, Connection>,
    programs: BTreeMap<u64, Program>,
    next_id: u64,
    agent: Option<Client>,
    /// Looks for the agent.
    watch: Thread,
    /// Whether the guest's system is up.
    up: bool,
    /// How many requests are on their way to the agent.
    tasks: usize,
    teller: Teller,
    messages: Messages,
    /// When clients are accepted again, after that failed.
    accept_from: Option<Instant>,
}

/// The reply to a request, with descriptors; `None` if it comes later.
type Answer = Result<Option<(Reply, Vec<OwnedFd>)>, ErrorReply>;

/// Serves until the machine ends.
pub(super) fn serve(running: Running, door: Door) -> Result<(), StepError> {
    let (teller, messages) = messages::channel()?;
    let watch = agent::watch(door, teller.clone())?;
    let mut server = Server {
        running,
        connections: BTreeMap::new(),
        programs: BTreeMap::new(),
        next_id: 1,
        agent: None,
        watch,
        up: false,
        tasks: 0,
        teller,
        messages,
        accept_from: None,
    };
    while !server.turn()? {}
    server.end()
}

impl Server {
    /// Waits for something to happen and acts on it. Says whether the machine has ended.
    fn turn(&mut self) -> Result<bool, StepError> {
        let mut ended = false;
        for (source, flags) in self.wait()? {
            match source {
                Source::Machine => ended = true,
                Source::Line => self.running.machine.line.read(),
                Source::Complaints => self.running.complaints.read(),
                Source::Listener => self.accept(),
                Source::Message => self.hear(),
                Source::ConsoleOutput => self.running.console.drain(),
                Source::ConsoleInput => self.running.console.feed(),
                Source::ConsoleClient => self.running.console.client_ready(flags),
                Source::Connection(id) => self.connection_ready(id, flags),
                Source::Program(id) => self.program_ended(id),
            }
        }
        self.running.console.expire();
        self.bury_connections();
        Ok(ended)
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
        for (id, program) in &self.programs {
            watch(Source::Program(*id), program.exec.as_fd(), PollFlags::IN);
        }
        let console = self.running.console.interest();
        let console_sources = [
            (Source::ConsoleOutput, console.output),
            (Source::ConsoleInput, console.input),
            (Source::ConsoleClient, console.client),
        ];
        for (source, interest) in console_sources {
            if let Some((fd, flags)) = interest {
                watch(source, fd, flags);
            }
        }
        if let Some(line) = self.running.machine.line.interest() {
            watch(Source::Line, line, PollFlags::IN);
        }
        if let Some(complaints) = self.running.complaints.interest() {
            watch(Source::Complaints, complaints, PollFlags::IN);
        }
        if self.accept_from.is_none_or(|from| from <= Instant::now()) {
            watch(Source::Listener, self.running.listener.as_fd(), PollFlags::IN);
        }
        watch(Source::Message, self.messages.as_fd(), PollFlags::IN);
        watch(Source::Machine, self.running.machine.as_fd(), PollFlags::IN);

        let accept = self.accept_from.filter(|from| *from > Instant::now());
        let due = self.running.console.deadline().into_iter().chain(accept).min();
        let timeout = due.and_then(|due| Timespec::try_from(due.saturating_duration_since(Instant::now())).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error).step("wait for events"),
        }
        Ok(sources.into_iter().zip(&fds).map(|(s, fd)| (s, fd.revents())).filter(|(_, f)| !f.is_empty()).collect())
    }

    fn accept(&mut self) {
        loop {
            match socket::accept(&self.running.listener) {
                Ok(None) => return,
                Ok(Some(socket)) if self.connections.len() < CONNECTION_LIMIT => {
                    self.next_id += 1;
                    self.connections.insert(self.next_id, Connection::new(socket));
                }
                // Closed at once.
                Ok(Some(_)) => {}
                Err(error) => {
                    // No descriptors or memory left: clients wait in the queue, and the loop must not spin over them.
                    say(format_args!("accept a client: {error}"));
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
        let answer = match protocol::parse_request(packet, fds.len()) {
            Ok(request) => self.request(id, request, fds),
            Err(error) => Err(reply(ErrorKind::Invalid, error)),
        };
        self.answer(id, answer);
    }

    fn answer(&mut self, id: u64, answer: Answer) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match answer {
            Ok(Some((reply, fds))) => connection.send(&reply, fds),
            Ok(None) => {}
            Err(error) => connection.send(&Reply::Error(error), Vec::new()),
        }
    }

    /// Carries a request out.
    fn request(&mut self, id: u64, request: Request, fds: Vec<OwnedFd>) -> Answer {
        let ok = Ok(Some((Reply::Ok, Vec::new())));
        match request {
            Request::Status => self.status().map(Some).map_err(system),
            Request::Exec(exec) => {
                if self.connections.get(&id).is_some_and(|connection| connection.program.is_some()) {
                    return Err(reply(ErrorKind::Invalid, "this connection runs a program already"));
                }
                let task = task::exec(exec, fds)?;
                self.ask(id, task)
            }
            Request::Archive => {
                if self.connections.get(&id).is_some_and(|connection| connection.program.is_some()) {
                    return Err(reply(ErrorKind::Invalid, "this connection runs a program already"));
                }
                let task = task::archive(fds)?;
                self.ask(id, task)
            }
            Request::ExecSignal { signal } => {
                // One that has just ended hears nothing, as one that is about to.
                let _ = self.program_of(id)?.exec.signal(signal);
                ok
            }
            Request::ExecResize(PtySize { columns, rows }) => {
                let _ = self.program_of(id)?.exec.resize(message::PtySize { columns, rows });
                ok
            }
            Request::GuestState => self.ask(id, Task::State),
            Request::Files => self.ask(id, Task::Files),
            Request::Console { force } => self.attach_console(id, force).map(|fd| Some((Reply::Console, vec![fd]))),
            Request::ConsoleResize(size) => {
                self.running.console.resize(size).map_err(system)?;
                ok
            }
            Request::SignalInit { signal: libc::SIGKILL } => {
                self.running.machine.child.kill().map_err(system)?;
                ok
            }
            Request::SignalInit { .. } => {
                Err(reply(ErrorKind::Invalid, "a virtual machine takes no signal but SIGKILL (9)"))
            }
            Request::Stop if self.agent().is_some() => self.ask(id, Task::Stop),
            Request::Stop => {
                self.running.machine.line.power_button().map_err(system)?;
                ok
            }
            Request::AttachMount(_)
            | Request::DetachMount { .. }
            | Request::AttachDevice(_)
            | Request::DetachDevice { .. } => Err(reply(
                ErrorKind::Invalid,
                "devices cannot be added to or taken from a running virtual machine yet: stop it first",
            )),
            Request::Watch => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.watching = true;
                    connection.send(&Reply::Ok, Vec::new());
                    if self.up {
                        connection.send(&Reply::Ready, Vec::new());
                    }
                }
                Ok(None)
            }
        }
    }

    /// The agent, if it is there. One that is lost is looked for.
    fn agent(&mut self) -> Option<Client> {
        if self.agent.as_ref().is_some_and(Client::is_lost) {
            self.agent = None;
            self.watch.unpark();
        }
        self.agent.clone()
    }

    /// Asks the agent for a connection, which waits for it.
    fn ask(&mut self, id: u64, task: Task) -> Answer {
        let client =
            self.agent().ok_or_else(|| reply(ErrorKind::Other, "the virtual machine's agent does not answer yet"))?;
        if self.tasks >= TASK_LIMIT {
            return Err(reply(ErrorKind::Other, "too many requests wait for the virtual machine's agent"));
        }
        task::start(task, client, id, self.teller.clone())?;
        self.tasks += 1;
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.waits_for = Some(id);
        }
        Ok(None)
    }

    fn program_of(&self, id: u64) -> Result<&Program, ErrorReply> {
        let program = self.connections.get(&id).and_then(|connection| connection.program);
        program
            .and_then(|program| self.programs.get(&program))
            .ok_or_else(|| reply(ErrorKind::NotFound, "this connection runs no program"))
    }

    fn status(&self) -> Result<(Reply, Vec<OwnedFd>), StepError> {
        let running = &self.running;
        let machine = running.machine.as_fd().try_clone_to_owned().step("share the machine's descriptor")?;
        let status = Status {
            name: running.name.clone(),
            init_pid: running.machine.child.pid,
            monitor_pid: std::process::id(),
            started_at: running.started_at,
            start_timings: running.timings.clone(),
            console_attached: running.console.is_attached(),
            ready: self.up,
            notes: running.notes.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Ok((Reply::Status(status), vec![machine]))
    }

    fn attach_console(&mut self, id: u64, force: bool) -> Result<OwnedFd, ErrorReply> {
        if self.running.console.is_attached() {
            if !force {
                return Err(reply(ErrorKind::Busy, "another client is attached to the console"));
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

    /// Hears what the other threads tell.
    fn hear(&mut self) {
        while let Some(message) = self.messages.next() {
            match message {
                Message::Agent(News::Connected(client)) => self.agent = Some(client),
                Message::Agent(News::Up) => {
                    self.up = true;
                    for connection in self.connections.values_mut().filter(|connection| connection.watching) {
                        connection.send(&Reply::Ready, Vec::new());
                    }
                }
                Message::Task { connection, outcome } => {
                    self.tasks = self.tasks.saturating_sub(1);
                    if let Some(connection) = self.connections.get_mut(&connection) {
                        connection.waits_for = None;
                    }
                    let answer = outcome.and_then(|outcome| self.outcome(connection, outcome));
                    self.answer(connection, answer);
                }
            }
        }
    }

    fn outcome(&mut self, id: u64, outcome: Outcome) -> Answer {
        let ok = Ok(Some((Reply::Ok, Vec::new())));
        match outcome {
            Outcome::Program(exec, terminal) => {
                let pid = exec.pid();
                let connection = self.connections.get_mut(&id);
                let interactive = terminal.is_some();
                if connection.is_none() && interactive {
                    // Dropped, it ends.
                    return Ok(None);
                }
                self.next_id += 1;
                let program = Program { exec, connection: connection.is_some().then_some(id), interactive };
                self.programs.insert(self.next_id, program);
                if let Some(connection) = connection {
                    connection.program = Some(self.next_id);
                }
                Ok(Some((Reply::ExecStarted { pid }, Vec::from_iter(terminal))))
            }
            Outcome::State(state) => Ok(Some((Reply::GuestState(state), Vec::new()))),
            Outcome::Files(stream) => Ok(Some((Reply::Files, vec![stream]))),
            Outcome::Stopping => ok,
            Outcome::CannotStop => {
                self.running.machine.line.power_button().map_err(system)?;
                ok
            }
        }
    }

    /// A program has ended, or will not be heard of any more.
    fn program_ended(&mut self, id: u64) {
        let Some(program) = self.programs.get_mut(&id) else { return };
        let status = match program.exec.wait(Duration::ZERO) {
            Ok(None) => return,
            Ok(Some(status)) => task::status(status),
            // With the connection to the agent went what the program had to say.
            Err(_) => ExecStatus::Signal(libc::SIGKILL),
        };
        let Some(program) = self.programs.remove(&id) else { return };
        if let Some(connection) = program.connection.and_then(|connection| self.connections.get_mut(&connection)) {
            connection.program = None;
            connection.send(&Reply::ExecExited { status }, Vec::new());
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
            // What has a terminal ends with it; all else goes on.
            self.programs.retain(|_, program| program.connection != Some(id) || !program.interactive);
            for program in self.programs.values_mut().filter(|program| program.connection == Some(id)) {
                program.connection = None;
            }
        }
    }

    /// The machine has ended, and with it everything in it.
    fn end(mut self) -> Result<(), StepError> {
        let status = self.running.machine.child.reap();
        self.running.machine.line.read();
        self.running.complaints.read();
        self.running.console.drain_all();
        let reason = match status {
            Some(status) => self.running.machine.line.reason(status),
            None => ExitReason::Signal { signal: libc::SIGKILL },
        };
        for program in std::mem::take(&mut self.programs).into_values() {
            if let Some(connection) = program.connection.and_then(|connection| self.connections.get_mut(&connection)) {
                connection.send(&Reply::ExecExited { status: ExecStatus::Signal(libc::SIGKILL) }, Vec::new());
            }
        }
        let record = ExitRecord { reason, at: clock::now() };
        // Those who are there are told even where it cannot be written down, as on a full disk.
        let recorded = ending::record(&self.running.run_dir, &record);
        ending::announce(&self.running.run_dir, &mut self.connections, &record)?;
        recorded
    }
}

fn system(error: impl ToString) -> ErrorReply {
    reply(ErrorKind::System, error)
}
