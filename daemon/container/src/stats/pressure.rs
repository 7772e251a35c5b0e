//! Pressure stall information: for how much of the time a container's processes waited for what it lacks.
//!
//! The cgroup2 tree has it for each group, whichever controllers are in use (cgroup-v2.rst, Documentation/accounting/psi.rst).

use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::cgroup::Cgroup;

/// How a container waits. `None`: the kernel does not count it (it was built or booted without).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// For a CPU.
    pub cpu: Option<Stalls>,
    /// For memory.
    pub memory: Option<Stalls>,
    /// For input and output.
    pub io: Option<Stalls>,
}

/// Waiting for one resource.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stalls {
    /// At least one task waited.
    pub some: Stall,
    /// All tasks that were not idle waited at once.
    pub full: Stall,
}

/// For how long.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    /// Per cent of the last 10 seconds.
    pub avg10: f64,
    /// Per cent of the last minute.
    pub avg60: f64,
    /// Per cent of the last five minutes.
    pub avg300: f64,
    /// Microseconds since the container started.
    pub total_us: u64,
}

impl Pressure {
    /// Reads that of a running container.
    #[must_use]
    pub fn read(cgroup: &Cgroup) -> Self {
        let dir = cgroup.unified();
        let of = |name: &str| parse(&read(&dir.join(name))?);
        Self { cpu: of("cpu.pressure"), memory: of("memory.pressure"), io: of("io.pressure") }
    }
}

fn read(path: &Path) -> Option<String> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut buffer = [0_u8; 512];
    let length = rustix::io::retry_on_intr(|| rustix::io::pread(&file, &mut buffer[..], 0)).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Reads lines like `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`. Before Linux 5.13 `cpu` has no `full`.
fn parse(text: &str) -> Option<Stalls> {
    let stall = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        let value = |key: &str| line.split(' ').find_map(|field| field.strip_prefix(key)?.strip_prefix('='));
        Some(Stall {
            avg10: value("avg10")?.parse().ok()?,
            avg60: value("avg60")?.parse().ok()?,
            avg300: value("avg300")?.parse().ok()?,
            total_us: value("total")?.parse().ok()?,
        })
    };
    Some(Stalls { some: stall("some")?, full: stall("full").unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::{Stall, Stalls, parse};

    #[test]
    fn lines_of_the_kernel() {
        let some = Stall { avg10: 1.5, avg60: 0.25, avg300: 0.0, total_us: 42 };
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=42\nfull avg10=1.50 avg60=0.25 avg300=0.00 total=42\n";
        assert_eq!(parse(text), Some(Stalls { some, full: some }));
        let old = "some avg10=1.50 avg60=0.25 avg300=0.00 total=42\n";
        assert_eq!(parse(old), Some(Stalls { some, full: Stall::default() }));
        for bad in ["", "full avg10=1.50", "some avg10=x avg60=0.25 avg300=0.00 total=42"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
