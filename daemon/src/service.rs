//! What the daemon and the service manager that started it tell each other: a socket to serve on, readiness, a sign of
//! life. Started by hand there is none of it, and nothing here does anything.
//!
//! Facts: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use sd_notify::NotifyState;

use crate::error::{Context, Error, Result};

/// The sockets that systemd listens on for us (duetd.socket).
#[derive(Debug, Default)]
pub struct Passed(Vec<OwnedFd>);

impl Passed {
    /// Takes the descriptors that this process was started with, and keeps them from programs that it starts.
    ///
    /// # Errors
    /// Where `LISTEN_FDS` and `LISTEN_PID` are no numbers.
    ///
    /// # Safety
    /// To be called once, before anything else in this process opens or owns descriptors.
    pub unsafe fn take() -> Result<Self> {
        let numbers = sd_notify::listen_fds().doing("cannot take the sockets that systemd passes")?;
        // SAFETY: the service manager opened them for this very process (LISTEN_PID), and by this function's contract
        // nobody here owns them yet. listen_fds() has set close-on-exec on each, so each is open.
        Ok(Self(numbers.map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect()))
    }

    /// The socket that listens at `path`; none where systemd passed nothing.
    ///
    /// # Errors
    /// Where something else was passed: nobody would ever answer there.
    pub fn listener(self, path: &Path) -> Result<Option<UnixListener>> {
        let mut found = None;
        for descriptor in self.0 {
            let listener = UnixListener::from(descriptor);
            let place = listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned));
            if place.as_deref() != Some(path) || !is_listening(&listener) {
                let place = place.map_or_else(|| "no file's".to_owned(), |place| format!("{}'s", place.display()));
                return Err(Error::invalid(format!(
                    "systemd passes a socket that is {place} and not {}: set ListenStream= of duetd.socket to the latter",
                    path.display()
                )));
            }
            found = Some(listener);
        }
        Ok(found)
    }
}

fn is_listening(listener: &UnixListener) -> bool {
    rustix::net::sockopt::socket_acceptconn(listener).unwrap_or(false)
}

/// Tells systemd that all is up, and from then on, as often as it wants, that the event loop turns.
pub fn ready() {
    tell(NotifyState::Ready);
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) else { return };
    tokio::spawn(async move {
        // Half the limit is what sd_watchdog_enabled(3) recommends.
        let mut turns = tokio::time::interval(limit / 2);
        loop {
            turns.tick().await;
            tell(NotifyState::Watchdog);
        }
    });
}

/// Tells systemd that the daemon goes down by itself or as it was told.
pub fn stopping() {
    tell(NotifyState::Stopping);
}

fn tell(what: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[what]) {
        tracing::warn!(%error, "systemd could not be told how the daemon is");
    }
}
