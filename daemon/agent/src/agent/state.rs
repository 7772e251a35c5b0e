//! How the guest is.

use std::collections::BTreeMap;
use std::fs;

use super::network;
use super::power::InitKind;
use crate::protocol::message::{MAX_TEXT, Memory, Space, State};

/// The most fields of os-release that are told.
const MAX_FIELDS: usize = 64;

/// Reads it. What cannot be read is left empty.
pub(super) fn read(ready: bool) -> State {
    let system = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let release = fs::read_to_string("/etc/os-release").or_else(|_| fs::read_to_string("/usr/lib/os-release"));
    State {
        hostname: text(system.nodename()),
        kernel: text(system.release()),
        os_release: os_release(&release.unwrap_or_default()),
        up: (ready || InitKind::running() == InitKind::Systemd).then_some(ready),
        processes: processes(),
        memory: memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
        root: root_space(),
        network: network::interfaces(),
    }
}

/// The fields of os-release(5), which are assignments of a shell with the simplest of quoting.
fn os_release(text: &str) -> BTreeMap<String, String> {
    let field = |line: &str| {
        let (name, value) = line.trim().split_once('=').filter(|(name, _)| !name.starts_with('#'))?;
        let unquoted = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
        let value: String = unquoted.unwrap_or(value).replace('\\', "");
        Some((name.chars().take(MAX_TEXT).collect(), value.chars().take(MAX_TEXT).collect()))
    };
    text.lines().filter_map(field).take(MAX_FIELDS).collect()
}

fn memory(text: &str) -> Memory {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.saturating_mul(1024))
    };
    Memory {
        total: field("MemTotal").unwrap_or(0),
        available: field("MemAvailable").unwrap_or(0),
        swap_total: field("SwapTotal").unwrap_or(0),
        swap_free: field("SwapFree").unwrap_or(0),
    }
}

fn processes() -> u64 {
    let numeric =
        |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    fs::read_dir("/proc")
        .map_or(0, |entries| entries.flatten().filter(|entry| numeric(&entry.file_name())).count() as u64)
}

fn root_space() -> Space {
    rustix::fs::statvfs("/").map_or_else(
        |_| Space::default(),
        |stat| Space {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            used: stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize),
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systems_write_is_understood() {
        let release =
            os_release("# a comment\nID=debian\nPRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\nEMPTY=\nX='y'\nno\n");
        assert_eq!(release["ID"], "debian");
        assert_eq!(release["PRETTY_NAME"], "Debian GNU/Linux 13 (trixie)");
        assert_eq!(release["X"], "y");
        assert_eq!(release.len(), 4);
        let memory = memory("MemTotal:        2048 kB\nMemAvailable:    1024 kB\nSwapTotal:  x kB\n");
        assert_eq!((memory.total, memory.available, memory.swap_total), (2 << 20, 1 << 20, 0));
    }

    #[test]
    fn this_system_can_be_told_about() {
        let state = read(false);
        assert!(state.processes > 0 && state.memory.total > state.memory.available && state.root.total > 0);
        assert!(!state.kernel.is_empty() && state.network.contains_key("lo"));
    }
}
