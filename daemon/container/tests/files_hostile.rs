//! The file service against containers that mean harm: nothing outside of the root is read, written or removed, nothing
//! hangs, and everything ends in an error that says what is wrong.

#[path = "support/fake.rs"]
mod fake;
mod support;

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use duet_container::files::protocol::{MAX_PACKET, Setup, Subject, VERSION};
use duet_container::files::{FileError, FileKind, FileSession, OpenFlags, Owner, WriteOptions};
use duet_sys::socket;
use fake::{BASE, Ground, Init, children};
use nix::mount::{MsFlags, mount};
use rustix::fs::{CWD, FileType, Mode, OFlags, mkdirat, openat};
use support::eventually;

const NOBODY: Owner = Owner { uid: None, gid: None };

/// Puts a device node into the ground.
fn node(path: &Path, kind: FileType, major: u32, minor: u32) {
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(CWD, path, kind, mode, rustix::fs::makedev(major, minor)).unwrap();
}

/// Exchanges two names.
fn exchange(one: &Path, other: &Path) -> rustix::io::Result<()> {
    rustix::fs::renameat_with(CWD, one, CWD, other, rustix::fs::RenameFlags::EXCHANGE)
}

/// What each path must not lead to, and what it must come to instead. Applied to reading, writing, listing and removing.
fn hostile_paths(files: &mut FileSession, ground: &Ground) {
    let outside = ground.outside.to_str().unwrap().to_owned();
    let escapes = "../".repeat(60);
    let links = [
        ("to-root", "/".to_owned()),
        ("absolute", format!("{outside}/secret")),
        ("absolute-dir", outside.clone()),
        ("dots", format!("{escapes}{}", &outside[1..])),
        ("dots-secret", format!("{escapes}{}/secret", &outside[1..])),
        ("near", "../outside/secret".to_owned()),
        ("near-dir", "../outside".to_owned()),
        ("loop", "loop".to_owned()),
        ("loop-a", "loop-b".to_owned()),
        ("loop-b", "loop-a/x".to_owned()),
        ("proc-root", format!("/proc/self/root{outside}")),
        ("proc-cwd", "/proc/1/cwd".to_owned()),
        ("proc-fd", "/proc/self/fd/3".to_owned()),
        ("proc-exe", "/proc/self/exe".to_owned()),
    ];
    for (name, target) in &links {
        symlink(target, ground.path(name)).unwrap();
    }

    // (path, may it exist at all, the only errors that will do)
    let table = [
        ("to-root", true),
        ("to-root/../../..", true),
        ("absolute", false),
        ("absolute-dir/secret", false),
        ("dots/secret", false),
        ("dots-secret", false),
        ("near", false),
        ("near-dir/secret", false),
        ("../outside/secret", false),
        ("tmp/../../outside/secret", false),
        ("/../../../outside", false),
        ("loop", false),
        ("loop/x", false),
        ("loop-a", false),
        ("proc-root/secret", false),
        ("/proc/self/root/secret", false),
        ("proc-cwd", false),
        ("proc-fd", false),
        ("proc-exe", false),
        ("/proc/self/task/self/root", false),
    ];
    for (path, exists) in table {
        match files.stat(path) {
            Ok(stat) => {
                assert!(exists, "{path} leads to {stat:?}");
                assert_eq!(stat.kind, FileKind::Directory);
            }
            Err(FileError::NotFound { .. } | FileError::LinkLoop { .. }) => assert!(!exists, "{path}"),
            // Another process's, which proc says before it says that the link isn't followed.
            Err(FileError::PermissionDenied { .. }) if path == "proc-cwd" => continue,
            Err(error) => panic!("{path}: {error}"),
        }
        if exists {
            continue;
        }
        let read = files.read_to(path, &mut Vec::new());
        assert!(matches!(read, Err(FileError::NotFound { .. } | FileError::LinkLoop { .. })), "{path}: {read:?}");
        assert!(files.list(path).is_err(), "{path}");
        assert!(files.real_path(path).is_err() || !files.real_path(path).unwrap().starts_with(&outside), "{path}");
    }

    // Links that are followed when writing lead into the root again; there the folders don't exist, or are made.
    for path in ["absolute", "dots-secret", "absolute-dir/new", "near-dir/new", "proc-root/new", "loop"] {
        let written = files.write_from(path, &mut &b"owned"[..], &WriteOptions::default());
        assert!(matches!(written, Err(FileError::NotFound { .. } | FileError::LinkLoop { .. })), "{path}: {written:?}");
    }
    files.write_from("near", &mut &b"x"[..], &WriteOptions::default()).unwrap_err();
    files.mkdir_all("../../outside", 0o755, NOBODY).unwrap();
    files.write_from("near", &mut &b"inside"[..], &WriteOptions::default()).unwrap();
    assert_eq!(fs::read_to_string(ground.path("outside/secret")).unwrap(), "inside");
    ground.assert_outside_untouched();

    // Removing and renaming links does it to the links.
    files.rename("absolute-dir", "renamed-dir", false).unwrap();
    assert!(files.remove_tree("renamed-dir", |_| true).unwrap());
    files.rename("near-dir/../../outside", "tmp/moved", false).unwrap();
    for (name, _) in links.iter().filter(|(name, _)| *name != "absolute-dir") {
        files.remove(name).unwrap();
    }
    for nameless in ["/", "", ".", "..", "tmp/.", "tmp/..", "///"] {
        assert!(matches!(files.remove(nameless), Err(FileError::BadPath { .. })), "{nameless:?}");
        assert!(matches!(files.remove_tree(nameless, |_| true), Err(FileError::BadPath { .. })), "{nameless:?}");
        assert!(matches!(files.mkdir(nameless, 0o755, NOBODY), Err(FileError::BadPath { .. })), "{nameless:?}");
    }
    ground.assert_outside_untouched();
}

#[test]
fn links_out_of_a_running_container() {
    let ground = Ground::new(BASE);
    // The host's own proc, in which the service sees itself: worse than what a real container has.
    mount(Some("/proc"), &ground.path("proc"), None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    let init = Init::new(&ground);
    hostile_paths(&mut init.session(), &ground);
}

#[test]
fn links_out_of_a_stopped_container() {
    let ground = Ground::new(0);
    hostile_paths(&mut ground.stopped(), &ground);
}

#[test]
fn special_files_are_never_opened() {
    let ground = Ground::new(BASE);
    node(&ground.path("fifo"), FileType::Fifo, 0, 0);
    node(&ground.path("zero"), FileType::CharacterDevice, 1, 5);
    node(&ground.path("disk"), FileType::BlockDevice, 7, 0);
    let _listener = std::os::unix::net::UnixListener::bind(ground.path("socket")).unwrap();
    let init = Init::new(&ground);
    for mut files in [init.session(), ground.stopped()] {
        files.set_timeout(Duration::from_secs(10));
        for (name, kind) in [
            ("fifo", FileKind::Fifo),
            ("zero", FileKind::CharDevice),
            ("disk", FileKind::BlockDevice),
            ("socket", FileKind::Socket),
        ] {
            assert_eq!(files.stat(name).unwrap().kind, kind);
            let read = files.read_to(name, &mut Vec::new());
            assert!(matches!(read, Err(FileError::SpecialFile { .. })), "{name}: {read:?}");
            for append in [false, true] {
                let options = WriteOptions { append, ..WriteOptions::default() };
                let written = files.write_from(name, &mut &b"x"[..], &options);
                assert!(matches!(written, Err(FileError::SpecialFile { .. })), "{name}: {written:?}");
            }
            assert!(matches!(files.list(name), Err(FileError::NotADirectory { .. })), "{name}");
        }
    }
    let mut files = ground.stopped();
    for name in ["fifo", "zero", "disk", "socket"] {
        files.remove(name).unwrap();
    }
}

/// A thread that swaps a directory for a link out of the root, again and again, while files are written and removed.
#[test]
fn swapped_in_the_middle() {
    let ground = Ground::new(BASE);
    let stop = AtomicBool::new(false);
    for name in ["d", "d/sub"] {
        fs::create_dir(ground.path(name)).unwrap();
        ground.own(name, BASE);
    }
    // Both what the link says from within the root, and what it would say to a service that isn't rooted.
    symlink(format!("{}/../../../../..{}", "/..".repeat(9), ground.outside.display()), ground.path("link")).unwrap();
    let init = Init::new(&ground);
    let mut files = init.session();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                exchange(&ground.path("d"), &ground.path("link")).unwrap();
            }
        });
        let mut outcomes = [0, 0];
        for at in 0..3000 {
            let results = [
                files.write_from("d/secret", &mut &b"owned"[..], &WriteOptions::default()).map(drop),
                files.mkdir_all("d/sub/secret", 0o700, NOBODY),
                files.remove("d/secret"),
                files.rename("d/secret", "d/stolen", true),
                files.set_stat("d/secret", true, Default::default()),
                if at % 10 == 0 { files.remove_tree("d/sub", |_| true).map(drop) } else { Ok(()) },
            ];
            for result in results {
                outcomes[usize::from(result.is_err())] += 1;
                assert!(
                    matches!(
                        result,
                        Ok(())
                            | Err(FileError::NotFound { .. }
                                | FileError::Exists { .. }
                                | FileError::NotADirectory { .. }
                                | FileError::Changed { .. })
                    ),
                    "{result:?}"
                );
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(outcomes[0] > 100 && outcomes[1] > 100, "no race took place: {outcomes:?}");
    });
    ground.assert_outside_untouched();
}

/// A tree deeper than any path or table of descriptors.
fn deep(root: &Path, depth: usize) {
    let mut here: OwnedFd = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..depth {
        mkdirat(&here, "deep", Mode::from_raw_mode(0o755)).unwrap();
        here = openat(&here, "deep", OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let flags = OFlags::WRONLY | OFlags::CREATE;
        openat(&here, "file", flags, Mode::from_raw_mode(0o644)).unwrap();
    }
}

#[test]
fn trees_are_removed_whole_and_nothing_else() {
    let ground = Ground::new(0);
    let mut files = ground.stopped();
    files.set_timeout(Duration::from_secs(30));
    fs::create_dir(ground.path("t")).unwrap();
    deep(&ground.path("t"), 20_000);
    for at in 0..3000 {
        fs::write(ground.path(&format!("t/file-{at}")), "").unwrap();
    }
    fs::create_dir_all(ground.path("t/a/b/c")).unwrap();
    symlink(&ground.outside, ground.path("t/a/out")).unwrap();
    symlink("..", ground.path("t/a/up")).unwrap();
    symlink("/", ground.path("t/a/b/root")).unwrap();
    node(&ground.path("t/a/fifo"), FileType::Fifo, 0, 0);
    ground.file("keep", "kept", 0);

    // Given up on the way, and taken up again.
    let mut calls = 0;
    let all = files.remove_tree("t", |_| {
        calls += 1;
        false
    });
    if !all.unwrap() {
        assert_eq!(calls, 1);
        assert!(files.remove_tree("/t", |_| true).unwrap());
    }
    assert!(!ground.path("t").exists());
    assert_eq!(fs::read_to_string(ground.path("keep")).unwrap(), "kept");
    ground.assert_outside_untouched();
}

#[test]
fn what_is_mounted_is_not_removed() {
    let ground = Ground::new(BASE);
    for name in ["t", "t/a", "t/a/mnt"] {
        fs::create_dir(ground.path(name)).unwrap();
        ground.own(name, BASE);
    }
    ground.file("t/a/file-mnt", "", BASE);
    fs::write(ground.outside.join("data"), "data").unwrap();
    let bind = |from: &Path, to: &Path| mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    bind(&ground.outside, &ground.path("t/a/mnt"));
    bind(&ground.outside.join("data"), &ground.path("t/a/file-mnt"));
    let init = Init::new(&ground);
    let mut files = init.session();
    for path in ["t", "t/a/mnt", "t/a", "t/a/file-mnt"] {
        let removed = files.remove_tree(path, |_| true);
        assert!(matches!(removed, Err(FileError::Busy { .. })), "{path}: {removed:?}");
    }
    assert_eq!(fs::read_to_string(ground.outside.join("data")).unwrap(), "data");
    fs::remove_file(ground.outside.join("data")).unwrap();
    ground.assert_outside_untouched();
}

/// The tree is rearranged while it is being removed: directories are moved out of it, to where `..` leads elsewhere.
#[test]
fn moved_while_removed() {
    let ground = Ground::new(BASE);
    fs::create_dir(ground.path("elsewhere")).unwrap();
    ground.own("elsewhere", BASE);
    ground.file("elsewhere/keep", "kept", BASE);
    let init = Init::new(&ground);
    let mut files = init.session();
    let stop = AtomicBool::new(false);
    for _ in 0..30 {
        fs::create_dir_all(ground.path("t/1/2/3/4")).unwrap();
        deep(&ground.path("t/1/2/3/4"), 100);
        Command::new("chown").args(["-R", &BASE.to_string()]).arg(ground.path("t")).status().unwrap();
        stop.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (inner, outer) = (ground.path("t/1/2"), ground.path("elsewhere/2"));
                while !stop.load(Ordering::Relaxed) {
                    let _ = fs::rename(&inner, &outer);
                    let _ = fs::rename(&outer, &inner);
                }
            });
            let removed = files.remove_tree("t", |_| true);
            stop.store(true, Ordering::Relaxed);
            assert!(
                matches!(removed, Ok(true) | Err(FileError::Changed { .. } | FileError::NotEmpty { .. })),
                "{removed:?}"
            );
        });
        assert_eq!(fs::read_to_string(ground.path("elsewhere/keep")).unwrap(), "kept");
        let _ = files.remove_tree("elsewhere/2", |_| true);
        let _ = files.remove_tree("t", |_| true);
    }
}

#[test]
fn the_container_stops() {
    let ground = Ground::new(BASE);
    ground.file("f", "content", BASE);
    let mut init = Init::new(&ground);
    let mut idle = init.session();
    let mut busy = init.session();
    struct Stopper<'a>(&'a mut Init, u64);
    impl std::io::Write for Stopper<'_> {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            self.1 += 1;
            if self.1 == 3 {
                self.0.child.kill().unwrap();
                self.0.child.wait().unwrap();
            }
            Ok(data.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let opened =
        busy.open("big", OpenFlags { write: true, create: true, ..OpenFlags::default() }, 0o644, NOBODY).unwrap();
    let sized = duet_container::files::Changes { size: Some(10 << 30), ..Default::default() };
    busy.fset_stat(opened.handle, sized).unwrap();
    let read = busy.read_to("big", &mut Stopper(&mut init, 0));
    assert!(matches!(read, Err(FileError::ContainerStopped)), "{read:?}");
    assert!(matches!(idle.stat("f"), Err(FileError::ContainerStopped)));
    assert!(matches!(idle.list("/"), Err(FileError::ContainerStopped)));
    // They have ended by themselves: a stopped container's root isn't held.
    eventually("the services end", || {
        children("duet-monitor")
            .iter()
            .all(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z ")))
    });
    let late = FileSession::spawn(
        fake::service(),
        &duet_container::files::Target::Running {
            pid: init.child.id(),
            pidfd: init.pidfd.as_fd(),
            user_namespace: true,
        },
    );
    assert!(matches!(late, Err(FileError::ContainerStopped)), "{late:?}");
    drop((idle, busy));
    eventually("the services are reaped", || children("duet-monitor").is_empty());
}

/// A filesystem that the container serves, and doesn't answer.
#[test]
fn a_filesystem_that_hangs() {
    let ground = Ground::new(BASE);
    fs::create_dir(ground.path("mnt")).unwrap();
    let Ok(fuse) = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) else {
        eprintln!("skipped: no /dev/fuse");
        return;
    };
    let options = format!("fd={},rootmode=40000,user_id={BASE},group_id={BASE},allow_other", fuse.as_raw_fd());
    mount(Some("hang"), &ground.path("mnt"), Some("fuse"), MsFlags::empty(), Some(options.as_str())).unwrap();
    let init = Init::new(&ground);
    let mut files = init.session();
    files.set_timeout(Duration::from_millis(200));
    files.stat("bin").unwrap();
    let begun = Instant::now();
    let hung = files.stat("mnt/x");
    assert!(matches!(hung, Err(FileError::TimedOut(_))), "{hung:?}");
    assert!(matches!(files.stat("bin"), Err(FileError::TimedOut(_))));
    drop(files);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    // Others go on.
    init.session().stat("bin").unwrap();
    drop(fuse);
    eventually("the stuck service is gone", || children("duet-monitor").is_empty());
    nix::mount::umount2(&ground.path("mnt"), nix::mount::MntFlags::MNT_DETACH).unwrap();
}

fn packet(head: &[u8], data: &[u8]) -> Vec<u8> {
    [&u32::try_from(head.len()).unwrap().to_le_bytes()[..], head, data].concat()
}

/// The service by itself: it ends with its client, and answers what it doesn't understand.
#[test]
fn the_service_without_a_session() {
    let ground = Ground::new(0);
    let start = || {
        let (ours, theirs) = socket::packet_pair().unwrap();
        let child = Command::new(fake::service())
            .arg("files")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::from(ground.detached()))
            .spawn()
            .unwrap();
        (ours, child)
    };
    let receive = |socket: &OwnedFd| {
        let mut buffer = vec![0; MAX_PACKET];
        assert!(socket::wait_readable(socket, support::deadline()).unwrap());
        let packet = socket::receive(socket, &mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[4.min(packet.len)..packet.len]).into_owned()
    };
    let setup = serde_json::to_vec(&Setup { version: VERSION, subject: Subject::Root, id_limit: None }).unwrap();

    let (ours, mut child) = start();
    socket::send(&ours, &packet(&setup, b""), &[]).unwrap();
    assert!(receive(&ours).contains("ready"));
    for (request, answer) in [
        (r#"{"id":1,"op":{"teleport":{"path":"/"}}}"#, "unsupported"),
        (r#"{"id":2,"op":{"stat":{"path":"/","follow":true,"color":"red"}},"mood":1}"#, "directory"),
        (r#"{"id":3,"op":{"stat":{"path":"%zz","follow":true}}}"#, "unsupported"),
        (r#"{"id":4,"op":{"close":{"handle":4294967295}}}"#, "bad_handle"),
        (r#"{"id":5,"op":{"read":{"handle":0,"offset":18446744073709551615,"length":4294967295}}}"#, "bad_handle"),
    ] {
        socket::send(&ours, &packet(request.as_bytes(), b""), &[]).unwrap();
        let answered = receive(&ours);
        assert!(answered.contains(answer) && answered.contains(&request[..7]), "{request}: {answered}");
    }
    // The client dies in the middle of something.
    socket::send(&ours, &packet(br#"{"id":6,"op":{"space":{"path":"/"}}}"#, b""), &[]).unwrap();
    drop(ours);
    assert!(child.wait().unwrap().success());

    for nonsense in
        [&b"x"[..], b"", &u32::MAX.to_le_bytes(), &packet(b"{}", b""), &packet(b"[1]", b"data"), &[0xff; 9000]]
    {
        let (ours, mut child) = start();
        socket::send(&ours, nonsense, &[]).unwrap();
        // Either a refusal or the end, never a hang.
        receive(&ours);
        drop(ours);
        child.wait().unwrap();
    }
    let (ours, mut child) = start();
    let future = serde_json::to_vec(&Setup { version: VERSION + 1, subject: Subject::Root, id_limit: None }).unwrap();
    socket::send(&ours, &packet(&future, b""), &[]).unwrap();
    assert!(receive(&ours).contains("version"));
    assert!(!child.wait().unwrap().success());
    assert_eq!(fs::metadata(&ground.root).unwrap().uid(), 0);
}
