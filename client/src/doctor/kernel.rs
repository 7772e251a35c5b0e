//! System calls that everything else is built on.

use duet_sys::seccomp::{self, Instruction};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::process::PidfdFlags;

use super::{Check, ids, read, said};

/// The oldest kernel with all that is needed: idmapped overlay layers came with 5.19.
const UPGRADE: &str = "use a kernel of 5.19 or later (Debian 12 and Ubuntu 24.04 have one)";

pub(super) fn checks(root: bool) -> Vec<Check> {
    let mut checks = vec![version(), pidfd(), openat2()];
    if root {
        checks.push(seccomp_filter());
        checks.push(user_namespace());
    }
    checks
}

fn version() -> Check {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "of an unknown version".to_owned());
    Check::ok("kernel", format!("Linux {release} on {}", std::env::consts::ARCH))
}

fn pidfd() -> Check {
    match rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()) {
        Ok(_) => Check::ok("pidfd", "processes can be followed without mistaking one for another"),
        Err(error) => Check::fail("pidfd", format!("pidfd_open failed: {}", said(error)), UPGRADE),
    }
}

fn openat2() -> Check {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let tried = rustix::fs::openat(CWD, "/", flags, Mode::empty())
        .and_then(|root| rustix::fs::openat2(&root, "../proc", flags, Mode::empty(), ResolveFlags::IN_ROOT));
    match tried {
        Ok(_) => Check::ok("openat2", "paths can be kept inside an instance's root"),
        Err(error) => Check::fail("openat2", format!("openat2 failed: {}", said(error)), UPGRADE),
    }
}

/// Puts a filter that allows everything on a thread, which then ends.
fn seccomp_filter() -> Check {
    // `ret ALLOW`: BPF_RET | BPF_K with SECCOMP_RET_ALLOW (seccomp(2)).
    let allow = [Instruction { code: 0x06, jt: 0, jf: 0, k: 0x7fff_0000 }];
    let tried = std::thread::scope(|scope| {
        scope.spawn(|| seccomp::install(&allow)).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    match tried {
        Ok(()) => Check::ok("seccomp", "a system call filter was installed"),
        Err(error) => Check::fail(
            "seccomp",
            format!("installing a system call filter failed: {}", said(error)),
            "use a kernel with CONFIG_SECCOMP_FILTER, and run on the host itself rather than in a container",
        ),
    }
}

fn user_namespace() -> Check {
    const NAME: &str = "user namespaces";
    match ids::UserNamespace::new() {
        Ok(_) => Check::ok(NAME, format!("one was made, with {} ids in it", ids::RANGE)),
        Err(error) => {
            let mend = match read("/proc/sys/user/max_user_namespaces").as_deref() {
                Some("0") => "sysctl -w user.max_user_namespaces=15000",
                _ => "use a kernel with CONFIG_USER_NS, and run on the host itself rather than in a container",
            };
            Check::fail(NAME, format!("making one failed: {}", said(error)), mend)
        }
    }
}
