//! Where the milliseconds between a request and the init's exec go, from a trace.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result};

use super::milliseconds;
use super::trace::{Event, Kind};

/// System calls in which a thread waits for another one of the chain, and their names; the time spent in these is
/// not work. Numbers are x86-64's (arch/x86/entry/syscalls/syscall_64.tbl).
const WAITS: &[i64] = &[0, 7, 23, 35, 43, 45, 47, 61, 202, 230, 232, 247, 270, 271, 281, 288, 299, 441, 449];

/// Names of the calls that a start makes.
const NAMES: &[(i64, &str)] = &[
    (1, "write"),
    (2, "open"),
    (3, "close"),
    (9, "mmap"),
    (10, "mprotect"),
    (11, "munmap"),
    (16, "ioctl"),
    (20, "writev"),
    (44, "sendto"),
    (46, "sendmsg"),
    (56, "clone"),
    (57, "fork"),
    (58, "vfork"),
    (59, "execve"),
    (72, "fcntl"),
    (74, "fsync"),
    (75, "fdatasync"),
    (77, "ftruncate"),
    (83, "mkdir"),
    (87, "unlink"),
    (133, "mknod"),
    (155, "pivot_root"),
    (157, "prctl"),
    (165, "mount"),
    (166, "umount2"),
    (170, "sethostname"),
    (257, "openat"),
    (258, "mkdirat"),
    (259, "mknodat"),
    (260, "fchownat"),
    (262, "newfstatat"),
    (263, "unlinkat"),
    (268, "fchmodat"),
    (272, "unshare"),
    (277, "sync_file_range"),
    (308, "setns"),
    (317, "seccomp"),
    (322, "execveat"),
    (428, "open_tree"),
    (429, "move_mount"),
    (430, "fsopen"),
    (431, "fsconfig"),
    (432, "fsmount"),
    (435, "clone3"),
    (437, "openat2"),
    (442, "mount_setattr"),
];

/// One stretch of a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phase {
    /// What happens in it.
    pub name: &'static str,
    /// How long it takes.
    pub time: Duration,
    /// How much of that some thread of the chain spent working in the kernel.
    pub kernel: Duration,
}

/// A start, taken apart.
#[derive(Debug, Clone)]
pub struct Breakdown {
    /// Its stretches, in their order.
    pub phases: Vec<Phase>,
    /// The system calls with the most time in them: name, how often, how long.
    pub calls: Vec<(String, usize, Duration)>,
}

const PIVOT_ROOT: i64 = 155;
const ACCEPT4: i64 = 288;

/// Finds the start's landmarks in a trace and measures what lies between them.
///
/// # Errors
/// Where a landmark is missing.
pub fn analyse(events: &[Event]) -> Result<Breakdown> {
    let at = |what: &str, wanted: &dyn Fn(&Event) -> bool| {
        events
            .iter()
            .find(|event| wanted(event))
            .map(|event| event.time)
            .with_context(|| format!("no {what} in the trace"))
    };
    // The monitor is executed through a descriptor; as a file service, which writes templates, by its path.
    let is_monitor = |file: &str| file.starts_with("/proc/self/fd/");
    let init = events
        .iter()
        .find(|event| matches!(&event.kind, Kind::Exec(file) if !is_monitor(file) && !file.ends_with("duet-monitor")))
        .context("no init was executed")?;
    let request = at("request", &|event| matches!(event.kind, Kind::Exit(ACCEPT4, fd) if fd >= 0))?;
    let monitor = at("monitor", &|event| matches!(&event.kind, Kind::Exec(file) if is_monitor(file)))?;
    let clone = at("clone of the init", &|event| event.kind == Kind::Fork(init.thread))?;
    let pivot = at("pivot_root", &|event| event.thread == init.thread && event.kind == Kind::Enter(PIVOT_ROOT))?;
    let landmarks = [
        ("daemon: request, rows, plan, control groups", request, monitor),
        ("monitor: executes, builds the root, clones the init", monitor, clone),
        ("init: namespaces and mounts; daemon: network interfaces", clone, pivot),
        ("init: pivot_root, confinement, exec", pivot, init.time),
    ];
    let working = intervals(events);
    let phases = landmarks
        .into_iter()
        .map(|(name, from, to)| Phase { name, time: to.saturating_sub(from), kernel: covered(&working, from, to) })
        .collect();
    Ok(Breakdown { phases, calls: heaviest(events, request, init.time) })
}

/// The system calls of a trace that are work: number, entry and return.
fn calls(events: &[Event]) -> Vec<(i64, Duration, Duration)> {
    let mut entered: BTreeMap<i32, (i64, Duration)> = BTreeMap::new();
    let mut found = Vec::new();
    for event in events {
        match event.kind {
            Kind::Enter(number) => {
                entered.insert(event.thread, (number, event.time));
            }
            Kind::Exit(number, _) => {
                if let Some((opened, since)) = entered.remove(&event.thread)
                    && opened == number
                    && !WAITS.contains(&number)
                {
                    found.push((number, since, event.time));
                }
            }
            Kind::Fork(_) | Kind::Exec(_) => {}
        }
    }
    found
}

/// When any thread was in a system call, without overlaps and in order.
fn intervals(events: &[Event]) -> Vec<(Duration, Duration)> {
    let mut all: Vec<(Duration, Duration)> = calls(events).into_iter().map(|(_, from, to)| (from, to)).collect();
    all.sort_unstable();
    let mut merged: Vec<(Duration, Duration)> = Vec::new();
    for (from, to) in all {
        match merged.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => merged.push((from, to)),
        }
    }
    merged
}

/// How much of a stretch the intervals cover.
fn covered(intervals: &[(Duration, Duration)], from: Duration, to: Duration) -> Duration {
    intervals.iter().map(|(start, end)| (*end).min(to).saturating_sub((*start).max(from))).sum()
}

fn heaviest(events: &[Event], from: Duration, to: Duration) -> Vec<(String, usize, Duration)> {
    let mut sums: BTreeMap<i64, (usize, Duration)> = BTreeMap::new();
    for (number, start, end) in calls(events) {
        if start >= from && end <= to {
            let sum = sums.entry(number).or_default();
            sum.0 += 1;
            sum.1 += end - start;
        }
    }
    let name = |number: i64| {
        let known = NAMES.iter().find(|(known, _)| *known == number);
        known.map_or_else(|| format!("system call {number}"), |(_, name)| (*name).to_owned())
    };
    let mut found: Vec<_> = sums.into_iter().map(|(number, (count, time))| (name(number), count, time)).collect();
    found.sort_by_key(|(_, _, time)| std::cmp::Reverse(*time));
    found
}

impl Breakdown {
    /// From the request to the init's exec.
    pub fn total(&self) -> Duration {
        self.phases.iter().map(|phase| phase.time).sum()
    }

    /// As a table.
    pub fn table(&self) -> String {
        let mut text = format!("  {:<58} {:>8} {:>10}\n", "from the request to the init's exec", "ms", "in kernel");
        let kernel: Duration = self.phases.iter().map(|phase| phase.kernel).sum();
        let total = Phase { name: "together", time: self.total(), kernel };
        for phase in self.phases.iter().chain([&total]) {
            let _ = writeln!(
                text,
                "  {:<58} {:>8} {:>10}",
                phase.name,
                milliseconds(phase.time),
                milliseconds(phase.kernel)
            );
        }
        let _ = writeln!(text, "\n  {:<58} {:>8} {:>10}", "system calls with the most time in them", "ms", "calls");
        for (name, count, time) in self.calls.iter().take(12) {
            let _ = writeln!(text, "  {name:<58} {:>8} {count:>10}", milliseconds(*time));
        }
        text
    }

    /// The names of all calls seen, for tests.
    pub fn seen(&self) -> BTreeSet<&str> {
        self.calls.iter().map(|(name, _, _)| name.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(thread: i32, microseconds: u64, kind: Kind) -> Event {
        Event { thread, time: Duration::from_micros(microseconds), kind }
    }

    #[test]
    fn a_start_is_taken_apart() {
        let events = [
            event(1, 100, Kind::Exit(ACCEPT4, 9)),
            event(1, 110, Kind::Enter(257)),
            event(1, 210, Kind::Exit(257, 3)),
            event(2, 300, Kind::Exec("/proc/self/fd/17".to_owned())),
            event(2, 310, Kind::Enter(435)),
            event(2, 350, Kind::Fork(3)),
            event(3, 360, Kind::Enter(165)),
            event(2, 400, Kind::Exit(435, 3)),
            event(1, 410, Kind::Enter(232)),
            event(3, 460, Kind::Exit(165, 0)),
            event(3, 500, Kind::Enter(PIVOT_ROOT)),
            event(3, 520, Kind::Exit(PIVOT_ROOT, 0)),
            event(3, 700, Kind::Exec("/sbin/init".to_owned())),
            event(1, 800, Kind::Exit(232, 1)),
        ];
        let breakdown = analyse(&events).expect("all landmarks are there");
        let times: Vec<(u128, u128)> =
            breakdown.phases.iter().map(|phase| (phase.time.as_micros(), phase.kernel.as_micros())).collect();
        // The wait of thread 1 is no work; overlapping calls count once.
        assert_eq!(times, [(200, 100), (50, 40), (150, 110), (200, 20)]);
        assert_eq!(breakdown.total(), Duration::from_micros(600));
        assert_eq!(breakdown.calls[0], ("mount".to_owned(), 1, Duration::from_micros(100)));
        assert!(breakdown.seen().contains("pivot_root"));
        assert!(breakdown.table().contains("together"));
    }

    #[test]
    fn a_trace_without_a_start_is_an_error() {
        assert!(analyse(&[event(1, 1, Kind::Enter(0))]).is_err());
    }
}
