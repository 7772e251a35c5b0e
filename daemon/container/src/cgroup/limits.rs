//! What a container may use, as plain values.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::cpus::CpuList;
use super::{CgroupError, Result};

/// The weight of a version 2 group that nobody gave another.
pub(super) const USUAL_WEIGHT: u64 = 100;

/// The limits of one container. The default is: none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The CPUs it may run on (`limits.cpu`, a count having been resolved by [`super::balance`]).
    pub cpus: Option<CpuList>,
    /// How much CPU time it gets (`limits.cpu.allowance`).
    pub cpu_allowance: Option<CpuAllowance>,
    /// Its precedence among instances with the same allowance, 0 (least) to 10 (`limits.cpu.priority`).
    pub cpu_priority: Option<u8>,
    /// How much memory it may use (`limits.memory`, `limits.memory.enforce`).
    pub memory: Option<MemoryLimit>,
    /// Whether and how far it may be swapped out (`limits.memory.swap`).
    pub swap: Swap,
    /// How many processes, counted in threads as the kernel does, it may have (`limits.processes`).
    pub processes: Option<u64>,
    /// How much it may read from and write to block devices, by their major and minor number (`limits.read` and the like
    /// of disks).
    pub io: BTreeMap<(u32, u32), IoLimit>,
    /// Its weight among instances that use the same block device, 1 to 10000 (`limits.disk.priority`).
    pub io_weight: Option<u64>,
}

/// What may be done with one block device in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoLimit {
    /// Bytes read.
    pub read_bytes: Option<u64>,
    /// Bytes written.
    pub write_bytes: Option<u64>,
    /// Operations that read.
    pub read_operations: Option<u64>,
    /// Operations that write.
    pub write_operations: Option<u64>,
}

impl IoLimit {
    /// Its line in `io.max` (cgroup-v2.rst), which sets all four.
    pub(super) fn line(&self, (major, minor): (u32, u32)) -> String {
        let value = |limit: Option<u64>| limit.map_or_else(|| "max".to_owned(), |limit| limit.to_string());
        format!(
            "{major}:{minor} rbps={} wbps={} riops={} wiops={}",
            value(self.read_bytes),
            value(self.write_bytes),
            value(self.read_operations),
            value(self.write_operations)
        )
    }
}

/// A share of CPU time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuAllowance {
    /// Percent of a full share, which matters only while CPUs are contended (`"50%"`).
    Share(u32),
    /// So many microseconds of CPU time in each period of so many, never more (`"25ms/100ms"`).
    Quota {
        /// CPU time per period, in microseconds.
        quota_us: u64,
        /// The period, in microseconds.
        period_us: u64,
    },
}

/// A bound on memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryLimit {
    /// Never more than this; the kernel kills processes of the container rather than let it pass.
    Hard(u64),
    /// May be passed while the host has memory to spare; reclaimed down to this first.
    Soft(u64),
}

/// A bound on swap space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Swap {
    /// No bound.
    #[default]
    Allowed,
    /// None at all.
    Denied,
    /// This many bytes beside the memory limit.
    Bytes(u64),
}

impl CpuAllowance {
    const FORMS: &str =
        "a CPU allowance: either a share like \"50%\" or a quota like \"25ms/100ms\" (each from 1ms to 1000ms)";

    /// The smallest and largest period and quota in milliseconds that the scheduler takes
    /// (`kernel/sched/core.c`, `tg_set_cfs_bandwidth`: 1 ms to 1 s; a quota may exceed its period on several CPUs).
    const PERIOD_MS: std::ops::RangeInclusive<u64> = 1..=1000;
}

impl FromStr for CpuAllowance {
    type Err = CgroupError;

    fn from_str(value: &str) -> Result<Self> {
        let bad = || CgroupError::BadValue { value: value.to_owned(), expected: Self::FORMS };
        if let Some(percent) = value.strip_suffix('%') {
            let percent: u32 = percent.parse().map_err(|_| bad())?;
            return if (1..=100).contains(&percent) { Ok(Self::Share(percent)) } else { Err(bad()) };
        }
        let milliseconds = |text: &str| text.strip_suffix("ms").and_then(|number| number.parse::<u64>().ok());
        let (quota, period) = value.split_once('/').ok_or_else(bad)?;
        let quota = milliseconds(quota.trim()).ok_or_else(bad)?;
        let period = milliseconds(period.trim()).ok_or_else(bad)?;
        if quota == 0 || quota > 1_000_000 || !Self::PERIOD_MS.contains(&period) {
            return Err(bad());
        }
        Ok(Self::Quota { quota_us: quota * 1000, period_us: period * 1000 })
    }
}

impl Limits {
    /// The weight among its siblings that version 2's controller is to have, where that is not the usual one.
    #[must_use]
    pub fn cpu_weight(&self) -> Option<u64> {
        Some(self.weight()).filter(|weight| *weight != USUAL_WEIGHT)
    }

    /// Relative weight for version 1's `cpu.shares`, whose full share is 1024.
    pub(super) fn shares(&self) -> u64 {
        self.weight_of(1024).max(2)
    }

    /// Relative weight for version 2's `cpu.weight`, whose full share is 100.
    pub(super) fn weight(&self) -> u64 {
        self.weight_of(USUAL_WEIGHT).max(1)
    }

    /// As Incus computes it: the allowance scales a full share, each step of priority below 10 takes one point off.
    fn weight_of(&self, full: u64) -> u64 {
        let share = match self.cpu_allowance {
            Some(CpuAllowance::Share(percent)) => full * u64::from(percent) / 100,
            Some(CpuAllowance::Quota { .. }) | None => full,
        };
        share.saturating_sub(10 - u64::from(self.cpu_priority.unwrap_or(10).min(10)))
    }

    /// Quota and period in microseconds, where there is a hard allowance.
    pub(super) fn quota(&self) -> Option<(u64, u64)> {
        match self.cpu_allowance {
            Some(CpuAllowance::Quota { quota_us, period_us }) => Some((quota_us, period_us)),
            Some(CpuAllowance::Share(_)) | None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CpuAllowance, Limits};

    #[test]
    fn allowances() {
        assert_eq!("50%".parse::<CpuAllowance>().unwrap(), CpuAllowance::Share(50));
        assert_eq!(
            "25ms/100ms".parse::<CpuAllowance>().unwrap(),
            CpuAllowance::Quota { quota_us: 25_000, period_us: 100_000 }
        );
        for bad in ["", "%", "0%", "101%", "-1%", "25", "25/100", "25ms", "0ms/100ms", "5ms/0ms", "5ms/2000ms", "ms/ms"]
        {
            assert!(bad.parse::<CpuAllowance>().is_err(), "{bad}");
        }
    }

    #[test]
    fn weights_follow_share_and_priority() {
        let mut limits = Limits::default();
        assert_eq!((limits.shares(), limits.weight()), (1024, 100));
        limits.cpu_allowance = Some(CpuAllowance::Share(50));
        limits.cpu_priority = Some(5);
        assert_eq!((limits.shares(), limits.weight()), (507, 45));
        limits.cpu_allowance = Some(CpuAllowance::Share(1));
        limits.cpu_priority = Some(0);
        assert_eq!((limits.shares(), limits.weight()), (2, 1));
    }
}
