//! What `make bench` measures, and how.
//!
//! Everything is measured on a test host of its own, through the shipped programs, as wall time between typing a
//! command and its end; a bare HTTP request shows what of it is the client's. Figures of one run are comparable with
//! each other, not with those of another machine.

pub mod breakdown;
pub mod trace;

use std::time::Duration;

/// Durations of one thing done several times.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    times: Vec<Duration>,
}

impl Sample {
    /// Adds one.
    pub fn add(&mut self, time: Duration) {
        self.times.push(time);
        self.times.sort_unstable();
    }

    /// The value below which `share` of all lie.
    pub fn quantile(&self, share: f64) -> Duration {
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let index = (self.times.len().saturating_sub(1) as f64 * share).round() as usize;
        self.times.get(index).copied().unwrap_or_default()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.times.len()
    }
}

/// Milliseconds with one decimal.
pub fn milliseconds(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_times() {
        let mut sample = Sample::default();
        for n in [5, 1, 4, 2, 3] {
            sample.add(Duration::from_millis(n));
        }
        assert_eq!(sample.quantile(0.5), Duration::from_millis(3));
        assert_eq!(sample.quantile(1.0), Duration::from_millis(5));
        assert_eq!(milliseconds(sample.quantile(0.0)), "1.0");
    }
}
