//! The lifecycle of an instance, with busybox as its init.

use std::time::Duration;

use duet_tests::wait::within;
use duet_tests::{Host, processes};
use serde_json::json;

#[test]
fn create_start_stop_delete() {
    let host = Host::new();
    host.ok("create busybox c1");
    assert_eq!(host.status("c1"), "Stopped");
    host.ok("start c1");
    assert_eq!(host.status("c1"), "Running");
    let pid = host.init_pid("c1");
    assert!(processes::alive(pid));
    assert_eq!(host.running("duet-monitor").len(), 1);
    host.ok("stop c1");
    assert_eq!(host.status("c1"), "Stopped");
    assert!(!processes::alive(pid));
    assert!(host.running("duet-monitor").is_empty());
    host.ok("delete c1");
    host.request("GET", "/1.0/instances/c1", None).refused(404, "");
}

#[test]
fn launch_is_create_and_start() {
    let host = Host::new();
    host.ok("launch busybox c1");
    assert_eq!(host.status("c1"), "Running");
    assert_eq!(host.inside("c1", "hostname"), "c1");
    assert_eq!(host.inside("c1", "cat /proc/1/comm"), "init");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let host = Host::new();
    host.ok("create busybox c1");
    host.fails("stop c1", "already stopped");
    host.fails("pause c1", "isn't running");
    host.fails("exec c1 -- true", "not running");
    host.ok("start c1");
    host.fails("start c1", "already running");
    host.fails("delete c1", "running");
    host.fails("rename c1 c2", "running");
    host.fails("launch busybox c1", "already");
    host.fails("launch none c2", "not found");
    host.fails("start none", "not found");
    host.ok("pause c1");
    assert_eq!(host.status("c1"), "Frozen");
    host.fails("pause c1", "already");
    host.fails("exec c1 -- true", "frozen");
    host.ok("resume c1");
    assert_eq!(host.status("c1"), "Running");
}

#[test]
fn a_stop_asks_the_init_and_kills_only_when_forced_or_late() {
    let host = Host::new();
    host.ok("launch busybox c1");
    // An init that hears no signal: a shell that ignores them all took PID 1's place.
    host.ok("create busybox deaf");
    let script = "#!/bin/sh\ntrap '' 1 2 3 10 12 15 30 37\nwhile true; do sleep 1000; done\n";
    let file = host.tmp().join("deaf");
    std::fs::write(&file, script).unwrap();
    host.ok("file delete deaf/sbin/init");
    host.ok(&format!("file push --mode 0755 {} deaf/sbin/init", file.display()));
    host.ok("start deaf");
    let late = host.duet("stop deaf --timeout 2").run().failed_with("");
    assert!(late.took >= Duration::from_secs(2), "{late:?}");
    assert_eq!(host.status("deaf"), "Running");
    host.ok("stop deaf --force");
    assert_eq!(host.status("deaf"), "Stopped");
    let clean = host.duet("stop c1 --timeout 30").run().succeeded();
    assert!(clean.took < Duration::from_secs(20), "{clean:?}");
}

#[test]
fn restart_gives_another_init() {
    let host = Host::new();
    host.ok("launch busybox c1");
    let first = host.init_pid("c1");
    host.inside("c1", "echo kept > /root/kept; echo gone > /run/gone");
    host.ok("restart c1");
    let second = host.init_pid("c1");
    assert_ne!(first, second);
    assert!(!processes::alive(first));
    assert_eq!(host.inside("c1", "cat /root/kept"), "kept");
    host.ok("restart c1 --force");
    assert_ne!(second, host.init_pid("c1"));
}

#[test]
fn pausing_stops_the_clock_of_all_processes() {
    let host = Host::new();
    host.ok("launch busybox c1");
    host.inside("c1", "(while true; do date +%N > /tick; done) >/dev/null 2>&1 &");
    let root = format!("/proc/{}/root/tick", host.init_pid("c1"));
    let changes = |deadline| {
        let before = std::fs::read(&root).unwrap_or_default();
        duet_tests::wait::poll(deadline, || (std::fs::read(&root).ok()? != before).then_some(())).is_some()
    };
    assert!(changes(Duration::from_secs(20)));
    host.ok("pause c1");
    assert!(!changes(Duration::from_millis(700)));
    host.ok("resume c1");
    assert!(changes(Duration::from_secs(20)));
    // A paused instance can be stopped by force.
    host.ok("pause c1");
    host.ok("stop c1 --force");
    assert_eq!(host.status("c1"), "Stopped");
}

#[test]
fn poweroff_and_reboot_from_inside_are_seen() {
    let host = Host::new();
    host.ok("launch busybox c1");
    let mut events = host.events("lifecycle");
    let first = host.init_pid("c1");
    host.try_inside("c1", "reboot");
    within(Duration::from_secs(60), "the reboot", || {
        let state = host.get("/1.0/instances/c1/state");
        let pid = i32::try_from(state["pid"].as_i64()?).ok()?;
        (state["status"] == "Running" && pid > 0 && pid != first).then_some(())
    });
    events.lifecycle("instance-restarted", "c1");
    host.try_inside("c1", "poweroff");
    events.lifecycle("instance-shutdown", "c1");
    host.until_status("c1", "Stopped");
    host.ok("start c1");
    assert_eq!(host.status("c1"), "Running");
}

#[test]
fn an_init_that_dies_leaves_a_stopped_instance() {
    let host = Host::new();
    host.ok("launch busybox c1");
    let pid = nix::unistd::Pid::from_raw(host.init_pid("c1"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    host.until_status("c1", "Stopped");
    assert!(host.running("duet-monitor").is_empty());
    host.ok("start c1");
}

#[test]
fn an_ephemeral_instance_is_gone_when_it_stops() {
    let host = Host::new();
    host.ok("launch busybox c1 --ephemeral");
    host.ok("stop c1");
    within(Duration::from_secs(30), "the ephemeral instance being gone", || {
        (host.request("GET", "/1.0/instances/c1", None).status == 404).then_some(())
    });
    host.ok("launch busybox c2 -e");
    host.try_inside("c2", "poweroff");
    within(Duration::from_secs(60), "the ephemeral instance being gone", || {
        (host.request("GET", "/1.0/instances/c2", None).status == 404).then_some(())
    });
    // A restart is no end.
    host.ok("launch busybox c3 -e");
    host.ok("restart c3");
    assert_eq!(host.status("c3"), "Running");
}

#[test]
fn rename_keeps_everything_but_the_name() {
    let host = Host::new();
    host.ok("launch busybox c1 -c user.a=b");
    host.inside("c1", "echo kept > /kept");
    host.ok("snapshot create c1 s");
    host.ok("stop c1");
    host.ok("rename c1 c2");
    host.request("GET", "/1.0/instances/c1", None).refused(404, "");
    assert_eq!(host.ok("config get c2 user.a"), "b");
    host.ok("start c2");
    assert_eq!(host.inside("c2", "cat /kept; hostname"), "kept\nc2");
    assert_eq!(host.get("/1.0/instances/c2/snapshots"), json!(["/1.0/instances/c2/snapshots/s"]));
    host.ok("create busybox c3");
    host.ok("stop c2 --force");
    host.fails("rename c2 c3", "already");
    host.fails("rename c2 'not a name'", "name");
}

#[test]
fn delete_force_stops_first() {
    let host = Host::new();
    host.ok("launch busybox c1");
    host.ok("launch busybox c2");
    host.ok("delete --force c1 c2");
    assert_eq!(host.get("/1.0/instances"), json!([]));
}

#[test]
fn a_protected_instance_is_not_deleted() {
    let host = Host::new();
    host.ok("create busybox c1 -c security.protection.delete=true");
    host.fails("delete c1", "protect");
    host.ok("config set c1 security.protection.delete=false");
    host.ok("delete c1");
}

#[test]
fn several_at_once() {
    let host = Host::new();
    let names: Vec<String> = (1..=8).map(|n| format!("c{n}")).collect();
    std::thread::scope(|scope| {
        for name in &names {
            let host = &host;
            scope.spawn(move || host.ok(&format!("launch busybox {name}")));
        }
    });
    for name in &names {
        assert_eq!(host.status(name), "Running");
    }
    host.ok(&format!("stop {}", names.join(" ")));
    host.ok(&format!("start {}", names.join(" ")));
    assert_eq!(host.running("duet-monitor").len(), 8);
    host.ok(&format!("delete -f {}", names.join(" ")));
}

#[test]
fn two_requests_for_one_instance_do_not_mix() {
    let host = Host::new();
    host.ok("create busybox c1");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            // Whichever comes first wins; the others are refused or find it done.
            scope.spawn(|| host.duet("start c1").run());
            scope.spawn(|| host.duet("stop c1 --force").run());
        }
    });
    let status = host.status("c1");
    assert!(status == "Running" || status == "Stopped", "{status}");
    if status == "Running" {
        host.ok("stop c1 --force");
    }
    host.ok("start c1");
    assert_eq!(host.running("duet-monitor").len(), 1);
    assert_eq!(host.inside("c1", "echo fine"), "fine");
}

#[test]
fn the_environment_and_user_keys_reach_where_they_belong() {
    let host = Host::new();
    host.ok("launch busybox c1 -c environment.COLOUR=red -c user.note=hello");
    assert_eq!(host.inside("c1", "echo $COLOUR"), "red");
    let environment = host.inside("c1", "tr '\\0' '\\n' < /proc/1/environ");
    assert!(environment.lines().any(|line| line == "COLOUR=red"), "{environment}");
    assert!(environment.lines().any(|line| line == "container=lxc"), "{environment}");
    assert!(!environment.contains("hello"), "{environment}");
    assert_eq!(host.ok("config get c1 user.note"), "hello");
}
