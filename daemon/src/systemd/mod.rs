//! What Duet asks of the host's systemd, over D-Bus: a scope unit for each instance and each dnsmasq ([`scopes`]), an
//! entry among the machines ([`machined`]), names that the host resolves ([`resolved`]).
//!
//! Only where systemd is the host's init, and this daemon sees the same control groups and network as it does: one in
//! namespaces of its own would give systemd names of things that are something else there. Elsewhere every call here
//! does nothing, silently, and instances run as they do on any host.
//!
//! No call can hang: each has a deadline. None is needed: what fails is logged, the first time until it works again, and
//! the instance starts the direct way. One connection is kept, and made anew when it breaks.

mod machined;
mod resolved;
mod scopes;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use duet_container::cgroup::{Layout, LayoutMode};
use tokio::sync::Mutex;
use tokio::time::timeout;
use zbus::{Connection, Message};

pub use resolved::keep_names;
pub use scopes::{Scope, Weights, keep_dnsmasq};

/// How long one call may take. PID 1 answers in a millisecond, and in seconds while it reloads its units on a slow host.
const DEADLINE: Duration = Duration::from_secs(10);

/// The host's systemd, if there is one.
pub struct Systemd {
    /// Whether it is this host's init and sees what we see.
    present: bool,
    /// What the names of our units begin with: `duet`, or `duet-<hash>`.
    prefix: String,
    bus: Mutex<Option<Connection>>,
    /// What was said in the log to fail, and has not worked since.
    complaints: std::sync::Mutex<BTreeSet<&'static str>>,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It said no, or could not be reached.
    #[error(transparent)]
    Bus(#[from] zbus::Error),
    /// No answer.
    #[error("no answer within {} s", DEADLINE.as_secs())]
    Timeout,
    /// A unit was not started.
    #[error("the unit {unit} was not started: {result}")]
    Job {
        /// The unit.
        unit: String,
        /// What became of the job, in systemd's word.
        result: String,
    },
    /// A unit has no group where it should.
    #[error("the unit {unit} is in no control group below {slice}")]
    NoGroup {
        /// The unit.
        unit: String,
        /// The slice's group.
        slice: String,
    },
}

impl Error {
    /// The D-Bus name of an error that the other side answered with.
    fn name(&self) -> Option<String> {
        match self {
            Self::Bus(zbus::Error::MethodError(name, ..)) => Some(name.as_str().to_owned()),
            Self::Bus(zbus::Error::FDO(error)) => Some(zbus::DBusError::name(&**error).as_str().to_owned()),
            _ => None,
        }
    }

    /// Whether the connection broke.
    fn is_broken(&self) -> bool {
        matches!(self, Self::Bus(zbus::Error::InputOutput(_)))
    }

    /// Whether there is no such service on this host.
    fn is_absent(&self) -> bool {
        let name = self.name().unwrap_or_default();
        ["ServiceUnknown", "NameHasNoOwner", "Spawn.ServiceNotFound"].iter().any(|known| name.ends_with(known))
    }
}

/// A service, its object and its interface.
struct Service {
    name: &'static str,
    path: &'static str,
    interface: &'static str,
}

/// The bus itself (D-Bus specification, "Message Bus Messages").
const BUS: Service =
    Service { name: "org.freedesktop.DBus", path: "/org/freedesktop/DBus", interface: "org.freedesktop.DBus" };

impl Systemd {
    /// Looks whether systemd runs this host (sd_booted(3)).
    pub fn detect(layout: &Layout, prefix: &str) -> Self {
        let booted = Path::new("/run/systemd/system").is_dir();
        let present = booted && layout.mode() == LayoutMode::Pure && shares("cgroup") && shares("net");
        if present {
            tracing::info!("instances get scopes of systemd's");
        }
        Self { present, prefix: prefix.to_owned(), bus: Mutex::default(), complaints: std::sync::Mutex::default() }
    }

    /// Whether the host's systemd is there to be asked.
    pub fn present(&self) -> bool {
        self.present
    }

    /// The connection to the system bus.
    async fn bus(&self) -> Result<Connection, Error> {
        let mut kept = self.bus.lock().await;
        if let Some(bus) = kept.as_ref().filter(|bus| !bus.is_closed()) {
            return Ok(bus.clone());
        }
        let connect = async {
            let bus = Connection::system().await?;
            let rule = (scopes::JOBS,);
            bus.call_method(Some(BUS.name), BUS.path, Some(BUS.interface), "AddMatch", &rule).await?;
            Ok::<_, zbus::Error>(bus)
        };
        let bus = timeout(DEADLINE, connect).await.map_err(|_| Error::Timeout)??;
        Ok(kept.insert(bus).clone())
    }

    /// Calls a method and waits for its answer.
    async fn call<B>(&self, service: &Service, method: &str, body: &B) -> Result<Message, Error>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let bus = self.bus().await?;
        let call = bus.call_method(Some(service.name), service.path, Some(service.interface), method, body);
        timeout(DEADLINE, call).await.map_err(|_| Error::Timeout)?.map_err(Error::Bus)
    }

    /// Says once, until it works again, that something cannot be had.
    fn complain(&self, what: &'static str, error: &dyn fmt::Display) {
        if self.complaints().insert(what) {
            tracing::warn!(%error, "{what}");
        }
    }

    /// It works: the next failure is news.
    fn works(&self, what: &'static str) {
        self.complaints().remove(what);
    }

    fn complaints(&self) -> MutexGuard<'_, BTreeSet<&'static str>> {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether this process is in the same namespace as the init.
fn shares(kind: &str) -> bool {
    let of = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/{kind}"));
    matches!((of("self"), of("1")), (Ok(own), Ok(init)) if own == init)
}

/// A part of a unit's name, as systemd escapes it (systemd.unit(5), "String Escaping for Inclusion in Unit Names").
fn escape(text: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'/' => out.push('-'),
            b'.' if at == 0 => out.push_str("\\x2e"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' | b'.' => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "\\x{byte:02x}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn names_are_escaped_as_systemd_escape_does() {
        for (plain, escaped) in [("c1", "c1"), ("my-app", r"my\x2dapp"), (".a/b", r"\x2ea-b"), ("a~b_c", r"a\x7eb_c")] {
            assert_eq!(escape(plain), escaped);
        }
    }
}
