//! Mounts and devices of the running container.

use std::fs;
use std::os::unix::fs::MetadataExt;

use duet_container::client::ClientError;
use duet_container::protocol::ErrorKind;
use duet_container::spec::{DeviceKind, DeviceNode, MountSource, MountSpec};

use crate::support::{Container, MAP, mount};

fn device(target: &str, major: u32, minor: u32) -> DeviceNode {
    DeviceNode { target: target.into(), kind: DeviceKind::Char, major, minor, mode: 0o640, uid: 0, gid: 5 }
}

#[test]
fn a_directory_comes_and_goes() {
    for idmap in [Some(MAP), None] {
        let container = Container::with_map(idmap).start();
        fs::create_dir(container.path("shared")).unwrap();
        fs::write(container.path("shared/file"), "host").unwrap();
        let source = container.path("shared");
        let disk = MountSpec { shift: idmap.is_some(), ..mount(source.to_str().unwrap(), "/srv/new/disk") };
        let client = container.connect();
        client.attach_mount(&disk, None).unwrap();
        assert_eq!(container.ok("cat /srv/new/disk/file; echo from inside > /srv/new/disk/made"), "host");
        assert_eq!(fs::metadata(source.join("made")).unwrap().uid(), 0);
        assert_eq!(container.ok("ls -A /dev/.duet-mounts"), "", "nothing stays on offer");
        assert_eq!(container.ok("stat -c %u /srv/new"), "0", "the directories on the way belong to the container");
        client.detach_mount("/srv/new/disk".as_ref()).unwrap();
        assert_ne!(container.sh("test -e /srv/new/disk/file").status.shell_code(), 0);
        assert!(matches!(client.detach_mount("/srv/new/disk".as_ref()), Err(ClientError::Refused(_))));
    }
}

#[test]
fn a_read_only_disk_stays_read_only() {
    let container = Container::new().start();
    fs::create_dir(container.path("shared")).unwrap();
    let source = container.path("shared");
    let disk = MountSpec { shift: true, read_only: true, ..mount(source.to_str().unwrap(), "/disk") };
    container.connect().attach_mount(&disk, None).unwrap();
    assert_ne!(container.sh("touch /disk/x").status.shell_code(), 0);
    assert_ne!(container.sh("mount -o remount,bind,rw /disk && touch /disk/x").status.shell_code(), 0);
    assert_ne!(container.sh("mount -o remount,bind,dev /disk").status.shell_code(), 0);
}

#[test]
fn a_disk_can_be_added_under_a_system_that_shares_its_mounts() {
    // As systemd makes them.
    let container = Container::new().start();
    container.ok("mount --make-rshared /");
    fs::create_dir(container.path("shared")).unwrap();
    fs::write(container.path("shared/file"), "host").unwrap();
    let disk = mount(container.path("shared").to_str().unwrap(), "/disk");
    container.connect().attach_mount(&disk, None).unwrap();
    assert_eq!(container.ok("cat /disk/file; ls -A /dev/.duet-mounts"), "host");
    container.connect().detach_mount("/disk".as_ref()).unwrap();
}

#[test]
fn a_file_a_tmpfs_and_a_descriptor_can_be_added() {
    let container = Container::new().start();
    fs::write(container.path("single"), "one").unwrap();
    let client = container.connect();
    client.attach_mount(&mount(container.path("single").to_str().unwrap(), "/etc/deep/single"), None).unwrap();
    assert_eq!(container.ok("cat /etc/deep/single"), "one");

    let scratch = MountSpec { source: MountSource::Tmpfs { size: 1 << 20 }, ..mount("", "/scratch") };
    client.attach_mount(&scratch, None).unwrap();
    assert_eq!(container.ok("touch /scratch/x && stat -f -c %T /scratch"), "tmpfs");

    let tree = duet_sys::mount::clone_tree(rustix::fs::CWD, &container.path("single"), false).unwrap();
    let passed = MountSpec { source: MountSource::Fd(0), ..mount("", "/passed") };
    client.attach_mount(&passed, Some(std::os::fd::AsFd::as_fd(&tree))).unwrap();
    assert_eq!(container.ok("cat /passed"), "one");

    let missing = mount("/no/such/source", "/missing");
    assert!(matches!(client.attach_mount(&missing, None), Err(ClientError::Source { .. })));
    client.attach_mount(&MountSpec { optional: true, ..missing }, None).unwrap();
}

#[test]
fn a_hostile_target_stays_within_the_container() {
    let container = Container::new().start();
    let client = container.connect();
    fs::write(container.path("single"), "one").unwrap();
    let source = container.path("single");
    container.ok("ln -s ../../../../../../tmp /out; ln -s /proc/1/root/etc /magic; ln -s /tmp/loop /tmp/loop");
    client.attach_mount(&mount(source.to_str().unwrap(), "/out/duet-escaped"), None).unwrap();
    assert_eq!(container.ok("cat /tmp/duet-escaped"), "one");
    assert!(!std::path::Path::new("/tmp/duet-escaped").exists());
    for target in ["/magic/x", "/tmp/loop/x", "/tmp/loop", "/proc/self/root/x", "/../x"] {
        let result = client.attach_mount(&mount(source.to_str().unwrap(), target), None);
        assert!(matches!(result, Err(ClientError::Refused(_))), "{target}: {result:?}");
    }
    // Even with the way to it taken away, the monitor only says so.
    container.ok("umount /dev/.duet-mounts");
    assert!(client.attach_mount(&mount(source.to_str().unwrap(), "/x"), None).is_err());
    assert_eq!(container.ok("echo alive"), "alive");
}

#[test]
fn devices_come_and_go() {
    let mut container = Container::new();
    container.spec.devices = vec![device("/dev/at/start", 1, 3), device("/opt/node", 1, 5)];
    let container = container.start();
    assert_eq!(container.ok("stat -c '%F %a %U:%G' /dev/at/start"), "character special file 640 root:tty");
    assert_eq!(container.ok("head -c 3 /opt/node | wc -c"), "3");

    let client = container.connect();
    for target in ["/dev/later", "/dev/sub/dir/later", "/srv/later"] {
        client.attach_device(&device(target, 1, 5)).unwrap();
        assert_eq!(container.ok(&format!("head -c 3 {target} | wc -c")), "3", "{target}");
        client.detach_device(target.as_ref()).unwrap();
        assert_ne!(container.sh(&format!("test -c {target}")).status.shell_code(), 0, "{target}");
    }
    // What is there already, and is the same device, is as good; what is something else is in the way.
    client.attach_device(&device("/dev/null", 1, 3)).unwrap();
    container.ok("echo > /dev/taken; ln -s /etc /dev/link");
    for target in ["/dev/taken", "/dev/link/x"] {
        let result = client.attach_device(&device(target, 1, 5));
        assert!(matches!(result, Err(ClientError::Refused(_))), "{target}: {result:?}");
    }
    assert!(matches!(client.detach_device("/dev/taken".as_ref()), Err(ClientError::Refused(_))));
    match client.attach_device(&device("relative", 1, 5)) {
        Err(ClientError::Refused(error)) => assert_eq!(error.kind, ErrorKind::Invalid),
        other => panic!("{other:?}"),
    }
}
