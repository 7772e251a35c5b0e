//! Limits and facilities of the host as a whole.

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

/// KVM has to run a guest, not only answer: where it is nested or emulated it may not. The VMM tries.
fn kvm() -> Check {
    const NAME: &str = "KVM";
    const QEMU: &str = "qemu-system-x86_64";
    let reason = match probe() {
        Ok(told) => return Check::ok(NAME, told),
        Err(reason) => reason,
    };
    if programs::find(QEMU).is_some() {
        return Check::ok(NAME, format!("{reason}; virtual machines are emulated by QEMU, which is slow"));
    }
    Check::warn(
        NAME,
        format!("{reason}, and QEMU is not installed: virtual machines cannot run, containers can"),
        "apt install qemu-system-x86",
    )
}

/// What the VMM beside this program says of /dev/kvm: `duet-vmm probe`, which has a deadline of its own.
fn probe() -> Result<String, String> {
    let own = std::env::current_exe().map_err(|e| format!("this program's file is not found ({})", said(e)))?;
    let vmm = own.with_file_name("duet-vmm");
    let output = std::process::Command::new(&vmm).arg("probe").stdin(std::process::Stdio::null()).output();
    let output = output.map_err(|e| format!("{} cannot be run ({})", vmm.display(), said(e)))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).lines().last().unwrap_or_default().trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout).trim_end_matches('.').to_owned());
    }
    let line = text(&output.stderr);
    Err(line.strip_prefix("duet-vmm: ").unwrap_or(&line).to_owned())
}
