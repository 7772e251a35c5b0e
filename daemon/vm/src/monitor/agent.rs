//! The way to the guest's agent, and the thread that looks for it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::Thread;
use std::time::Duration;

use duet_agent::client::{Client, ClientError, connect_vsock};
use duet_agent::mux::Link;
use duet_control::step::{Step, StepError};
use rustix::fs::{AtFlags, Mode, OFlags};

use super::messages::{Message, Teller};
use crate::spec::Accelerator;

/// How long an agent that is there may take to greet. By QEMU's port the greeting waits in there for the agent to come.
const GREETING: Duration = Duration::from_secs(60);
/// How long it may take to be connected with over vsock, and to greet then.
const CONNECTION: Duration = Duration::from_secs(3);
/// How long after a failure another attempt follows: at first, and as time goes by.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];
/// How often a guest is asked whether it is up, until it says so.
const ASKING: Duration = Duration::from_secs(1);
/// How often a guest that is up is looked for if nobody else finds out that the connection is lost.
const LOOKING: Duration = Duration::from_secs(60);
/// How long after the loss of a connection another one is looked for.
const LOST: Duration = Duration::from_millis(500);
/// How often in a row a guest has to say that its init never tells whether it is up: at first it may be that the init is not
/// there yet.
const SILENT: u32 = 2;
/// The name of the socket in the run directory, for a moment.
const SOCKET_NAME: &str = "agent.sock";
/// The bytes of the thread's stack.
const STACK: usize = 128 * 1024;

/// A socket without a name, to which the monitor alone can connect.
#[derive(Debug)]
pub(super) struct Door {
    /// Refers to the socket's file, which is in no directory any more.
    place: OwnedFd,
    kind: Accelerator,
}

impl Door {
    /// Makes it, and the end at which the machine listens.
    pub fn make(run_dir: &OwnedFd, kind: Accelerator) -> Result<(Self, OwnedFd), StepError> {
        let step = "make the agent's socket";
        let remove = || rustix::fs::unlinkat(run_dir, SOCKET_NAME, AtFlags::empty());
        match remove() {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error).step(step),
        }
        // By way of /proc, so that the directory's own path can be longer than a socket's address.
        let path = format!("/proc/self/fd/{}/{SOCKET_NAME}", run_dir.as_raw_fd());
        let listener = UnixListener::bind(path).step(step)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = rustix::fs::openat(run_dir, SOCKET_NAME, flags, Mode::empty());
        remove().step(step)?;
        Ok((Self { place: place.step(step)?, kind }, listener.into()))
    }

    /// Connects and exchanges greetings.
    fn connect(&self) -> Result<Client, ClientError> {
        let path = format!("/proc/self/fd/{}", self.place.as_raw_fd());
        let stream = UnixStream::connect(path).map_err(ClientError::System)?;
        match self.kind {
            Accelerator::Kvm => Client::connect(connect_vsock(stream, CONNECTION)?, Link::Fresh, CONNECTION),
            Accelerator::Emulation => Client::connect(stream.into(), Link::Shared, GREETING),
        }
    }
}

/// What the thread tells.
#[derive(Debug)]
pub(super) enum News {
    /// The agent greets.
    Connected(Client),
    /// The guest's system is up. Told once.
    Up,
}

/// Starts the thread. It is to be unparked when somebody finds that the connection is lost, and ends with the process.
pub(super) fn watch(door: Door, teller: Teller) -> Result<Thread, StepError> {
    let run = move || {
        let mut up = Up::default();
        loop {
            let client = connect(&door);
            teller.tell(Message::Agent(News::Connected(client.clone())));
            while !client.is_lost() {
                if !up.known && up.ask(&client) {
                    teller.tell(Message::Agent(News::Up));
                }
                std::thread::park_timeout(if up.known { LOOKING } else { ASKING });
            }
            // A guest that breaks each connection does not keep the monitor busy by it.
            std::thread::sleep(LOST);
        }
    };
    let builder = std::thread::Builder::new().name("agent-watch".to_owned()).stack_size(STACK);
    Ok(builder.spawn(run).step("start a thread")?.thread().clone())
}

/// Tries until it succeeds.
fn connect(door: &Door) -> Client {
    let [mut pause, longest] = PAUSES;
    loop {
        if let Ok(client) = door.connect() {
            return client;
        }
        std::thread::sleep(pause);
        pause = (pause * 21 / 20).min(longest);
    }
}

/// Whether the guest is up.
#[derive(Default)]
struct Up {
    known: bool,
    silent: u32,
}

impl Up {
    /// Asks; says whether it is.
    fn ask(&mut self, client: &Client) -> bool {
        match client.state(super::AGENT_TIMEOUT).map(|state| state.up) {
            Ok(Some(up)) => self.known = up,
            Ok(None) => {
                self.silent += 1;
                self.known = self.silent >= SILENT;
            }
            // It is asked again.
            Err(_) => {}
        }
        self.known
    }
}
