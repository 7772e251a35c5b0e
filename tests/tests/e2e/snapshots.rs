//! Snapshots and copies: of stopped and running instances, restored, renamed, expired and taken on a schedule.

use std::time::Duration;

use duet_tests::Host;
use duet_tests::wait::within;
use serde_json::{Value, json};

for_each_driver!(
    a_restore_brings_back_what_was_there,
    snapshots_do_not_see_what_comes_after_them,
    snapshots_are_listed_shown_renamed_and_deleted,
    copies_share_nothing_but_the_past,
    a_copy_has_its_own_identity,
    the_image_may_go_while_instances_live_on,
    a_snapshot_of_what_is_being_written_is_of_one_moment,
    special_files_survive_snapshot_and_copy,
    a_publish_from_a_snapshot_is_an_image,
);

fn snapshots(host: &Host, name: &str) -> Vec<String> {
    let listed = host.get(&format!("/1.0/instances/{name}/snapshots?recursion=1"));
    listed.as_array().unwrap().iter().map(|snapshot| snapshot["name"].as_str().unwrap().to_owned()).collect()
}

fn a_restore_brings_back_what_was_there(driver: &str) {
    let host = Host::on(driver);
    for running in [false, true] {
        let name = if running { "running" } else { "stopped" };
        host.ok(&format!("launch busybox {name}"));
        let change = |script: &str| host.inside(name, script);
        change("mkdir /d; echo one > /d/file; echo gone > /d/removed; ln -s file /d/link; chmod 640 /d/file; sync");
        if !running {
            host.ok(&format!("stop {name}"));
        }
        host.ok(&format!("snapshot create {name} before"));
        if !running {
            host.ok(&format!("start {name}"));
        }
        change("echo two > /d/file; rm /d/removed; echo new > /d/added; rm -r /etc; mkdir /etc; chmod 600 /d/file");
        assert_eq!(host.ok(&format!("exec {name} -- cat /d/file")), "two");
        host.ok(&format!("snapshot restore {name} before"));
        // What ran is running again; what was stopped is not.
        host.until_status(name, "Running");
        assert_eq!(
            host.inside(name, "cat /d/file; ls /d; stat -c %a /d/file; test -s /etc/passwd && echo passwd"),
            "one\nfile\nlink\nremoved\n640\npasswd"
        );
    }
}

fn snapshots_do_not_see_what_comes_after_them(driver: &str) {
    let host = Host::on(driver);
    host.ok("create busybox c1");
    for round in 0..5 {
        host.duet("file push - c1/round").stdin(format!("{round}")).run().succeeded();
        host.ok(&format!("snapshot create c1 s{round}"));
    }
    assert_eq!(snapshots(&host, "c1"), ["s0", "s1", "s2", "s3", "s4"]);
    for round in [3, 0, 4, 1] {
        host.ok(&format!("snapshot restore c1 s{round}"));
        assert_eq!(host.ok("file pull c1/round -"), round.to_string());
    }
    // One in the middle can go; the others keep what they hold.
    host.ok("snapshot delete c1 s2");
    host.ok("snapshot delete c1 s0");
    for round in [1, 3, 4] {
        host.ok(&format!("snapshot restore c1 s{round}"));
        assert_eq!(host.ok("file pull c1/round -"), round.to_string());
    }
    host.ok("start c1");
    assert_eq!(host.inside("c1", "cat /round"), "4");
}

fn snapshots_are_listed_shown_renamed_and_deleted(driver: &str) {
    let host = Host::on(driver);
    host.ok("create busybox c1 -c user.a=1");
    host.ok("snapshot create c1");
    host.ok("snapshot create c1");
    assert_eq!(snapshots(&host, "c1"), ["snap0", "snap1"]);
    host.ok("config set c1 user.a=2");
    let snapshot = host.get("/1.0/instances/c1/snapshots/snap0");
    assert_eq!(snapshot["name"], "snap0");
    assert_eq!(snapshot["config"]["user.a"], "1");
    assert_eq!(snapshot["stateful"], false);
    host.ok("snapshot rename c1 snap0 first");
    host.fails("snapshot rename c1 snap1 first", "already");
    host.fails("snapshot create c1 first", "already");
    host.fails("snapshot create c1 'a/b'", "name");
    host.fails("snapshot restore c1 none", "not found");
    let listed = host.ok("snapshot list c1 -f csv");
    assert!(listed.contains("first") && listed.contains("snap1"), "{listed}");
    assert!(host.ok("snapshot show c1 first").contains("user.a"));
    host.ok("snapshot restore c1 first");
    assert_eq!(host.ok("config get c1 user.a"), "1");
    host.ok("snapshot create c1 first --reuse");
    host.ok("snapshot delete c1 first");
    assert_eq!(snapshots(&host, "c1"), ["snap1"]);
    // With the instance go its snapshots.
    host.ok("delete c1");
    host.request("GET", "/1.0/instances/c1/snapshots/snap1", None).refused(404, "");
}

fn copies_share_nothing_but_the_past(driver: &str) {
    let host = Host::on(driver);
    host.ok("launch busybox c1 -c user.a=b -c limits.memory=64MiB");
    host.inside("c1", "echo original > /file; sync");
    host.ok("snapshot create c1 s");
    host.inside("c1", "echo later > /file; sync");
    // Of the running instance, of the snapshot, and without the snapshots.
    host.ok("copy c1 all");
    host.ok("copy c1/s from-snapshot");
    host.ok("copy c1 alone --instance-only");
    assert_eq!(snapshots(&host, "all"), ["s"]);
    assert!(snapshots(&host, "from-snapshot").is_empty());
    assert!(snapshots(&host, "alone").is_empty());
    for (name, expected) in [("all", "later"), ("from-snapshot", "original"), ("alone", "later")] {
        assert_eq!(host.status(name), "Stopped");
        assert_eq!(host.ok(&format!("config get {name} user.a")), "b");
        host.ok(&format!("start {name}"));
        assert_eq!(host.inside(name, "cat /file; hostname"), format!("{expected}\n{name}"));
        host.inside(name, &format!("echo {name} > /file"));
    }
    assert_eq!(host.inside("c1", "cat /file"), "later");
    // The copy outlives its source.
    host.ok("delete -f c1");
    assert_eq!(host.inside("all", "cat /file"), "all");
    host.ok("snapshot restore all s");
    host.until_status("all", "Running");
    assert_eq!(host.inside("all", "cat /file"), "original");
    host.fails("copy all alone", "already");
}

fn a_copy_has_its_own_identity(driver: &str) {
    let host = Host::on(driver);
    host.ok("create busybox c1");
    host.ok("copy c1 c2 -c user.new=1 -p default");
    let (one, two) = (host.get("/1.0/instances/c1"), host.get("/1.0/instances/c2"));
    assert_eq!(two["config"]["user.new"], "1");
    for key in ["volatile.uuid", "volatile.eth0.hwaddr"] {
        if let Some(value) = one["config"].get(key) {
            assert_ne!(Some(value), two["config"].get(key), "{key} is the same");
        }
    }
    host.ok("start c1 c2");
    assert_ne!(
        host.inside("c1", "cat /sys/class/net/eth0/address"),
        host.inside("c2", "cat /sys/class/net/eth0/address")
    );
}

fn the_image_may_go_while_instances_live_on(driver: &str) {
    let host = Host::on(driver);
    host.ok("launch busybox c1");
    host.ok("image delete busybox");
    host.ok("restart c1 --force");
    assert_eq!(host.inside("c1", "echo fine"), "fine");
    host.ok("copy c1 c2");
    host.ok("start c2");
}

#[test]
fn snapshots_expire() {
    let host = Host::new();
    host.ok("create busybox c1 -c snapshots.expiry=1S");
    let mut events = host.events("lifecycle");
    host.ok("snapshot create c1 short");
    let taken = host.get("/1.0/instances/c1/snapshots/short");
    assert!(!taken["expires_at"].as_str().unwrap().starts_with("0001-"), "{taken:#}");
    host.ok("snapshot create c1 kept --no-expiry");
    assert!(host.get("/1.0/instances/c1/snapshots/kept")["expires_at"].as_str().unwrap().starts_with("0001-"));
    // Looked for once a minute.
    within(Duration::from_secs(100), "the snapshot expiring", || (snapshots(&host, "c1") == ["kept"]).then_some(()));
    events.lifecycle("instance-snapshot-deleted", "c1");
    // An expiry can be set and changed afterwards.
    let later = json!({"expires_at": "2099-01-02T03:04:05Z"});
    host.done("PUT", "/1.0/instances/c1/snapshots/kept", &later);
    assert!(host.get("/1.0/instances/c1/snapshots/kept")["expires_at"].as_str().unwrap().starts_with("2099-01-02"));
}

#[test]
fn snapshots_are_taken_on_schedule() {
    let host = Host::new();
    host.fails("create busybox wrong -c snapshots.schedule='61 * * * *'", "snapshots.schedule");
    host.ok("create busybox c1 -c 'snapshots.schedule=* * * * *' -c snapshots.schedule.stopped=true");
    host.ok("create busybox c2 -c 'snapshots.schedule=* * * * *'");
    within(Duration::from_secs(150), "a scheduled snapshot", || (!snapshots(&host, "c1").is_empty()).then_some(()));
    // Without snapshots.schedule.stopped, a stopped instance is left alone.
    assert!(snapshots(&host, "c2").is_empty());
}

#[test]
fn snapshot_names_follow_the_pattern() {
    let host = Host::new();
    host.ok("create busybox c1 -c 'snapshots.pattern=daily-%d'");
    host.ok("snapshot create c1");
    host.ok("snapshot create c1");
    assert_eq!(snapshots(&host, "c1"), ["daily-0", "daily-1"]);
}

fn a_snapshot_of_what_is_being_written_is_of_one_moment(driver: &str) {
    let host = Host::on(driver);
    host.ok("launch busybox c1");
    // Two files that are always written one after the other: a snapshot may hold them one apart, and no more.
    host.inside(
        "c1",
        "(i=0; while true; do i=$((i+1)); echo $i > /a; echo $i > /b; done) </dev/null >/dev/null 2>&1 &",
    );
    for round in 0..5 {
        host.ok(&format!("snapshot create c1 s{round}"));
        host.ok(&format!("copy c1/s{round} k{round}"));
        let read = |file: &str| host.ok(&format!("file pull k{round}/{file} -")).parse::<i64>().unwrap_or(-1);
        let (a, b) = (read("a"), read("b"));
        assert!(a < 0 || b < 0 || (0..=1).contains(&(a - b)), "round {round}: {a} and {b}");
    }
    assert_eq!(host.status("c1"), "Running");
}

fn special_files_survive_snapshot_and_copy(driver: &str) {
    let host = Host::on(driver);
    host.ok("launch busybox c1");
    host.inside(
        "c1",
        "cd /root; mkfifo fifo; echo x > a; ln a b; ln -s nowhere dangling; mkdir sticky; chmod 1777 sticky; \
         dd if=/dev/zero of=sparse bs=1 count=1 seek=50M 2>/dev/null; touch -d '2001-02-03 04:05:06' old; \
         chown 12:34 old; chmod 4755 old; sync",
    );
    let look = "cd /root; stat -c '%n %F %a %u %g %h %Y' * | sort; [ $(stat -c %i a) = $(stat -c %i b) ] && echo linked; \
                [ $(stat -c %b sparse) -lt 200 ] && echo sparse";
    let before = host.inside("c1", look);
    assert!(before.contains("linked") && before.contains("sparse"), "{before}");
    host.ok("snapshot create c1 s");
    host.ok("copy c1/s c2");
    host.ok("start c2");
    assert_eq!(host.inside("c2", look), before);
    host.inside("c1", "rm -r /root/*");
    host.ok("snapshot restore c1 s");
    host.until_status("c1", "Running");
    assert_eq!(host.inside("c1", look), before);
}

fn a_publish_from_a_snapshot_is_an_image(driver: &str) {
    let host = Host::on(driver);
    host.ok("launch busybox c1");
    host.inside("c1", "echo published > /mark; sync");
    host.ok("snapshot create c1 s");
    host.inside("c1", "echo later > /mark");
    host.ok("publish c1/s --alias mine description=Mine");
    let image: Value = host.get("/1.0/images/aliases/mine");
    let fingerprint = image["target"].as_str().unwrap();
    assert_eq!(host.get(&format!("/1.0/images/{fingerprint}"))["properties"]["description"], "Mine");
    host.ok("launch mine c2");
    assert_eq!(host.inside("c2", "cat /mark; hostname"), "published\nc2");
    host.fails("publish c1 --alias other", "running");
    host.ok("publish c1 --alias other --force");
    host.until_status("c1", "Running");
    host.ok("launch other c3");
    assert_eq!(host.inside("c3", "cat /mark"), "later");
}
