//! What a container uses, as the Incus API's `InstanceState` wants it told.
//!
//! [`Reader`] keeps the few files open that it needs, so that a refresh over hundreds of instances costs one `pread` per
//! value and no lookup of paths. The files of a group that was removed answer `ENODEV`; a reader never keeps a group alive.
//!
//! | Here | Version 2 | Version 1 |
//! |---|---|---|
//! | CPU time used | `cpu.stat` `usage_usec` | `cpuacct.usage` |
//! | CPU time available | `cpu.max`, `cpuset.cpus.effective` | `cpu.cfs_*_us`, `cpuset.effective_cpus` |
//! | memory | `memory.current` less the file pages of `memory.stat` | `memory.usage_in_bytes` likewise |
//! | memory peak | `memory.peak` | `memory.max_usage_in_bytes` |
//! | swap, its peak | `memory.swap.current`, `.peak` | `total_swap`; `memsw.max_usage` less the memory peak |
//! | processes | `pids.current` | `pids.current` |
//! | pressure ([`Pressure`]) | `cpu.pressure`, `memory.pressure`, `io.pressure` | the same, in the cgroup2 tree |
//! | killed for memory | `memory.events` `oom_kill` | `memory.oom_control` `oom_kill` |
//!
//! Memory is counted as `free` counts it: page cache that the kernel can drop is not in use. Pages of tmpfs are; they sit on
//! the anonymous lists, so taking away `inactive_file` and `active_file` leaves them in.

mod pressure;
mod processes;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

pub use pressure::{Pressure, Stall, Stalls};

use crate::cgroup::{Cgroup, CgroupError, Controller, CpuList, Place, Result};

/// What a container uses at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time.
    pub cpu: CpuUsage,
    /// Memory; `None` when the host has no memory controller.
    pub memory: Option<MemoryUsage>,
    /// Tasks as the kernel's `pids` controller counts them (threads included); processes when the host lacks it.
    pub processes: u64,
}

/// CPU time, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuUsage {
    /// Used since the container started.
    pub used_ns: u64,
    /// Available to it in each second: a second per CPU, or what its quota leaves of that.
    pub allocated_ns: u64,
}

/// Memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// In use, without droppable page cache.
    pub used: u64,
    /// Droppable page cache.
    pub cache: u64,
    /// The most that was charged at once, page cache included; `None` where the kernel doesn't keep it.
    pub peak: Option<u64>,
    /// What it may use: its limit, or the host's memory.
    pub total: u64,
    /// Swapped out; `None` where the kernel doesn't count it.
    pub swap: Option<u64>,
    /// The most that was swapped out at once; `None` where the kernel doesn't keep it.
    pub swap_peak: Option<u64>,
    /// Processes killed because the limit was reached.
    pub oom_kills: u64,
}

/// Reads one container's usage, again and again.
#[derive(Debug)]
pub struct Reader {
    cgroup: Cgroup,
    cpu_used: File,
    cpu_quota: Quota,
    cpus: Option<File>,
    memory: Option<MemoryFiles>,
    processes: Option<File>,
}

#[derive(Debug)]
enum Quota {
    /// `cpu.max`.
    V2(File),
    /// `cpu.cfs_quota_us`, `cpu.cfs_period_us`.
    V1(File, File),
    /// There is no such controller.
    Unknown,
}

#[derive(Debug)]
struct MemoryFiles {
    current: File,
    stat: File,
    peak: Option<File>,
    /// Version 2 only; version 1 has it in `memory.stat`.
    limit: Option<File>,
    /// Version 2 only; version 1 has it in `memory.stat`.
    swap: Option<File>,
    /// Version 2: the peak of swap. Version 1: the peak of memory and swap together.
    swap_peak: Option<File>,
    events: File,
    v1: bool,
}

impl Reader {
    /// Opens the files of `cgroup`.
    ///
    /// # Errors
    /// What opening one failed with; `ENOENT` when the container's group is gone.
    pub fn open(cgroup: &Cgroup) -> Result<Self> {
        let cpu_used = match cgroup.dir_of(Controller::CpuAcct)? {
            Place::V1(dir) => File::open(&dir, "cpuacct.usage")?,
            Place::V2(dir) => File::open(&dir, "cpu.stat")?,
        };
        let cpu_quota = match cgroup.dir_of(Controller::Cpu) {
            Ok(Place::V1(dir)) => {
                Quota::V1(File::open(&dir, "cpu.cfs_quota_us")?, File::open(&dir, "cpu.cfs_period_us")?)
            }
            Ok(Place::V2(dir)) => Quota::V2(File::open(&dir, "cpu.max")?),
            Err(_) => Quota::Unknown,
        };
        let cpus = match cgroup.dir_of(Controller::Cpuset) {
            Ok(Place::V1(dir)) => Some(File::open(&dir, "cpuset.effective_cpus")?),
            Ok(Place::V2(dir)) => Some(File::open(&dir, "cpuset.cpus.effective")?),
            Err(_) => None,
        };
        let memory = match cgroup.dir_of(Controller::Memory) {
            Ok(place) => Some(MemoryFiles::open(&place)?),
            Err(_) => None,
        };
        let processes = match cgroup.dir_of(Controller::Pids) {
            Ok(Place::V1(dir) | Place::V2(dir)) => Some(File::open(&dir, "pids.current")?),
            Err(_) => None,
        };
        Ok(Self { cgroup: cgroup.clone(), cpu_used, cpu_quota, cpus, memory, processes })
    }

    /// The usage now.
    ///
    /// # Errors
    /// What reading failed with; `ENODEV` when the container's group is gone.
    pub fn read(&self) -> Result<Usage> {
        Ok(Usage {
            cpu: CpuUsage { used_ns: self.cpu_used_ns()?, allocated_ns: self.cpu_allocated_ns()? },
            memory: self.memory.as_ref().map(MemoryFiles::read).transpose()?,
            processes: match &self.processes {
                Some(file) => file.number()?,
                None => processes::count(&self.cgroup.unified())?,
            },
        })
    }

    fn cpu_used_ns(&self) -> Result<u64> {
        let mut buffer = Buffer::default();
        let text = self.cpu_used.read(&mut buffer)?;
        match field(text, "usage_usec") {
            Some(microseconds) => Ok(microseconds.saturating_mul(1000)),
            None => self.cpu_used.parse(text),
        }
    }

    fn cpu_allocated_ns(&self) -> Result<u64> {
        const SECOND: u64 = 1_000_000_000;
        let mut buffer = Buffer::default();
        let cpus = match &self.cpus {
            Some(file) => file.read(&mut buffer)?.parse::<CpuList>()?.len() as u64,
            None => self.cgroup.layout().available_cpus()?.len() as u64,
        };
        let mut buffer = Buffer::default();
        let (quota, period) = match &self.cpu_quota {
            Quota::V2(file) => match file.read(&mut buffer)?.trim().split_once(' ') {
                Some((quota, period)) => (quota.parse::<u64>().ok(), period.parse::<u64>().unwrap_or(0)),
                None => (None, 0),
            },
            // "-1" for none, which isn't a number for us.
            Quota::V1(quota, period) => (quota.read(&mut buffer)?.trim().parse::<u64>().ok(), period.number()?),
            Quota::Unknown => (None, 0),
        };
        let all = cpus.saturating_mul(SECOND);
        Ok(match quota {
            Some(quota) if period > 0 => all.min((u128::from(quota) * u128::from(SECOND) / u128::from(period)) as u64),
            _ => all,
        })
    }
}

impl MemoryFiles {
    fn open(place: &Place) -> Result<Self> {
        match place {
            Place::V1(dir) => Ok(Self {
                current: File::open(dir, "memory.usage_in_bytes")?,
                stat: File::open(dir, "memory.stat")?,
                peak: File::open_if_present(dir, "memory.max_usage_in_bytes")?,
                limit: None,
                swap: None,
                swap_peak: File::open_if_present(dir, "memory.memsw.max_usage_in_bytes")?,
                events: File::open(dir, "memory.oom_control")?,
                v1: true,
            }),
            Place::V2(dir) => Ok(Self {
                current: File::open(dir, "memory.current")?,
                stat: File::open(dir, "memory.stat")?,
                // Linux 5.19 and 6.5 brought the peaks; swap files are absent without swap accounting.
                peak: File::open_if_present(dir, "memory.peak")?,
                limit: Some(File::open(dir, "memory.max")?),
                swap: File::open_if_present(dir, "memory.swap.current")?,
                swap_peak: File::open_if_present(dir, "memory.swap.peak")?,
                events: File::open(dir, "memory.events")?,
                v1: false,
            }),
        }
    }

    fn read(&self) -> Result<MemoryUsage> {
        let current = self.current.number()?;
        let mut buffer = Buffer::default();
        let stat = self.stat.read(&mut buffer)?;
        let names =
            if self.v1 { ["total_inactive_file", "total_active_file"] } else { ["inactive_file", "active_file"] };
        // The counters lag behind the charge by per-CPU batches, so their sum can pass it for a moment.
        let cache = names.iter().filter_map(|name| field(stat, name)).sum::<u64>().min(current);
        let mut limit = field(stat, "hierarchical_memory_limit").filter(|_| self.v1);
        let mut swap = field(stat, "total_swap").filter(|_| self.v1);
        if let Some(file) = &self.limit {
            limit = file.number().ok();
        }
        if let Some(file) = &self.swap {
            swap = Some(file.number()?);
        }
        let peak = self.peak.as_ref().map(File::number).transpose()?;
        let mut swap_peak = self.swap_peak.as_ref().map(File::number).transpose()?;
        if self.v1 {
            swap_peak = swap_peak.map(|together| together.saturating_sub(peak.unwrap_or(0)));
        }
        let host = host_memory();
        let mut buffer = Buffer::default();
        let oom_kills = field(self.events.read(&mut buffer)?, "oom_kill").unwrap_or(0);
        Ok(MemoryUsage {
            used: current - cache,
            cache,
            peak,
            total: limit.map_or(host, |limit| limit.min(host)),
            swap,
            swap_peak,
            oom_kills,
        })
    }
}

/// The host's memory in bytes; it doesn't change while we run, short of hot-plugged memory.
fn host_memory() -> u64 {
    static TOTAL: OnceLock<u64> = OnceLock::new();
    *TOTAL.get_or_init(|| {
        let table = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kibibytes = table
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        kibibytes.map_or(u64::MAX, |kibibytes| kibibytes * 1024)
    })
}

/// The number in the line `<name> <number>`.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Enough for `memory.stat`, the longest of them.
struct Buffer([u8; 8192]);

impl Default for Buffer {
    fn default() -> Self {
        Self([0; 8192])
    }
}

/// An open cgroup file, and its name for errors.
#[derive(Debug)]
struct File {
    fd: OwnedFd,
    path: Box<Path>,
}

impl File {
    fn open(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(name).into_boxed_path();
        match rustix::fs::open(&*path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, path }),
            Err(errno) => Err(CgroupError::Io { action: "open", path: path.into(), errno }),
        }
    }

    fn open_if_present(dir: &Path, name: &str) -> Result<Option<Self>> {
        match Self::open(dir, name) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.errno() == Some(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read<'a>(&self, buffer: &'a mut Buffer) -> Result<&'a str> {
        let length = rustix::io::retry_on_intr(|| rustix::io::pread(&self.fd, &mut buffer.0[..], 0))
            .map_err(|errno| CgroupError::Io { action: "read", path: self.path.clone().into(), errno })?;
        // They are ASCII; whatever is not would fail to be a number below.
        Ok(std::str::from_utf8(&buffer.0[..length]).unwrap_or_default())
    }

    fn number(&self) -> Result<u64> {
        let mut buffer = Buffer::default();
        let text = self.read(&mut buffer)?;
        self.parse(text)
    }

    fn parse(&self, text: &str) -> Result<u64> {
        text.trim().parse().map_err(|_| CgroupError::Content {
            path: self.path.clone().into(),
            content: text.chars().take(64).collect(),
            expected: "a number",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::field;

    #[test]
    fn fields_match_whole_names() {
        let text = "file 12\nfile_mapped 7\ninactive_file 3\noom_kill 2\n";
        assert_eq!(field(text, "file"), Some(12));
        assert_eq!(field(text, "inactive_file"), Some(3));
        assert_eq!(field(text, "oom"), None);
        assert_eq!(field(text, "active_file"), None);
    }
}
