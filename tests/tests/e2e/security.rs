//! What an instance can and cannot do to its host.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use duet_tests::images::{BUSYBOX, DEBIAN_12};
use duet_tests::{Host, clients, eventually};

fn id_map(host: &Host, name: &str) -> (u32, u32) {
    let map = host.inside(name, "cat /proc/self/uid_map");
    let numbers: Vec<u32> = map.split_whitespace().map(|number| number.parse().unwrap()).collect();
    assert_eq!(numbers[0], 0, "{map}");
    (numbers[1], numbers[2])
}

#[test]
fn an_instance_is_unprivileged() {
    let host = Host::new();
    host.ok("launch busybox c1");
    let (first, count) = id_map(&host, "c1");
    assert!(first >= 65536, "root is {first} on the host");
    assert_eq!(count, 65536);
    let pid = host.init_pid("c1");
    assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), first);
    for kind in ["user", "pid", "mnt", "net", "uts", "ipc", "cgroup"] {
        assert_ne!(
            duet_tests::processes::namespace(pid, kind),
            duet_tests::processes::namespace(host.holder(), kind),
            "the {kind} namespace is the host's"
        );
    }
    // Inside, root's files are root's.
    assert_eq!(host.inside("c1", "stat -c %u:%g / /etc/passwd /bin"), "0:0\n0:0\n0:0");
}

#[test]
fn two_instances_share_a_map_and_an_isolated_one_has_its_own() {
    let host = Host::new();
    host.ok("launch busybox c1");
    host.ok("launch busybox c2");
    host.ok("launch busybox c3 -c security.idmap.isolated=true");
    host.ok("launch busybox c4 -c security.idmap.isolated=true");
    let maps = ["c1", "c2", "c3", "c4"].map(|name| id_map(&host, name));
    assert_eq!(maps[0], maps[1]);
    for (one, other) in [(0, 2), (0, 3), (2, 3)] {
        let ((a, a_count), (b, b_count)) = (maps[one], maps[other]);
        assert!(a + a_count <= b || b + b_count <= a, "the maps overlap: {maps:?}");
    }
    host.inside("c3", "touch /mine; chown 1000:1000 /mine");
    host.ok("restart c3 --force");
    assert_eq!(host.inside("c3", "stat -c %u:%g /mine /etc/passwd"), "1000:1000\n0:0");
    assert_eq!(id_map(&host, "c3"), maps[2]);
}

#[test]
fn isolation_can_be_changed_without_touching_a_file() {
    let host = Host::new();
    host.ok("launch busybox c1");
    host.inside("c1", "touch /mine; chown 1000:1000 /mine");
    host.ok("stop c1 --force");
    host.ok("config set c1 security.idmap.isolated=true");
    host.ok("start c1");
    assert_eq!(host.inside("c1", "stat -c %u:%g /mine"), "1000:1000");
    host.ok("stop c1 --force");
    host.ok("config set c1 security.idmap.isolated=false security.privileged=true");
    host.ok("start c1");
    assert_eq!(host.inside("c1", "stat -c %u:%g /mine"), "1000:1000");
    assert_eq!(host.inside("c1", "cat /proc/self/uid_map").split_whitespace().nth(1), Some("0"));
}

#[test]
fn a_privileged_instance_has_the_hosts_ids_but_not_its_powers() {
    let host = Host::new();
    host.ok("launch busybox c1 -c security.privileged=true");
    assert_eq!(host.inside("c1", "cat /proc/self/uid_map | tr -s ' '").trim(), "0 0 4294967295");
    // Even so: no module, no time, no clock of the host's.
    let powers = host.inside("c1", "sed -n 's/^CapBnd:\\t//p' /proc/self/status");
    let powers = u64::from_str_radix(&powers, 16).unwrap();
    for (name, bit) in [("CAP_SYS_MODULE", 16), ("CAP_SYS_TIME", 25), ("CAP_MAC_ADMIN", 33)] {
        assert_eq!(powers & (1 << bit), 0, "{name} is kept");
    }
    assert_ne!(host.try_inside("c1", "echo 1 > /proc/sysrq-trigger").code(), Some(0));
    let pattern = "p=$(cat /proc/sys/kernel/core_pattern); echo $p > /proc/sys/kernel/core_pattern";
    assert_ne!(host.try_inside("c1", pattern).code(), Some(0));
}

#[test]
fn the_hosts_knobs_are_out_of_reach() {
    let host = Host::new();
    host.ok("launch busybox c1");
    // What is tried here would, if it worked, leave the machine as it is.
    for script in [
        "echo 1 > /proc/sysrq-trigger",
        "p=$(cat /proc/sys/kernel/core_pattern); echo $p > /proc/sys/kernel/core_pattern",
        "echo 1 > /proc/sys/vm/drop_caches",
        "head -c 1 /proc/kcore",
        "head -c 1 /dev/kmsg",
        "mknod /n b 254 0 && head -c 1 /n",
        "mknod /n c 1 1 && head -c 1 /n",
        "mount -t ext4 /dev/vda /mnt",
        "mount -o remount,rw /sys",
        "v=$(cat /sys/kernel/mm/ksm/run); echo $v > /sys/kernel/mm/ksm/run",
        "hwclock -w",
        "if date -s @$(date +%s) 2>&1 | grep -q permitted; then false; fi",
        "swapoff -a && false",
        "insmod /none.ko",
    ] {
        let output = host.try_inside("c1", script);
        assert_ne!(output.code(), Some(0), "{script} was allowed: {output:?}");
    }
    // A reboot is one of the instance, and of nothing else.
    let pid = host.init_pid("c1");
    host.try_inside("c1", "reboot -f -n");
    eventually("the instance's reboot", || {
        let state = host.get("/1.0/instances/c1/state");
        (state["status"] == "Running" && state["pid"] != pid).then_some(())
    });
    eventually("its end", || (host.duet("stop c1 --force").run().code() == Some(0)).then_some(()));
}

#[test]
fn nothing_of_the_host_shows_in_the_mounts() {
    let host = Host::new();
    host.ok("launch busybox c1");
    let state = host.state().to_string_lossy().into_owned();
    let mounts = host.inside("c1", "cat /proc/self/mountinfo");
    let leaking: Vec<&str> = mounts.lines().filter(|line| line.contains(&state)).collect();
    assert!(leaking.is_empty(), "the host's paths show: {leaking:#?}");
    // And the other way round: the instance's mounts are not in the host's namespace.
    let outside = fs::read_to_string(format!("/proc/{}/mountinfo", host.holder())).unwrap();
    let leaking: Vec<&str> = outside.lines().filter(|line| line.contains(&state)).collect();
    assert!(
        leaking.iter().all(|line| line.contains("resolv.conf") || !line.contains(" overlay ")),
        "the instance is mounted on the host: {leaking:#?}"
    );
    // A mount made inside does not come out.
    host.inside("c1", "mkdir /m; mount -t tmpfs made-inside /m");
    assert!(!fs::read_to_string(format!("/proc/{}/mountinfo", host.holder())).unwrap().contains("made-inside"));
}

#[test]
fn dangerous_system_calls_are_refused() {
    let host = Host::new();
    host.ok("launch busybox c1");
    let status = host.inside("c1", "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status | tr -d '\\t'");
    assert!(status.contains("Seccomp:2"), "{status}");
    // A user namespace of one's own, and what it would open up, stays available: systemd's services use it. Loading
    // kernels and swapping is not for anyone.
    assert_ne!(host.try_inside("c1", "swapon /dev/zero").code(), Some(0));
}

#[test]
fn nesting_opens_what_a_container_manager_needs() {
    let host = Host::new();
    host.ok("launch busybox nested -c security.nesting=true");
    // A fresh proc for an inner container: the kernel allows it only where an unmasked one is visible.
    let script = "unshare -U -r -m -p -f sh -c 'mount -t proc proc /mnt && echo mounted'";
    let nested = host.try_inside("nested", script);
    assert_eq!(nested.text(), "mounted", "{nested:?}");
    // Overlay within the instance, as Docker does it.
    host.inside(
        "nested",
        "mkdir -p /o/l /o/u /o/w /o/m; mount -t tmpfs t /o/u; mkdir /o/u/u /o/u/w; \
         mount -t overlay overlay -o lowerdir=/o/l,upperdir=/o/u/u,workdir=/o/u/w,userxattr /o/m",
    );
}

#[test]
fn cgroups_are_delegated_and_bounded() {
    let host = Host::new();
    host.ok("launch busybox c1 -c limits.processes=100");
    let own = host.inside("c1", "cat /proc/self/cgroup");
    assert!(own.lines().all(|line| !line.contains("duet")), "the host's cgroup names show: {own}");
    // The instance's own tree: it can make cgroups below and move into them.
    let root = host.inside("c1", "grep cgroup2 /proc/self/mountinfo | head -n 1 | cut -d' ' -f5");
    assert!(!root.is_empty(), "no cgroup2 is mounted");
    host.inside("c1", &format!("mkdir {root}/inner; echo $$ > {root}/inner/cgroup.procs; cat /proc/self/cgroup"));
    // It cannot lift its own limits.
    let lifted = host.try_inside("c1", &format!("echo max > {root}/pids.max"));
    assert_ne!(lifted.code(), Some(0), "{lifted:?}");
}

#[test]
fn docker_of_debian_runs_a_container_in_a_nested_instance() {
    let host = Host::with_images(&[BUSYBOX, DEBIAN_12]);
    host.ok("launch debian/12 c1 -c security.nesting=true --wait=ready");
    host.ok(&format!("file push -r {} c1/root", clients().join("docker").display()));
    host.duet("exec c1 -- sh -c 'DEBIAN_FRONTEND=noninteractive dpkg -i /root/docker/*.deb'")
        .within(Duration::from_secs(180))
        .run()
        .succeeded();
    host.ok("exec c1 -- systemctl is-active docker");
    host.ok("init busybox b1");
    let busybox = host.tmp().join("busybox");
    host.ok(&format!("file pull b1/bin/busybox {}", busybox.display()));
    host.ok(&format!("file push --mode 755 -p {} c1/root/own/bin/sh", busybox.display()));
    host.inside("c1", "tar -C /root/own -c . | docker import - own");
    assert_eq!(host.inside("c1", "docker run --rm own /bin/sh -c 'echo $$; hostname -i'").lines().next(), Some("1"));
    // Its cgroups and mounts go with the instance.
    host.ok("delete --force c1");
}
