//! Storage: what things cost, what pools lie on, and how large a root disk may become.

use std::time::Duration;

use duet_tests::Host;
use duet_tests::images::DEBIAN_13;
use serde_json::json;

for_each_driver!(
    creating_copies_nothing,
    a_snapshot_costs_what_changed,
    a_deleted_snapshot_gives_back_what_only_it_held,
    a_deleted_instance_gives_its_space_back,
);

/// What the pools have in use, in bytes.
fn used(host: &Host) -> u64 {
    let state = host.state().display().to_string();
    let pools = host.get("/1.0/storage-pools");
    if pools.as_array().unwrap().contains(&json!("/1.0/storage-pools/btrfs")) {
        // What several subvolumes share would be counted for each of them. What was removed is freed by and by.
        host.sh(&format!("sync -f {state}/storage-pools/btrfs; btrfs subvolume sync {state}/storage-pools/btrfs"));
        return host.get("/1.0/storage-pools/btrfs/resources")["space"]["used"].as_u64().unwrap();
    }
    if pools.as_array().unwrap().contains(&json!("/1.0/storage-pools/zfs")) {
        let pool = &host.get("/1.0/storage-pools/zfs")["config"]["zfs.pool_name"];
        host.sh(&format!("zpool sync {pool}; zpool wait -t free {pool}"));
        return host.get("/1.0/storage-pools/zfs/resources")["space"]["used"].as_u64().unwrap();
    }
    host.sh(&format!("sync -f {0}; du -s -B1 {0}/storage-pools | cut -f1", state)).parse().unwrap()
}

#[test]
fn a_pool_shows_itself() {
    let host = Host::new();
    host.ok("create busybox c1");
    let pool = host.get("/1.0/storage-pools/default");
    assert_eq!(pool["driver"], "overlay");
    assert_eq!(pool["status"], "Created");
    let users = pool["used_by"].to_string();
    assert!(users.contains("/1.0/instances/c1") && users.contains("/1.0/profiles/default"), "{users}");
    let resources = host.get("/1.0/storage-pools/default/resources");
    let space = &resources["space"];
    assert!(space["total"].as_u64().unwrap() > space["used"].as_u64().unwrap());
    assert!(host.ok("storage list").contains("overlay"));
    assert!(host.ok("storage info default").contains("used by") || !host.ok("storage info default").is_empty());
    assert!(host.ok("storage show default").contains("driver: overlay"));
}

fn creating_copies_nothing(driver: &str) {
    let host = Host::on(driver);
    host.ok("create busybox c0");
    let before = used(&host);
    for n in 1..=20 {
        host.ok(&format!("create busybox c{n}"));
    }
    let each = (used(&host) - before) / 20;
    assert!(each < 128 << 10, "an instance costs {each} bytes");
    let before = used(&host);
    host.ok("copy c1 k1");
    host.ok("snapshot create c1 s");
    host.ok("copy c1/s k2");
    assert!(used(&host) - before < 512 << 10);
}

fn a_snapshot_costs_what_changed(driver: &str) {
    let host = Host::on(driver);
    host.ok("launch busybox c1");
    host.inside("c1", "dd if=/dev/urandom of=/ballast bs=1M count=30 2>/dev/null; sync");
    host.ok("stop c1");
    let before = used(&host);
    for n in 0..10 {
        host.ok(&format!("snapshot create c1 s{n}"));
    }
    assert!(used(&host) - before < 1 << 20, "snapshots of a stopped instance cost {}", used(&host) - before);
    host.ok("start c1");
    let running = used(&host);
    host.inside("c1", "dd if=/dev/urandom of=/more bs=1M count=5 2>/dev/null; sync");
    host.ok("snapshot create c1 more");
    assert!(used(&host) - running < 12 << 20, "a snapshot of 5 MiB of changes costs {}", used(&host) - running);
}

fn a_deleted_snapshot_gives_back_what_only_it_held(driver: &str) {
    let host = Host::on(driver);
    host.ok("launch busybox c1");
    host.inside("c1", "echo kept >/kept");
    host.ok("stop c1");
    let before = used(&host);
    host.ok("start c1");
    host.inside("c1", "dd if=/dev/urandom of=/ballast bs=1M count=30 2>/dev/null; sync");
    host.ok("stop c1");
    host.ok("snapshot create c1 first");
    host.ok("start c1");
    host.inside("c1", "rm /ballast; echo more >/more; sync");
    host.ok("snapshot create c1 second");
    host.ok("stop c1");
    host.ok("snapshot delete c1 second");
    assert!(used(&host) > before + (30 << 20), "the first snapshot still needs it");
    host.ok("snapshot delete c1 first");
    duet_tests::eventually("the space being given back", || (used(&host) < before + (1 << 20)).then_some(()));
    host.ok("start c1");
    assert_eq!(host.inside("c1", "cat /kept /more; test -e /ballast || echo gone"), "kept\nmore\ngone");
}

fn a_deleted_instance_gives_its_space_back(driver: &str) {
    let host = Host::on(driver);
    host.ok("create busybox c0");
    let before = used(&host);
    host.ok("launch busybox c1");
    host.inside("c1", "dd if=/dev/urandom of=/ballast bs=1M count=30 2>/dev/null");
    host.ok("snapshot create c1 s");
    host.ok("delete -f c1");
    duet_tests::eventually("the space being given back", || (used(&host) < before + (1 << 20)).then_some(()));
}

#[test]
fn heavy_two_hundred_containers_cost_the_disk_of_one() {
    let host = Host::with_images(&[DEBIAN_13]);
    let before = used(&host);
    host.ok("launch debian/13 seed");
    host.inside("seed", "dd if=/dev/urandom of=/srv/ballast bs=1M count=200 2>/dev/null");
    host.ok("stop --force seed");
    host.ok("publish seed --alias big --compression none");
    host.ok("delete seed");
    host.ok("image delete debian/13");
    host.ok("create big c0");
    let image = used(&host);
    assert!(image - before > 300 << 20, "the image has only {} bytes", image - before);
    std::thread::scope(|scope| {
        for lane in 0..4 {
            let host = &host;
            scope.spawn(move || {
                for n in (1..=200).skip(lane).step_by(4) {
                    host.duet(&format!("create big c{n}")).within(Duration::from_secs(60)).run().succeeded();
                }
            });
        }
    });
    let all = used(&host);
    assert!(all < image + (40 << 20), "one costs {image} bytes, with 200 more {all}");
    assert_eq!(host.get("/1.0/instances").as_array().unwrap().len(), 201);
}

const MIB: u64 = 1 << 20;

/// How much of so many MiB can be written in an instance, in MiB.
fn written(host: &Host, instance: &str, mib: u64) -> u64 {
    host.inside(instance, &format!("dd if=/dev/zero of=/ballast bs=1M count={mib} conv=fsync 2>/dev/null; sync; true"));
    host.inside(instance, "stat -c %s /ballast").parse::<u64>().unwrap() / MIB
}

fn root_disk(host: &Host, instance: &str) -> (u64, u64) {
    let root = &host.get(&format!("/1.0/instances/{instance}/state"))["disk"]["root"];
    (root["usage"].as_u64().unwrap(), root["total"].as_u64().unwrap())
}

#[test]
fn a_size_holds_and_changes_while_the_instance_runs() {
    let host = Host::on("btrfs");
    host.ok("create busybox c1 -d root,size=64MiB");
    host.ok("start c1");
    assert!((48..64).contains(&written(&host, "c1", 100)));
    let (usage, total) = root_disk(&host, "c1");
    assert!(total == 64 * MIB && (40 * MIB..=total).contains(&usage), "{usage} of {total}");
    host.fails("config device set c1 root size=20MiB", "too small");
    assert_eq!(root_disk(&host, "c1").1, 64 * MIB);
    host.ok("config device set c1 root size=150MiB");
    assert_eq!(written(&host, "c1", 100), 100);
    // A restored or copied root has it, too.
    host.ok("snapshot create c1 full");
    host.inside("c1", "rm /ballast; sync");
    host.ok("snapshot restore c1 full");
    assert_eq!(host.inside("c1", "stat -c %s /ballast"), (100 * MIB).to_string());
    host.inside("c1", "rm /ballast; sync");
    assert!(written(&host, "c1", 300) < 150);
    host.fails("copy c1/full c2 -d root,size=50MiB", "too small");
    host.ok("copy c1/full c2 -d root,size=120MiB");
    host.ok("start c2");
    host.inside("c2", "rm /ballast; sync");
    assert!(written(&host, "c2", 300) < 120);
    // And while it is stopped, for files that are pushed.
    host.ok("stop --force c2");
    host.fails("config device set c2 root size=30MiB", "too small");
    host.ok("config device unset c2 root size");
    host.ok("start c2");
    assert_eq!(written(&host, "c2", 200), 200);
    assert_eq!(root_disk(&host, "c2").1, 0);
    // The pool's own size for all that have none.
    host.ok("storage set btrfs volume.size=80MiB");
    host.ok("launch busybox c3");
    assert!(written(&host, "c3", 100) < 80);
    host.fails("create busybox c4 -d root,size=100KiB", "too small");
    assert_eq!(host.request("GET", "/1.0/instances/c4", None).status, 404);
}

#[test]
fn a_size_that_cannot_be_enforced_is_refused() {
    let host = Host::new();
    host.fails("create busybox c1 -d root,size=1GiB", "cannot be limited");
    host.fails("storage set default volume.size=1GiB", "cannot be limited");
    host.fails("storage create other overlay size=1GiB", "as large as its filesystem");
    host.ok("create busybox c1");
    host.fails("config device override c1 root size=1GiB", "cannot be limited");
}

#[test]
fn a_pool_on_a_file_survives_the_daemon_and_grows() {
    let mut host = Host::on("btrfs");
    let file = host.state().join("disks/btrfs.img");
    assert!(file.metadata().unwrap().len() == 2 << 30);
    let shown = host.get("/1.0/storage-pools/btrfs");
    assert_eq!((&shown["status"], &shown["config"]["size"]), (&json!("Created"), &json!("2GiB")));
    assert_eq!(shown["config"]["source"], file.to_str().unwrap());
    host.ok("launch busybox c1");
    host.ok("create busybox c2");
    host.inside("c1", "echo mine >/mine");
    let pid = host.init_pid("c1");
    for kill in [true, false] {
        if kill {
            host.kill_daemon();
        } else {
            host.stop_daemon();
        }
        host.start_daemon();
        assert_eq!(host.init_pid("c1"), pid);
        assert_eq!(host.inside("c1", "cat /mine"), "mine");
    }
    // As after a reboot: nothing runs and nothing is mounted.
    host.ok("stop --force c1");
    host.stop_daemon();
    host.sh(&format!("umount {}/storage-pools/btrfs", host.state().display()));
    host.start_daemon();
    host.ok("start c1");
    assert_eq!(host.inside("c1", "cat /mine"), "mine");
    let total = || host.get("/1.0/storage-pools/btrfs/resources")["space"]["total"].as_u64().unwrap();
    let before = total();
    host.fails("storage set btrfs size=1GiB", "smaller");
    host.ok("storage set btrfs size=3GiB");
    assert!(total() > before + (900 * MIB), "{before} bytes became {}", total());
    assert_eq!(host.ok("storage get btrfs size"), "3GiB");
    assert!(written(&host, "c1", 50) == 50);
}

#[test]
fn a_pool_that_cannot_be_used_says_so() {
    let mut host = Host::on("btrfs");
    host.ok("create busybox c1");
    host.stop_daemon();
    let (state, aside) = (host.state(), host.tmp().join("aside"));
    host.sh(&format!("umount {}/storage-pools/btrfs", state.display()));
    let file = state.join("disks/btrfs.img");
    std::fs::rename(&file, &aside).unwrap();
    host.start_daemon();
    assert_eq!(host.get("/1.0/storage-pools/btrfs")["status"], "Unavailable");
    assert!(host.ok("storage list").contains("UNAVAILABLE"));
    host.fails("start c1", "not available");
    duet_tests::eventually("a warning", || {
        host.get("/1.0/warnings?recursion=1").to_string().contains("Storage pool unavailable").then_some(())
    });
    // What is elsewhere goes on.
    host.ok("create busybox c2 --storage default");
    host.stop_daemon();
    std::fs::rename(&aside, &file).unwrap();
    host.start_daemon();
    assert_eq!(host.get("/1.0/storage-pools/btrfs")["status"], "Created");
    host.ok("start c1");
    duet_tests::eventually("the warning being resolved", || {
        let warnings = host.get("/1.0/warnings?recursion=1");
        warnings.as_array()?.iter().all(|warning| warning["status"] == "resolved").then_some(())
    });
}

#[test]
fn a_pool_lies_on_a_device_or_in_a_directory() {
    let host = Host::new();
    let disk = host.tmp().join("disk");
    std::fs::File::create(&disk).unwrap().set_len(512 * MIB).unwrap();
    let device = host.sh(&format!("losetup --find --show {}", disk.display()));
    host.sh(&format!("mkfs.ext4 -q {device}"));
    host.fails(&format!("storage create dev btrfs source={device}"), "is not empty");
    host.fails(&format!("storage create dev btrfs source={device} size=1GiB"), "as large as");
    host.ok(&format!("storage create dev btrfs source={device} source.wipe=true"));
    host.fails(&format!("storage create again btrfs source={device}"), "used by another");
    assert_eq!(host.get("/1.0/storage-pools/dev")["config"]["source"], device);
    host.ok("launch busybox c1 --storage dev");
    // A directory on that very filesystem is a pool of its own.
    let folder = host.state().join("storage-pools/dev/folder");
    host.sh(&format!("btrfs subvolume create {}", folder.display()));
    host.ok(&format!("storage create dir btrfs source={}", folder.display()));
    host.ok("launch busybox c2 --storage dir");
    assert_eq!(host.inside("c2", "echo fine"), "fine");
    host.fails(&format!("storage create no btrfs source={}", host.tmp().display()), "not on btrfs");
    host.fails("storage create no btrfs source=/dev/nothing", "cannot be used");
    host.fails("storage create no lvm", "not served");
    if !std::path::Path::new("/sys/module/zfs").exists() {
        host.fails("storage create no zfs", "install zfs");
    }
    host.fails("storage delete dir", "in use");
    host.ok("delete -f c1 c2");
    host.ok("storage delete dir");
    assert_eq!(std::fs::read_dir(&folder).map_or(0, Iterator::count), 0);
    host.ok("storage delete dev");
    host.sh(&format!("losetup --detach {device}"));
}

#[test]
fn a_pool_that_was_not_finished_is_taken_away() {
    let mut host = Host::empty();
    host.fails("storage create small btrfs size=1MiB", "mkfs.btrfs");
    let left = || std::fs::read_dir(host.state().join("disks")).unwrap().count();
    assert_eq!(left(), 0);
    // As a daemon that was killed between making and recording it would leave it.
    let state = host.state().display().to_string();
    host.ok("storage create half btrfs size=300MiB");
    host.kill_daemon();
    host.sh(&format!("cp --sparse=always {state}/disks/half.img {state}/disks/orphan.img"));
    host.sh(&format!("mkdir {state}/storage-pools/orphan; mount -t tmpfs none {state}/storage-pools/orphan"));
    host.start_daemon();
    assert!(!host.state().join("disks/orphan.img").exists());
    assert!(!host.state().join("storage-pools/orphan").exists());
    assert_eq!(host.get("/1.0/storage-pools/half")["status"], "Created");
}

#[test]
fn a_copy_can_be_in_another_pool() {
    let host = Host::on("btrfs");
    host.ok("launch busybox c1");
    host.inside("c1", "mkdir /d; echo one >/d/file; ln /d/file /d/same; mkfifo /d/fifo; chmod 1751 /d; sync");
    host.ok("snapshot create c1 first");
    host.inside("c1", "echo two >/d/file; rm -r /etc/init.d 2>/dev/null; sync");
    // Of what runs, what is stopped, and a snapshot; there and back.
    host.ok("copy c1 c2 --storage default");
    host.ok("stop --force c1");
    host.ok("copy c1 c3 --storage default --instance-only");
    host.ok("copy c1/first c4 --storage default");
    host.ok("copy c2 c5 --storage btrfs");
    let look =
        "cat /d/file; stat -c '%a %h' /d/file; stat -c %a /d; test -p /d/fifo && stat -c %u:%g /bin/busybox /root";
    let mut shown = Vec::new();
    for name in ["c2", "c3", "c4", "c5"] {
        let pool = if name == "c5" { "btrfs" } else { "default" };
        assert_eq!(host.get(&format!("/1.0/instances/{name}"))["expanded_devices"]["root"]["pool"], pool);
        host.ok(&format!("start {name}"));
        shown.push(host.inside(name, look));
    }
    assert!(shown[0].starts_with("two") && shown[2].starts_with("one"), "{shown:?}");
    assert_eq!((&shown[1], &shown[3]), (&shown[0], &shown[0]));
    for name in ["c2", "c5"] {
        host.ok(&format!("snapshot restore {name} first"));
        assert_eq!(host.inside(name, look), shown[2]);
    }
    assert_eq!(host.get("/1.0/instances/c3/snapshots"), json!([]));
    host.fails("copy c1 c6 --storage nowhere", "nowhere");
}
