//! Limits of how much a device moves in a second.
//!
//! A token bucket for bytes and one for operations. A bucket fills at the limit's rate and holds what comes in one
//! second: so a guest that was idle gets a second's worth at once, as with cgroups' io.max and most of the field, and a
//! limit of a few operations a second is not spent on waiting for each. (QEMU's default is a tenth of a second, with
//! which a limit below 10 operations would never let one through unless it is rounded up.) Over any longer time the limit
//! holds.
//!
//! What is asked for may be more than a bucket holds: it goes through as soon as there is anything in the bucket, and
//! leaves a debt that has to be paid before the next. So a large request does not wait for ever while small ones of
//! another queue take what comes in.

use std::io;
use std::num::NonZeroU64;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::board::lock;

/// How much a second, at most. What is not said is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<NonZeroU64>,
    /// Requests of a disk, or packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations: Option<NonZeroU64>,
}

/// Which way data move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Into the guest: what it reads from a disk or receives.
    In,
    /// Out of the guest: what it writes to a disk or sends.
    Out,
}

/// Nanoseconds of a second: levels are in tokens times this, so that there is nothing to be rounded.
const SECOND: i128 = 1_000_000_000;

/// A bucket.
#[derive(Debug)]
struct Bucket {
    /// Tokens a second.
    rate: i128,
    /// What is in it at `at`, less than nothing if there is a debt.
    level: i128,
    at: Duration,
}

impl Bucket {
    /// A full one.
    fn new(rate: NonZeroU64, now: Duration) -> Self {
        let rate = i128::from(rate.get());
        Self { rate, level: rate * SECOND, at: now }
    }

    /// Fills it up to now, and says how long it takes until there is something in it.
    fn wait(&mut self, now: Duration) -> Duration {
        // Centuries at most, as are the waits.
        let elapsed = i128::from(u64::try_from(now.saturating_sub(self.at).as_nanos()).unwrap_or(u64::MAX));
        self.level = self.level.saturating_add(self.rate.saturating_mul(elapsed)).min(self.rate * SECOND);
        self.at = self.at.max(now);
        if self.level > 0 {
            return Duration::ZERO;
        }
        Duration::from_nanos(u64::try_from(-self.level / self.rate + 1).unwrap_or(u64::MAX))
    }

    fn take(&mut self, count: u64) {
        self.level -= i128::from(count) * SECOND;
    }
}

/// The two buckets of a direction.
#[derive(Debug, Default)]
struct Meter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Meter {
    fn new(rate: Rate, now: Duration) -> Self {
        let bucket = |rate: Option<NonZeroU64>| rate.map(|rate| Bucket::new(rate, now));
        Self { bytes: bucket(rate.bytes), operations: bucket(rate.operations) }
    }

    /// Takes an operation of so many bytes, or says how long it has to wait, and takes nothing.
    fn take(&mut self, bytes: u64, now: Duration) -> Result<(), Duration> {
        let mut both = [(&mut self.bytes, bytes), (&mut self.operations, 1)];
        let waits =
            both.iter_mut().map(|(bucket, _)| bucket.as_mut().map_or(Duration::ZERO, |bucket| bucket.wait(now)));
        let wait = waits.max().unwrap_or_default();
        if !wait.is_zero() {
            return Err(wait);
        }
        for (bucket, count) in &mut both {
            if let Some(bucket) = bucket {
                bucket.take(*count);
            }
        }
        Ok(())
    }
}

/// The limits of a device, shared by its queues.
#[derive(Debug)]
pub struct Limiter {
    start: Instant,
    into: Mutex<Meter>,
    out: Mutex<Meter>,
    /// One for each thread that may wait here: readable once limits were changed.
    wakes: Vec<EventFd>,
}

impl Limiter {
    /// Limits for a device with so many threads.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn new(into: Rate, out: Rate, threads: usize) -> io::Result<Self> {
        let meter = |rate| Mutex::new(Meter::new(rate, Duration::ZERO));
        let wakes = (0..threads).map(|_| EventFd::new(EFD_NONBLOCK)).collect::<Result<_, _>>()?;
        Ok(Self { start: Instant::now(), into: meter(into), out: meter(out), wakes })
    }

    /// Takes an operation of so many bytes.
    ///
    /// # Errors
    /// How long it has to wait: nothing was taken.
    pub fn take(&self, direction: Direction, bytes: u64) -> Result<(), Duration> {
        let meter = match direction {
            Direction::In => &self.into,
            Direction::Out => &self.out,
        };
        lock(meter).take(bytes, self.start.elapsed())
    }

    /// Changes the limits, from now on: debts are forgotten, and who waits asks again.
    pub fn set(&self, into: Rate, out: Rate) {
        let now = self.start.elapsed();
        *lock(&self.into) = Meter::new(into, now);
        *lock(&self.out) = Meter::new(out, now);
        for wake in &self.wakes {
            // A full counter is readable too.
            let _ = wake.write(1);
        }
    }

    /// What a thread watches while it waits, by the thread's number.
    #[must_use]
    pub fn wake(&self, thread: usize) -> Option<&EventFd> {
        self.wakes.get(thread)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(bytes: u64, operations: u64) -> Rate {
        Rate { bytes: NonZeroU64::new(bytes), operations: NonZeroU64::new(operations) }
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_second_goes_through_at_once_and_then_the_rate_holds() {
        let mut meter = Meter::new(rate(0, 10), ms(0));
        for _ in 0..10 {
            assert_eq!(meter.take(1 << 30, ms(0)), Ok(()));
        }
        let wait = meter.take(1, ms(0)).unwrap_err();
        assert!(wait > ms(0) && wait < ms(1), "{wait:?}");
        // A tenth of a second for each.
        assert_eq!(meter.take(1, ms(1)), Ok(()));
        let wait = meter.take(1, ms(1)).unwrap_err();
        assert!(wait > ms(98) && wait <= ms(100), "{wait:?}");
        assert_eq!(meter.take(1, ms(1) + wait), Ok(()));
        // However long nothing is asked for, no more than a second's worth is saved.
        let later = ms(1_000_000);
        assert_eq!((0..100).filter(|_| meter.take(1, later).is_ok()).count(), 10);
    }

    #[test]
    fn what_is_more_than_a_bucket_leaves_a_debt() {
        let mut meter = Meter::new(rate(1000, 0), ms(0));
        assert_eq!(meter.take(5000, ms(0)), Ok(()));
        let wait = meter.take(1, ms(0)).unwrap_err();
        assert!(wait > ms(3999) && wait < ms(4001), "{wait:?}");
        assert!(meter.take(1, ms(3999)).is_err());
        assert_eq!(meter.take(1, ms(4001)), Ok(()));
    }

    #[test]
    fn who_waits_for_one_bucket_takes_nothing_from_the_other() {
        let mut meter = Meter::new(rate(1000, 2), ms(0));
        assert_eq!(meter.take(2000, ms(0)), Ok(()));
        (0..10).for_each(|_| assert!(meter.take(1, ms(500)).is_err()));
        assert_eq!(meter.take(0, ms(1001)), Ok(()));
        assert!(meter.operations.unwrap().level > 0);
    }

    #[test]
    fn changed_limits_hold_at_once_and_wake_who_waits() {
        let limiter = Limiter::new(rate(1, 0), Rate::default(), 2).unwrap();
        assert_eq!(limiter.take(Direction::In, 1 << 40), Ok(()));
        assert!(limiter.take(Direction::In, 1).unwrap_err() > Duration::from_secs(1 << 30));
        assert_eq!(limiter.take(Direction::Out, 1 << 40), Ok(()));
        limiter.set(Rate::default(), rate(0, 1));
        assert_eq!(limiter.take(Direction::In, 1 << 40), Ok(()));
        // The one of the first second, and one on credit.
        assert_eq!(limiter.take(Direction::Out, 1), Ok(()));
        assert!((0..2).any(|_| limiter.take(Direction::Out, 1).is_err()));
        assert!((0..2).all(|thread| limiter.wake(thread).unwrap().read().is_ok()));
    }

    #[test]
    fn numbers_at_their_ends_do_no_harm() {
        let most = rate(u64::MAX, u64::MAX);
        let mut meter = Meter::new(most, ms(0));
        for now in [Duration::ZERO, Duration::MAX, ms(1), Duration::MAX] {
            for _ in 0..5 {
                let _ = meter.take(u64::MAX, now);
            }
        }
        let mut meter = Meter::new(rate(1, 1), Duration::MAX);
        for _ in 0..100 {
            let _ = meter.take(u64::MAX, Duration::MAX);
        }
        assert!(meter.take(1, Duration::MAX).unwrap_err() > Duration::from_secs(1));
    }

    proptest! {
        #[test]
        fn over_any_time_no_more_than_the_rate_goes_through(
            limit in prop_oneof![1u64..1000, 1u64..1 << 40],
            asked in prop::collection::vec((prop_oneof![1u64..100, 1u64..1 << 45], 0u64..1 << 45), 1..50),
        ) {
            let mut meter = Meter::new(rate(limit, 0), ms(0));
            let (mut now, mut passed, mut last) = (Duration::ZERO, 0u128, 0u128);
            for (bytes, pause) in asked {
                now += Duration::from_nanos(pause);
                match meter.take(bytes, now) {
                    Ok(()) => (passed, last) = (passed + u128::from(bytes), bytes.into()),
                    Err(wait) => {
                        prop_assert!(!wait.is_zero());
                        if wait < Duration::from_nanos(u64::MAX) {
                            // It is no longer than that.
                            now += wait;
                            prop_assert_eq!(meter.take(bytes, now), Ok(()));
                            (passed, last) = (passed + u128::from(bytes), bytes.into());
                        }
                    }
                }
                // A second's worth, what came since, and the last one that left a debt.
                let most = u128::from(limit) * (now.as_nanos() + 1_000_000_000) / 1_000_000_000 + last + 1;
                prop_assert!(passed <= most, "{} passed of {}", passed, most);
            }
        }
    }
}
