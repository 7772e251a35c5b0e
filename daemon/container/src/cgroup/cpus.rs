//! Sets of CPUs, and which instance runs on which.
//!
//! `limits.cpu` is either a pinned set or a count. A count names no CPU, so somebody has to choose, and choose again when
//! instances come and go. That is [`balance`]: a pure function over everything that runs, called by the daemon, which
//! then applies the sets that changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use super::{CgroupError, Result};

/// The highest CPU number that is believed; Linux is built for 8192 CPUs at most.
const MAX_CPU: u32 = 8191;

/// A set of CPU numbers, written like the kernel does: `0-3,5`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuList(BTreeSet<u32>);

impl CpuList {
    /// How many CPUs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().copied()
    }

    /// The CPUs that are in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0).copied().collect())
    }

    /// Whether every CPU of this set is in `other`.
    #[must_use]
    pub fn is_subset(&self, other: &Self) -> bool {
        self.0.is_subset(&other.0)
    }
}

impl FromIterator<u32> for CpuList {
    fn from_iter<I: IntoIterator<Item = u32>>(numbers: I) -> Self {
        Self(numbers.into_iter().collect())
    }
}

impl FromStr for CpuList {
    type Err = CgroupError;

    fn from_str(value: &str) -> Result<Self> {
        let bad = || CgroupError::BadValue { value: value.to_owned(), expected: "a list of CPUs like \"0-3,5\"" };
        let number = |text: &str| text.parse::<u32>().ok().filter(|cpu| *cpu <= MAX_CPU).ok_or_else(bad);
        let mut set = BTreeSet::new();
        for part in value.trim().split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if first > last {
                return Err(bad());
            }
            set.extend(first..=last);
        }
        Ok(Self(set))
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if_eq(&(last + 1)) {
                last = next;
            }
            if first == last {
                write!(out, "{separator}{first}")?;
            } else {
                write!(out, "{separator}{first}-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

/// The value of `limits.cpu`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpuRequest {
    /// Any CPUs, this many.
    Count(u32),
    /// Exactly these.
    Pinned(CpuList),
}

impl FromStr for CpuRequest {
    type Err = CgroupError;

    /// `4` is a count; anything with a comma or a dash is a set, so that `2-2` pins to the one CPU 2.
    fn from_str(value: &str) -> Result<Self> {
        let bad = || CgroupError::BadValue {
            value: value.to_owned(),
            expected: "a number of CPUs like \"4\" or a set of them like \"0-3,5\" (\"2-2\" for CPU 2 alone)",
        };
        if value.contains(['-', ',']) {
            let list: CpuList = value.parse().map_err(|_| bad())?;
            return if list.is_empty() { Err(bad()) } else { Ok(Self::Pinned(list)) };
        }
        match value.trim().parse() {
            Ok(count) if count > 0 => Ok(Self::Count(count)),
            _ => Err(bad()),
        }
    }
}

/// Chooses a set of CPUs for every request, spreading counted ones over the CPUs that fewest others use.
///
/// Pinned sets are laid down first since they can't give way; then counts, in the order given, so that the same requests
/// in the same order yield the same sets. A pinned set is cut to what is available; when nothing of it is, or nothing was
/// asked of what exists, everything available is used: an instance has to run somewhere.
#[must_use]
pub fn balance<K>(available: &CpuList, requests: Vec<(K, CpuRequest)>) -> Vec<(K, CpuList)> {
    let mut load: BTreeMap<u32, u32> = available.iter().map(|cpu| (cpu, 0)).collect();
    for (_, request) in &requests {
        if let CpuRequest::Pinned(list) = request {
            for cpu in list.iter() {
                load.entry(cpu).and_modify(|users| *users += 1);
            }
        }
    }
    requests
        .into_iter()
        .map(|(key, request)| {
            let chosen = match request {
                CpuRequest::Pinned(list) => {
                    let usable = list.intersection(available);
                    if usable.is_empty() { available.clone() } else { usable }
                }
                CpuRequest::Count(count) => {
                    let chosen = pick(available, &load, count);
                    for cpu in chosen.iter() {
                        load.entry(cpu).and_modify(|users| *users += 1);
                    }
                    chosen
                }
            };
            (key, chosen)
        })
        .collect()
}

/// The `count` available CPUs with the least load (instances per CPU), the lowest numbers among equals.
#[must_use]
pub fn pick(available: &CpuList, load: &BTreeMap<u32, u32>, count: u32) -> CpuList {
    let mut ranked: Vec<u32> = available.iter().collect();
    ranked.sort_by_key(|cpu| (load.get(cpu).copied().unwrap_or(0), *cpu));
    ranked.into_iter().take(count as usize).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{CpuList, CpuRequest, balance};

    fn list(text: &str) -> CpuList {
        text.parse().unwrap()
    }

    #[test]
    fn requests() {
        assert_eq!("4".parse::<CpuRequest>().unwrap(), CpuRequest::Count(4));
        assert_eq!("2-2".parse::<CpuRequest>().unwrap(), CpuRequest::Pinned(list("2")));
        assert_eq!("0-3,5".parse::<CpuRequest>().unwrap(), CpuRequest::Pinned(list("0,1,2,3,5")));
        for bad in ["", "0", "-", ",", "3-1", "a", "1-9999999", "-1"] {
            assert!(bad.parse::<CpuRequest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn counts_avoid_pinned_and_spread() {
        let requests = vec![
            ("a", CpuRequest::Count(2)),
            ("b", CpuRequest::Count(1)),
            ("pinned", CpuRequest::Pinned(list("0"))),
            ("all", CpuRequest::Count(64)),
            ("gone", CpuRequest::Pinned(list("77"))),
        ];
        let chosen = balance(&list("0-3"), requests);
        let shown: Vec<String> = chosen.iter().map(|(key, list)| format!("{key}={list}")).collect();
        assert_eq!(shown, ["a=1-2", "b=3", "pinned=0", "all=0-3", "gone=0-3"]);
    }

    proptest! {
        #[test]
        fn lists_survive_being_written(numbers in prop::collection::btree_set(0_u32..200, 0..40)) {
            let list: CpuList = numbers.into_iter().collect();
            prop_assert_eq!(list.to_string().parse::<CpuList>().unwrap(), list);
        }

        #[test]
        fn counts_are_met_and_even(cpus in 1_u32..16, counts in prop::collection::vec(1_u32..20, 0..20)) {
            let available: CpuList = (0..cpus).collect();
            let requests = counts.iter().map(|count| (*count, CpuRequest::Count(*count))).collect();
            let mut load = vec![0_u32; cpus as usize];
            for (count, chosen) in balance(&available, requests) {
                prop_assert_eq!(chosen.len() as u32, count.min(cpus));
                for cpu in chosen.iter() {
                    load[cpu as usize] += 1;
                }
            }
            let (least, most) = (load.iter().min().unwrap(), load.iter().max().unwrap());
            prop_assert!(most - least <= 1, "{:?}", load);
        }
    }
}
