//! Writing limits into the files of either layout.
//!
//! A fresh group already has no limits, so only what is set is written: a launch pays for what it asked for. A live group
//! gets every value, which also undoes limits that are no longer set, whatever they were.

use std::path::Path;

use rustix::io::Errno;

use super::limits::{IoLimit, Limits, MemoryLimit, Swap, USUAL_WEIGHT};
use super::{Cgroup, CgroupError, Controller, Place, Result, io};

/// Version 1's way to say "no limit".
const NONE_V1: &str = "-1";

/// Version 2's way to say "no limit".
const NONE_V2: &str = "max";

/// The scheduler's default period in microseconds.
const PERIOD_US: u64 = 100_000;

/// What may be assumed of the group.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It was just made: nothing is limited.
    Fresh,
    /// Anything may be limited.
    Live,
}

pub(super) fn apply(cgroup: &Cgroup, limits: &Limits, state: State) -> Result<()> {
    cpus(cgroup, limits, state)?;
    cpu_time(cgroup, limits, state)?;
    memory(cgroup, limits, state)?;
    processes(cgroup, limits, state)?;
    io_max(cgroup, limits, state)?;
    io_weight(cgroup, limits, state)
}

/// Where `controller`'s files are. `None` when there is nothing to do: nothing is set, and the group is fresh or the
/// host has no such controller that could hold an old limit.
fn place_for(cgroup: &Cgroup, controller: Controller, set: bool, state: State) -> Result<Option<Place>> {
    if !set && state == State::Fresh {
        return Ok(None);
    }
    match cgroup.dir_of(controller) {
        Err(CgroupError::NoController { .. }) if !set => Ok(None),
        found => found.map(Some),
    }
}

fn cpus(cgroup: &Cgroup, limits: &Limits, state: State) -> Result<()> {
    let Some(place) = place_for(cgroup, Controller::Cpuset, limits.cpus.is_some(), state)? else {
        return Ok(());
    };
    let wanted = limits.cpus.as_ref().map(ToString::to_string);
    let (Place::V2(dir) | Place::V1(dir)) = &place;
    let (file, slice) = (dir.join("cpuset.cpus"), dir.parent().unwrap_or(dir));
    match place {
        Place::V2(_) => match &wanted {
            Some(list) => io::write(&file, list),
            // A set that has been narrowed cannot be emptied while processes are in it (ENOSPC): it becomes all that
            // there is above it.
            None => io::write(&file, "\n")
                .or_else(|_| io::write(&file, io::read(&slice.join("cpuset.cpus.effective"))?.trim())),
        },
        Place::V1(_) => {
            let attempt = || match &wanted {
                Some(list) => io::write(&file, list),
                None => io::write(&file, io::read(&slice.join("cpuset.cpus"))?.trim()),
            };
            attempt().or_else(|_| {
                // Version 1 drops a CPU from every set when it goes offline, and never gives it back.
                cgroup.layout.fill_v1_cpuset(cgroup.slice())?;
                attempt()
            })
        }
    }
}

fn cpu_time(cgroup: &Cgroup, limits: &Limits, state: State) -> Result<()> {
    let set = limits.cpu_allowance.is_some() || limits.cpu_priority.is_some();
    let Some(place) = place_for(cgroup, Controller::Cpu, set, state)? else {
        return Ok(());
    };
    let quota = limits.quota();
    let set_quota = quota.is_some() || state == State::Live;
    match place {
        Place::V2(dir) => {
            // A scope's weight is systemd's to write: here it would have no siblings to be compared with.
            if !cgroup.is_scope() {
                io::write(&dir.join("cpu.weight"), &limits.weight().to_string())?;
            }
            if set_quota {
                let value = match quota {
                    Some((quota, period)) => format!("{quota} {period}"),
                    None => format!("{NONE_V2} {PERIOD_US}"),
                };
                io::write(&dir.join("cpu.max"), &value)?;
            }
        }
        Place::V1(dir) => {
            io::write(&dir.join("cpu.shares"), &limits.shares().to_string())?;
            if set_quota {
                let (quota, period) = match quota {
                    Some((quota, period)) => (quota.to_string(), period),
                    None => (NONE_V1.to_owned(), PERIOD_US),
                };
                io::write(&dir.join("cpu.cfs_period_us"), &period.to_string())?;
                io::write(&dir.join("cpu.cfs_quota_us"), &quota)?;
            }
        }
    }
    Ok(())
}

fn memory(cgroup: &Cgroup, limits: &Limits, state: State) -> Result<()> {
    let set = limits.memory.is_some() || limits.swap != Swap::Allowed;
    let Some(place) = place_for(cgroup, Controller::Memory, set, state)? else {
        return Ok(());
    };
    let (hard, soft) = match limits.memory {
        Some(MemoryLimit::Hard(bytes)) => (Some(bytes), None),
        Some(MemoryLimit::Soft(bytes)) => (None, Some(bytes)),
        None => (None, None),
    };
    let written = match &place {
        Place::V2(dir) => memory_v2(dir, hard, soft, limits.swap, state),
        Place::V1(dir) => memory_v1(dir, hard, soft, limits.swap, state),
    };
    // Version 1 says EBUSY when it can't reclaim down to the limit; version 2 would rather kill.
    written.map_err(|error| match (error.errno(), hard) {
        (Some(Errno::BUSY), Some(bytes)) => CgroupError::MemoryInUse { name: cgroup.name().to_owned(), bytes },
        _ => error,
    })
}

fn memory_v2(dir: &Path, hard: Option<u64>, soft: Option<u64>, swap: Swap, state: State) -> Result<()> {
    let value = |limit: Option<u64>| limit.map_or_else(|| NONE_V2.to_owned(), |bytes| bytes.to_string());
    for (file, limit) in [("memory.max", hard), ("memory.high", soft)] {
        if limit.is_some() || state == State::Live {
            io::write(&dir.join(file), &value(limit))?;
        }
    }
    let swap = match swap {
        Swap::Allowed => None,
        Swap::Denied => Some(0),
        Swap::Bytes(bytes) => Some(bytes),
    };
    if swap.is_some() || state == State::Live {
        // Missing where the kernel was built or booted without swap accounting.
        let written = io::write_if_present(&dir.join("memory.swap.max"), &value(swap))?;
        if !written && swap.is_some_and(|bytes| bytes > 0) {
            return Err(NO_SWAP_ACCOUNTING);
        }
    }
    Ok(())
}

const NO_SWAP_ACCOUNTING: CgroupError = CgroupError::Unsupported {
    why: "this host's kernel does not account for swap, so limits.memory.swap can't be a size here",
};

/// Version 1 bounds memory and memory + swap, and the second may never be below the first; so it is lifted while the
/// first is moved.
fn memory_v1(dir: &Path, hard: Option<u64>, soft: Option<u64>, swap: Swap, state: State) -> Result<()> {
    let live = state == State::Live;
    let memsw = dir.join("memory.memsw.limit_in_bytes");
    let counted = if live { io::write_if_present(&memsw, NONE_V1)? } else { true };
    for (file, limit) in [("memory.limit_in_bytes", hard), ("memory.soft_limit_in_bytes", soft)] {
        match limit {
            Some(bytes) => io::write(&dir.join(file), &bytes.to_string())?,
            None if live => io::write(&dir.join(file), NONE_V1)?,
            None => {}
        }
    }
    let swappiness = dir.join("memory.swappiness");
    match swap {
        Swap::Denied => {
            io::write(&swappiness, "0")?;
        }
        Swap::Allowed | Swap::Bytes(_) if live => {
            let usual = io::read(&dir.parent().unwrap_or(dir).join("memory.swappiness"))?;
            io::write(&swappiness, usual.trim())?;
        }
        Swap::Allowed | Swap::Bytes(_) => {}
    }
    let total = match (swap, hard) {
        (Swap::Allowed, _) | (Swap::Denied, None) => return Ok(()),
        (Swap::Denied, Some(bytes)) => bytes,
        (Swap::Bytes(swap), Some(bytes)) => bytes.saturating_add(swap),
        (Swap::Bytes(_), None) => {
            return Err(CgroupError::Unsupported {
                why: "limits.memory.swap as a size needs a hard limits.memory beside it on a host with cgroup version 1",
            });
        }
    };
    let written = counted && io::write_if_present(&memsw, &total.to_string())?;
    if !written && matches!(swap, Swap::Bytes(_)) {
        return Err(NO_SWAP_ACCOUNTING);
    }
    Ok(())
}

fn processes(cgroup: &Cgroup, limits: &Limits, state: State) -> Result<()> {
    let set = limits.processes.is_some();
    let Some(Place::V1(dir) | Place::V2(dir)) = place_for(cgroup, Controller::Pids, set, state)? else {
        return Ok(());
    };
    let value = limits.processes.map_or_else(|| NONE_V2.to_owned(), |count| count.to_string());
    io::write(&dir.join("pids.max"), &value)
}

fn io_max(cgroup: &Cgroup, limits: &Limits, state: State) -> Result<()> {
    let Some(Place::V1(dir) | Place::V2(dir)) = place_for(cgroup, Controller::Io, !limits.io.is_empty(), state)? else {
        return Ok(());
    };
    let file = dir.join("io.max");
    if state == State::Live {
        let listed = io::read(&file)?;
        let devices = listed.lines().filter_map(|line| line.split_once(' ')?.0.split_once(':'));
        let devices = devices.filter_map(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        for gone in devices.filter(|device| !limits.io.contains_key(device)) {
            io::write(&file, &IoLimit::default().line(gone))?;
        }
    }
    limits.io.iter().try_for_each(|(device, limit)| io::write(&file, &limit.line(*device)))
}

fn io_weight(cgroup: &Cgroup, limits: &Limits, state: State) -> Result<()> {
    // A scope's weight is systemd's to write.
    if cgroup.is_scope() {
        return Ok(());
    }
    let set = limits.io_weight.is_some();
    let Some(Place::V1(dir) | Place::V2(dir)) = place_for(cgroup, Controller::Io, set, state)? else {
        return Ok(());
    };
    let value = format!("default {}", limits.io_weight.unwrap_or(USUAL_WEIGHT));
    let written = io::write_if_present(&dir.join("io.weight"), &value)?;
    if !written && set {
        return Err(CgroupError::Unsupported {
            why: "this host's kernel does not weigh input and output, so limits.disk.priority can't be set here",
        });
    }
    Ok(())
}
