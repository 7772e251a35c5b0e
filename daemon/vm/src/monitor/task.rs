//! What is asked of the guest's agent for a client: on a thread, because that takes as long as the guest likes, up to a limit.

use std::os::fd::OwnedFd;

use duet_agent::client::{Client, ClientError, Exec, Stdio};
use duet_agent::protocol::message::{self, Power};
use duet_control::protocol::{self, ErrorKind, ErrorReply, ExecRequest, ExecStatus, MAX_PACKET, PtySize};

use super::AGENT_TIMEOUT;
use super::messages::{Message, Teller};

/// The bytes of a thread's stack.
const STACK: usize = 128 * 1024;

/// The most bytes of a guest's state: with the rest of the reply a packet.
const STATE_MAX: usize = MAX_PACKET - 1024;

/// What is asked.
#[derive(Debug)]
pub(super) enum Task {
    /// A program with three descriptors.
    Exec(message::ExecRequest, Stdio),
    /// A program in a terminal.
    ExecPty(message::ExecRequest, message::PtySize),
    /// An archive of the root, and where complaints about that go.
    Archive(OwnedFd, OwnedFd),
    State,
    Files,
    /// To shut down.
    Stop,
}

/// What has become of it.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The program runs; with a terminal, which is a stream.
    Program(Exec, Option<OwnedFd>),
    State(serde_json::Value),
    Files(OwnedFd),
    /// The guest shuts down.
    Stopping,
    /// The agent did not do it: there is still the power button.
    CannotStop,
}

/// Has it be asked for a connection.
pub(super) fn start(task: Task, client: Client, connection: u64, teller: Teller) -> Result<(), ErrorReply> {
    let run = move || {
        let outcome = carry_out(task, &client);
        // The connection must not outlive its client in the loop by what is left here.
        drop(client);
        teller.tell(Message::Task { connection, outcome });
    };
    let started = std::thread::Builder::new().name("task".to_owned()).stack_size(STACK).spawn(run);
    started.map(drop).map_err(|error| reply(ErrorKind::System, format_args!("start a thread: {error}")))
}

fn carry_out(task: Task, client: &Client) -> Result<Outcome, ErrorReply> {
    let done = match task {
        Task::Exec(request, stdio) => {
            client.exec(request, stdio, AGENT_TIMEOUT).map(|program| Outcome::Program(program, None))
        }
        Task::ExecPty(request, size) => client
            .exec_pty(request, size, AGENT_TIMEOUT)
            .map(|(program, terminal)| Outcome::Program(program, Some(terminal))),
        Task::Archive(archive, errors) => {
            client.archive(archive, errors, AGENT_TIMEOUT).map(|program| Outcome::Program(program, None))
        }
        Task::State => {
            let state = client.state(AGENT_TIMEOUT).map_err(error)?;
            let state = serde_json::to_value(state).map_err(|error| reply(ErrorKind::Other, error))?;
            if protocol::encode(&state).len() > STATE_MAX {
                return Err(reply(ErrorKind::Other, "the virtual machine says more of its state than there can be"));
            }
            return Ok(Outcome::State(state));
        }
        Task::Files => client.files(AGENT_TIMEOUT).map(Outcome::Files),
        Task::Stop => Ok(match client.power(Power { reboot: false, force: false }, AGENT_TIMEOUT) {
            // It may be gone before it has answered.
            Ok(()) | Err(ClientError::Lost(_)) => Outcome::Stopping,
            Err(_) => Outcome::CannotStop,
        }),
    };
    done.map_err(error)
}

/// A client's request to run a program, as one to the agent. `fds` are those that came along.
pub(super) fn exec(request: ExecRequest, fds: Vec<OwnedFd>) -> Result<Task, ErrorReply> {
    let cwd = request.cwd.map(|cwd| {
        cwd.into_os_string()
            .into_string()
            .map_err(|_| reply(ErrorKind::Invalid, "the working directory's path is not UTF-8"))
    });
    let asked = message::ExecRequest {
        argv: request.argv,
        environment: request.environment,
        cwd: cwd.transpose()?,
        uid: request.uid,
        gid: request.gid,
        pty: None,
    };
    let Some(PtySize { columns, rows }) = request.pty else {
        let fds = <[OwnedFd; 3]>::try_from(fds);
        let [stdin, stdout, stderr] =
            fds.map_err(|_| reply(ErrorKind::Invalid, "three descriptors must come along"))?;
        return Ok(Task::Exec(asked, Stdio { stdin, stdout, stderr }));
    };
    Ok(Task::ExecPty(asked, message::PtySize { columns, rows }))
}

/// The request to pack the root. `fds` are those that came along.
pub(super) fn archive(fds: Vec<OwnedFd>) -> Result<Task, ErrorReply> {
    let [archive, errors] =
        <[OwnedFd; 2]>::try_from(fds).map_err(|_| reply(ErrorKind::Invalid, "two descriptors must come along"))?;
    Ok(Task::Archive(archive, errors))
}

/// How a program ended, kept to what it can be.
pub(super) fn status(said: message::ExecStatus) -> ExecStatus {
    match said {
        message::ExecStatus::Code(code) => ExecStatus::Code(code & 0xff),
        message::ExecStatus::Signal(signal) => ExecStatus::Signal(signal & 0x7f),
    }
}

/// What the client is told of a failure.
fn error(error: ClientError) -> ErrorReply {
    let kind = match &error {
        ClientError::Refused(refused) => match refused.kind {
            message::ErrorKind::Invalid => ErrorKind::Invalid,
            message::ErrorKind::CommandNotFound => ErrorKind::CommandNotFound,
            message::ErrorKind::CommandNotExecutable => ErrorKind::CommandNotExecutable,
            message::ErrorKind::System => ErrorKind::System,
            message::ErrorKind::Other => ErrorKind::Other,
        },
        ClientError::TooLarge => ErrorKind::Invalid,
        ClientError::System(_) => ErrorKind::System,
        ClientError::TimedOut { .. } | ClientError::Lost(_) | ClientError::WrongAnswer | ClientError::Busy => {
            ErrorKind::Other
        }
    };
    reply(kind, error)
}

pub(super) fn reply(kind: ErrorKind, message: impl ToString) -> ErrorReply {
    ErrorReply { kind, message: message.to_string() }
}
