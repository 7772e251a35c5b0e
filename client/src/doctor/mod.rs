//! `duet doctor`: whether this host has what Duet needs.
//!
//! Nothing is guessed from version numbers: a user namespace is made, an overlay with shifted ids is stacked on the
//! very filesystem that will hold the instances, a bridge, a veth pair and a rule set are made in a network
//! namespace that is gone a moment later. The probes call the same code as the daemon does where there is one
//! ([`duet_container::rootfs`], [`duet_container::cgroup`]). What is probed leaves nothing behind, and nothing of it
//! needs the daemon.
//!
//! One [`Check`] is one line. `Fail` means that instances cannot run as they should, `Warn` that something will be
//! missing or short; both carry the mend, as a command wherever there is one.

mod cgroups;
mod daemon;
mod filesystem;
mod firewall;
mod fix;
mod host;
mod ids;
mod kernel;
mod network;
mod print;
mod programs;

use std::path::PathBuf;

use serde::Serialize;

pub use firewall::in_the_way;
pub use fix::{Step, fix};
pub use print::{Format, print};

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Instances run, but something is short or missing.
    Warn,
    /// Instances do not run as they should.
    Fail,
}

/// One thing that the host needs, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at, in a word or two.
    pub name: &'static str,
    /// How it ended.
    pub status: Status,
    /// What was found, in one sentence without a full stop.
    pub message: String,
    /// What to do about it; absent when all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
    /// How [`fix`] does that; empty where only an admin can.
    #[serde(skip)]
    pub fix: Vec<Step>,
}

impl Check {
    fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, message: message.into(), mend: None, fix: Vec::new() }
    }

    fn warn(name: &'static str, message: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, message: message.into(), mend: Some(mend.into()), fix: Vec::new() }
    }

    fn fail(name: &'static str, message: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, message: message.into(), mend: Some(mend.into()), fix: Vec::new() }
    }
}

/// What to look at.
#[derive(Debug, Clone)]
pub struct Options {
    /// The daemon's directory (`DUET_DIR`); it need not exist yet.
    pub dir: PathBuf,
    /// The bridges for which the host's firewalls are judged.
    pub bridges: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        let dir = std::env::var_os("DUET_DIR").filter(|dir| !dir.is_empty());
        Self::of(dir.map_or_else(|| crate::http::default_directory().to_owned(), PathBuf::from))
    }
}

impl Options {
    /// For a daemon with this directory and the networks that it keeps there; before its first start, the one that it
    /// will make.
    #[must_use]
    pub fn of(dir: PathBuf) -> Self {
        let entries = std::fs::read_dir(dir.join("networks")).into_iter().flatten().flatten();
        let mut bridges: Vec<String> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| is_plain(name))
            .collect();
        bridges.sort();
        if bridges.is_empty() {
            bridges.push("duetbr0".to_owned());
        }
        Self { dir, bridges }
    }
}

/// Whether a name says the same in a command, a rule and a file's name.
fn is_plain(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// Runs every check, in the order in which they are to be read. Blocks for a fraction of a second.
///
/// Without root only what needs none is looked at, and the first line says so.
#[must_use]
pub fn run(options: &Options) -> Vec<Check> {
    let root = rustix::process::geteuid().is_root();
    let mut checks = Vec::new();
    if !root {
        checks.push(Check::warn(
            "root",
            "run by an ordinary user, so what only root may try is left out",
            "sudo duet doctor",
        ));
    }
    // The three groups wait for programs and the kernel, not for each other.
    let (kernel, network, rest) = std::thread::scope(|scope| {
        let kernel = scope.spawn(|| {
            let mut checks = kernel::checks(root);
            if root {
                checks.extend(filesystem::checks(options));
            }
            checks.extend(filesystem::space(options));
            checks.extend(cgroups::checks(root));
            checks
        });
        let network = scope.spawn(|| {
            let mut checks = network::checks(root);
            if root {
                checks.extend(firewall::checks(&options.bridges));
            }
            checks
        });
        let mut rest = ids::checks();
        rest.extend(host::checks());
        rest.extend(programs::checks());
        rest.extend(daemon::checks(options));
        (joined(kernel), joined(network), rest)
    });
    checks.extend(kernel);
    checks.extend(network);
    checks.extend(rest);
    checks
}

/// A probe that panics is a defect of ours; it must not hide behind a clean report.
fn joined(thread: std::thread::ScopedJoinHandle<'_, Vec<Check>>) -> Vec<Check> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The worst of the results; [`Status::Ok`] for none. `duet doctor` exits with 1 when it is [`Status::Fail`].
#[must_use]
pub fn worst(checks: &[Check]) -> Status {
    checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok)
}

/// An error as a clause of a sentence: without the number that Rust appends, and without a path already named.
fn said(error: impl std::fmt::Display) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// A small file's content without the white space around it.
fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_complaint_has_a_mend() {
        let dir = tempfile::tempdir().unwrap();
        let checks = run(&Options::of(dir.path().to_owned()));
        assert!(checks.len() > 15, "{checks:#?}");
        for check in &checks {
            assert_eq!(check.mend.is_some(), check.status != Status::Ok, "{check:?}");
            assert!(!check.message.ends_with('.') && !check.message.contains('\n'), "{check:?}");
            assert!(check.mend.as_ref().is_none_or(|mend| !mend.is_empty()), "{check:?}");
        }
    }

    #[test]
    fn nothing_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let before = Footprint::take();
        let checks = run(&Options::of(dir.path().to_owned()));
        assert!(!checks.is_empty());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "files");
        assert_eq!(Footprint::take(), before);
    }

    /// What a probe could leave on the host. Other tests of this machine come and go, so only names of ours count.
    #[derive(Debug, PartialEq)]
    struct Footprint {
        links: Vec<String>,
        mounts: usize,
        groups: usize,
    }

    impl Footprint {
        fn take() -> Self {
            let names = |dir: &str| -> Vec<String> {
                let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
                entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
            };
            let ours = |name: &String| name.starts_with("duet-doctor") || name.starts_with("dtprobe");
            let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            Self {
                links: names("/sys/class/net").into_iter().filter(ours).collect(),
                mounts: mounts.lines().filter(|line| line.contains("duet-doctor")).count(),
                groups: ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
                    .iter()
                    .map(|dir| names(dir).into_iter().filter(ours).count())
                    .sum(),
            }
        }
    }
}
