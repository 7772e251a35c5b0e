//! Whole Debian systems with systemd as init.

use std::time::Duration;

use duet_tests::images::{DEBIAN_12, DEBIAN_13};
use duet_tests::machine::{INTERNET_IPV4, INTERNET_NAME};
use duet_tests::wait::within;
use duet_tests::{Host, processes};

fn boots(image: &str, version: &str) {
    let host = Host::with_images(&[image]);
    host.duet(&format!("launch {image} c1 --wait=ipv4")).within(Duration::from_secs(120)).run().succeeded();
    // `--wait` blocks until systemd has finished, however it finished.
    let system = host.duet("exec c1 -- systemctl is-system-running --wait").within(Duration::from_secs(120)).run();
    let failed = host.ok("exec c1 -- systemctl --failed --no-legend --plain");
    assert_eq!(
        system.text(),
        "running",
        "failed units: {failed}\n{}",
        host.ok("exec c1 -- journalctl -b -p warning --no-pager")
    );
    assert_eq!(failed, "");
    assert_eq!(host.inside("c1", ". /etc/os-release; echo $ID $VERSION_ID"), format!("debian {version}"));
    assert_eq!(host.inside("c1", "cat /proc/1/comm; hostname; systemd-detect-virt -c"), "systemd\nc1\nlxc");
    // Nothing failed on the way and was merely tried again.
    let journal = host.ok("exec c1 -- journalctl -b -p err --no-pager -q");
    assert_eq!(journal, "", "errors in the journal");
    // The network is up and resolves, both ways.
    let listener = host.internet(INTERNET_IPV4);
    host.duet("exec c1 -- bash -c")
        .arg(&format!("exec 3<>/dev/tcp/{INTERNET_IPV4}/{}; head -n 1 <&3", listener.address.port()))
        .run()
        .succeeded();
    assert!(host.inside("c1", &format!("getent ahostsv4 {INTERNET_NAME}")).contains(INTERNET_IPV4));
    assert!(host.inside("c1", "getent hosts c1.duet").contains("c1"));
    // Services run as users of their own, in cgroups of their own.
    host.duet("exec c1 -- systemd-run --wait --pipe -p User=nobody -p MemoryMax=50M -p PrivateTmp=yes id -un")
        .run()
        .succeeded();
    // The console ends in a login.
    within(Duration::from_secs(30), "a login on the console", || {
        host.ok("console c1 --show-log").contains("login:").then_some(())
    });

    let pid = host.init_pid("c1");
    let stopped = host.duet("stop c1 --timeout 60").within(Duration::from_secs(90)).run().succeeded();
    assert!(stopped.took < Duration::from_secs(45), "the clean stop took {:?}", stopped.took);
    assert!(!processes::alive(pid));
    host.ok("start c1");
    host.ok("wait c1 --for ready");
    // systemd was asked by its own signal, and went all the way. (The boot id is the host's: to the journal it is one boot.)
    let journal = host.inside("c1", "journalctl --no-pager -q");
    for step in ["Received SIGRTMIN+3", "System Shutdown", "System Halt"] {
        assert!(journal.contains(step), "{step}: {journal}");
    }
    let first = host.init_pid("c1");
    host.duet("exec c1 -- systemctl reboot").run();
    within(Duration::from_secs(90), "the reboot", || {
        let state = host.get("/1.0/instances/c1/state");
        let pid = i32::try_from(state["pid"].as_i64()?).ok()?;
        (state["status"] == "Running" && pid > 0 && pid != first).then_some(())
    });
    host.ok("wait c1 --for ready");
    host.duet("exec c1 -- systemctl poweroff").run();
    host.until_status("c1", "Stopped");
}

#[test]
fn heavy_debian_13_boots_and_ends_cleanly() {
    boots(DEBIAN_13, "13");
}

#[test]
fn heavy_debian_12_boots_and_ends_cleanly() {
    boots(DEBIAN_12, "12");
}

#[test]
fn heavy_debian_runs_in_every_mode() {
    let host = Host::with_images(&[DEBIAN_13]);
    for (name, keys) in [
        ("privileged", "-c security.privileged=true"),
        ("isolated", "-c security.idmap.isolated=true"),
        ("nesting", "-c security.nesting=true"),
        ("limited", "-c limits.cpu=1 -c limits.memory=256MiB -c limits.processes=300"),
    ] {
        host.duet(&format!("launch debian/13 {name} {keys} --wait=ready"))
            .within(Duration::from_secs(120))
            .run()
            .succeeded();
        let system = host
            .duet(&format!("exec {name} -- systemctl is-system-running --wait"))
            .within(Duration::from_secs(120))
            .run();
        let failed = host.ok(&format!("exec {name} -- systemctl --failed --no-legend --plain"));
        assert_eq!(system.text(), "running", "{name}: {failed}");
        host.ok(&format!("delete -f {name}"));
    }
}

#[test]
fn heavy_wait_for_ready_means_the_boot_is_over() {
    let host = Host::with_images(&[DEBIAN_13]);
    host.duet("launch debian/13 c1 --wait=running,ipv4,ready").within(Duration::from_secs(120)).run().succeeded();
    let system = host.duet("exec c1 -- systemctl is-system-running").run();
    assert_eq!(system.text(), "running");
}

#[test]
fn heavy_a_daemon_restart_is_not_noticed_by_services() {
    let mut host = Host::with_images(&[DEBIAN_13]);
    host.duet("launch debian/13 c1 --wait=ipv4").within(Duration::from_secs(120)).run().succeeded();
    host.duet("exec c1 -- systemctl is-system-running --wait").within(Duration::from_secs(120)).run();
    let before = host.inside("c1", "systemctl show -p InvocationID systemd-journald; cat /proc/uptime | cut -d. -f1");
    host.restart_daemon();
    host.kill_daemon();
    host.start_daemon();
    let after = host.inside("c1", "systemctl show -p InvocationID systemd-journald");
    assert_eq!(before.lines().next(), after.lines().next());
    assert_eq!(host.inside("c1", "systemctl is-system-running"), "running");
    host.duet("stop c1 --timeout 60").within(Duration::from_secs(90)).run().succeeded();
}
