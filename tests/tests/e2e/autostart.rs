//! What starts with the host.

use std::time::Duration;

use duet_tests::wait::within;
use duet_tests::{Host, eventually, processes};

/// Ends the daemon and everything that runs, as a reboot does, and starts the daemon again.
fn reboot(host: &mut Host) {
    host.kill_daemon();
    let pids: Vec<i32> = host.processes();
    for pid in &pids {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL);
    }
    eventually("everything being dead", || pids.iter().all(|pid| !processes::alive(*pid)).then_some(()));
    // What a name server of the host's notes in /run is not ours, and there again before we are.
    host.sh("ip link delete duetbr0 2>/dev/null || true; nft flush ruleset");
    host.sh("find /run -mindepth 1 -maxdepth 1 ! -name systemd ! -name resolvconf -exec rm -rf {} +");
    host.start_daemon();
}

#[test]
fn instances_start_with_the_host_as_they_are_told_to() {
    let mut host = Host::new();
    host.ok("create busybox always -c boot.autostart=true");
    host.ok("launch busybox never -c boot.autostart=false");
    host.ok("launch busybox as-before");
    host.ok("create busybox not-before");
    reboot(&mut host);
    host.until_status("always", "Running");
    // Without the key, what ran when the host went down runs again.
    host.until_status("as-before", "Running");
    assert_eq!(host.status("never"), "Stopped");
    assert_eq!(host.status("not-before"), "Stopped");
    // One that was stopped on purpose stays so.
    host.ok("stop as-before --force");
    host.ok("stop always --force");
    reboot(&mut host);
    host.until_status("always", "Running");
    assert_eq!(host.status("as-before"), "Stopped");
}

#[test]
fn a_restarted_daemon_starts_nothing_that_was_stopped() {
    let mut host = Host::new();
    host.ok("launch busybox c1 -c boot.autostart=true");
    host.ok("launch busybox c2");
    host.ok("stop c2 --force");
    let pid = host.init_pid("c1");
    host.restart_daemon();
    assert_eq!(host.init_pid("c1"), pid);
    assert_eq!(host.status("c2"), "Stopped");
}

#[test]
fn a_host_that_goes_down_stops_instances_in_order_and_gets_them_back() {
    let mut host = Host::new();
    host.ok("launch busybox last -c boot.stop.priority=-1");
    host.ok("launch busybox first -c boot.stop.priority=10");
    host.ok("launch busybox middle");
    host.ok("launch busybox passing --ephemeral");
    host.ok("launch busybox stuck -c boot.host_shutdown_timeout=1");
    host.ok("create busybox idle");
    for (name, does) in [("first", "touch /asked"), ("last", "touch /asked"), ("stuck", "sleep 1000")] {
        host.inside(name, &format!("echo '::shutdown:/bin/{does}' >>/etc/inittab; kill -HUP 1"));
    }
    let mut events = host.events("lifecycle");
    let stopping = std::thread::scope(|scope| {
        let seen = scope.spawn(move || {
            let mut seen = Vec::new();
            while seen.len() < 5 {
                let event =
                    events.event("an instance's end", |event| event["metadata"]["action"] == "instance-shutdown");
                let source = event["metadata"]["source"].as_str().unwrap().to_owned();
                seen.push(source.rsplit('/').next().unwrap().to_owned());
            }
            seen
        });
        host.shut_down();
        seen.join().unwrap()
    });
    assert_eq!((stopping[0].as_str(), stopping[4].as_str()), ("first", "last"), "{stopping:?}");
    assert_eq!(host.running("duet-monitor"), Vec::<i32>::new());
    host.start_daemon();
    for name in ["first", "middle", "last", "stuck"] {
        host.until_status(name, "Running");
    }
    host.inside("first", "test -e /asked");
    host.inside("last", "test -e /asked");
    assert_eq!(host.status("idle"), "Stopped");
    host.fails("info passing", "not found");
    host.ok("delete --force stuck");
}

#[test]
fn priority_decides_the_order_and_delay_the_pace() {
    let mut host = Host::new();
    host.ok("create busybox last -c boot.autostart=true -c boot.autostart.priority=1");
    host.ok("create busybox first -c boot.autostart=true -c boot.autostart.priority=10 -c boot.autostart.delay=3");
    host.ok("create busybox middle -c boot.autostart=true -c boot.autostart.priority=5");
    reboot(&mut host);
    for name in ["first", "middle", "last"] {
        host.until_status(name, "Running");
    }
    // Since boot, in clock ticks: the 22nd field of /proc/<pid>/stat (proc(5)).
    let started = |name: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", host.init_pid(name))).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[19].parse::<u64>().unwrap()
    };
    let (first, middle, last) = (started("first"), started("middle"), started("last"));
    assert!(first < middle && middle <= last, "{first} {middle} {last}");
    assert!(middle - first >= 290, "the delay of 3 s was {} ticks", middle - first);
}

#[test]
fn a_failing_autostart_does_not_hold_the_others_up() {
    let mut host = Host::new();
    let folder = host.tmp().join("there");
    std::fs::create_dir(&folder).unwrap();
    host.ok("create busybox broken -c boot.autostart=true -c boot.autostart.priority=9");
    host.ok(&format!("config device add broken d disk source={} path=/mnt", folder.display()));
    std::fs::remove_dir(&folder).unwrap();
    host.ok("create busybox fine -c boot.autostart=true");
    reboot(&mut host);
    host.until_status("fine", "Running");
    assert_eq!(host.status("broken"), "Stopped");
    within(Duration::from_secs(30), "a warning", || {
        let warnings = host.get("/1.0/warnings?recursion=1");
        warnings.to_string().contains("broken").then_some(())
    });
}
