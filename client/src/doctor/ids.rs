//! Ids for unprivileged containers, and a user namespace to try them with.

use std::ffi::c_int;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;

use super::Check;

/// How many ids a container has.
pub(super) const RANGE: u32 = 65_536;
/// Where the daemon begins on a host that gives root no range.
const FALLBACK: u32 = 1_000_000;

/// The host id that a container's root is: root's first range that is large enough, as the daemon chooses it.
pub(super) fn base() -> u32 {
    match (root_range("/etc/subuid"), root_range("/etc/subgid")) {
        (Some((base, _)), Some(_)) => base,
        _ => FALLBACK,
    }
}

fn root_range(path: &str) -> Option<(u32, u32)> {
    let mut ranges = ranges(&fs::read_to_string(path).unwrap_or_default());
    ranges.retain(|(owner, _, count)| matches!(owner.as_str(), "root" | "0") && *count >= RANGE);
    ranges.into_iter().next().map(|(_, base, count)| (base, count))
}

/// The lines of /etc/subuid or /etc/subgid: owner, first id, count (subuid(5)).
fn ranges(text: &str) -> Vec<(String, u32, u32)> {
    let parse = |line: &str| {
        let mut fields = line.trim().split(':');
        let (owner, base, count) = (fields.next()?, fields.next()?, fields.next()?);
        Some((owner.to_owned(), base.parse().ok()?, count.parse().ok()?))
    };
    text.lines().filter_map(parse).collect()
}

pub(super) fn checks() -> Vec<Check> {
    const NAME: &str = "subordinate ids";
    let given = root_range("/etc/subuid").is_some() && root_range("/etc/subgid").is_some();
    let base = base();
    let last = base + (RANGE - 1);
    for path in ["/etc/subuid", "/etc/subgid"] {
        let text = fs::read_to_string(path).unwrap_or_default();
        if let Some((owner, first, count)) = overlapping(&text, base) {
            return vec![Check::warn(
                NAME,
                format!("containers use {base}-{last}, and {path} gives some of it to {owner} as well"),
                format!("move {owner}'s range {first}:{count} in /etc/subuid and /etc/subgid elsewhere"),
            )];
        }
    }
    let source = if given { "as /etc/subuid and /etc/subgid say" } else { "as root is given no other range" };
    vec![Check::ok(NAME, format!("containers use {base}-{last}, {source}"))]
}

/// Somebody else's range that shares ids with the containers'.
fn overlapping(text: &str, base: u32) -> Option<(String, u32, u32)> {
    let shares = |first: u32, count: u32| {
        u64::from(first) < u64::from(base) + u64::from(RANGE) && u64::from(base) < u64::from(first) + u64::from(count)
    };
    ranges(text)
        .into_iter()
        .find(|(owner, first, count)| !matches!(owner.as_str(), "root" | "0") && shares(*first, *count))
}

/// A user namespace with the ids of an unprivileged container; nothing runs in it any more.
#[derive(Debug)]
pub(super) struct UserNamespace {
    fd: OwnedFd,
}

impl UserNamespace {
    /// Makes one, by way of a process that lives until the ids are mapped.
    ///
    /// # Errors
    /// As clone(2) and as writing `/proc/PID/uid_map` (user_namespaces(7)).
    pub(super) fn new() -> io::Result<Self> {
        let (wait, go) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let (wait_raw, go_raw) = (wait.as_raw_fd(), go.as_raw_fd());
        let mut stack = vec![0; 64 * 1024];
        let child = move || -> isize {
            // The child's own copy of the writing end, or the read below would never end.
            // SAFETY: it is open here, and nothing of this process uses it afterwards: the child only exits.
            unsafe { libc::close(go_raw) };
            let mut byte = 0_u8;
            // SAFETY: one byte is read into a live byte.
            unsafe { libc::read(wait_raw, (&raw mut byte).cast(), 1) };
            0
        };
        // SAFETY: without CLONE_VM the child works on copies. Other threads of this process may hold locks, so the
        // child makes system calls only (close, read, exit) and does not allocate.
        let pid = unsafe {
            nix::sched::clone(Box::new(child), &mut stack, CloneFlags::CLONE_NEWUSER, Some(Signal::SIGCHLD as c_int))
        }?;
        let mapped = (|| {
            let (base, dir) = (base(), format!("/proc/{pid}"));
            for map in ["uid_map", "gid_map"] {
                fs::write(format!("{dir}/{map}"), format!("0 {base} {RANGE}\n"))?;
            }
            File::open(format!("{dir}/ns/user"))
        })();
        drop(go);
        waitpid(pid, None)?;
        Ok(Self { fd: mapped?.into() })
    }
}

impl AsFd for UserNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_peoples_ranges_are_seen() {
        let text = "alice:100000:65536\nroot:1000000:1000000000\nbob:1065000:65536\nbroken:x\n";
        assert_eq!(overlapping(text, 1_000_000), Some(("bob".to_owned(), 1_065_000, 65_536)));
        assert_eq!(overlapping(text, 2_000_000), None);
        assert_eq!(overlapping("x:4294967295:4294967295", 1_000_000), None, "no overflow");
    }
}
