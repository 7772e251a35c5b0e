//! Looking at processes through `/proc`.

use std::fs;
use std::path::{Path, PathBuf};

/// Every process of the machine.
pub fn all() -> Vec<i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The words of a process' command line; empty for a kernel thread and one that is gone.
pub fn command_line(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

/// The file name of the program that a process runs. A monitor has left the mounts that its file was found in, and is
/// known by the name that it has given itself.
pub fn program(pid: i32) -> Option<String> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    match path.file_name() {
        Some(name) => Some(name.to_string_lossy().trim_end_matches(" (deleted)").to_owned()),
        None => Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned()),
    }
}

/// Whether a process is alive (a zombie is not).
pub fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| !rest.starts_with(['Z', 'X'])))
        .unwrap_or(false)
}

/// A namespace's identity, such as `net:[4026531840]`.
pub fn namespace(pid: i32, kind: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()
}

/// The value in kB of a line of `/proc/<pid>/smaps_rollup` or `status`, such as `Pss`.
pub fn kilobytes(pid: i32, file: &str, field: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    let line = text.lines().find(|line| line.split(':').next() == Some(field))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The process with the given program in its command line and `folder` in it too.
pub fn find(program_name: &str, folder: &Path) -> Vec<i32> {
    let folder = folder.to_string_lossy();
    all()
        .into_iter()
        .filter(|pid| program(*pid).as_deref() == Some(program_name))
        .filter(|pid| command_line(*pid).iter().any(|word| word.contains(folder.as_ref())))
        .collect()
}
