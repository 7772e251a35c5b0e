//! Devices, plugged and unplugged while the instance runs.

use std::fs;
use std::os::unix::fs::MetadataExt;

use duet_tests::{Host, eventually};
use serde_json::json;

#[test]
fn a_folder_of_the_host_is_shared_with_shifted_ids() {
    let host = Host::new();
    let folder = host.tmp().join("shared");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("from-host"), "hello\n").unwrap();
    host.ok("launch busybox c1");
    host.ok(&format!("config device add c1 work disk source={} path=/mnt/work shift=true", folder.display()));
    assert_eq!(host.inside("c1", "cat /mnt/work/from-host; stat -c %u:%g /mnt/work/from-host"), "hello\n0:0");
    host.inside("c1", "echo reply > /mnt/work/from-inside; chown 1000:1000 /mnt/work/from-inside");
    assert_eq!(fs::read_to_string(folder.join("from-inside")).unwrap(), "reply\n");
    let metadata = fs::metadata(folder.join("from-inside")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (1000, 1000));
    // It comes back with the next start, and goes when it is removed.
    host.ok("restart c1 --force");
    assert_eq!(host.inside("c1", "cat /mnt/work/from-host"), "hello");
    host.ok("config device remove c1 work");
    assert_ne!(host.try_inside("c1", "cat /mnt/work/from-host").code(), Some(0));
    assert!(folder.join("from-host").exists());
}

#[test]
fn without_shift_the_hosts_root_is_nobody() {
    let host = Host::new();
    let folder = host.tmp().join("plain");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "x").unwrap();
    host.ok("launch busybox c1");
    host.ok(&format!("config device add c1 work disk source={} path=/mnt/plain", folder.display()));
    assert_eq!(host.inside("c1", "stat -c %u:%g /mnt/plain/file"), "65534:65534");
    assert_ne!(host.try_inside("c1", "echo y > /mnt/plain/file").code(), Some(0));
}

#[test]
fn a_read_only_folder_and_a_single_file() {
    let host = Host::new();
    let folder = host.tmp().join("ro");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "content").unwrap();
    host.ok("launch busybox c1");
    host.ok(&format!("config device add c1 ro disk source={} path=/mnt/ro readonly=true shift=true", folder.display()));
    assert_eq!(host.inside("c1", "cat /mnt/ro/file"), "content");
    let output = host.try_inside("c1", "echo x > /mnt/ro/new");
    assert!(output.errors().contains("Read-only"), "{output:?}");
    assert_ne!(host.try_inside("c1", "mount -o remount,rw,bind /mnt/ro").code(), Some(0));
    host.ok(&format!("config device add c1 one disk source={}/file path=/etc/one-file shift=true", folder.display()));
    assert_eq!(host.inside("c1", "cat /etc/one-file"), "content");
    host.ok("config device remove c1 one");
    assert_ne!(host.try_inside("c1", "grep content /etc/one-file").code(), Some(0));
}

#[test]
fn a_source_that_is_not_there_is_refused_unless_it_is_optional() {
    let host = Host::new();
    host.ok("launch busybox c1");
    host.fails("config device add c1 gone disk source=/no/such/folder path=/mnt/gone", "/no/such/folder");
    assert_eq!(host.get("/1.0/instances/c1")["devices"], json!({}));
    host.ok("config device add c1 maybe disk source=/no/such/folder path=/mnt/maybe required=false");
    assert_eq!(host.status("c1"), "Running");
    host.ok("restart c1 --force");
}

#[test]
fn a_path_inside_does_not_follow_the_instances_links() {
    let host = Host::new();
    let folder = host.tmp().join("shared");
    let outside = host.tmp().join("outside");
    fs::create_dir(&folder).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(folder.join("file"), "x").unwrap();
    host.ok("launch busybox c1");
    host.inside("c1", &format!("ln -s / /mnt/up; ln -s {} /mnt/away", outside.display()));
    let _ = host
        .duet(&format!("config device add c1 d disk source={} path=/mnt/away/d shift=true", folder.display()))
        .run();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "something was made on the host");
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", host.holder())).unwrap();
    assert!(!mounts.contains("outside"), "{mounts}");
}

#[test]
fn a_network_interface_comes_and_goes() {
    let host = Host::new();
    host.ok("launch busybox c1");
    host.ok("config device add c1 eth1 nic network=duetbr0");
    assert_eq!(host.inside("c1", "ls /sys/class/net"), "eth0\neth1\nlo");
    let links = || host.sh("ip -o link show master duetbr0 | wc -l");
    assert_eq!(links(), "2");
    assert_ne!(
        host.inside("c1", "cat /sys/class/net/eth0/address"),
        host.inside("c1", "cat /sys/class/net/eth1/address")
    );
    host.ok("config device remove c1 eth1");
    assert_eq!(host.inside("c1", "ls /sys/class/net"), "eth0\nlo");
    assert_eq!(links(), "1");
    // The one of the profile goes when it is masked, and returns.
    host.ok("config device add c1 eth0 none");
    eventually("eth0 being gone", || (host.inside("c1", "ls /sys/class/net") == "lo").then_some(()));
    host.ok("config device remove c1 eth0");
    eventually("eth0 being back", || (host.inside("c1", "ls /sys/class/net") == "eth0\nlo").then_some(()));
}

#[test]
fn a_mac_address_is_stable_and_can_be_chosen() {
    let host = Host::new();
    host.ok("launch busybox c1");
    let address = host.inside("c1", "cat /sys/class/net/eth0/address");
    assert_eq!(host.ok("config get c1 volatile.eth0.hwaddr"), address);
    host.ok("restart c1 --force");
    assert_eq!(host.inside("c1", "cat /sys/class/net/eth0/address"), address);
    host.ok("config device override c1 eth0 hwaddr=02:11:22:33:44:55");
    host.ok("restart c1 --force");
    assert_eq!(host.inside("c1", "cat /sys/class/net/eth0/address"), "02:11:22:33:44:55");
    host.fails("config device set c1 eth0 hwaddr=nonsense", "hwaddr");
    // A copy gets one of its own.
    host.ok("config device remove c1 eth0");
    host.ok("copy c1 c2");
    host.ok("start c2");
    assert_ne!(host.inside("c2", "cat /sys/class/net/eth0/address"), address);
}

#[test]
fn a_character_device_comes_and_goes() {
    let host = Host::new();
    host.ok("launch busybox c1");
    assert_ne!(host.try_inside("c1", "ls /dev/mine").code(), Some(0));
    host.ok("config device add c1 mine unix-char source=/dev/zero path=/dev/mine mode=0600 uid=1000 gid=1000");
    assert_eq!(host.inside("c1", "stat -c '%F %a %u:%g %t:%T' /dev/mine"), "character special file 600 1000:1000 1:5");
    assert_eq!(host.inside("c1", "head -c 4 /dev/mine | wc -c"), "4");
    host.ok("restart c1 --force");
    assert_eq!(host.inside("c1", "head -c 4 /dev/mine | wc -c"), "4");
    host.ok("config device remove c1 mine");
    assert_ne!(host.try_inside("c1", "head -c 4 /dev/mine").code(), Some(0));
    // One that was not given cannot be made.
    assert_ne!(host.try_inside("c1", "mknod /dev/other c 1 5 && head -c 1 /dev/other").code(), Some(0));
    host.fails("config device add c1 none unix-char source=/dev/no-such-device", "/dev/no-such-device");
}

#[test]
fn the_usual_devices_are_there_and_no_others() {
    let host = Host::new();
    host.ok("launch busybox c1");
    for device in ["null", "zero", "full", "random", "urandom", "tty"] {
        let kind = host.inside("c1", &format!("stat -c '%F %a' /dev/{device}"));
        assert_eq!(kind, "character special file 666", "/dev/{device}");
    }
    host.inside("c1", "echo x > /dev/null; head -c 4 /dev/urandom >/dev/null; test -d /dev/pts; test -d /dev/shm");
    let blocks = host.inside("c1", "find /dev -type b");
    assert_eq!(blocks, "");
    for device in ["mem", "kmem", "sda", "vda", "loop0", "kvm"] {
        assert_ne!(host.try_inside("c1", &format!("test -e /dev/{device}")).code(), Some(0), "/dev/{device}");
    }
}

#[test]
fn device_commands_show_what_is_there() {
    let host = Host::new();
    host.ok("create busybox c1");
    host.ok("config device add c1 d disk source=/usr path=/mnt");
    assert_eq!(host.ok("config device list c1"), "d");
    assert_eq!(host.ok("config device get c1 d path"), "/mnt");
    host.ok("config device set c1 d path=/srv");
    assert_eq!(host.get("/1.0/instances/c1")["devices"]["d"]["path"], "/srv");
    host.ok("config device set c1 d readonly=true");
    host.ok("config device unset c1 d readonly");
    assert!(host.ok("config device show c1").contains("path: /srv"));
    host.ok("config device remove c1 d");
    assert_eq!(host.ok("config device list c1"), "");
    host.fails("config device remove c1 d", "d");
}

#[test]
fn a_start_that_fails_on_a_device_undoes_the_rest() {
    let host = Host::new();
    let folder = host.tmp().join("there");
    fs::create_dir(&folder).unwrap();
    host.ok("create busybox c1");
    host.ok(&format!("config device add c1 d disk source={} path=/mnt", folder.display()));
    fs::remove_dir(&folder).unwrap();
    host.fails("start c1", "there");
    assert_eq!(host.status("c1"), "Stopped");
    assert!(host.running("duet-monitor").is_empty());
    assert_eq!(host.sh("ip -o link show master duetbr0 | wc -l"), "0");
    fs::create_dir(&folder).unwrap();
    host.ok("start c1");
}
