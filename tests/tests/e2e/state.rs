//! What is said of a running instance: processes, processor, memory, disk, network, addresses.

use std::time::Duration;

use duet_tests::wait::within;
use duet_tests::{Host, eventually};
use serde_json::{Value, json};

fn state(host: &Host) -> Value {
    host.get("/1.0/instances/c1/state")
}

#[test]
fn a_stopped_instance_has_a_state() {
    let host = Host::new();
    host.ok("create busybox c1");
    let state = state(&host);
    assert_eq!(state["status"], "Stopped");
    assert_eq!(state["status_code"], 102);
    assert!(state["pid"].as_i64().unwrap() <= 0, "{state:#}");
    assert!(state["network"].is_null() || state["network"] == json!({}), "{state:#}");
    assert!(state["disk"]["root"]["usage"].as_i64().is_some(), "{state:#}");
}

#[test]
fn processes_and_processor_time_are_counted() {
    let host = Host::new();
    // With its address, and the script ended that set it, it has nothing left to do: its processes are as many as they stay.
    host.ok("launch busybox c1 --wait=ipv4");
    within(Duration::from_secs(20), "the end of udhcpc's script", || {
        (host.processes_inside("c1", "default.script") == 0).then_some(())
    });
    let first = state(&host);
    assert_eq!(first["status_code"], 103);
    let before = first["processes"].as_i64().unwrap();
    assert!(before >= 1);
    host.inside("c1", "for i in 1 2 3 4 5; do sleep 1000 </dev/null >/dev/null 2>&1 & done");
    within(Duration::from_secs(20), "five more processes", || {
        (state(&host)["processes"].as_i64()? >= before + 5).then_some(())
    });
    let used = state(&host)["cpu"]["usage"].as_i64().unwrap();
    host.inside("c1", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done");
    let more = state(&host)["cpu"]["usage"].as_i64().unwrap();
    // Nanoseconds: such a loop takes tens of milliseconds at the least.
    assert!(more - used > 20_000_000, "from {used} to {more}");
}

#[test]
fn memory_is_counted() {
    let host = Host::new();
    host.ok("launch busybox c1 -c limits.memory=200MiB");
    let before = state(&host)["memory"].clone();
    assert_eq!(before["total"].as_u64(), Some(200 << 20), "{before:#}");
    host.inside("c1", "dd if=/dev/zero of=/dev/shm/ballast bs=1M count=64 2>/dev/null");
    let after = state(&host)["memory"]["usage"].as_i64().unwrap();
    assert!(after - before["usage"].as_i64().unwrap() > 60 << 20, "from {before:#} to {after}");
    assert!(after < 200 << 20);
}

#[test]
fn disk_usage_is_what_the_instance_wrote() {
    let host = Host::new();
    host.ok("launch busybox c1");
    let before = state(&host)["disk"]["root"]["usage"].as_i64().unwrap();
    host.inside("c1", "dd if=/dev/urandom of=/ballast bs=1M count=20 2>/dev/null; sync");
    within(Duration::from_secs(30), "the usage", || {
        let after = state(&host)["disk"]["root"]["usage"].as_i64()?;
        (after - before >= 20 << 20 && after - before < 24 << 20).then_some(())
    });
}

#[test]
fn addresses_and_traffic_are_seen() {
    let host = Host::new();
    host.ok("launch busybox c1 --wait=ipv4");
    let network = state(&host)["network"].clone();
    let eth0 = &network["eth0"];
    assert_eq!(eth0["type"], "broadcast");
    assert_eq!(eth0["state"], "up");
    assert_eq!(network["lo"]["type"], "loopback");
    assert!(eth0["host_name"].as_str().unwrap().starts_with("duet"), "{eth0:#}");
    assert_eq!(eth0["hwaddr"].as_str().unwrap(), host.inside("c1", "cat /sys/class/net/eth0/address"));
    let addresses = eth0["addresses"].as_array().unwrap();
    let ipv4 = addresses.iter().find(|address| address["family"] == "inet").expect("an IPv4 address");
    assert_eq!(ipv4["scope"], "global");
    assert_eq!(ipv4["netmask"], "24");
    assert!(
        addresses.iter().any(|address| address["family"] == "inet6" && address["scope"] == "link"),
        "{addresses:#?}"
    );
    let gateway = host.inside("c1", "ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p'");
    let before = eth0["counters"].clone();
    host.inside("c1", &format!("ping -c 20 -i 0.05 -s 1000 {gateway} >/dev/null"));
    eventually("the counters", || {
        let after = state(&host)["network"]["eth0"]["counters"].clone();
        let grown = |name: &str| Some(after[name].as_i64()? - before[name].as_i64()?);
        (grown("bytes_sent")? > 20_000
            && grown("bytes_received")? > 20_000
            && grown("packets_sent")? >= 20
            && grown("packets_received")? >= 20)
            .then_some(())
    });
}

#[test]
fn info_shows_it_all() {
    let host = Host::new();
    host.ok("launch busybox c1 --wait=ipv4");
    host.ok("snapshot create c1 before-lunch");
    let info = host.ok("info c1");
    for needle in ["Name: c1", "RUNNING", "container", "Resources", "Processes", "Memory", "eth0", "before-lunch"] {
        assert!(info.to_lowercase().contains(&needle.to_lowercase()), "'{needle}' is missing:\n{info}");
    }
}
