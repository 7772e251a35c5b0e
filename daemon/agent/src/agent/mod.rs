//! The guest's side: one process with one thread, which serves one client at a time.
//!
//! It is started by [`crate::init`] just before that becomes the image's own init, and lives in the same namespaces, in the
//! image's root. Its program lies in the initramfs' memory, deleted, so that it keeps no filesystem busy. As its first
//! argument begins with `@`, systemd does not kill it at shutdown (<https://systemd.io/ROOT_STORAGE_DAEMONS/>): the host
//! can ask to the very end.

mod archive;
mod child;
mod doors;
mod network;
mod power;
mod program;
mod state;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use doors::Doors;
use power::InitKind;
pub(crate) use power::end_now;
use program::{Program, Progress, Streams};

use crate::mux::{Engine, Event, Lost, wait};
use crate::protocol::message::{self, Control, ErrorKind, ErrorReply, Power, Reply, Request};

/// What ps(1) shows.
pub const NAME: &str = "@duet-agent";

/// The abstract unix socket on which the guest's init says that the system is up (sd_notify(3)).
pub const NOTIFY_SOCKET: &str = "@duet/notify";

/// How long a forced end waits for its answer to leave.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves whoever comes through vsock or the serial port, for ever.
///
/// # Errors
/// What waiting failed with, which it does only if the kernel is out of memory.
pub fn run() -> io::Result<()> {
    let mut agent = Agent::new(Some(Doors::new()));
    // Programs that take the last memory shall not take this one with them. Where that cannot be had there is no harm.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    agent.notify = duet_sys::notify::listen(&NOTIFY_SOCKET.as_bytes()[1..]).ok();
    loop {
        agent.turn()?;
    }
}

/// Serves one connection, and returns when it has ended.
///
/// # Errors
/// As [`run`].
pub fn run_on(transport: OwnedFd) -> io::Result<()> {
    let mut agent = Agent::new(None);
    agent.engine = Some(Engine::guest(transport)?);
    while agent.engine.is_some() {
        agent.turn()?;
    }
    Ok(())
}

struct Agent {
    doors: Option<Doors>,
    engine: Option<Engine>,
    programs: Vec<Program>,
    notify: Option<OwnedFd>,
    /// The init has said that the system is up.
    ready: bool,
    /// An end that was asked for, and when it comes in any case.
    farewell: Option<(Power, Instant)>,
}

/// A descriptor that is waited for.
enum Waited {
    Door(doors::Door),
    Notify,
    Program(u32),
}

impl Agent {
    fn new(doors: Option<Doors>) -> Self {
        Self { doors, engine: None, programs: Vec::new(), notify: None, ready: false, farewell: None }
    }

    /// Waits once, and does what can be done.
    fn turn(&mut self) -> io::Result<()> {
        let mut waited = Vec::new();
        if let Some(doors) = &self.doors {
            waited.extend(doors.fds(self.engine.is_some()).into_iter().map(|(door, fd)| (Waited::Door(door), fd)));
        }
        waited.extend(self.notify.as_ref().map(|fd| (Waited::Notify, fd.as_fd())));
        for program in &self.programs {
            waited.extend(program.fds().map(|fd| (Waited::Program(program.pid), fd)));
        }
        let fds: Vec<_> = waited.iter().map(|(_, fd)| *fd).collect();
        let ready = wait(self.engine.as_ref(), &fds, self.timeout())?;
        let waited: Vec<Waited> =
            waited.into_iter().zip(&ready.others).filter(|(_, ready)| **ready).map(|((what, _), _)| what).collect();

        if let Some(engine) = &mut self.engine {
            let mut events = Vec::new();
            let outcome = engine.progress(&ready.engine, &mut events);
            for event in events {
                self.heard(event);
            }
            if let Err(lost) = outcome {
                self.lose(&lost);
            }
        }
        for what in waited {
            match what {
                Waited::Door(door) => self.door(door),
                Waited::Notify => {
                    self.ready |= self.notify.as_ref().is_some_and(duet_sys::notify::heard_ready);
                }
                Waited::Program(pid) => self.look_at(pid),
            }
        }
        self.tidy();
        self.part();
        Ok(())
    }

    fn timeout(&self) -> Option<Duration> {
        let starts = self.programs.iter().filter_map(Program::deadline);
        let next = starts.chain(self.farewell.map(|(_, at)| at)).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn door(&mut self, door: doors::Door) {
        let Some(transport) = self.doors.as_mut().and_then(|doors| doors.open(door)) else { return };
        // A client that comes while another is there takes its place: the other is gone, and its end was not noticed.
        match Engine::guest(transport) {
            Ok(engine) => {
                self.abandon();
                self.engine = Some(engine);
            }
            Err(error) => report(&format!("a connection cannot be set up: {error}")),
        }
    }

    fn lose(&mut self, lost: &Lost) {
        if !matches!(lost, Lost::Ended) {
            report(&lost.to_string());
        }
        self.engine = None;
        self.abandon();
        if let Some(doors) = &mut self.doors {
            doors.rest();
        }
    }

    /// The client is gone: what had a terminal goes too, what had not runs on without its descriptors.
    fn abandon(&mut self) {
        for program in &mut self.programs {
            program.abandon();
        }
    }

    fn heard(&mut self, event: Event) {
        match event {
            Event::Greeted => {}
            Event::Reset => self.abandon(),
            Event::Opened(channel, request) => {
                let reply = match message::decode(&request) {
                    Ok(request) => self.carry_out(channel, request),
                    Err(error) => Some(Reply::Error(error)),
                };
                if let Some(reply) = reply {
                    self.answer(channel, &reply);
                }
            }
            Event::Message(channel, control) => {
                let Some(program) = self.programs.iter().find(|program| program.channel == Some(channel)) else {
                    return;
                };
                match message::decode(&control) {
                    // A program that ended hears nothing, which is what was wanted; a terminal that is gone has no size.
                    Ok(Control::Signal { signal }) => drop(program.signal(signal)),
                    Ok(Control::Resize(size)) => drop(program.resize(size)),
                    Err(error) => report(&error.message),
                }
            }
            Event::Closed(channel) => {
                for program in self.programs.iter_mut().filter(|program| program.channel == Some(channel)) {
                    program.abandon();
                }
            }
        }
    }

    /// Does what was asked; `None` for what is answered later.
    fn carry_out(&mut self, channel: u32, request: Request) -> Option<Reply> {
        let done = |outcome: Result<(), ErrorReply>| outcome.map_or_else(Reply::Error, |()| Reply::Done);
        match request {
            Request::Exec(request) => {
                let started = Program::start(Some(channel), &request);
                started.and_then(|started| self.connect(channel, started)).err().map(Reply::Error)
            }
            Request::Files => {
                let started = Program::serve_files(channel);
                started.and_then(|started| self.connect(channel, started)).err().map(Reply::Error)
            }
            Request::Archive => {
                let started = Program::archive(channel);
                started.and_then(|started| self.connect(channel, started)).err().map(Reply::Error)
            }
            Request::State => Some(Reply::State(Box::new(state::read(self.ready)))),
            Request::SetTime { seconds, nanoseconds } => Some(done(power::set_time(seconds, nanoseconds))),
            Request::Power(power) if power.force || InitKind::running() == InitKind::None => {
                self.farewell = Some((power, Instant::now() + FAREWELL));
                Some(Reply::Done)
            }
            Request::Power(power) => Some(done(match power::ask_init(power.reboot) {
                Ok(None) => Ok(()),
                Ok(Some(command)) => Program::start(None, &command).map(|(program, _)| self.programs.push(program)),
                Err(error) => Err(error),
            })),
        }
    }

    /// Connects what was started with its channel.
    fn connect(&mut self, channel: u32, (program, streams): (Program, Streams)) -> Result<(), ErrorReply> {
        self.programs.push(program);
        for (stream, fd) in streams {
            if let Some(engine) = &mut self.engine {
                engine.attach(channel, stream, fd).map_err(|error| ErrorReply::new(ErrorKind::System, error))?;
            }
        }
        Ok(())
    }

    fn answer(&mut self, channel: u32, reply: &Reply) {
        if let Some(engine) = &mut self.engine {
            engine.message(channel, &message::encode(reply));
            if !matches!(reply, Reply::Started { .. } | Reply::Exited { .. }) {
                engine.close(channel);
            }
        }
    }

    /// Something happened to a program.
    fn look_at(&mut self, pid: u32) {
        let Some(program) = self.programs.iter_mut().find(|program| program.pid == pid) else { return };
        let channel = program.channel;
        let reply = match program.look() {
            Progress::None => return,
            Progress::Started => Reply::Started { pid },
            Progress::Failed(error) => Reply::Error(error),
            Progress::Exited(status) => Reply::Exited { status },
        };
        if let Some(channel) = channel {
            self.answer(channel, &reply);
            if let (Reply::Exited { .. }, Some(engine)) = (&reply, &mut self.engine) {
                engine.finish(channel);
            }
        }
    }

    /// Forgets programs that have ended, and closes their channels once all that they wrote is sent.
    fn tidy(&mut self) {
        let engine = &mut self.engine;
        self.programs.retain_mut(|program| {
            program.enforce_deadline();
            let ended = program.ended();
            match (program.channel, engine.as_mut()) {
                (Some(channel), Some(engine)) if ended => {
                    let sending = engine.sending(channel);
                    if !sending {
                        engine.close(channel);
                    }
                    sending
                }
                _ => !ended,
            }
        });
    }

    /// Ends the system, if that is what was asked and the answer has left.
    fn part(&mut self) {
        let Some((power, deadline)) = self.farewell else { return };
        if self.engine.as_ref().is_none_or(Engine::flushed) || Instant::now() >= deadline {
            self.farewell = None;
            if InitKind::running() == InitKind::None {
                power::put_root_down();
            }
            if let Err(error) = power::end_now(power.reboot) {
                report(&format!("the system cannot be ended: {error}"));
            }
        }
    }
}

/// Tells the console, by way of the kernel's log.
pub(crate) fn report(what: &str) {
    use std::io::Write as _;
    // There is nobody else to tell.
    let _ = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/kmsg")
        .and_then(|mut log| log.write_all(format!("<4>duet-agent: {what}").as_bytes()));
}
