//! The file service against a root of the test's own: what it can do.

#[path = "support/fake.rs"]
mod fake;
mod support;

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use duet_container::files::{Changes, FileError, FileKind, FileSession, OpenFlags, Owner, Target, Time, WriteOptions};
use fake::{BASE, Ground, Init, children};
use support::eventually;

const OWNER: Owner = Owner { uid: Some(33), gid: Some(44) };
const NOBODY: Owner = Owner { uid: None, gid: None };
const READ: OpenFlags =
    OpenFlags { read: true, write: false, append: false, create: false, exclusive: false, truncate: false };
const CREATE: OpenFlags = OpenFlags { write: true, create: true, ..READ };

/// Every operation, with what it leaves on the disk. `shift` is the host's id of the container's root.
fn every_operation(files: &mut FileSession, ground: &Ground, shift: u32) {
    let meta = |inside: &str| fs::symlink_metadata(ground.path(inside)).unwrap();

    // Directories.
    files.mkdir("/a", 0o2750, OWNER).unwrap();
    let made = meta("a");
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (shift + 33, shift + 44, 0o2750));
    assert!(matches!(files.mkdir("a", 0o755, NOBODY), Err(FileError::Exists { .. })));
    assert!(matches!(files.mkdir("a/b/c", 0o755, NOBODY), Err(FileError::NotFound { .. })));
    files.mkdir_all("a/b/c/../c/d/", 0o755, NOBODY).unwrap();
    files.mkdir_all("a/b/c/d", 0o755, NOBODY).unwrap();
    files.mkdir_all("/", 0o755, NOBODY).unwrap();
    assert_eq!(meta("a/b/c/d").uid(), shift);

    // Writing and reading.
    let data: Vec<u8> = (0..1_000_003_u32).map(|at| (at * 7 % 251) as u8).collect();
    let options = WriteOptions { mode: Some(0o4755), owner: OWNER, append: false };
    assert_eq!(files.write_from("/a/file", &mut data.as_slice(), &options).unwrap(), data.len() as u64);
    assert_eq!(fs::read(ground.path("a/file")).unwrap(), data);
    let made = meta("a/file");
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (shift + 33, shift + 44, 0o4755));
    let mut back = Vec::new();
    assert_eq!(files.read_to("a/file", &mut back).unwrap(), data.len() as u64);
    assert!(back == data);
    // An existing file keeps owner and mode unless told otherwise.
    files.write_from("a/file", &mut &b"short"[..], &WriteOptions::default()).unwrap();
    let kept = meta("a/file");
    assert_eq!((kept.uid(), kept.gid(), kept.mode() & 0o777, kept.size()), (shift + 33, shift + 44, 0o755, 5));
    let more = WriteOptions { mode: Some(0o600), owner: Owner { uid: Some(1), gid: None }, append: true };
    files.write_from("a/file", &mut &b" and more"[..], &more).unwrap();
    let changed = meta("a/file");
    assert_eq!((changed.uid(), changed.gid(), changed.mode() & 0o7777), (shift + 1, shift + 44, 0o600));
    assert_eq!(fs::read_to_string(ground.path("a/file")).unwrap(), "short and more");

    // Handles.
    let opened = files.open("a/new", OpenFlags { read: true, exclusive: true, ..CREATE }, 0o640, NOBODY).unwrap();
    assert!(opened.created);
    assert!(matches!(
        files.open("a/new", OpenFlags { exclusive: true, ..CREATE }, 0o640, NOBODY),
        Err(FileError::Exists { .. })
    ));
    files.write(opened.handle, 10, b"ten").unwrap();
    files.sync(opened.handle).unwrap();
    let mut buffer = [9; 32];
    assert_eq!(files.read(opened.handle, 8, &mut buffer).unwrap(), 5);
    assert_eq!(&buffer[..6], b"\0\0ten\x09");
    assert_eq!(files.fstat(opened.handle).unwrap().size, 13);
    files.fset_stat(opened.handle, Changes { size: Some(11), ..Changes::default() }).unwrap();
    assert_eq!(files.stat("a/new").unwrap().size, 11);
    files.close(opened.handle).unwrap();
    assert!(matches!(files.close(opened.handle), Err(FileError::BadHandle)));
    assert!(matches!(files.read(opened.handle, 0, &mut buffer), Err(FileError::BadHandle)));
    assert!(matches!(files.open("a/none", READ, 0, NOBODY), Err(FileError::NotFound { .. })));
    assert!(matches!(files.open("a", READ, 0, NOBODY), Err(FileError::IsADirectory { .. })));
    assert!(matches!(files.open("a/new/x", READ, 0, NOBODY), Err(FileError::NotADirectory { .. })));
    let opened = files.open("a/new", READ, 0, NOBODY).unwrap();
    assert!(!opened.created && files.write(opened.handle, 0, b"x").is_err());
    files.close(opened.handle).unwrap();

    // Attributes.
    let time = Time { seconds: 1_234_567_890, nanoseconds: 123_456_789 };
    let changes = Changes { mode: Some(0o4711), owner: OWNER, mtime: Some(time), size: Some(3), atime: None };
    files.set_stat("a/new", true, changes).unwrap();
    let stat = files.lstat("/a/new").unwrap();
    assert_eq!((stat.kind, stat.mode, stat.uid, stat.gid, stat.size), (FileKind::File, 0o4711, 33, 44, 3));
    assert_eq!((stat.mtime, stat.links), (time, 1));
    assert_eq!(meta("a/new").mtime(), 1_234_567_890);

    // Links.
    files.symlink("new", "a/link", OWNER).unwrap();
    assert_eq!(meta("a/link").uid(), shift + 33);
    assert_eq!(files.read_link("a/link").unwrap(), Path::new("new"));
    assert_eq!(files.lstat("a/link").unwrap().kind, FileKind::Symlink);
    assert_eq!(files.stat("a/link").unwrap().kind, FileKind::File);
    files
        .set_stat("a/link", false, Changes { owner: Owner { uid: Some(5), gid: None }, ..Changes::default() })
        .unwrap();
    assert_eq!((meta("a/link").uid(), meta("a/new").uid()), (shift + 5, shift + 33));
    assert!(files.read_link("a/new").is_err());
    files.symlink("/a/b/../made-through", "a/dangling", NOBODY).unwrap();
    files.write_from("a/dangling", &mut &b"through"[..], &WriteOptions::default()).unwrap();
    assert_eq!(fs::read_to_string(ground.path("a/made-through")).unwrap(), "through");

    // Names.
    assert_eq!(files.real_path("a//b/../link").unwrap(), Path::new("/a/new"));
    assert_eq!(files.real_path("/a/b/to-be").unwrap(), Path::new("/a/b/to-be"));
    assert_eq!(files.real_path("../../..").unwrap(), Path::new("/"));
    assert!(matches!(files.real_path("/none/to-be"), Err(FileError::NotFound { .. })));
    assert!(
        matches!(files.rename("a/file", "a/new", false), Err(FileError::Exists { path }) if path == Path::new("a/new"))
    );
    files.rename("a/file", "a/new", true).unwrap();
    files.rename("a/link", "a/b/link", false).unwrap();
    assert_eq!(fs::read_to_string(ground.path("a/new")).unwrap(), "short and more");

    // Listing: sorted, with what the names themselves are.
    let listed: Vec<(String, FileKind)> = files
        .list("/a")
        .unwrap()
        .into_iter()
        .map(|entry| (entry.name.as_path().to_str().unwrap().to_owned(), entry.stat.kind))
        .collect();
    let expected = [
        ("b", FileKind::Directory),
        ("dangling", FileKind::Symlink),
        ("made-through", FileKind::File),
        ("new", FileKind::File),
    ];
    assert_eq!(listed, expected.map(|(name, kind)| (name.to_owned(), kind)));
    assert!(matches!(files.list("a/new"), Err(FileError::NotADirectory { .. })));
    assert!(matches!(files.list("nowhere"), Err(FileError::NotFound { .. })));

    // Removing.
    assert!(matches!(files.remove("a"), Err(FileError::IsADirectory { .. })));
    assert!(matches!(files.rmdir("a"), Err(FileError::NotEmpty { .. })));
    assert!(matches!(files.rmdir("a/new"), Err(FileError::NotADirectory { .. })));
    files.remove("a/new").unwrap();
    files.remove("a/dangling").unwrap();
    assert!(ground.path("a/made-through").exists());
    files.rmdir("a/b/c/d").unwrap();
    assert!(files.remove_tree("/a", |_| true).unwrap());
    assert!(files.look("/a").unwrap().is_none());
    assert!(matches!(files.remove_tree("a", |_| true), Err(FileError::NotFound { .. })));

    let space = files.space("/etc").unwrap();
    assert!(space.total >= space.free && space.block_size > 0 && space.name_max == 255);
}

#[test]
fn running() {
    let ground = Ground::new(BASE);
    let init = Init::new(&ground);
    every_operation(&mut init.session(), &ground, BASE);
    ground.assert_outside_untouched();
}

#[test]
fn stopped() {
    let ground = Ground::new(0);
    every_operation(&mut ground.stopped(), &ground, 0);
    ground.assert_outside_untouched();
}

/// The process that does it is the container's root at most, and invisible to the container.
#[test]
fn the_service_is_confined() {
    let ground = Ground::new(BASE);
    let init = Init::new(&ground);
    let ours = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
    let files = init.session();
    let pid = children("duet-monitor")[0];
    let namespace = |name: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
    let of_init = |name: &str| fs::read_link(format!("/proc/{}/ns/{name}", init.child.id())).unwrap();
    assert_eq!((namespace("user"), namespace("mnt")), (of_init("user"), of_init("mnt")));
    assert_eq!(namespace("pid"), ours("pid"));
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let base = BASE.to_string();
    assert_eq!(field("Uid"), [base.as_str(); 4]);
    assert_eq!(field("Gid"), [base.as_str(); 4]);
    assert!(field("Groups").is_empty());
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID.
    for set in ["CapEff", "CapPrm"] {
        assert_eq!(field(set), ["000000000000001b"], "{set}");
    }
    assert_eq!((field("CapInh"), field("NoNewPrivs")), (vec!["0000000000000000".to_owned()], vec!["1".to_owned()]));
    assert_eq!(fs::read_link(format!("/proc/{pid}/root")).unwrap(), ground.root);
    // Not dumpable: the files in its proc folder belong to nobody that the container is.
    assert_eq!(fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid(), 0);
    drop(files);

    let files = ground.stopped();
    let pid = children("duet-monitor")[0];
    assert_eq!(fs::read_link(format!("/proc/{pid}/root")).unwrap(), Path::new("/"), "of a mount that is nowhere");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("CapEff:\t000000000000001b"));
    drop(files);
    eventually("no service is left", || children("duet-monitor").is_empty());
}

#[test]
fn ids_that_the_container_lacks() {
    let ground = Ground::new(BASE);
    let init = Init::new(&ground);
    let mut files = init.session();
    // The host's own file in the container's root: visible, but beyond the rights of the container's root.
    ground.file("hosts-own", "host", 0);
    fs::set_permissions(ground.path("hosts-own"), fs::Permissions::from_mode(0o600)).unwrap();
    let stat = files.stat("/hosts-own").unwrap();
    assert_eq!((stat.uid, stat.gid), (65534, 65534));
    assert!(matches!(files.read_to("/hosts-own", &mut Vec::new()), Err(FileError::PermissionDenied { .. })));
    let mode = Changes { mode: Some(0o666), ..Changes::default() };
    assert!(matches!(files.set_stat("/hosts-own", true, mode), Err(FileError::PermissionDenied { .. })));
    ground.file("mine", "mine", BASE);
    for uid in [65_536, 100_000, u32::MAX - 1, u32::MAX] {
        let changes = Changes { owner: Owner { uid: Some(uid), gid: None }, ..Changes::default() };
        assert!(matches!(files.set_stat("mine", true, changes), Err(FileError::BadId { .. })), "{uid}");
    }
    let last = Changes { owner: Owner { uid: Some(65_535), gid: Some(65_535) }, ..Changes::default() };
    files.set_stat("mine", true, last).unwrap();
    assert_eq!(fs::metadata(ground.path("mine")).unwrap().uid(), BASE + 65_535);

    // On disk there is no user namespace to say so; the limit does.
    let mut files = ground.stopped();
    ground.file("mine", "mine", 0);
    for uid in [65_536, u32::MAX] {
        let changes = Changes { owner: Owner { uid: None, gid: Some(uid) }, ..Changes::default() };
        assert!(matches!(files.set_stat("mine", true, changes), Err(FileError::BadId { .. })), "{uid}");
    }
    files.set_stat("mine", true, last).unwrap();
}

#[test]
fn names_of_any_bytes() {
    let ground = Ground::new(0);
    let mut files = ground.stopped();
    let mut names: Vec<Vec<u8>> = vec![
        b"plain".to_vec(),
        b"100%".to_vec(),
        b"%2e%2e".to_vec(),
        b"new\nline\ttab".to_vec(),
        b"\xff\xfe".to_vec(),
        b"\"quotes\\\"".to_vec(),
        "gr\u{fc}n \u{1f980}".as_bytes().to_vec(),
        vec![b'%'; 255],
        vec![0x80; 255],
        vec![1; 255],
    ];
    // More of the longest and worst than one answer holds.
    names.extend((0..700_u16).map(|at| [&at.to_be_bytes().map(|byte| byte | 0x80)[..], &[0xfe; 253]].concat()));
    names.sort();
    names.dedup();
    files.mkdir("d", 0o755, NOBODY).unwrap();
    for name in &names {
        let path = Path::new("d").join(OsStr::from_bytes(name));
        files.write_from(&path, &mut &name[..], &WriteOptions::default()).unwrap();
        assert_eq!(fs::read(ground.root.join(&path)).unwrap(), *name);
    }
    let listed: Vec<Vec<u8>> = files.names("d").unwrap().iter().map(|name| name.as_bytes().to_vec()).collect();
    assert_eq!(listed, names);
    files.symlink(OsStr::from_bytes(b"\xff/\xfe%"), "link", NOBODY).unwrap();
    assert_eq!(files.read_link("link").unwrap().as_os_str().as_bytes(), b"\xff/\xfe%");
    let long = PathBuf::from("d").join(OsStr::from_bytes(&[b'x'; 256]));
    assert!(matches!(files.mkdir(&long, 0o755, NOBODY), Err(FileError::NameTooLong { .. })));
    assert!(matches!(files.stat("x/".repeat(3000)), Err(FileError::NameTooLong { .. })));
    assert!(matches!(files.stat("a\0b"), Err(FileError::BadPath { .. })));
    assert!(files.remove_tree("d", |_| true).unwrap());
}

#[test]
fn a_sparse_gibibyte() {
    struct Count(u64, bool);
    impl std::io::Write for Count {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            self.0 += data.len() as u64;
            self.1 |= data.last() == Some(&b'x');
            Ok(data.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    const GIB: u64 = 1 << 30;
    let ground = Ground::new(0);
    let mut files = ground.stopped();
    let opened = files.open("big", CREATE, 0o600, NOBODY).unwrap();
    files.fset_stat(opened.handle, Changes { size: Some(GIB), ..Changes::default() }).unwrap();
    files.write(opened.handle, GIB - 1, b"x").unwrap();
    files.close(opened.handle).unwrap();
    let stat = files.stat("big").unwrap();
    assert_eq!(stat.size, GIB);
    assert!(stat.allocated < 1 << 20);
    let mut count = Count(0, false);
    assert_eq!(files.read_to("big", &mut count).unwrap(), GIB);
    assert_eq!((count.0, count.1), (GIB, true));
}

#[test]
fn handles_are_bounded() {
    let ground = Ground::new(0);
    ground.file("f", "", 0);
    let mut files = ground.stopped();
    let mut opened = Vec::new();
    let refused = loop {
        match files.open("f", READ, 0, NOBODY) {
            Ok(file) => opened.push(file.handle),
            Err(error) => break error,
        }
        assert!(opened.len() < 10_000);
    };
    assert!(matches!(refused, FileError::TooManyHandles), "{refused}");
    files.close(opened[7]).unwrap();
    assert_eq!(files.open_dir("/").unwrap().handle, opened[7]);
    assert!(matches!(files.read(opened[7], 0, &mut [0]), Err(FileError::BadHandle)));
    files.stat("f").unwrap();
}

/// What the caller's own reader and writer do wrong ends the transfer, not the session.
#[test]
fn transfers_survive_the_callers_failures() {
    struct Bad(usize);
    impl Read for Bad {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.0 += 1;
            if self.0 > 20 { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(buffer.len()) }
        }
    }
    impl std::io::Write for Bad {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            self.0 += 1;
            if self.0 > 3 { Err(std::io::ErrorKind::BrokenPipe.into()) } else { Ok(data.len()) }
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let ground = Ground::new(0);
    let mut files = ground.stopped();
    let written = files.write_from("f", &mut Bad(0), &WriteOptions::default());
    assert!(matches!(written, Err(FileError::Transfer(_))), "{written:?}");
    assert_eq!(files.stat("f").unwrap().size, 20 * 256 * 1024);
    let read = files.read_to("f", &mut Bad(0));
    assert!(matches!(read, Err(FileError::Transfer(_))), "{read:?}");
    assert_eq!(files.read_to("f", &mut std::io::sink()).unwrap(), 20 * 256 * 1024);
    // A full disk in the middle of a pipelined transfer.
    nix::mount::mount(Some("small"), &ground.path("tmp"), Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=2M"))
        .unwrap();
    let root = duet_sys::mount::clone_tree(rustix::fs::CWD, &ground.root, true).unwrap();
    let target = Target::Root { root: std::os::fd::AsFd::as_fd(&root), id_limit: None };
    let mut files = FileSession::spawn(fake::service(), &target).unwrap();
    let full = files.write_from("tmp/f", &mut Read::take(std::io::repeat(1), 8 << 20), &WriteOptions::default());
    assert!(matches!(full, Err(FileError::NoSpace { .. })), "{full:?}");
    assert_eq!(files.stat("tmp/f").unwrap().kind, FileKind::File);
    drop((files, root));
    nix::mount::umount2(&ground.path("tmp"), nix::mount::MntFlags::MNT_DETACH).unwrap();
}
