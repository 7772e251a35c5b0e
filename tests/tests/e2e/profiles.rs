//! Profiles: what they give, in which order, and what happens to instances when they change.

use duet_tests::{Host, eventually};
use serde_json::json;

#[test]
fn profiles_give_configuration_and_devices_in_their_order() {
    let host = Host::new();
    host.ok("profile create one");
    host.ok("profile set one user.a=one user.b=one");
    host.ok("profile create two");
    host.ok("profile set two user.b=two user.c=two");
    host.ok("profile device add two d disk source=/usr path=/mnt readonly=true");
    host.ok("create busybox c1 -p default -p one -p two -c user.c=own");
    let instance = host.get("/1.0/instances/c1");
    assert_eq!(instance["profiles"], json!(["default", "one", "two"]));
    let expanded = &instance["expanded_config"];
    assert_eq!(
        (&expanded["user.a"], &expanded["user.b"], &expanded["user.c"]),
        (&json!("one"), &json!("two"), &json!("own"))
    );
    assert_eq!(instance["expanded_devices"]["d"]["path"], "/mnt");
    assert_eq!(instance["expanded_devices"]["eth0"]["network"], "duetbr0");
    assert_eq!(instance["devices"], json!({}));
    assert!(instance["config"].get("user.a").is_none());
    host.ok("profile assign c1 default,two,one");
    assert_eq!(host.get("/1.0/instances/c1")["expanded_config"]["user.b"], "one");
    host.ok("profile remove c1 two");
    assert!(host.get("/1.0/instances/c1")["expanded_devices"].get("d").is_none());
    host.ok("profile add c1 two");
    assert_eq!(host.get("/1.0/profiles/two")["used_by"], json!(["/1.0/instances/c1"]));
}

#[test]
fn a_running_instance_follows_its_profile() {
    let host = Host::new();
    host.ok("profile create p");
    host.ok("launch busybox c1 -p default -p p");
    host.ok("profile device add p eth1 nic network=duetbr0");
    eventually("eth1", || host.inside("c1", "ls /sys/class/net").contains("eth1").then_some(()));
    host.ok("profile device remove p eth1");
    eventually("eth1 being gone", || (!host.inside("c1", "ls /sys/class/net").contains("eth1")).then_some(()));
    host.ok("profile set p environment.WORD=given");
    eventually("the variable", || (host.inside("c1", "echo $WORD") == "given").then_some(()));
}

#[test]
fn a_change_that_an_instance_cannot_take_is_refused() {
    let host = Host::new();
    host.ok("profile create p");
    host.ok("launch busybox c1 -p default -p p");
    host.fails("profile set p limits.memory=lots", "limits.memory");
    host.fails("profile device add p d disk path=/mnt", "source");
    host.fails("profile device remove default root", "root");
    assert!(host.get("/1.0/profiles/default")["devices"]["root"].is_object());
}

#[test]
fn profiles_are_renamed_copied_edited_and_deleted() {
    let host = Host::new();
    host.ok("profile create p");
    host.duet("profile edit p").stdin("description: mine\nconfig:\n  user.x: y\ndevices: {}\n").run().succeeded();
    let profile = host.get("/1.0/profiles/p");
    assert_eq!((&profile["description"], &profile["config"]), (&json!("mine"), &json!({"user.x": "y"})));
    host.ok("create busybox c1 -p default -p p");
    host.ok("profile rename p q");
    assert_eq!(host.get("/1.0/instances/c1")["profiles"], json!(["default", "q"]));
    host.fails("profile delete q", "in use");
    host.ok("profile copy q r");
    assert_eq!(host.get("/1.0/profiles/r")["config"], json!({"user.x": "y"}));
    host.ok("profile delete r");
    host.ok("delete c1");
    host.ok("profile delete q");
    host.fails("profile delete default", "default");
    host.fails("profile rename default other", "default");
    host.fails("profile create default", "already");
    host.fails("profile show none", "not found");
    assert!(host.ok("profile show default").contains("duetbr0"));
    assert_eq!(host.ok("profile list -f csv -c n"), "default");
}
