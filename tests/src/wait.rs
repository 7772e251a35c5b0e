//! Waiting for a condition, with a deadline and a name for what was waited for.

use std::thread;
use std::time::{Duration, Instant};

/// How long conditions may take that have no reason to take long. Generous, since three hosts share two processors.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Between two looks at a condition that nothing announces.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks at `condition` until it gives a value; panics with `what` when [`DEADLINE`] passes first.
pub fn eventually<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    within(DEADLINE, what, condition)
}

/// As [`eventually`], with a deadline of one's own.
pub fn within<T>(deadline: Duration, what: &str, condition: impl FnMut() -> Option<T>) -> T {
    poll(deadline, condition).unwrap_or_else(|| panic!("{what}: not within {deadline:?}"))
}

/// Looks at `condition` until it gives a value or the deadline passes.
pub fn poll<T>(deadline: Duration, condition: impl FnMut() -> Option<T>) -> Option<T> {
    poll_every(PAUSE, deadline, condition)
}

/// As [`poll`], looking every millisecond: for what is measured.
pub fn poll_closely<T>(deadline: Duration, condition: impl FnMut() -> Option<T>) -> Option<T> {
    poll_every(Duration::from_millis(1), deadline, condition)
}

fn poll_every<T>(pause: Duration, deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(pause);
    }
}
