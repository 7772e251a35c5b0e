//! Virtual machines: instances like any other, from the same image, by the same verbs. Where KVM does not serve, as on most
//! build machines, they are emulated: a boot takes some ten seconds, so each test does much with few machines.

use std::fs;
use std::time::Duration;

use duet_tests::wait::within;
use duet_tests::{Host, images, processes};
use serde_json::json;

/// For what a guest does by itself.
const SOON: Duration = Duration::from_secs(120);

/// Launches one and waits until it has an address.
fn launch(host: &Host, name: &str, more: &str) {
    host.duet(&format!("launch busybox {name} --vm --wait=ipv4 --wait-timeout 120 {more}"))
        .within(SOON)
        .run()
        .succeeded();
}

/// Starts it and waits until it has an address.
fn start(host: &Host, name: &str) {
    host.ok(&format!("start {name}"));
    until_address(host, name);
}

fn until_address(host: &Host, name: &str) {
    host.duet(&format!("wait {name} --for ipv4 --timeout 120")).within(SOON).run().succeeded();
}

fn address(host: &Host, name: &str) -> String {
    let state = host.get(&format!("/1.0/instances/{name}/state"));
    let addresses = state["network"]["eth0"]["addresses"].as_array().expect("addresses").clone();
    let found = addresses.iter().find(|one| one["family"] == "inet" && one["scope"] == "global");
    found.unwrap_or_else(|| panic!("{state:#}"))["address"].as_str().expect("text").to_owned()
}

#[test]
fn a_virtual_machine_is_an_instance_like_any_other() {
    let host = Host::with_machines();
    host.ok("launch busybox c1 --wait=ipv4");
    launch(&host, "v1", "-c limits.memory=256MiB -c limits.cpu=2");
    let list = host.ok("list -f csv -c nst");
    assert!(list.contains("c1,RUNNING,CONTAINER") && list.contains("v1,RUNNING,VIRTUAL-MACHINE"), "{list}");
    assert_eq!(host.get("/1.0/instances/v1")["type"], "virtual-machine");

    // Its own kernel, as many CPUs and as much memory as it was given, and the name and the card of its configuration.
    assert_ne!(host.inside("v1", "uname -r"), host.inside("c1", "uname -r"));
    assert_eq!(host.inside("v1", "hostname"), "v1");
    assert_eq!(host.inside("v1", "grep -c ^processor /proc/cpuinfo"), "2");
    let kib: u64 = host.inside("v1", "awk '/MemTotal/ {print $2}' /proc/meminfo").parse().unwrap();
    assert!((180 << 10..=256 << 10).contains(&kib), "{kib} KiB");
    let state = host.get("/1.0/instances/v1/state");
    assert!(state["processes"].as_i64().unwrap() > 1, "{state:#}");
    assert!(state["memory"]["total"].as_u64().unwrap() < 256 << 20, "{state:#}");
    let hwaddr = host.get("/1.0/instances/v1")["config"]["volatile.eth0.hwaddr"].clone();
    assert_eq!(state["network"]["eth0"]["hwaddr"], hwaddr);

    // Both are in one network, by name.
    host.inside("c1", &format!("ping -c 1 -W 10 {}", address(&host, "v1")));
    assert!(host.inside("c1", "nslookup v1.duet").contains(&address(&host, "v1")));
    host.inside("v1", "ping -c 1 -W 10 c1.duet");

    // Programs: their input, output, status and user.
    assert_eq!(host.try_inside("v1", "echo out; echo err >&2; exit 7").exited(7).text(), "out");
    host.duet("exec v1 -- no-such-program").run().exited(127);
    let echoed = host.duet("exec v1 -- cat").stdin(vec![b'x'; 300_000]).run().succeeded();
    assert_eq!(echoed.text().len(), 300_000);
    assert_eq!(host.ok("exec v1 --user 1000 --cwd /tmp -- sh -c 'id -u; pwd'"), "1000\n/tmp");
    assert_eq!(host.ok("exec v1 -t -- sh -c 'test -t 0 && echo terminal'"), "terminal");

    // Files both ways.
    let file = host.tmp().join("data");
    fs::write(&file, [0, 1, 2, 255, 10]).unwrap();
    host.ok(&format!("file push {} v1/root/data --mode 0640 --uid 1000 --gid 2000", file.display()));
    assert_eq!(host.inside("v1", "stat -c '%a %u %g %s' /root/data"), "640 1000 2000 5");
    fs::remove_file(&file).unwrap();
    host.ok(&format!("file pull v1/root/data {}", file.display()));
    assert_eq!(fs::read(&file).unwrap(), [0, 1, 2, 255, 10]);

    // Held and let go.
    host.ok("pause v1");
    assert_eq!(host.status("v1"), "Frozen");
    host.ok("resume v1");
    assert_eq!(host.inside("v1", "echo back"), "back");
    assert!(host.ok("info v1").contains("Type: virtual-machine"));

    // Down and up again; what it wrote is there.
    let pid = host.init_pid("v1");
    host.duet("stop v1 --timeout 60").within(SOON).run().succeeded();
    assert_eq!(host.status("v1"), "Stopped");
    assert!(!processes::alive(pid));
    assert!(host.running("duet-vm-monitor").is_empty());
    start(&host, "v1");
    assert_eq!(host.inside("v1", "stat -c %s /root/data"), "5");
    host.ok("stop v1 --force");
    host.ok("rename v1 v2");
    host.ok("delete v2");
}

#[test]
fn snapshots_copies_and_limits_of_a_virtual_machine() {
    for driver in ["overlay", "btrfs"] {
        let host = Host::on(driver);
        host.use_kernel();
        launch(&host, "v1", "-d root,size=2GiB");
        assert!(host.inside("v1", "df -m / | awk 'NR==2 {print $2}'").parse::<u64>().unwrap() < 2048);
        host.inside("v1", "echo one > /mark; sync");
        host.ok("snapshot create v1 running");
        host.inside("v1", "echo two > /mark; sync");
        host.ok("stop v1 --force");
        host.ok("snapshot create v1 stopped");
        host.ok("copy v1/running v2");
        host.ok("copy v1 v3 --instance-only");
        host.ok("config device set v1 root size=3GiB");
        start(&host, "v1");
        assert_eq!(host.inside("v1", "cat /mark"), "two");
        let mib: u64 = host.inside("v1", "df -m / | awk 'NR==2 {print $2}'").parse().unwrap();
        assert!((2560..3072).contains(&mib), "{driver}: {mib} MiB");
        host.inside("v1", "echo three > /mark; sync");
        host.ok("stop v1 --force");
        host.ok("start v2 v3");
        for (name, mark) in [("v2", "one"), ("v3", "two")] {
            until_address(&host, name);
            assert_eq!(host.inside(name, "hostname; cat /mark"), format!("{name}\n{mark}"), "{driver}");
        }
        host.ok("snapshot restore v1 stopped");
        start(&host, "v1");
        assert_eq!(host.inside("v1", "cat /mark"), "two", "{driver}");
    }
}

#[test]
fn a_virtual_machine_outlives_the_daemon_and_ends_with_its_monitor() {
    let mut host = Host::with_machines();
    launch(&host, "v1", "");
    let pid = host.init_pid("v1");
    let tick = "while true; do cat /proc/uptime > /tick; sleep 1; done </dev/null >/dev/null 2>&1 &";
    host.inside("v1", tick);
    host.kill_daemon();
    assert!(processes::alive(pid));
    host.start_daemon();
    assert_eq!(host.status("v1"), "Running");
    assert_eq!(host.init_pid("v1"), pid);
    let before = host.inside("v1", "cat /tick");
    within(SOON, "the guest going on", || (host.inside("v1", "cat /tick") != before).then_some(()));
    assert_eq!(
        address(&host, "v1"),
        host.inside("v1", "ip -4 -o addr show eth0 | awk '{print $4}'").split('/').next().unwrap()
    );

    // A restart from within is a restart, and a shutdown from within an end.
    host.try_inside("v1", "reboot");
    within(SOON, "another machine", || {
        let now = host.get("/1.0/instances/v1/state")["pid"].as_i64().unwrap_or(0);
        (now > 0 && now != i64::from(pid)).then_some(())
    });
    until_address(&host, "v1");
    host.try_inside("v1", "poweroff");
    within(SOON, "the end", || (host.status("v1") == "Stopped").then_some(()));

    host.ok("start v1");
    let monitor = host.running("duet-vm-monitor")[0];
    let monitor = nix::unistd::Pid::from_raw(monitor);
    nix::sys::signal::kill(monitor, nix::sys::signal::Signal::SIGKILL).unwrap();
    host.until_status("v1", "Stopped");
    host.ok("start v1");
    host.ok("stop v1 --force");
}

#[test]
fn a_stopped_virtual_machine_shows_its_files_and_becomes_an_image_for_both_kinds() {
    let host = Host::with_machines();
    host.ok("create busybox v1 --vm");
    // Never started, and already its files can be had, and changed.
    let file = host.tmp().join("data");
    fs::write(&file, "pushed\n").unwrap();
    host.duet(&format!("file push {} v1/root/data --mode 0640 --uid 1000", file.display()))
        .within(SOON)
        .run()
        .succeeded();
    host.duet("snapshot create v1 before").within(SOON).run().succeeded();
    start(&host, "v1");
    assert_eq!(host.inside("v1", "cat /root/data; stat -c '%a %u' /root/data"), "pushed\n640 1000");
    host.inside("v1", "echo later > /root/data; ln /root/data /root/link; sync");
    host.ok("stop v1 --force");
    // Ended in the middle of it, as by a loss of power: the journal is made good by the machine that serves the disk.
    host.duet("publish v1 --alias now").within(SOON).run().succeeded();
    host.duet("publish v1/before --alias before").within(SOON).run().succeeded();
    host.ok("launch now c1");
    assert_eq!(host.inside("c1", "cat /root/data; stat -c '%u %h' /root/data; hostname"), "later\n1000 2\nc1");
    host.ok("launch before c2");
    assert_eq!(host.inside("c2", "cat /root/data"), "pushed");
    host.duet("launch now v2 --vm --wait=ipv4 --wait-timeout 120").within(SOON).run().succeeded();
    assert_eq!(host.inside("v2", "cat /root/data; hostname"), "later\nv2");
}

#[test]
fn the_console_of_a_virtual_machine() {
    let host = Host::with_machines();
    launch(&host, "v1", "");
    host.inside("v1", "echo to-the-console > /dev/console");
    within(SOON, "the console's log", || host.ok("console v1 --show-log").contains("to-the-console").then_some(()));
}

#[test]
fn what_a_virtual_machine_cannot_is_refused_in_words() {
    let host = Host::with_machines();
    host.fails("create v1 --vm --empty", "name an image");
    host.fails("create busybox v1 --vm -c security.privileged=true", "container");
    host.ok("create busybox v1 --vm");
    host.fails("config device add v1 kmsg unix-char path=/dev/kmsg", "virtual machine");
    host.fails("exec v1 -- true", "not running");
    host.ok(&format!("config device add v1 share disk source={} path=/mnt", host.tmp().display()));
    host.fails("start v1", "folders of the host");
    host.ok("config device remove v1 share");
    host.ok("config device override v1 root size=12GiB");
    host.fails("config device set v1 root size=11GiB", "smaller");
    host.ok("start v1");
    host.fails("config set v1 limits.memory=2GiB", "stop it first");
    host.fails("config device add v1 eth1 nic network=duetbr0", "stop it first");
    host.fails("console v1 --type vga", "vga");
    host.ok("stop v1 --force");
    let refused = host.operate(
        "POST",
        "/1.0/instances",
        &json!({ "name": "v2", "type": "virtual-machine", "source": { "type": "image", "alias": "busybox" },
            "devices": { "root": { "type": "disk", "path": "/", "pool": "default", "size": "1MiB" } } }),
    );
    assert!(refused["err"].as_str().unwrap().contains("disk"), "{refused:#}");
    host.request("GET", "/1.0/instances/v2", None).refused(404, "");
    // No kernel, in words that say what to do.
    host.ok("config set core.vm_kernel=/nowhere");
    host.fails("start v1", "core.vm_kernel");
}

#[test]
fn heavy_debian_as_a_container_and_as_a_virtual_machine() {
    let host = Host::with_images(&[images::DEBIAN_13]);
    host.use_kernel();
    host.ok("launch debian/13 c1");
    host.duet("launch debian/13 v1 --vm --wait=ready,ipv4 --wait-timeout 300")
        .within(Duration::from_secs(320))
        .run()
        .succeeded();
    host.duet("wait c1 --for ready,ipv4").run().succeeded();
    for name in ["c1", "v1"] {
        assert_eq!(host.inside(name, "hostname"), name);
        assert_eq!(host.inside(name, "cat /proc/1/comm"), "systemd");
        let failed = host.inside(name, "systemctl --failed --no-legend");
        assert_eq!(failed, "", "{name}");
        host.inside(name, "apt-get --version >/dev/null");
    }
    // Modules of its own kernel, which the image does not have.
    host.inside("v1", "test -e /lib/modules/$(uname -r)/modules.dep");
    host.ok("stop v1 c1");
}
