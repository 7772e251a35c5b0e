//! Limits and facilities of the host as a whole.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::{Check, programs, read, said};

pub(super) fn checks() -> Vec<Check> {
    vec![inotify(), keyrings(), apparmor(), kvm()]
}

fn number(path: &str) -> Option<u64> {
    read(path)?.parse().ok()
}

/// Instances of inotify are counted for the user who made the namespaces, which is root for all containers
/// together. systemd and its services in one container hold about six.
fn inotify() -> Check {
    const NAME: &str = "inotify";
    const EACH: u64 = 6;
    match number("/proc/sys/fs/inotify/max_user_instances") {
        Some(limit) if limit < 1024 => Check::warn(
            NAME,
            format!("{limit} instances are allowed, enough for about {} containers with systemd", limit / EACH),
            "echo fs.inotify.max_user_instances=8192 > /etc/sysctl.d/60-duet.conf && sysctl --system",
        ),
        Some(limit) => Check::ok(NAME, format!("{limit} instances are allowed")),
        None => {
            Check::warn(NAME, "the kernel has no inotify, which systemd needs", "use a kernel with CONFIG_INOTIFY_USER")
        }
    }
}

/// Every service of a container has a session keyring, counted for the host id that the container's root is; all
/// that share the one id range share that limit (keyrings(7)).
fn keyrings() -> Check {
    const NAME: &str = "keyrings";
    const EACH: u64 = 20;
    match number("/proc/sys/kernel/keys/maxkeys") {
        Some(limit) if limit < 2000 => Check::warn(
            NAME,
            format!("{limit} keys are allowed, enough for about {} containers with systemd", limit / EACH),
            "printf 'kernel.keys.maxkeys=20000\\nkernel.keys.maxbytes=2000000\\n' > \
                /etc/sysctl.d/61-duet.conf && sysctl --system",
        ),
        Some(limit) => Check::ok(NAME, format!("{limit} keys are allowed")),
        None => Check::ok(NAME, "the kernel has none, and none are needed"),
    }
}

/// The daemon compiles a profile for each instance.
fn apparmor() -> Check {
    const NAME: &str = "AppArmor";
    match read("/sys/module/apparmor/parameters/enabled").as_deref() {
        Some("Y") => match programs::find("apparmor_parser") {
            Some(parser) => Check::ok(NAME, format!("enabled, with {}", parser.display())),
            None => Check::warn(
                NAME,
                "is enabled, but apparmor_parser is missing; instances would have no profiles",
                "apt install apparmor, then systemctl restart duetd",
            ),
        },
        Some(_) => Check::ok(NAME, "in the kernel but not enabled; containers do without"),
        None => Check::ok(NAME, "not in the kernel; containers do without"),
    }
}

/// Virtual machines are not served yet, so whatever is found is fine; it is said for those who plan for them.
fn kvm() -> Check {
    const NAME: &str = "KVM";
    let path = Path::new("/dev/kvm");
    if !path.exists() {
        return Check::ok(NAME, "/dev/kvm is absent; only virtual machines need it, and Duet does not serve them yet");
    }
    let opened = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    match opened.map_err(std::io::Error::from).and_then(|kvm| kvm_version(&kvm)) {
        Ok(12) => Check::ok(NAME, "/dev/kvm answers (API 12); Duet does not serve virtual machines yet"),
        Ok(version) => {
            Check::ok(NAME, format!("/dev/kvm has the unknown API {version}; Duet does not serve virtual machines yet"))
        }
        Err(error) => Check::ok(
            NAME,
            format!("/dev/kvm cannot be used ({}); Duet does not serve virtual machines yet", said(error)),
        ),
    }
}

/// `KVM_GET_API_VERSION` (Documentation/virt/kvm/api.rst), which has been 12 since 2007.
fn kvm_version(kvm: &OwnedFd) -> std::io::Result<i32> {
    use std::os::fd::AsRawFd;
    const KVM_GET_API_VERSION: u64 = 0xae00;
    // SAFETY: the request takes no argument and only returns a number.
    let version = unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_GET_API_VERSION as _, 0) };
    if version < 0 { Err(std::io::Error::last_os_error()) } else { Ok(version) }
}
