//! Figures of one thing done several times, and how they are summed up.

use std::fmt;
use std::time::Duration;

/// Durations of one thing done several times.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    times: Vec<Duration>,
}

impl Sample {
    /// Adds one.
    pub fn add(&mut self, time: Duration) {
        let at = self.times.partition_point(|other| *other <= time);
        self.times.insert(at, time);
    }

    /// The value below which `share` of all lie.
    pub fn quantile(&self, share: f64) -> Duration {
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let index = (self.times.len().saturating_sub(1) as f64 * share).round() as usize;
        self.times.get(index).copied().unwrap_or_default()
    }

    /// The middle one.
    pub fn median(&self) -> Duration {
        self.quantile(0.5)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.times.len()
    }

    /// `p50 / p99`, for what is asked so often that its slowest answers matter.
    pub fn tail(&self) -> String {
        format!("{} / {}", milliseconds(self.median()), milliseconds(self.quantile(0.99)))
    }
}

/// `median (least-most)`.
impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [least, median, most] = [0.0, 0.5, 1.0].map(|share| milliseconds(self.quantile(share)));
        f.pad(&format!("{median} ({least}-{most})"))
    }
}

/// Milliseconds with as many decimals as mean something.
pub fn milliseconds(time: Duration) -> String {
    let value = time.as_secs_f64() * 1000.0;
    if value < 10.0 {
        format!("{value:.2}")
    } else if value < 100.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
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
        assert_eq!(sample.median(), Duration::from_millis(3));
        assert_eq!(sample.quantile(1.0), Duration::from_millis(5));
        assert_eq!(sample.to_string(), "3.00 (1.00-5.00)");
        assert_eq!(sample.tail(), "3.00 / 5.00");
        assert_eq!(format!("{sample:>20}"), "    3.00 (1.00-5.00)");
    }

    #[test]
    fn decimals_end_where_noise_begins() {
        assert_eq!(milliseconds(Duration::from_micros(1234)), "1.23");
        assert_eq!(milliseconds(Duration::from_micros(12_345)), "12.3");
        assert_eq!(milliseconds(Duration::from_micros(123_456)), "123");
    }
}
