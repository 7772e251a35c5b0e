//! The disk is full: everything that needs room says so in one sentence and leaves nothing, what runs runs on, what
//! gives room back works, and the daemon comes up.

use duet_tests::{Host, eventually, images};
use serde_json::{Value, json};

use crate::tidy::{BYSTANDER, assert_tidy, until_at_rest};

/// Room for two images, the inventory with its log, and a dozen instances.
const DISK: u64 = 64 << 20;
/// How much is left of it, in bytes, when something is tried.
const LEFT: [u64; 8] = [0, 4 << 10, 8 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 2 << 20];

/// A host on a small disk, with an instance that runs and one that does not.
fn host() -> Host {
    let mut host = Host::on_disk(DISK);
    host.start_daemon();
    images::import(&host, images::BUSYBOX);
    host.ok(&format!("launch busybox {BYSTANDER}"));
    host
}

/// Something to try: what it needs, what is done, how it is undone where it worked.
struct Step {
    before: &'static [&'static str],
    line: &'static str,
    after: &'static [&'static str],
}

const fn step(before: &'static [&'static str], line: &'static str, after: &'static [&'static str]) -> Step {
    Step { before, line, after }
}

/// `FILE` is a file of 700 KiB on another disk, `IMAGE` one with an image in it.
const STEPS: &[Step] = &[
    step(&[], "create busybox new", &["delete new"]),
    step(&[], "launch busybox new", &["delete -f new"]),
    step(&["create busybox new"], "start new", &["delete -f new"]),
    step(&["launch busybox new"], "stop --force new", &["delete new"]),
    step(&["launch busybox new"], "restart --force new", &["delete -f new"]),
    step(&["create busybox new", "file push FILE new/root/file"], "snapshot create new one", &["delete new"]),
    step(&["launch busybox new", "file push FILE new/root/file"], "snapshot create new one", &["delete -f new"]),
    step(
        &["create busybox new", "snapshot create new one", "file push FILE new/root/file"],
        "snapshot restore new one",
        &["delete new"],
    ),
    step(
        &["launch busybox new", "snapshot create new one", "file push FILE new/root/file"],
        "snapshot restore new one",
        &["delete -f new"],
    ),
    step(&["create busybox new", "snapshot create new one"], "snapshot rename new one two", &["delete new"]),
    step(&["create busybox new", "file push FILE new/root/file"], "copy new other", &["delete new other"]),
    step(&["launch busybox new", "file push FILE new/root/file"], "copy new other", &["delete -f new other"]),
    step(&["create busybox new"], "rename new other", &["delete other"]),
    step(&[], "image import IMAGE --alias second", &["image delete second"]),
    step(&["create busybox new"], "publish new --alias third", &["delete new", "image delete third"]),
    step(&["create busybox new"], "file push FILE new/root/file", &["delete new"]),
    step(&["launch busybox new"], "file push FILE new/root/file", &["delete -f new"]),
    step(&["create busybox new"], "file push -p FILE new/a/b/c/d/file", &["delete new"]),
    step(&["launch busybox new"], "exec new -- true", &["delete -f new"]),
    step(&["create busybox new"], "config set new limits.memory=64MiB", &["delete new"]),
    step(&["create busybox new"], "config device add new data disk source=/usr path=/mnt", &["delete new"]),
    step(&["launch busybox new"], "config device add new eth1 nic network=duetbr0", &["delete -f new"]),
    step(&["create busybox new"], "config template create new some.tpl", &["delete new"]),
    step(&[], "profile create some", &["profile delete some"]),
    step(&["profile create some"], "profile set some limits.processes=50", &["profile delete some"]),
    step(&[], "network create other ipv4.address=10.99.88.1/24 ipv6.address=none", &["network delete other"]),
    step(
        &["network create other ipv4.address=10.99.88.1/24 ipv6.address=none"],
        "network set other ipv4.address=10.99.89.1/24",
        &["network delete other"],
    ),
    step(&[], "image alias create another busybox", &["image alias delete another"]),
];

/// What of the inventory a failure must not change. `stopped` is what may have stopped.
fn shown(host: &Host, stopped: &str) -> Vec<Value> {
    let list = |kind: &str| host.get(&format!("/1.0/{kind}?recursion=1"));
    let mut shown: Vec<Value> = ["images/aliases", "profiles", "networks", "storage-pools"].map(list).to_vec();
    let images = list("images");
    shown.extend(images.as_array().unwrap().iter().map(|image| image["fingerprint"].clone()));
    for instance in host.get("/1.0/instances?recursion=2").as_array().unwrap() {
        // Keys that a start chooses may be chosen before it fails.
        let mut config = instance["config"].clone();
        config.as_object_mut().unwrap().retain(|key, _| !key.starts_with("volatile."));
        let names = |snapshot: &Value| snapshot["name"].clone();
        let snapshots: Vec<Value> = instance["snapshots"].as_array().into_iter().flatten().map(names).collect();
        let status = if instance["name"] == stopped { &Value::Null } else { &instance["status"] };
        shown.push(json!([instance["name"], status, config, instance["devices"], snapshots]));
    }
    shown
}

/// Tries a line and says whether it worked; a failure is one sentence that names the full disk.
fn attempt(host: &Host, line: &str, after: &str) -> bool {
    let output = host.duet(line).run();
    if output.code() == Some(0) {
        return true;
    }
    let said = output.errors();
    assert!(output.code().is_some(), "{after}: {output:?}");
    let named = ["no space left", "no space is left"].iter().any(|words| said.to_lowercase().contains(words));
    assert!(named && said.contains('/'), "{after}: {output:?}");
    assert_eq!(said.lines().count(), 1, "{after}: {output:?}");
    assert!(!said.contains("panicked") && said.len() < 400, "{after}: {output:?}");
    false
}

#[test]
fn heavy_everything_says_so_when_the_disk_is_full() {
    let host = host();
    let pid = host.init_pid(BYSTANDER);
    let (file, image) = (host.tmp().join("file"), host.tmp().join("image.tar"));
    std::fs::write(&file, vec![7; 700 << 10]).unwrap();
    host.ok("create busybox new");
    host.ok("publish new --alias second --compression none");
    host.ok(&format!("image export second {}", image.display()));
    let image = std::fs::read_dir(host.tmp()).unwrap().map(|entry| entry.unwrap().path()).find(|path| *path != file);
    let image = image.expect("an exported image");
    host.ok("image delete second");
    host.ok("delete new");
    let words = |line: &str| line.replace("FILE", file.to_str().unwrap()).replace("IMAGE", image.to_str().unwrap());
    let mut failures = 0;
    for left in LEFT {
        for step in STEPS {
            let after = format!("\"{}\" with {left} bytes left", step.line);
            step.before.iter().for_each(|line| drop(host.ok(&words(line))));
            // What ends something before it begins something else may get no further than that.
            let ends = step.line.starts_with("restart") || step.line.starts_with("snapshot restore");
            let stopped = if ends { "new" } else { "" };
            let before = shown(&host, stopped);
            host.fill_disk(left);
            let worked = attempt(&host, &words(step.line), &after);
            assert_eq!(host.request("GET", "/1.0", None).status, 200, "{after}");
            assert_eq!(host.init_pid(BYSTANDER), pid, "{after}");
            // It may write what cannot be logged.
            assert_eq!(host.inside(BYSTANDER, "cat /proc/version >/dev/console; echo fine"), "fine", "{after}");
            until_at_rest(&host);
            if !worked {
                failures += 1;
                // An instance that was made and did not start is there, as Incus has it.
                if step.line.starts_with("launch") && host.request("GET", "/1.0/instances/new", None).status == 200 {
                    assert_eq!(host.status("new"), "Stopped", "{after}");
                    host.ok("delete new");
                }
                assert_eq!(shown(&host, stopped), before, "{after}");
            }
            host.clear_disk();
            assert_tidy(&host, &after);
            if !worked {
                let again = host.duet(&words(step.line)).run();
                assert!(again.code() == Some(0), "{after}, and room again: {again:?}");
            }
            step.after.iter().for_each(|line| drop(host.ok(&words(line))));
        }
    }
    assert!(failures > STEPS.len(), "the disk was hardly ever full");
    assert!(!host.daemon_log().contains("panicked"));
}

#[test]
fn a_full_disk_can_be_emptied() {
    let host = host();
    host.ok("launch busybox hog");
    host.ok("snapshot create hog one");
    for name in ["c1", "c2", "c3"] {
        host.ok(&format!("create busybox {name}"));
        host.ok(&format!("snapshot create {name} one"));
    }
    host.ok("create busybox big");
    host.inside("hog", "dd if=/dev/zero of=/ballast bs=64k 2>/dev/null; true");
    host.fill_disk(0);
    // What is on it can be read.
    assert!(host.ok("file pull c1/etc/passwd -").contains("root"));
    host.fails("file push /etc/passwd c1/root/passwd", "no space left");
    host.ok("snapshot delete c1 one");
    host.fill_disk(0);
    host.ok("delete c1");
    host.fill_disk(0);
    host.ok("delete c2");
    host.fill_disk(0);
    host.ok("stop --force hog");
    host.fill_disk(0);
    host.ok("delete hog");
    // Its space comes back, by and by.
    eventually("room", || host.duet("file push /etc/passwd c3/root/passwd").run().code().filter(|code| *code == 0));
    host.fill_disk(0);
    host.ok("delete c3 big");
    host.fill_disk(0);
    host.ok(&format!("delete --force {BYSTANDER}"));
    host.fill_disk(0);
    host.ok("image delete busybox");
    host.clear_disk();
    until_at_rest(&host);
    assert_tidy(&host, "emptying");
}

/// How it ended cannot be written down, and is known all the same: it is started again, if there is room for that.
#[test]
fn a_reboot_on_a_full_disk_is_known_as_one() {
    let host = host();
    host.ok("launch busybox c1 --wait=ipv4");
    let pid = host.init_pid("c1");
    host.fill_disk(0);
    let mut events = host.events("lifecycle");
    host.inside("c1", "reboot");
    events.lifecycle("instance-restarted", "c1");
    eventually("its start, or a reason why not", || {
        let state = host.get("/1.0/instances/c1/state");
        let runs = state["pid"].as_i64().is_some_and(|found| found > 0 && found != i64::from(pid));
        let refused = host.daemon_log().contains("did not come back after its reboot");
        (runs || refused).then_some(())
    });
    host.clear_disk();
    until_at_rest(&host);
    if host.status("c1") == "Stopped" {
        host.ok("start c1");
    }
    assert_ne!(host.init_pid("c1"), pid);
}

#[test]
fn the_daemon_comes_up_on_a_full_disk() {
    let mut host = host();
    host.ok("create busybox c1");
    host.ok("launch busybox c2");
    let pid = host.init_pid(BYSTANDER);
    for kill in [true, false, true] {
        host.fill_disk(0);
        if kill {
            host.kill_daemon();
        } else {
            host.stop_daemon();
        }
        host.fill_disk(0);
        host.start_daemon();
        assert_eq!(host.status("c1"), "Stopped");
        assert_eq!(host.init_pid(BYSTANDER), pid);
        assert_eq!(host.inside(BYSTANDER, "echo fine"), "fine");
        host.fails("create busybox c3", "no space left");
    }
    host.ok("delete c1");
    // As after a power cut: everything is to start again, and cannot.
    host.fill_disk(0);
    host.kill_daemon();
    for monitor in host.running("duet-monitor") {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(monitor), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    host.fill_disk(0);
    host.start_daemon();
    until_at_rest(&host);
    host.clear_disk();
    for name in [BYSTANDER, "c2"] {
        if host.status(name) == "Stopped" {
            // The daemon may come first, which tries again by itself.
            let started = host.duet(&format!("start {name}")).run();
            assert!(started.code() == Some(0) || started.errors().contains("already running"), "{started:?}");
        }
        assert_eq!(host.inside(name, "echo fine"), "fine");
    }
    until_at_rest(&host);
    assert_tidy(&host, "a full disk at the daemon's start");
}
