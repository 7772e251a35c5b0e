//! The daemon may be stopped, replaced or killed at any instant, and what runs does not notice.

use std::io::{Read, Write};
use std::time::Duration;

use duet_tests::command::wait;
use duet_tests::wait::within;
use duet_tests::{Host, eventually, processes};
use serde_json::{Value, json};

#[test]
fn instances_outlive_the_daemon_and_are_adopted() {
    let mut host = Host::new();
    host.ok("launch busybox c1 --wait=ipv4 -c limits.memory=64MiB");
    host.ok("create busybox c2");
    let pid = host.init_pid("c1");
    host.inside("c1", "(i=0; while true; do i=$((i+1)); echo $i > /tick; done) </dev/null >/dev/null 2>&1 &");
    for kill in [false, true] {
        if kill {
            host.kill_daemon();
        } else {
            host.stop_daemon();
        }
        assert!(processes::alive(pid));
        assert_eq!(host.running("dnsmasq").len(), 1);
        assert_eq!(host.running("duet-monitor").len(), 1);
        // It goes on working while nobody manages it.
        let tick = format!("/proc/{pid}/root/tick");
        let before = std::fs::read(&tick).unwrap();
        eventually("the instance going on", || (std::fs::read(&tick).ok()? != before).then_some(()));
        host.start_daemon();
        assert_eq!(host.status("c1"), "Running");
        assert_eq!(host.status("c2"), "Stopped");
        assert_eq!(host.init_pid("c1"), pid);
        assert_eq!(host.inside("c1", "echo adopted"), "adopted");
        assert_eq!(host.get("/1.0/instances/c1/state")["memory"]["total"].as_u64(), Some(64 << 20));
        assert_eq!(host.running("duet-monitor").len(), 1);
        assert_eq!(host.running("dnsmasq").len(), 1);
    }
    // Everything that can be done to one that was never left can be done to it.
    host.ok("config set c1 limits.memory=80MiB");
    host.ok("config device add c1 eth1 nic network=duetbr0");
    assert!(host.inside("c1", "ls /sys/class/net").contains("eth1"));
    host.ok("snapshot create c1 s");
    host.ok("pause c1");
    host.restart_daemon();
    assert_eq!(host.status("c1"), "Frozen");
    host.ok("resume c1");
    host.inside("c1", "echo to-console > /dev/console");
    within(Duration::from_secs(20), "the console's log", || {
        host.ok("console c1 --show-log").contains("to-console").then_some(())
    });
    host.ok("restart c1");
    assert_ne!(host.init_pid("c1"), pid);
    host.ok("stop c1");
}

#[test]
fn what_ended_meanwhile_is_found_stopped() {
    let mut host = Host::new();
    host.ok("launch busybox c1");
    host.ok("launch busybox c2 --ephemeral");
    host.ok("launch busybox c3");
    let pids = ["c1", "c2"].map(|name| host.init_pid(name));
    host.kill_daemon();
    for pid in pids {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    eventually("their end", || pids.iter().all(|pid| !processes::alive(*pid)).then_some(()));
    host.start_daemon();
    host.until_status("c1", "Stopped");
    within(Duration::from_secs(30), "the ephemeral one being gone", || {
        (host.request("GET", "/1.0/instances/c2", None).status == 404).then_some(())
    });
    assert_eq!(host.status("c3"), "Running");
    host.ok("start c1");
}

#[test]
fn a_killed_monitor_takes_its_instance_along_and_is_noticed() {
    let mut host = Host::new();
    host.ok("launch busybox c1");
    let pid = host.init_pid("c1");
    let monitor = host.running("duet-monitor")[0];
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(monitor), nix::sys::signal::Signal::SIGKILL).unwrap();
    host.until_status("c1", "Stopped");
    eventually("nothing running of it", || (!processes::alive(pid)).then_some(()));
    host.ok("start c1");
    let monitor = host.running("duet-monitor")[0];
    host.kill_daemon();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(monitor), nix::sys::signal::Signal::SIGKILL).unwrap();
    host.start_daemon();
    // Nobody saw how it ended: as after a power cut, it is brought back to what it was.
    host.until_status("c1", "Running");
    assert_eq!(host.inside("c1", "echo fine"), "fine");
}

#[test]
fn the_daemon_ends_in_time_with_clients_hanging_on() {
    let mut host = Host::new();
    host.ok("launch busybox c1");
    let mut exec = host.duet("exec c1 -- sh -c 'echo ready; cat'").spawn();
    let mut said = [0; 6];
    exec.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    let _events = host.events("lifecycle");
    let mut waiting = host.duet("wait c1 --for ipv6 --timeout 600").spawn();
    let took = host.stop_daemon();
    assert!(took < Duration::from_secs(30), "{took:?}");
    for child in [&mut exec, &mut waiting] {
        assert!(wait(child, Duration::from_secs(30)).is_some(), "a client goes on without a daemon");
    }
    host.start_daemon();
    assert_eq!(host.status("c1"), "Running");
}

#[test]
fn killed_in_the_middle_nothing_half_done_stays() {
    let mut host = Host::new();
    host.ok("create busybox keep");
    host.ok("snapshot create keep s");
    for round in 0..12 {
        let mut children: Vec<_> = [
            format!("launch busybox a{round}"),
            format!("copy keep b{round}"),
            "snapshot create keep".to_owned(),
            "snapshot restore keep s".to_owned(),
        ]
        .iter()
        .map(|line| host.duet(line).spawn())
        .collect();
        // A different instant in each round, told by what the daemon has got to, not by the clock.
        let mut events = host.events("lifecycle,operation");
        for _ in 0..round {
            if events.next(Duration::from_millis(300)).is_none() {
                break;
            }
        }
        host.kill_daemon();
        for child in &mut children {
            wait(child, Duration::from_secs(30)).expect("the client ends with the daemon");
        }
        host.start_daemon();
        let instances = host.get("/1.0/instances?recursion=1");
        for instance in instances.as_array().unwrap() {
            let name = instance["name"].as_str().unwrap();
            let status = instance["status"].as_str().unwrap();
            assert!(matches!(status, "Stopped" | "Running"), "round {round}: {name} is {status}");
            // Whatever is there works.
            if status == "Stopped" {
                host.ok(&format!("start {name}"));
            }
            assert_eq!(host.inside(name, "echo works"), "works", "round {round}: {name}");
            host.ok(&format!("stop {name} --force"));
            if name != "keep" {
                host.ok(&format!("delete {name}"));
            }
        }
        assert!(instances.as_array().unwrap().iter().any(|instance| instance["name"] == "keep"));
    }
}

#[test]
fn half_deleted_things_finish_being_deleted() {
    let mut host = Host::new();
    for round in 0..6 {
        host.ok("launch busybox c1");
        host.ok("snapshot create c1 s");
        let mut child = host.duet("delete -f c1").spawn();
        let mut events = host.events("lifecycle,operation");
        for _ in 0..round {
            if events.next(Duration::from_millis(300)).is_none() {
                break;
            }
        }
        host.kill_daemon();
        let _ = wait(&mut child, Duration::from_secs(30));
        host.start_daemon();
        // Either it was not begun, or it is finished now.
        let there = host.request("GET", "/1.0/instances/c1", None);
        if there.status == 200 {
            let again = host.duet("delete -f c1").run();
            assert!(
                again.code() == Some(0) || host.request("GET", "/1.0/instances/c1", None).status == 404,
                "{again:?}"
            );
        }
        let left: Value = host.get("/1.0/instances");
        assert_eq!(left, json!([]), "round {round}");
    }
}

#[test]
fn an_exec_that_loses_its_daemon_ends() {
    let mut host = Host::new();
    host.ok("launch busybox c1");
    let mut exec = host.duet("exec c1 -- sh -c 'echo ready; sleep 4712'").spawn();
    let mut said = [0; 6];
    exec.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    exec.stdin.as_mut().unwrap().flush().unwrap();
    host.kill_daemon();
    assert!(wait(&mut exec, Duration::from_secs(30)).is_some_and(|status| !status.success()));
    host.start_daemon();
    assert_eq!(host.inside("c1", "echo fine"), "fine");
}
