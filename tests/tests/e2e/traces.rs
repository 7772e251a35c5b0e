//! The recorded exchanges of other people's clients with Incus 6.0.4 and LXD 5.0.2, replayed.

use std::fs;

use duet_tests::traces::{Fault, Replay, Trace, matches};
use duet_tests::{Host, eventually, images};
use serde_json::json;

/// The image `tiny` of the recordings.
const TINY: &str = "881ae3b5912252573778e6343b00ed9762bb8140622b4c6b3ca22279ba85b596";

/// The recordings in the order of their replay, each with the lines of `duet` that make what it needs.
const ORDER: &[(&str, &[&str])] = &[
    ("version", &[]),
    ("list-empty", &[]),
    ("launch", &[]),
    ("list", &["wait c1 --for ipv4"]),
    ("list-fast", &[]),
    ("list-json", &[]),
    ("info", &[]),
    ("info-resources", &[]),
    ("exec-noninteractive", &[]),
    ("exec-stdin", &[]),
    ("exec-nonzero", &[]),
    ("exec-notfound", &[]),
    ("exec-interactive", &[]),
    ("exec-env", &[]),
    ("exec-interactive-resize", &[]),
    ("exec-signal", &[]),
    ("file-push", &[]),
    ("file-push-dir", &[]),
    ("file-pull", &[]),
    ("file-pull-dir", &[]),
    ("file-delete", &[]),
    ("file-missing", &[]),
    ("console", &[]),
    ("console-log", &[]),
    ("snapshot-create", &[]),
    ("snapshot-list", &[]),
    ("snapshot-show", &[]),
    ("snapshot-restore", &[]),
    ("snapshot-delete", &[]),
    ("config-set", &[]),
    ("config-get", &[]),
    ("config-show", &[]),
    ("config-server-set", &[]),
    ("config-device-add", &[]),
    ("config-device-remove", &[]),
    ("config-metadata", &[]),
    ("profile-list", &[]),
    ("profile-show", &[]),
    ("profile-create", &[]),
    ("profile-set", &[]),
    ("profile-add", &[]),
    ("profile-remove", &[]),
    ("profile-delete", &[]),
    ("network-list", &[]),
    ("network-show", &[]),
    ("network-info", &[]),
    ("network-leases", &[]),
    ("network-create", &[]),
    ("network-set", &[]),
    ("network-delete", &[]),
    ("storage-list", &[]),
    ("storage-show", &[]),
    ("storage-info", &[]),
    ("image-list", &[]),
    ("image-info", &[]),
    ("image-alias", &[]),
    ("image-alias-list", &[]),
    ("image-alias-delete", &[]),
    ("image-edit", &[]),
    ("image-export", &[]),
    ("image-import-split", &[]),
    ("image-delete", &[]),
    ("image-import-unified", &[]),
    ("stop", &[]),
    ("start", &[]),
    ("restart", &[]),
    ("pause", &[]),
    ("resume", &[]),
    ("copy", &[]),
    ("move", &[]),
    ("rename-back", &[]),
    ("publish", &["image delete timg"]),
    ("publish-delete", &[]),
    ("init", &[]),
    ("create-empty", &[]),
    ("delete-stopped", &[]),
    ("delete-force", &["copy c2 cx"]),
    ("cluster-list", &[]),
    ("cluster-show-info", &[]),
    ("project-list", &[]),
    ("operation-list", &["create tiny o1", "create tiny o2", "delete o1", "delete o2"]),
    ("warning-list", &[]),
    ("query-post", &[]),
    ("query-raw", &[]),
    ("query-delete", &[]),
    ("query-recursion", &[]),
    ("query-404", &[]),
    ("monitor", &[]),
    ("monitor-all", &[]),
    ("admin-init-dump", &[]),
    ("admin-waitready", &[]),
    ("launch-missing-image", &[]),
    ("benchmark", &[]),
    ("benchmark-delete", &[]),
    ("lxc-version", &[]),
    ("lxc-list-empty", &[]),
    ("lxc-launch", &[]),
    ("lxc-list", &["wait c1 --for ipv4"]),
    ("lxc-info", &[]),
    ("lxc-exec-noninteractive", &[]),
    ("lxc-exec-interactive", &[]),
    ("lxc-file-push", &[]),
    ("lxc-file-pull", &[]),
    ("lxc-file-push-dir", &[]),
    ("lxc-file-pull-dir", &[]),
    ("lxc-console", &[]),
    ("lxc-snapshot", &[]),
    ("lxc-restore", &[]),
    ("lxc-snapshot-delete", &[]),
    ("lxc-config-set", &[]),
    ("lxc-config-show", &[]),
    ("lxc-profile-list", &[]),
    ("lxc-network-list", &[]),
    ("lxc-storage-list", &[]),
    ("lxc-image-import", &[]),
    ("lxc-image-list", &[]),
    ("lxc-image-delete", &[]),
    ("lxc-stop", &[]),
    ("lxc-start", &[]),
    ("lxc-copy", &[]),
    ("lxc-move", &[]),
    ("lxc-publish", &[]),
    ("lxc-delete", &["copy c3 c4", "image delete pub1"]),
    ("lxc-cluster-list", &[]),
    ("lxc-monitor", &[]),
    ("pylxd", &[]),
    ("cross-lxc-cli-on-incusd", &[]),
];

/// Where our answers differ on purpose: the recording and request, the place, both with `*`, and the reason.
const DIFFERS: &[(&str, &str, &str)] = &[
    ("*: GET /1.0", "/metadata/config/user.x", "their server had been given this key"),
    ("*: GET /1.0", "/metadata/environment/kernel_features/*", "what we do not use we do not look for"),
    ("*: GET /1.0", "/metadata/environment/lxc_features/*", "liblxc's: ours is another runtime"),
    ("*", "*/metadata/may_cancel", "our sessions and imports can be cancelled"),
    ("*: GET /1.0/operations/ID/websocket?", "ping", "no pings on a local socket, which does not die unnoticed"),
    ("*", "*/config/volatile.eth0.name", "the interface's name is in the profile"),
    ("*", "*/expanded_config/volatile.eth0.name", "the interface's name is in the profile"),
    ("*", "*/config/volatile.idmap.next", "ids are given at the first start"),
    ("*", "*/expanded_config/volatile.idmap.next", "ids are given at the first start"),
    ("*", "*/config/volatile.last_state.idmap", "ids are given at the first start"),
    ("*", "*/expanded_config/volatile.last_state.idmap", "ids are given at the first start"),
    ("*", "*/config/volatile.last_state.ready", "readiness ends with the instance and is not kept"),
    ("*", "*/expanded_config/volatile.last_state.ready", "readiness ends with the instance and is not kept"),
    ("*: GET /1.0/events*", "event Creating instance, Success /metadata/metadata", "nothing is unpacked"),
    ("pylxd: GET /1.0/operations/ID*", "/metadata/metadata", "nothing is unpacked or remapped"),
    ("lxc-launch: GET /1.0/operations/ID", "/metadata/metadata", "nothing is remapped"),
    ("lxc-launch: GET /1.0/events", "event Starting instance, Success /metadata/metadata", "nothing is remapped"),
    ("*: GET /1.0/events", "event instance-paused of *", "nothing is paused for a snapshot or a copy"),
    ("*: GET /1.0/events", "event instance-resumed of *", "nothing is paused for a snapshot or a copy"),
    ("*: GET /1.0/operations/ID", "/metadata/metadata", "ours was further when it was asked for its progress"),
    (
        "*image-import*: GET /1.0/events",
        "event Downloading image, Running /metadata/metadata",
        "ours from its beginning",
    ),
    ("info-resources: *", "/metadata/network/cards/*", "a test's host has no network card"),
    ("info-resources: *", "/metadata/system/type", "another machine"),
    ("file-push-dir: *", "packet *STAT", "/tmp of this image has another mode"),
    ("lxc-file-push-dir: *", "x-lxd-mode", "/tmp of this image has another mode"),
    ("lxc-file-pull-dir: *", "body", "LXD says where a link leads, which a copy of it does not need"),
    ("console-log: *", "body", "another console"),
    ("*", "/metadata/*description", "the daemon's name, and 'publishing' where Incus says 'downloading'"),
    ("*publish: GET /1.0/events", "event Downloading image*", "'publishing' where Incus says 'downloading'"),
    ("*: GET /1.0/storage-pools?recursion=1", "/metadata/*/config/*", "a pool on a loop device of its own"),
    ("*: GET /1.0/cluster", "/metadata/member_config/*", "joining a cluster is not served"),
    ("warning-list: *", "/metadata/*", "there is nothing to warn of"),
    ("lxc-*", "*/metadata/resources*", "LXD's own: 'containers', and null where there are none"),
    ("pylxd: *", "*/metadata/resources/containers", "LXD's own"),
    ("lxc-network-list: *", "/metadata/*/used_by/*", "no profile uses the other network"),
];

#[test]
fn recorded_exchanges_are_answered_alike() {
    let host = Host::empty();
    host.ok("network create incusbr0");
    host.ok("profile device remove default eth0");
    host.ok("profile device add default eth0 nic network=incusbr0 name=eth0");
    let mut replay = Replay::new(&host);
    bodies(&host, &mut replay);
    let made = |name: &str| host.tmp().join(name).display().to_string();
    host.ok(&format!("image import {} {} --alias tiny", made("tiny-metadata.tar.gz"), made("rootfs.tar.gz")));
    let fingerprint = host.get("/1.0/images/aliases/tiny")["target"].as_str().unwrap().to_owned();
    replay.id(TINY, &fingerprint);
    replay.instead("/srv/work", host.tmp().to_str().unwrap());
    let mut replayed: Vec<&str> = Vec::new();
    for (name, lines) in ORDER {
        if *name == "operation-list" {
            // Those that ended stay for a while, and are as many as there was time for.
            eventually("the end of earlier operations", || (host.get("/1.0/operations") == json!({})).then_some(()));
        }
        for line in *lines {
            host.ok(line);
        }
        replay.run(name, |host| {
            if name.contains("monitor") {
                host.ok("create tiny m1");
                host.ok("delete m1");
            }
        });
        replayed.push(name);
    }
    replayed.sort_unstable();
    assert_eq!(replayed, Trace::names(), "every recording is replayed");
    let mut used = vec![false; DIFFERS.len()];
    let left: Vec<String> =
        replay.faults().into_iter().filter(|fault| !excused(fault, &mut used)).map(|fault| fault.to_string()).collect();
    assert!(left.is_empty(), "{} differences:\n  {}", left.len(), left.join("\n  "));
    let unused: Vec<&(&str, &str, &str)> =
        DIFFERS.iter().zip(used).filter(|(_, used)| !used).map(|(entry, _)| entry).collect();
    assert!(unused.is_empty(), "these differ no more: {unused:#?}");
}

fn excused(fault: &Fault, used: &mut [bool]) -> bool {
    let of = format!("{}: {}", fault.trace, fault.request);
    let mut found = false;
    for (entry, used) in DIFFERS.iter().zip(used) {
        if matches(entry.0, &of) && matches(entry.1, &fault.place) {
            *used = true;
            found = true;
        }
    }
    found
}

/// Images to import in place of those of whose bytes the recordings tell nothing but the number.
fn bodies(host: &Host, replay: &mut Replay) {
    let content = host.tmp().join("content");
    let at = content.display();
    host.sh(&format!(
        "mkdir {at} && tar -C {at} -xf {} && cd {at} && tar -czf ../metadata.tar.gz metadata.yaml templates \
         && tar -C rootfs -czf ../rootfs.tar.gz . && tar -czf ../tiny-metadata.tar.gz templates metadata.yaml && tar -czf ../unified.tar.gz metadata.yaml templates rootfs",
        images::file(images::BUSYBOX).display()
    ));
    let read = |name: &str| fs::read(host.tmp().join(name)).unwrap();
    replay.body("image-import-unified", "application/octet-stream", read("unified.tar.gz"));
    let mut both = Vec::new();
    for name in ["metadata", "rootfs"] {
        both.extend_from_slice(
            format!(
                "--b\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{name}.tar.gz\"\r\n\
                 Content-Type: application/octet-stream\r\n\r\n"
            )
            .as_bytes(),
        );
        both.extend_from_slice(&read(&format!("{name}.tar.gz")));
        both.extend_from_slice(b"\r\n");
    }
    both.extend_from_slice(b"--b--\r\n");
    for name in ["image-import-split", "lxc-image-import"] {
        replay.body(name, "multipart/form-data; boundary=b", both.clone());
    }
}
