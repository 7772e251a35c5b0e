//! Where the milliseconds of a start go.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Measures the start from the moment the monitor runs, step by step.
#[derive(Debug)]
pub struct StartClock {
    started: Instant,
    last: Instant,
    steps: Vec<(String, f64)>,
}

impl Default for StartClock {
    fn default() -> Self {
        Self::new()
    }
}

impl StartClock {
    /// From now on.
    #[must_use]
    pub fn new() -> Self {
        let now = Instant::now();
        Self { started: now, last: now, steps: Vec::new() }
    }

    /// Notes that a step is done.
    pub fn lap(&mut self, step: &str) {
        let now = Instant::now();
        self.steps.push((step.to_owned(), milliseconds(now - self.last)));
        self.last = now;
    }

    /// The steps in milliseconds, and their sum as `total`.
    #[must_use]
    pub fn finish(mut self) -> Vec<(String, f64)> {
        self.steps.push(("total".to_owned(), milliseconds(self.started.elapsed())));
        self.steps
    }
}

fn milliseconds(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The time of day in seconds since 1970.
#[must_use]
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
