//! Other people's clients, unmodified: `incus` 6.0.4, `lxc` 5.0.2, pylxd 2.4.2 and `incus-benchmark`.
//!
//! What they print is compared with what they print against Incus, as recorded where the texts are Incus' own.

use std::time::Duration;

use duet_tests::command::{Output, Run, words};
use duet_tests::images::DEBIAN_13;
use duet_tests::{Host, clients, wait};

/// A client with the arguments of a line.
fn client(host: &Host, program: &str, line: &str) -> Run {
    let arguments = words(line);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let socket = host.socket();
    let socket = socket.to_str().expect("a plain path");
    host.command(clients().join("bin").join(program).to_str().expect("a plain path"), &arguments)
        .env("INCUS_SOCKET", socket)
        .env("INCUS_CONF", host.tmp().join("incus").to_str().expect("a plain path"))
        .env("INCUS_DIR", host.state().to_str().expect("a plain path"))
        .env("LXD_SOCKET", socket)
        .env("LXD_CONF", host.tmp().join("lxc").to_str().expect("a plain path"))
        .env("LXD_DIR", host.state().to_str().expect("a plain path"))
}

#[track_caller]
fn incus(host: &Host, line: &str) -> String {
    client(host, "incus", line).run().succeeded().text()
}

#[track_caller]
fn incus_fails(host: &Host, line: &str, says: &str) -> Output {
    client(host, "incus", line).run().failed_with(says).exited(1)
}

#[track_caller]
fn lxc(host: &Host, line: &str) -> String {
    client(host, "lxc", line).run().succeeded().text()
}

#[test]
fn incus_leads_an_instance_through_its_life() {
    let host = Host::new();
    assert!(incus(&host, "version").contains("Server version: 6.0.4"));
    incus(&host, "launch busybox c1 -c limits.memory=128MiB -d eth0,name=eth0");
    let list = incus(&host, "list -f csv -c nst");
    assert_eq!(list, "c1,RUNNING,CONTAINER");
    wait::eventually("the address in incus' list", || {
        incus(&host, "list c1 -f csv -c 4").contains("(eth0)").then_some(())
    });
    assert_eq!(incus(&host, "list status=stopped -f csv -c n"), "");
    assert_eq!(incus(&host, "list name=c1 -f csv -c n"), "c1");
    assert!(incus(&host, "info c1").contains("Status: RUNNING"));
    incus(&host, "create busybox c2");
    incus(&host, "start c2");
    incus(&host, "pause c2");
    assert_eq!(incus(&host, "list c2 -f csv -c s"), "FROZEN");
    incus(&host, "resume c2");
    incus(&host, "restart c2 --force");
    incus_fails(&host, "delete c2", "The instance is currently running, stop it first or pass --force");
    incus(&host, "stop c2 --force");
    incus(&host, "rename c2 c3");
    incus(&host, "move c3 c4");
    incus(&host, "copy c4 c5");
    incus(&host, "copy c1 c6");
    incus(&host, "delete c4 c5 c6");
    incus(&host, "launch busybox passing --ephemeral");
    incus(&host, "stop passing --force");
    incus_fails(&host, "info passing", "Instance not found");
    incus_fails(&host, "launch busybox c1", "Instance \"c1\" already exists");
    incus_fails(&host, "launch nosuch c9", "Image \"nosuch\" not found");
    incus(&host, "delete --force c1");
    assert_eq!(incus(&host, "list -f csv"), "");
}

#[test]
fn incus_runs_programs() {
    let host = Host::new();
    incus(&host, "launch busybox c1");
    assert_eq!(incus(&host, "exec c1 -- echo hi"), "hi");
    client(&host, "incus", "exec c1 -- sh -c 'exit 3'").run().exited(3);
    client(&host, "incus", "exec c1 -- sh -c 'kill -9 $$'").run().exited(137);
    let absent = client(&host, "incus", "exec c1 -- nosuch").run().exited(127);
    assert!(absent.errors().contains("Error: Command not found"), "{}", absent.errors());
    let sum = client(&host, "incus", "exec c1 -- md5sum").stdin(vec![7; 3 << 20]).run().succeeded().text();
    assert_eq!(sum, host.sh("head -c 3145728 /dev/zero | tr '\\0' '\\7' | md5sum"));
    let both = client(&host, "incus", "exec c1 -- sh -c 'echo out; echo err >&2'").run().succeeded();
    assert_eq!((both.text().as_str(), both.errors().trim()), ("out", "err"));
    assert_eq!(incus(&host, "exec c1 --env A=b --cwd /tmp --user 7 -- sh -c 'echo $A $PWD $(id -u)'"), "b /tmp 7");
    assert_eq!(incus(&host, "exec c1 -- sh -c 'echo $container'"), "lxc");
    incus_fails(&host, "exec c1 --user 99999 -- id", "there is no id 99999 in the instance: its ids are 0 to 65535");
    let terminal = client(&host, "incus", "exec c1 -t -- sh -c 'tty && stty size'").run().succeeded().text();
    assert!(terminal.starts_with("/dev/pts/"), "{terminal}");
    host.inside("c1", "echo to the log > /dev/console");
    wait::eventually("the console's log", || {
        incus(&host, "console c1 --show-log").contains("to the log").then_some(())
    });
}

#[test]
fn incus_moves_files_by_sftp() {
    let host = Host::new();
    incus(&host, "launch busybox c1");
    let tmp = host.tmp();
    let tmp = tmp.to_str().unwrap();
    host.sh(&format!(
        "mkdir -p {tmp}/tree/sub; echo body >{tmp}/f; seq 100000 >{tmp}/tree/sub/big; ln -s sub/big {tmp}/tree/link"
    ));
    incus(&host, &format!("file push {tmp}/f c1/root/f --mode 0640 --uid 5 --gid 6"));
    assert_eq!(host.inside("c1", "stat -c '%a %u %g' /root/f; cat /root/f"), "640 5 6\nbody");
    assert_eq!(incus(&host, "file pull c1/root/f -"), "body");
    incus(&host, &format!("file push -r {tmp}/tree c1/srv/ -p"));
    assert_eq!(host.inside("c1", "readlink /srv/tree/link; tail -n 1 /srv/tree/link"), "sub/big\n100000");
    incus(&host, &format!("file pull -r c1/srv/tree {tmp}/back"));
    host.sh(&format!("diff -r --no-dereference {tmp}/tree {tmp}/back/tree"));
    incus(&host, "file create c1/root/empty");
    incus(&host, "file create --type=directory c1/root/dir");
    incus(&host, "file create --type=symlink c1/root/link f");
    assert_eq!(host.inside("c1", "readlink /root/link; ls -d /root/dir; wc -c < /root/empty"), "f\n/root/dir\n0");
    incus(&host, "file delete c1/root/empty");
    incus(&host, "file delete -f c1/srv/tree");
    host.inside("c1", "test ! -e /srv/tree -a ! -e /root/empty");
    incus_fails(&host, "file pull c1/nosuch -", "Error: file does not exist");
    // Links in the container lead nowhere else.
    host.inside("c1", "ln -s / /root/up; ln -s /etc/shadow /root/shadow");
    let inside = host.inside("c1", "cat /etc/passwd");
    assert_eq!(incus(&host, "file pull c1/root/up/etc/passwd -"), inside);
    // A stopped one has files too.
    incus(&host, "stop --force c1");
    assert_eq!(incus(&host, "file pull c1/root/f -"), "body");
    incus(&host, &format!("file push {tmp}/f c1/root/g"));
    incus(&host, "start c1");
    assert_eq!(host.inside("c1", "cat /root/g"), "body");
}

#[test]
fn incus_changes_configuration_devices_and_profiles() {
    let host = Host::new();
    incus(&host, "launch busybox c1");
    incus(&host, "config set c1 limits.memory=64MiB user.note='a b'");
    assert_eq!(incus(&host, "config get c1 limits.memory"), "64MiB");
    assert!(incus(&host, "config show c1").contains("user.note: a b"));
    incus(&host, "config unset c1 limits.memory");
    assert_eq!(incus(&host, "config get c1 limits.memory"), "");
    incus_fails(&host, "config set c1 limits.memory=nonsense", "limits.memory");
    incus_fails(&host, "config set c1 nosuch=1", "nosuch");
    client(&host, "incus", "config edit c1")
        .stdin("config: {user.edited: 'yes'}\ndevices: {}\nprofiles: [default]\n")
        .run()
        .succeeded();
    assert_eq!(incus(&host, "config get c1 user.edited"), "yes");
    incus(&host, "config device add c1 d1 disk source=/usr/share path=/mnt/d shift=true");
    host.inside("c1", "test -d /mnt/d/doc -o -d /mnt/d/misc");
    assert_eq!(incus(&host, "config device get c1 d1 path"), "/mnt/d");
    incus(&host, "config device set c1 d1 readonly=true");
    assert!(incus(&host, "config device show c1").contains("readonly: \"true\""));
    incus(&host, "config device unset c1 d1 readonly");
    assert!(!incus(&host, "config device show c1").contains("readonly"));
    incus(&host, "config device override c1 eth0 hwaddr=10:66:6a:00:00:77");
    // The client lists a map, in no order.
    let list = incus(&host, "config device list c1");
    let mut devices: Vec<&str> = list.lines().collect();
    devices.sort_unstable();
    assert_eq!(devices, ["d1", "eth0"]);
    incus(&host, "config device remove c1 d1");
    assert!(incus(&host, "config metadata show c1").contains("architecture"));
    assert!(incus(&host, "config template list c1 -f csv").contains("hostname.tpl"));
    assert!(incus(&host, "config template show c1 hostname.tpl").contains("{{"));

    incus(&host, "profile create p1");
    incus(&host, "profile set p1 limits.processes=500");
    incus(&host, "profile device add p1 x disk source=/usr path=/mnt/u");
    incus(&host, "profile copy p1 p2");
    incus(&host, "profile rename p2 p3");
    assert!(incus(&host, "profile show p3").contains("limits.processes: \"500\""));
    assert!(incus(&host, "profile list -f csv").contains("p3"));
    incus(&host, "profile add c1 p1");
    assert_eq!(host.inside("c1", "ls -d /mnt/u/bin"), "/mnt/u/bin");
    incus_fails(&host, "profile delete p1", "in use");
    incus(&host, "profile remove c1 p1");
    incus(&host, "profile assign c1 default,p3");
    incus(&host, "profile assign c1 default");
    incus_fails(&host, "profile assign c1 ''", "no root disk device");
    incus(&host, "profile delete p1");
    incus(&host, "profile delete p3");
    incus(&host, "config set user.server=1");
    assert!(incus(&host, "config show").contains("user.server: \"1\""));
}

#[test]
fn incus_takes_snapshots_and_publishes_images() {
    let host = Host::new();
    incus(&host, "launch busybox c1");
    host.inside("c1", "echo one >/v");
    incus(&host, "snapshot create c1 s1");
    host.inside("c1", "echo two >/v");
    incus(&host, "snapshot create c1");
    assert!(incus(&host, "snapshot list c1 -f csv").contains("snap0"));
    assert!(incus(&host, "snapshot show c1 s1").contains("volatile.base_image: "));
    incus(&host, "copy c1 whole");
    incus(&host, "copy c1 alone --instance-only");
    assert_eq!(incus(&host, "list -f csv -c nS"), "alone,0\nc1,2\nwhole,2");
    incus(&host, "snapshot restore c1 s1");
    assert_eq!(host.inside("c1", "cat /v"), "one");
    incus(&host, "snapshot rename c1 s1 s2");
    incus(&host, "copy c1/s2 c2");
    incus(&host, "publish c1/s2 --alias of-snapshot description='of a snapshot'");
    incus(&host, "publish c1 --force --alias of-instance");
    incus(&host, "snapshot delete c1 s2");
    incus_fails(&host, "snapshot restore c1 nosuch", "not found");
    assert!(incus(&host, "image list -f csv").contains("of a snapshot"));
    let tmp = host.tmp();
    let tmp = tmp.to_str().unwrap();
    let info = incus(&host, "image info of-instance");
    let fingerprint = info.lines().find_map(|line| line.strip_prefix("Fingerprint: ")).unwrap().to_owned();
    assert!(info.contains("Expires: never") && info.contains("Last used: never"), "{info}");
    incus(&host, "image set-property of-instance colour blue");
    assert_eq!(incus(&host, "image get-property of-instance colour"), "blue");
    incus(&host, "image unset-property of-instance colour");
    incus_fails(&host, "image get-property of-instance colour", "Property not found");
    incus(&host, &format!("image export of-instance {tmp}/exported"));
    incus(&host, "image delete of-instance");
    let file = host.sh(&format!("ls {tmp}/exported*"));
    assert!(incus(&host, &format!("image import {file} --alias again")).contains(&fingerprint));
    incus_fails(&host, &format!("image import {file}"), "Image with same fingerprint already exists");
    incus(&host, &format!("image alias create other {}", &fingerprint[..12]));
    incus(&host, "image alias rename again once-more");
    assert!(incus(&host, "image alias list -f csv").contains("once-more"));
    incus(&host, "image alias delete once-more");
    assert!(incus(&host, &format!("image show {fingerprint}")).contains("public: false"));
    client(&host, "incus", &format!("image edit {fingerprint}"))
        .stdin("public: true\nproperties: {os: mine}\n")
        .run()
        .succeeded();
    assert!(incus(&host, "image list os=mine -f csv -c fp").contains("yes"));
    incus(&host, &format!("launch {fingerprint} c3"));
    assert_eq!(host.inside("c3", "cat /v"), "one");
}

#[test]
fn incus_shows_and_changes_the_host() {
    let host = Host::new();
    incus(&host, "create busybox c1");
    let networks = incus(&host, "network list -f csv");
    assert!(networks.contains("duetbr0,bridge,YES"), "{networks}");
    assert!(incus(&host, "network info duetbr0").contains("State: up"));
    incus(&host, "network create br9 ipv4.address=10.99.1.1/24 ipv6.address=none");
    incus(&host, "network set br9 ipv4.nat=false");
    assert_eq!(incus(&host, "network get br9 ipv4.nat"), "false");
    incus(&host, "network attach br9 c1 eth1");
    incus(&host, "start c1");
    host.inside("c1", "ls -d /sys/class/net/eth1");
    incus(&host, "network detach br9 c1 eth1");
    wait::eventually("the lease in incus' list", || {
        incus(&host, "network list-leases duetbr0 -f csv").contains("c1,").then_some(())
    });
    incus(&host, "network delete br9");
    assert!(incus(&host, "storage list -f csv").contains("default,overlay"));
    assert!(incus(&host, "storage info default").contains("total space"));
    assert!(incus(&host, "storage show default").contains("driver: overlay"));
    assert!(incus(&host, "project list -f csv").contains("default"));
    incus(&host, "config set c1 limits.cpu=2 limits.memory=64MiB limits.processes=100");
    let usage = incus(&host, "project info default -f csv");
    for line in ["CONTAINERS,UNLIMITED,1", "CPU,UNLIMITED,2", "MEMORY,UNLIMITED,64.00MiB", "PROCESSES,UNLIMITED,100"] {
        assert!(usage.contains(line), "{line}: {usage}");
    }
    assert!(incus(&host, "info").contains("api_version: \"1.0\""));
    let resources = incus(&host, "info --resources");
    for part in ["CPU", "Cores:", "Memory:", "Total:"] {
        assert!(resources.contains(part), "{part}: {resources}");
    }
    incus_fails(&host, "project create p1", "the project \"default\" is the only one");
    incus_fails(&host, "project delete default", "The 'default' project cannot be deleted");
    incus_fails(&host, "project rename default x", "The 'default' project cannot be renamed");
    incus_fails(&host, "project set default features.images=false", "cannot be changed");
    incus_fails(&host, "cluster list", "Error: Server isn't part of a cluster");
    incus(&host, "admin waitready");
    assert!(incus(&host, "query /1.0/instances").contains("/1.0/instances/c1"));
    incus(&host, "operation list -f csv");
    incus(&host, "warning list -f csv");
    // What is dumped can be applied again, and changes nothing.
    let dump = incus(&host, "admin init --dump");
    client(&host, "incus", "admin init --preseed").stdin(dump.clone()).run().succeeded();
    assert_eq!(incus(&host, "admin init --dump"), dump);
}

#[test]
fn lxc_does_its_daily_work() {
    let host = Host::new();
    let tmp = host.tmp();
    let tmp = tmp.to_str().unwrap();
    lxc(&host, "launch busybox c1");
    assert_eq!(lxc(&host, "list -f csv -c ns"), "c1,RUNNING");
    assert_eq!(lxc(&host, "exec c1 -- echo hi"), "hi");
    client(&host, "lxc", "exec c1 -- sh -c 'exit 4'").run().exited(4);
    host.sh(&format!("mkdir -p {tmp}/tree/a; echo body >{tmp}/tree/a/f"));
    lxc(&host, &format!("file push {tmp}/tree/a/f c1/root/f --mode 0640 --uid 5 --gid 6"));
    assert_eq!(host.inside("c1", "stat -c '%a %u %g' /root/f"), "640 5 6");
    lxc(&host, &format!("file push -r {tmp}/tree c1/root/"));
    lxc(&host, &format!("file pull -r c1/root/tree {tmp}/back"));
    host.sh(&format!("diff -r {tmp}/tree {tmp}/back/tree"));
    lxc(&host, "file delete c1/root/f");
    lxc(&host, "config set c1 limits.memory=64MiB");
    assert_eq!(lxc(&host, "config get c1 limits.memory"), "64MiB");
    lxc(&host, "snapshot c1 s1");
    lxc(&host, "restore c1 s1");
    lxc(&host, "copy c1/s1 c2");
    lxc(&host, "move c2 c3");
    lxc(&host, "start c3");
    lxc(&host, "stop c3 --force");
    lxc(&host, "pause c1");
    lxc(&host, "start c1");
    lxc(&host, "restart c1 --force");
    lxc(&host, "delete c1/s1");
    lxc(&host, "publish c3 --alias pub");
    assert!(lxc(&host, "image list -f csv").contains("pub"));
    lxc(&host, "image delete pub");
    lxc(&host, "profile create p1");
    lxc(&host, "profile set p1 limits.cpu 1");
    lxc(&host, "profile delete p1");
    assert!(lxc(&host, "network list -f csv").contains("duetbr0"));
    assert!(lxc(&host, "storage list -f csv").contains("overlay"));
    assert!(lxc(&host, "info c1").contains("RUNNING"));
    lxc(&host, "delete --force c1 c3");
}

#[test]
fn pylxd_reaches_everything_it_has_a_model_for() {
    let host = Host::new();
    let tour = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/pylxd_tour.py");
    let python = clients().join("python/bin/python");
    let run = host
        .command(
            python.to_str().unwrap(),
            &["-W", "ignore", tour, host.socket().to_str().unwrap(), host.tmp().to_str().unwrap()],
        )
        .within(Duration::from_secs(120))
        .run();
    let run = run.succeeded();
    assert!(run.text().ends_with("all done"), "{}\n{}", run.text(), run.errors());
}

#[test]
fn heavy_incus_benchmark_runs_through() {
    let host = Host::new();
    for line in ["init --count 50 busybox", "start", "stop", "delete", "launch --count 50 busybox", "delete"] {
        let run = client(&host, "incus-benchmark", line).within(Duration::from_secs(180)).run().succeeded();
        assert!(run.text().contains("Batch processing completed"), "{line}: {}", run.text());
    }
    assert_eq!(host.get("/1.0/instances").as_array().unwrap().len(), 0);
}

#[test]
fn heavy_incus_and_debian() {
    let host = Host::with_images(&[DEBIAN_13]);
    incus(&host, "launch debian/13 c1");
    host.ok("wait c1 --for ready");
    assert_eq!(incus(&host, "exec c1 -- systemctl is-system-running"), "running");
    incus(&host, "stop c1");
    assert_eq!(incus(&host, "list -f csv -c s"), "STOPPED");
}
