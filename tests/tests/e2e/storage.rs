//! Storage: what things cost.

use std::time::Duration;

use duet_tests::Host;
use duet_tests::images::DEBIAN_13;

/// What the pool's filesystem has in use, in bytes.
fn used(host: &Host) -> u64 {
    host.sh(&format!("sync -f {0}; du -s -B1 {0}/storage-pools | cut -f1", host.state().display())).parse().unwrap()
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

#[test]
fn creating_copies_nothing() {
    let host = Host::new();
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

#[test]
fn a_snapshot_costs_what_changed() {
    let host = Host::new();
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

#[test]
fn a_deleted_snapshot_gives_back_what_only_it_held() {
    let host = Host::new();
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

#[test]
fn a_deleted_instance_gives_its_space_back() {
    let host = Host::new();
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
