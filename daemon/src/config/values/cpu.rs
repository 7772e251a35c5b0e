//! CPU limits: how many, which ones, and how much of their time.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::super::ValueError;

/// Linux builds for at most 8192 CPUs (`CONFIG_NR_CPUS`), so larger numbers are slips of the hand.
const MAX_CPUS: u32 = 8192;

/// A set of CPU numbers, written as the kernel's cpuset lists are: `0-3,5`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuSet(BTreeSet<u32>);

impl CpuSet {
    /// The CPU numbers in ascending order; never empty.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    /// How many CPUs are in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Always false: a set without CPUs cannot be made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for CpuSet {
    type Err = ValueError;

    fn from_str(value: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError::malformed(value, "a set of CPUs", "write numbers and ranges, such as 0-3,5");
        let number = |text: &str| -> Result<u32, ValueError> {
            if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
                return Err(wrong());
            }
            text.parse().ok().filter(|n| *n < MAX_CPUS).ok_or_else(|| {
                ValueError::senseless(value, "no machine has a CPU of so high a number; CPUs count from 0")
            })
        };
        let mut cpus = BTreeSet::new();
        for part in value.split(',').map(str::trim) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(ValueError::senseless(value, "a range must not run backwards; write 0-3, not 3-0"));
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if_eq(&(last + 1)) {
                last = next;
            }
            match first == last {
                true => write!(f, "{separator}{first}")?,
                false => write!(f, "{separator}{first}-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

/// `limits.cpu`: a plain number is a count (`2`), anything with a dash or comma names CPUs (`2-2` is CPU 2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CpuLimit {
    /// So many CPUs, whichever; at least 1.
    Count(u32),
    /// These CPUs.
    Set(CpuSet),
}

impl FromStr for CpuLimit {
    type Err = ValueError;

    fn from_str(value: &str) -> Result<Self, ValueError> {
        if value.contains(['-', ',']) {
            return value.parse().map(Self::Set);
        }
        if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
            return Err(ValueError::malformed(
                value,
                "a CPU limit",
                "write a number of CPUs such as 2, or the CPUs themselves such as 0-3,5",
            ));
        }
        match value.parse() {
            Ok(0) => Err(ValueError::senseless(value, "at least one CPU is needed; unset the key for no limit")),
            Ok(count) if count <= MAX_CPUS => Ok(Self::Count(count)),
            _ => Err(ValueError::out_of_range(value, 1, i64::from(MAX_CPUS))),
        }
    }
}

impl fmt::Display for CpuLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            // A lone number would read as a count.
            Self::Set(set) if set.len() == 1 => write!(f, "{set}-{set}"),
            Self::Set(set) => write!(f, "{set}"),
        }
    }
}

/// `limits.cpu.allowance`: how much CPU time there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuAllowance {
    /// A share that counts only when CPUs are short: `50%`, 1 to 100.
    Soft {
        /// Per cent of an instance without this limit.
        percent: u8,
    },
    /// So much time in each period and no more, even on an idle host: `25ms/100ms`. The quota may exceed the
    /// period, as it is counted over all CPUs.
    Hard {
        /// CPU time in microseconds.
        quota_us: u64,
        /// The period in microseconds; the kernel takes 1 ms to 1 s.
        period_us: u64,
    },
}

impl FromStr for CpuAllowance {
    type Err = ValueError;

    fn from_str(value: &str) -> Result<Self, ValueError> {
        const HINT: &str = "write a percentage such as 50%, or time per period such as 25ms/100ms";
        let wrong = || ValueError::malformed(value, "a CPU allowance", HINT);
        if let Some(percent) = value.strip_suffix('%') {
            let percent = super::parse_int(percent, 1, 100).map_err(|_| wrong())?;
            return Ok(Self::Soft { percent: u8::try_from(percent).unwrap_or(100) });
        }
        let (quota, period) = value.split_once('/').ok_or_else(wrong)?;
        let micros = |text: &str| {
            let text = text.trim();
            let digits = text.strip_suffix("ms").unwrap_or(text);
            super::parse_int(digits, 0, 1_000_000).map_err(|_| wrong()).map(|ms| ms.unsigned_abs() * 1000)
        };
        let (quota_us, period_us) = (micros(quota)?, micros(period)?);
        // kernel/sched/core.c: both at least 1 ms, the period at most 1 s.
        if quota_us < 1000 {
            return Err(ValueError::senseless(value, "the time must be at least 1ms"));
        }
        if !(1000..=1_000_000).contains(&period_us) {
            return Err(ValueError::senseless(value, "the period must lie between 1ms and 1000ms"));
        }
        Ok(Self::Hard { quota_us, period_us })
    }
}

impl fmt::Display for CpuAllowance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Soft { percent } => write!(f, "{percent}%"),
            Self::Hard { quota_us, period_us } => write!(f, "{}ms/{}ms", quota_us / 1000, period_us / 1000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_number_is_a_count_and_a_range_is_a_set() {
        assert_eq!("2".parse(), Ok(CpuLimit::Count(2)));
        let set: CpuLimit = "0-3,5".parse().unwrap();
        assert_eq!(set.to_string(), "0-3,5");
        let one: CpuLimit = "2-2".parse().unwrap();
        assert!(matches!(&one, CpuLimit::Set(set) if set.iter().eq([2])));
        assert_eq!(one.to_string(), "2-2");
        assert_eq!("3,1,2,1".parse::<CpuSet>().unwrap().to_string(), "1-3");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in
            ["", "0", "-1", "1-", "-", ",", "1,,2", "3-1", "0-99999999", "a", "1.5", "99999999999", "+2", "0-3;5"]
        {
            assert!(text.parse::<CpuLimit>().is_err(), "{text:?}");
        }
        for text in ["", "0%", "101%", "50", "/", "10ms/", "0ms/100ms", "10ms/0ms", "10ms/2000ms", "-1ms/5ms", "1s/2s"]
        {
            assert!(text.parse::<CpuAllowance>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn allowances_are_soft_or_hard() {
        assert_eq!("50%".parse(), Ok(CpuAllowance::Soft { percent: 50 }));
        assert_eq!("25ms/100ms".parse(), Ok(CpuAllowance::Hard { quota_us: 25_000, period_us: 100_000 }));
        assert_eq!("200ms/100ms".parse(), Ok(CpuAllowance::Hard { quota_us: 200_000, period_us: 100_000 }));
    }

    proptest! {
        #[test]
        fn no_input_panics(text in "[0-9a-z,%/ .-]{0,24}|\\PC{0,16}") {
            let _ = text.parse::<CpuLimit>();
            let _ = text.parse::<CpuSet>();
            let _ = text.parse::<CpuAllowance>();
        }

        #[test]
        fn what_is_written_is_read_back(cpus in proptest::collection::btree_set(0..MAX_CPUS, 1..40), ms in 1u64..5000, period in 1u64..=1000) {
            let set = CpuSet(cpus);
            prop_assert_eq!(set.to_string().parse::<CpuSet>(), Ok(set.clone()));
            let limit = CpuLimit::Set(set);
            prop_assert_eq!(limit.to_string().parse::<CpuLimit>(), Ok(limit));
            let hard = CpuAllowance::Hard { quota_us: ms * 1000, period_us: period * 1000 };
            prop_assert_eq!(hard.to_string().parse::<CpuAllowance>(), Ok(hard));
        }
    }
}
