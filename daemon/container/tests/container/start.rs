//! Starting and ending.

use std::fs;
use std::os::unix::fs::MetadataExt;

use duet_container::protocol::ExitReason;
use duet_container::rootfs;
use duet_container::spec::{MountSource, MountSpec, RootSource};
use duet_container::{MonitorClient, StartError, client};

use crate::support::{Container, MAP, mount, request, wait_end};

fn failed_step(result: Result<(), StartError>) -> (String, String) {
    match result {
        Err(StartError::Step { step, error }) => (step, error),
        other => panic!("expected a failed step, got {other:?}"),
    }
}

#[test]
fn busybox_boots_halts_and_leaves_nothing() {
    let mut container = Container::new().boot_busybox();
    container.spec.hostname = "box".into();
    let container = container.start();
    container.wait_log("booted");
    assert_eq!(container.ok("hostname"), "box");
    assert_eq!(container.ok("cat /proc/1/environ | tr '\\0' '\\n' | grep ^container="), "container=lxc");

    let client = container.connect();
    client.watch().unwrap();
    client.stop().unwrap();
    let record = container.wait_exit(&client);
    assert_eq!(record.reason, ExitReason::Halt);
    assert_eq!(client::read_exit(&container.spec.run_dir).unwrap(), Some(record));
    assert!(matches!(MonitorClient::connect(&container.spec.run_dir), Err(client::ClientError::NotRunning { .. })));
    assert!(matches!(client.try_receive(), Ok(None) | Err(client::ClientError::Closed)));
    container.assert_gone();
}

#[test]
fn a_restart_asked_for_inside_is_told_as_such() {
    let container = Container::new().boot_busybox().start();
    container.wait_log("booted");
    let client = container.connect();
    client.watch().unwrap();
    // busybox' init restarts the system on this signal.
    client.signal_init(libc::SIGTERM).unwrap();
    assert_eq!(container.wait_exit(&client).reason, ExitReason::Reboot);
}

#[test]
fn the_exit_code_and_the_killing_signal_of_init_are_told() {
    let mut container = Container::new();
    container.spec.init = ["/bin/sh", "-c", "read line; exit 7"].map(str::to_owned).to_vec();
    let container = container.start();
    let client = container.connect();
    client.watch().unwrap();
    // The console goes with the connection that asked for it.
    let holder = container.connect();
    let console = holder.console(false).unwrap();
    rustix::io::write(&console, b"\n").unwrap();
    assert_eq!(container.wait_exit(&client).reason, ExitReason::Exited { code: 7 });

    let container = Container::new().start();
    let client = container.connect();
    client.watch().unwrap();
    client.signal_init(libc::SIGKILL).unwrap();
    assert_eq!(container.wait_exit(&client).reason, ExitReason::Signal { signal: libc::SIGKILL });
}

#[test]
fn a_missing_init_fails_with_its_step() {
    let mut container = Container::new();
    container.spec.init = vec!["/no/such/init".into()];
    let (step, error) = failed_step(container.try_start());
    assert!(step.contains("execute init") && step.contains("/no/such/init"), "{step}");
    assert!(error.contains("No such file"), "{error}");
    container.assert_gone();
}

#[test]
fn a_missing_root_or_mount_fails_with_its_step() {
    let mut container = Container::new();
    container.spec.root = RootSource::Directory { path: "/no/such/root".into() };
    let (step, error) = failed_step(container.try_start());
    assert!(step.contains("root filesystem") && error.contains("/no/such/root"), "{step}: {error}");
    container.assert_gone();

    let mut container = Container::new();
    container.spec.mounts = vec![mount("/no/such/source", "/mnt/x")];
    let (step, _) = failed_step(container.try_start());
    assert!(step.contains("/no/such/source") && step.contains("/mnt/x"), "{step}");
    container.assert_gone();

    container.spec.mounts[0].optional = true;
    container.try_start().unwrap();
    assert_eq!(container.ok("test -e /mnt/x || echo absent"), "absent");
}

#[test]
fn a_specification_that_makes_no_sense_is_refused_before_anything_is_done() {
    let refused = |change: fn(&mut Container)| {
        let mut container = Container::new();
        change(&mut container);
        assert!(matches!(container.try_start(), Err(StartError::Spec(_))));
    };
    refused(|c| c.spec.hostname = String::new());
    refused(|c| c.spec.mounts = vec![mount("/tmp", "/a/../b")]);
    refused(|c| c.spec.mounts = vec![mount("/tmp", "/")]);
    refused(|c| c.spec.mounts = vec![MountSpec { source: MountSource::Fd(3), ..mount("", "/mnt") }]);
    refused(|c| c.spec.drop_capabilities = vec!["cap_fly".into()]);
    refused(|c| c.spec.idmap = Some(duet_container::spec::IdMap { host_base_uid: 0, ..MAP }));
    refused(|c| {
        c.spec.rlimits.insert("patience".into(), duet_container::spec::Rlimit { soft: None, hard: None });
    });
}

#[test]
fn a_daemon_that_vanishes_before_go_leaves_nothing() {
    let container = Container::new();
    let created = container.create(&[]).unwrap();
    let pidfd = created.pidfd.try_clone().unwrap();
    drop(created);
    wait_end(pidfd);
    container.assert_gone();
}

#[test]
fn a_killed_monitor_takes_the_container_along() {
    let container = Container::new().start();
    let adopted = container.connect().status().unwrap();
    let monitor = rustix::process::Pid::from_raw(adopted.status.monitor_pid.cast_signed()).unwrap();
    rustix::process::kill_process(monitor, rustix::process::Signal::KILL).unwrap();
    wait_end(&container.started.as_ref().unwrap().pidfd);
    // The socket's file stays, but nobody answers on it.
    crate::support::wait_until("the connection to be refused", || {
        matches!(MonitorClient::connect(&container.spec.run_dir), Err(client::ClientError::NotRunning { .. }))
    });
    fs::remove_file(container.spec.run_dir.join("monitor.sock")).unwrap();
}

#[test]
fn a_new_daemon_finds_the_container_again() {
    let container = Container::new().start();
    let adopted = container.connect().status().unwrap();
    assert_eq!(adopted.status.init_pid, container.init_pid());
    assert!(adopted.status.start_timings.iter().any(|(step, _)| step == "total"));
    // The monitor protects itself from nobody's curiosity but the container's: its title names the container.
    let title = fs::read_to_string(format!("/proc/{}/cmdline", adopted.status.monitor_pid)).unwrap();
    assert!(title.starts_with(&format!("[duet monitor] {}", container.spec.name)), "{title:?}");

    // Both netlink sockets, the old one and the new one, hear of a new address.
    container.ok("ip addr add 127.9.9.9/8 dev lo");
    for netlink in [adopted.netlink.as_ref().unwrap(), &container.started.as_ref().unwrap().netlink] {
        let mut buffer = [0; 4096];
        let len = rustix::io::read(netlink, &mut buffer).unwrap();
        assert!(len > 0);
    }
}

#[test]
fn ids_are_shifted_and_nothing_is_on_disk() {
    let container = Container::new().start();
    assert_eq!(
        container.ok("cat /proc/self/uid_map").split_whitespace().collect::<Vec<_>>(),
        ["0", "1000000", "65536"]
    );
    assert_eq!(container.ok("stat -c %u:%g /bin/busybox"), "0:0");
    container.ok("echo hi > /made; chown 1000:1000 /made; rm /etc/group; mkdir /etc/new");
    let made = fs::metadata(container.path("upper/made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (1000, 1000));
    let inside = fs::metadata(format!("/proc/{}/root/made", container.init_pid())).unwrap();
    assert_eq!((inside.uid(), inside.gid()), (1_001_000, 1_001_000));
    // A whiteout is a character device 0/0.
    assert_eq!(fs::symlink_metadata(container.path("upper/etc/group")).unwrap().rdev(), 0);
}

#[test]
fn every_namespace_is_its_own_and_init_is_alone_in_it() {
    let container = Container::new().start();
    for name in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert_ne!(of("self"), of(&container.init_pid().to_string()), "{name}");
    }
    assert_eq!(container.ok("cat /proc/1/cmdline | tr '\\0' ' '"), "/bin/sleep 1000000");
    assert_eq!(container.ok("ip -o link | wc -l"), "1");
    assert!(container.ok("ip link show lo").contains("UP"));
    // Its own cgroup is the root that it sees.
    assert_eq!(container.ok("grep ^0:: /proc/self/cgroup"), "0::/");
    container.ok("mkdir /sys/fs/cgroup/mine && rmdir /sys/fs/cgroup/mine");
}

#[test]
fn init_and_programs_are_in_every_payload_group() {
    let container = Container::new().start();
    let program = container.ok("sleep 1000 >/dev/null 2>&1 & echo");
    drop(program);
    for dir in &container.spec.cgroups {
        let tasks = fs::read_to_string(dir.path.join("cgroup.procs")).unwrap();
        assert!(tasks.lines().any(|pid| pid == container.init_pid().to_string()), "{dir:?}: {tasks}");
        assert_eq!(tasks.lines().count(), 2, "{dir:?}: {tasks}");
    }
}

#[test]
fn what_no_container_has_is_taken_away() {
    let mut container = Container::new();
    container.spec.drop_capabilities = vec!["CAP_NET_RAW".into(), "sys_nice".into()];
    let container = container.start();
    let bounding = container.ok("grep CapBnd /proc/1/status | cut -f2");
    let bounding = u64::from_str_radix(&bounding, 16).unwrap();
    for gone in [13, 16, 17, 23, 25, 32, 33] {
        assert_eq!(bounding & (1 << gone), 0, "capability {gone} in {bounding:#x}");
    }
    assert_ne!(bounding & (1 << 21), 0, "CAP_SYS_ADMIN stays");
    assert_eq!(container.ok("grep -h ^Seccomp: /proc/1/status /proc/self/status | cut -f2 | sort -u"), "2");
    assert_eq!(container.ok("grep NoNewPrivs /proc/1/status | cut -f2"), "0");
    assert_eq!(container.ok("cat /proc/1/oom_score_adj /proc/self/oom_score_adj | sort -u"), "0");
}

#[test]
fn the_standard_devices_work_and_no_others_can_be_made() {
    let container = Container::new().start();
    assert_eq!(container.ok("echo x > /dev/null; head -c 5 /dev/zero | wc -c"), "5");
    assert_eq!(container.ok("head -c 16 /dev/urandom | wc -c"), "16");
    assert_eq!(container.ok("stat -c '%F %a %U' /dev/null"), "character special file 666 root");
    assert_eq!(
        container.ok("for i in ptmx fd stdin; do readlink /dev/$i; done"),
        "pts/ptmx\n/proc/self/fd\n/proc/self/fd/0"
    );
    assert_ne!(container.sh("mknod /tmp/disk b 8 0").status.shell_code(), 0);
    assert_ne!(container.sh("mknod /dev/disk b 8 0").status.shell_code(), 0);
    container.ok("mount | grep -q 'on /dev/shm type tmpfs' && mount | grep -q 'on /dev/mqueue type mqueue'");
}

#[test]
fn locked_mounts_stay_locked() {
    let mut container = Container::new();
    fs::create_dir(container.path("shared")).unwrap();
    fs::write(container.path("shared/file"), "host").unwrap();
    fs::write(container.path("single"), "one").unwrap();
    let shared = container.path("shared");
    container.spec.mounts = vec![
        MountSpec { read_only: true, shift: true, ..mount(shared.to_str().unwrap(), "/mnt/ro") },
        MountSpec { shift: true, ..mount(shared.to_str().unwrap(), "/mnt/rw") },
        mount(container.path("single").to_str().unwrap(), "/etc/single"),
        MountSpec { source: MountSource::Tmpfs { size: 65536 }, ..mount("", "/scratch") },
    ];
    let container = container.start();
    assert_eq!(container.ok("cat /mnt/ro/file /etc/single"), "hostone");
    assert_ne!(container.sh("echo x > /mnt/ro/file").status.shell_code(), 0);
    assert_ne!(container.sh("mount -o remount,bind,rw /mnt/ro && echo x > /mnt/ro/file").status.shell_code(), 0);
    assert_ne!(container.sh("mount -o remount,bind,dev /").status.shell_code(), 0);
    assert_ne!(
        container.sh("mkdir /b && mount --bind /mnt/ro /b && mount -o remount,bind,rw /b").status.shell_code(),
        0
    );
    // Root of the container is root on the shifted one, and nobody on the other.
    container.ok("echo more >> /mnt/rw/file && echo x > /scratch/x");
    assert_ne!(container.sh("echo x > /etc/single").status.shell_code(), 0);
    assert_eq!(fs::read_to_string(container.path("shared/file")).unwrap(), "hostmore\n");
    // And what it does not want, it may unmount.
    container.ok("umount /mnt/rw && ! test -e /mnt/rw/file");
}

#[test]
fn a_passed_descriptor_can_be_mounted() {
    let mut container = Container::new();
    fs::create_dir(container.path("passed")).unwrap();
    fs::write(container.path("passed/file"), "by descriptor").unwrap();
    let tree = duet_sys::mount::clone_tree(rustix::fs::CWD, &container.path("passed"), false).unwrap();
    container.spec.mounts = vec![MountSpec { source: MountSource::Fd(0), ..mount("", "/mnt") }];
    container.try_start_with(&[std::os::fd::AsFd::as_fd(&tree)]).unwrap();
    assert_eq!(container.ok("cat /mnt/file"), "by descriptor");
}

#[test]
fn a_privileged_container_is_root_without_a_user_namespace() {
    let container = Container::with_map(None).start();
    assert_eq!(container.ok("cat /proc/self/uid_map").split_whitespace().collect::<Vec<_>>(), ["0", "0", "4294967295"]);
    let of = |pid: &str, name: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
    let init = container.init_pid().to_string();
    assert_eq!(of("self", "user"), of(&init, "user"));
    assert_ne!(of("self", "mnt"), of(&init, "mnt"));
    assert_eq!(container.ok("cat /proc/kcore | wc -c"), "0");
    assert_ne!(container.sh("echo 1 > /proc/sys/kernel/panic").status.shell_code(), 0);
    let made = || fs::metadata(container.path("upper/made")).unwrap();
    container.ok("echo > /made");
    assert_eq!(made().uid(), 0);
}

#[test]
fn the_monitors_program_cannot_be_written_from_a_privileged_container() {
    let container = Container::with_map(None).start();
    // The window in which it shows is short: while a program is being started, its /proc/<pid>/exe is the monitor's.
    // The monitor itself is what the descriptor of its process shows all along.
    let monitor = container.connect().status().unwrap().status.monitor_pid;
    let exe = format!("/proc/{monitor}/exe");
    let error = fs::OpenOptions::new().write(true).open(exe).unwrap_err();
    assert!(matches!(error.raw_os_error(), Some(libc::EROFS | libc::ETXTBSY)), "{error}");
    // Not for being executed alone: the mount is read-only, and belongs to no namespace in which it could be changed.
    let statvfs = rustix::fs::statvfs(format!("/proc/{monitor}/exe")).unwrap();
    assert!(statvfs.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
}

#[test]
fn sysctls_limits_and_environment_are_set() {
    let mut container = Container::new();
    container.spec.sysctls.insert("net.ipv4.ip_forward".into(), "1".into());
    container.spec.environment.insert("GREETING".into(), "hello world".into());
    let limit = duet_container::spec::Rlimit { soft: Some(111), hard: Some(222) };
    container.spec.rlimits.insert("nofile".into(), limit);
    let container = container.start();
    assert_eq!(container.ok("cat /proc/sys/net/ipv4/ip_forward"), "1");
    assert_eq!(container.ok("tr '\\0' '\\n' < /proc/1/environ | grep GREETING"), "GREETING=hello world");
    for process in ["1", "self"] {
        let limits = container.ok(&format!("grep 'open files' /proc/{process}/limits"));
        assert_eq!(limits.split_whitespace().collect::<Vec<_>>()[3..5], ["111", "222"], "{limits}");
    }

    let mut container = Container::new();
    container.spec.sysctls.insert("kernel.no_such".into(), "1".into());
    assert!(failed_step(container.try_start()).0.contains("kernel.no_such"));
}

#[test]
fn nesting_shows_a_whole_proc_and_sysfs() {
    let mut container = Container::new();
    container.spec.nesting = true;
    container.spec.masked_paths = Some(vec!["/proc/uptime".into(), "/proc/sys/kernel".into(), "/no/such/path".into()]);
    container.spec.read_only_paths = Some(vec!["/proc/sys/net".into()]);
    let container = container.start();
    assert_eq!(container.ok("wc -c < /proc/uptime; ls /proc/sys/kernel | wc -l"), "0\n0");
    assert_ne!(container.sh("echo 1 > /proc/sys/net/ipv4/ip_forward").status.shell_code(), 0);
    assert_ne!(container.ok("wc -c < /dev/.lxc/proc/uptime"), "0");
    container.ok("test -d /dev/.lxc/sys/class");
    // A container in the container: its own user, PID and mount namespace with its own proc.
    assert_eq!(container.ok("unshare -Urpfm --mount-proc sh -c 'ls -d /proc/[0-9]* | wc -l'"), "3");
}

#[test]
fn a_plain_directory_and_a_read_only_layer_serve_as_roots() {
    let mut container = Container::new();
    container.spec.root = RootSource::Directory { path: container.path("root") };
    let container = container.start();
    assert_eq!(container.ok("touch /made && stat -c %u /made"), "0");
    assert_eq!(fs::metadata(container.path("root/made")).unwrap().uid(), 0);

    let mut container = Container::new();
    container.spec.root = RootSource::Overlay { lower: vec![container.path("root")], upper: None, work: None };
    let container = container.start();
    assert_ne!(container.sh("touch /made").status.shell_code(), 0);
    assert_ne!(container.sh("mount -o remount,bind,rw / && touch /made").status.shell_code(), 0);
}

#[test]
fn many_layers_stack_with_the_first_on_top() {
    let mut container = Container::new();
    let mut lower = Vec::new();
    for number in 0..20 {
        let layer = container.path(&format!("layer{number}"));
        fs::create_dir(&layer).unwrap();
        fs::write(layer.join("who"), number.to_string()).unwrap();
        fs::write(layer.join(format!("of{number}")), "").unwrap();
        lower.push(layer);
    }
    lower.push(container.path("root"));
    container.spec.root =
        RootSource::Overlay { lower, upper: Some(container.path("upper")), work: Some(container.path("work")) };
    let container = container.start();
    assert_eq!(container.ok("cat /who"), "0");
    assert_eq!(container.ok("ls / | grep -c ^of"), "20");
}

#[test]
fn a_root_can_be_opened_without_a_container() {
    let container = Container::new();
    let root = rootfs::open_detached(&container.spec.root, None, true, false).unwrap();
    let busybox = rustix::fs::openat(
        &root,
        "bin/busybox",
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    );
    assert!(busybox.is_ok());
    let made = rustix::fs::mkdirat(&root, "made", rustix::fs::Mode::RWXU);
    assert_eq!(made, Err(rustix::io::Errno::ROFS));
}

#[test]
fn the_image_may_lack_every_directory_that_is_mounted_on() {
    let container = Container::new();
    for dir in ["proc", "sys", "dev", "run", "home"] {
        fs::remove_dir(container.path("root").join(dir)).unwrap();
    }
    let container = container.start();
    assert_eq!(container.ok("cat /proc/1/comm"), "sleep");
    assert_eq!(container.run(request(&["true"])).status.shell_code(), 0);
}
