//! Limits on processor, memory and processes, set before the start and while the instance runs.

use std::time::Duration;

use duet_tests::Host;
use duet_tests::wait::within;

#[test]
fn a_processor_count_and_a_set_are_seen_inside() {
    let host = Host::new();
    let all: usize = host.sh("nproc").parse().unwrap();
    host.ok("launch busybox c1 -c limits.cpu=1");
    assert_eq!(host.inside("c1", "nproc"), "1");
    host.ok("config set c1 limits.cpu=0-0");
    assert_eq!(host.inside("c1", "grep Cpus_allowed_list /proc/self/status | tr -d '\\t '"), "Cpus_allowed_list:0");
    if all > 1 {
        host.ok("config set c1 limits.cpu=1-1");
        assert_eq!(host.inside("c1", "grep Cpus_allowed_list /proc/1/status | tr -d '\\t '"), "Cpus_allowed_list:1");
    }
    host.ok("config unset c1 limits.cpu");
    assert_eq!(host.inside("c1", "nproc"), all.to_string());
    host.fails("config set c1 limits.cpu=4000-4001", "limits.cpu");
}

#[test]
fn a_processor_allowance_slows_down() {
    let host = Host::new();
    host.ok("launch busybox c1 -c limits.cpu.allowance=10ms/100ms");
    let throttled = |host: &Host| {
        let before = host.get("/1.0/instances/c1/state")["cpu"]["usage"].as_i64().unwrap();
        let output = host.try_inside("c1", "timeout 2 sh -c 'while true; do :; done'");
        assert!(output.code().is_some());
        let used = host.get("/1.0/instances/c1/state")["cpu"]["usage"].as_i64().unwrap() - before;
        // Nanoseconds of processor in each second.
        #[allow(clippy::cast_precision_loss)]
        let share = used as f64 / output.took.as_nanos() as f64;
        share
    };
    let slow = throttled(&host);
    assert!(slow < 0.2, "a tenth was allowed, {slow:.2} was taken");
    host.ok("config unset c1 limits.cpu.allowance");
    let free = throttled(&host);
    assert!(free > slow * 2.0, "{free:.2} without a limit, {slow:.2} with");
    for wrong in ["0%", "none", "10ms", "10ms/0ms", "-5%"] {
        host.fails(&format!("config set c1 limits.cpu.allowance={wrong}"), "limits.cpu.allowance");
    }
    host.ok("config set c1 limits.cpu.allowance=50%");
}

#[test]
fn memory_is_limited_inside_and_the_host_lives_on() {
    let host = Host::new();
    host.ok("launch busybox c1 -c limits.memory=64MiB -c limits.memory.swap=false");
    // The one that takes too much is killed, its neighbours are not.
    let output = host.try_inside("c1", "dd if=/dev/zero of=/dev/null bs=300M count=1");
    assert_eq!(output.code(), Some(137), "{output:?}");
    assert_eq!(host.status("c1"), "Running");
    assert_eq!(host.inside("c1", "echo alive"), "alive");
    assert_eq!(host.get("/1.0/instances/c1/state")["memory"]["total"].as_u64(), Some(64 << 20));
    // Live, up and down.
    host.ok("config set c1 limits.memory=256MiB");
    assert_eq!(host.get("/1.0/instances/c1/state")["memory"]["total"].as_u64(), Some(256 << 20));
    host.inside("c1", "dd if=/dev/zero of=/dev/shm/ballast bs=1M count=128 2>/dev/null");
    host.inside("c1", "rm /dev/shm/ballast");
    host.ok("config set c1 limits.memory=48MiB");
    assert_eq!(host.try_inside("c1", "dd if=/dev/zero of=/dev/null bs=300M count=1").code(), Some(137));
    host.ok("config unset c1 limits.memory");
    assert!(host.get("/1.0/instances/c1/state")["memory"]["total"].as_u64().unwrap() > 256 << 20);
}

#[test]
fn memory_can_be_a_share_of_the_hosts() {
    let host = Host::new();
    let total: u64 = host.sh("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo").parse().unwrap();
    host.ok("launch busybox c1 -c limits.memory=10%");
    let limit = host.get("/1.0/instances/c1/state")["memory"]["total"].as_u64().unwrap() >> 10;
    assert!(limit.abs_diff(total / 10) < total / 100, "{limit} kB of {total} kB");
}

#[test]
fn the_number_of_processes_is_limited() {
    let host = Host::new();
    host.ok("launch busybox c1 -c limits.processes=30");
    let bomb = "i=0; while [ $i -lt 100 ]; do sleep 1000 </dev/null >/dev/null 2>&1 & i=$((i+1)); done";
    let output = host.try_inside("c1", bomb);
    assert_ne!(output.code(), Some(0), "{output:?}");
    assert!(host.get("/1.0/instances/c1/state")["processes"].as_i64().unwrap() <= 30);
    // Live: with more room, there is room again.
    host.ok("config set c1 limits.processes=500");
    within(Duration::from_secs(20), "a process more", || {
        (host.try_inside("c1", "echo room").text() == "room").then_some(())
    });
    host.inside("c1", "pkill sleep || true");
    host.ok("config set c1 limits.processes=20");
    assert_ne!(host.try_inside("c1", bomb).code(), Some(0));
    host.ok("stop c1 --force");
}

#[test]
fn a_fork_bomb_ends_with_its_instance() {
    let host = Host::new();
    host.ok("launch busybox c1 -c limits.processes=200");
    const BOMB: &str = "bomb() { sleep 1000 & bomb | bomb & }; bomb";
    let mut bomb = host.duet(&format!("exec c1 -- sh -c '{BOMB}; sleep 1000'")).spawn();
    within(Duration::from_secs(60), "the bomb filling its room", || {
        if host.get("/1.0/instances/c1/state")["processes"].as_i64()? > 150 {
            return Some(());
        }
        // A shell that cannot fork ends, so one bomb may burn out before its room is full. What it left asleep stays.
        host.try_inside("c1", &format!("({BOMB}) </dev/null >/dev/null 2>&1"));
        None
    });
    host.duet("stop c1 --force").within(Duration::from_secs(60)).run().succeeded();
    bomb.wait().unwrap();
    assert_eq!(host.status("c1"), "Stopped");
}

#[test]
fn limits_in_a_profile_apply_at_once() {
    let host = Host::new();
    host.ok("profile create small");
    host.ok("profile set small limits.memory=64MiB");
    host.ok("launch busybox c1 -p default -p small");
    assert_eq!(host.get("/1.0/instances/c1/state")["memory"]["total"].as_u64(), Some(64 << 20));
    host.ok("profile set small limits.memory=80MiB");
    within(Duration::from_secs(20), "the new limit", || {
        (host.get("/1.0/instances/c1/state")["memory"]["total"].as_u64() == Some(80 << 20)).then_some(())
    });
    // The instance's own key wins.
    host.ok("config set c1 limits.memory=96MiB");
    host.ok("profile set small limits.memory=70MiB");
    assert_eq!(host.get("/1.0/instances/c1/state")["memory"]["total"].as_u64(), Some(96 << 20));
}
