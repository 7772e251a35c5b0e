//! A tree packed and unpacked again is the same tree: owners, modes, times, attributes, devices, links, holes; by our
//! own packing and by GNU tar's and mksquashfs'.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use common::*;
use duet_images::{
    Compress, Compression, ImageFiles, ImageFormat, Observer, PackSource, Packed, TreeOptions, fingerprint, pack,
    pack_archive, pack_split, pack_tree, read_metadata, read_templates, unpack,
};
use proptest::prelude::*;
use rustix::fs::{AtFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid, chownat, makedev, mknodat, utimensat};

/// Everything that an image should keep, at least once.
fn rich_tree(top: &Path) {
    let path = |name: &str| top.join(name);
    fs::create_dir_all(path("etc/deep/er")).unwrap();
    fs::create_dir(path("bin")).unwrap();
    fs::write(path("etc/passwd"), "root:x:0:0::/:\n").unwrap();
    fs::write(path("etc/empty"), "").unwrap();
    fs::write(path("etc/.wh.not-a-whiteout"), "ordinary").unwrap();
    fs::write(path("bin/su"), vec![7u8; 100_000]).unwrap();
    fs::write(path("bin/ping"), "ping").unwrap();
    fs::hard_link(path("bin/ping"), path("bin/ping6")).unwrap();
    fs::hard_link(path("bin/ping"), path("etc/deep/ping")).unwrap();
    symlink("/absolute/../target", path("bin/link")).unwrap();
    symlink("x".repeat(300), path("bin/long-link")).unwrap();
    fs::write(path(&format!("etc/{}", "n".repeat(250))), "long name").unwrap();
    fs::write(path("etc/naïve\nname"), "odd name").unwrap();
    fs::write(top.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"etc/\xff\xfe")), "not UTF-8")
        .unwrap();
    node(&path("null"), FileType::CharacterDevice, 0o666, makedev(1, 3));
    node(&path("big"), FileType::CharacterDevice, 0o600, makedev(300, 100_000));
    node(&path("disk"), FileType::BlockDevice, 0o660, makedev(8, 1));
    node(&path("pipe"), FileType::Fifo, 0o622, 0);
    let sparse = File::create(path("sparse")).unwrap();
    sparse.write_all_at(b"start", 0).unwrap();
    sparse.write_all_at(b"middle", 5 << 20).unwrap();
    sparse.set_len(20 << 20).unwrap();
    File::create(path("hole")).unwrap().set_len(1 << 20).unwrap();
    set_xattr(&path("bin/ping"), "security.capability", CAPABILITY);
    set_xattr(&path("etc/passwd"), "user.note", b"a\nb\0c");
    set_xattr(&path("etc/deep"), "user.note", b"on a folder");
    set_xattr(&path("etc/empty"), "system.posix_acl_access", &acl());
    set_xattr(&path("etc/deep"), "system.posix_acl_default", &acl());
    set_xattr(&path("pipe"), "system.posix_acl_access", &acl());
    owner(&path("bin/link"), 1000, 1000);
    owner(&path("etc/deep"), 65534, 3_000_000);
    owner(&path("pipe"), 5, 6);
    // A change of owner would clear these.
    fs::set_permissions(path("bin/su"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::set_permissions(path("etc/deep/er"), fs::Permissions::from_mode(0o3777)).unwrap();
    fs::set_permissions(path("etc/empty"), fs::Permissions::from_mode(0o000)).unwrap();
    set_xattr(&path("etc/empty"), "system.posix_acl_access", &acl());
    for (name, seconds, nanoseconds) in [
        ("bin/link", -5, 250_000_000),
        ("etc/passwd", 1, 1),
        ("etc/empty", 20_000_000_000, 0),
        ("pipe", 7, 0),
        ("bin", 1_600_000_000, 123),
        ("", 9, 0),
    ] {
        time(&path(name), seconds, nanoseconds);
    }
}

fn node(path: &Path, kind: FileType, mode: u32, device: u64) {
    mknodat(rustix::fs::CWD, path, kind, Mode::from_raw_mode(0o600), device).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn owner(path: &Path, uid: u32, gid: u32) {
    chownat(rustix::fs::CWD, path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)
        .unwrap();
}

fn time(path: &Path, seconds: i64, nanoseconds: i64) {
    let stamp = Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    utimensat(
        rustix::fs::CWD,
        path,
        &Timestamps { last_access: stamp, last_modification: stamp },
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .unwrap();
}

fn pack_to(top: &Path, out: &Path, compress: Compress) -> Packed {
    let fd = File::open(top).unwrap();
    let metadata = metadata();
    let templates = BTreeMap::from([("t.tpl".to_owned(), b"{{ container.name }}".to_vec())]);
    let source = PackSource { rootfs: fd.as_fd(), metadata: &metadata, templates: &templates };
    pack(&source, File::create(out).unwrap(), compress, &mut Observer::none()).unwrap()
}

#[track_caller]
fn assert_same(top: &Path, copy: &Path, whole_seconds: bool) {
    let (before, after) = (tree(top, whole_seconds), tree(copy, whole_seconds));
    for (path, node) in &before {
        assert_eq!(after.get(path), Some(node), "{path:?}");
    }
    assert_eq!(
        before.len(),
        after.len(),
        "{:?}",
        after.keys().filter(|k| !before.contains_key(*k)).collect::<Vec<_>>()
    );
}

fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn our_own_unified_image() {
    let bench = Bench::new();
    let top = bench.path("tree");
    fs::create_dir(&top).unwrap();
    rich_tree(&top);
    // What is not kept.
    set_xattr(&top.join("etc/deep"), "trusted.overlay.opaque", b"y");
    set_xattr(&top.join("etc/deep"), "security.selinux", b"label");
    let socket = std::os::unix::net::UnixListener::bind(top.join("socket")).unwrap();
    time(&top, 9, 0);
    let mut prints = Vec::new();
    for compress in [Compress::None, Compress::Gzip(6), Compress::Xz(1), Compress::Zstd(3)] {
        let image = bench.path("image");
        let packed = pack_to(&top, &image, compress);
        assert_eq!(packed.size, fs::metadata(&image).unwrap().len());
        assert_eq!(packed.fingerprint, fingerprint(&image, None, &mut Observer::none()).unwrap());
        assert_eq!(
            packed.fingerprint,
            pack_to(&top, &bench.path("again"), compress).fingerprint,
            "the same tree, the same file"
        );
        let out = bench.path("out");
        let files = ImageFiles { meta: image.clone(), rootfs: None };
        let unpacked = unpack(&files, &out, &quick(), &mut Observer::none()).unwrap();
        assert_eq!((unpacked.fingerprint.as_str(), unpacked.size), (packed.fingerprint.as_str(), packed.size));
        assert_eq!(unpacked.format, ImageFormat::Tar(compress.format()));
        assert_eq!(unpacked.metadata, metadata());
        assert_eq!(read_metadata(&image, &quick().limits).unwrap(), metadata());
        assert_eq!(read_templates(&out.join("templates"), &quick().limits).unwrap()["t.tpl"], b"{{ container.name }}");
        assert_eq!(fs::metadata(&out).unwrap().mode() & 0o7777, 0o700);

        fs::remove_file(top.join("socket")).ok();
        time(&top, 9, 0);
        let deep = top.join("etc/deep");
        for name in ["trusted.overlay.opaque", "security.selinux"] {
            let _ = rustix::fs::removexattr(&deep, name);
        }
        assert_same(&top, &out.join("rootfs"), false);
        assert!(allocated(&out.join("rootfs/sparse")) <= 64 << 10, "{}", allocated(&out.join("rootfs/sparse")));
        assert_eq!(allocated(&out.join("rootfs/hole")), 0);
        fs::remove_dir_all(&out).unwrap();
        prints.push(packed);
    }
    drop(socket);
    assert!(prints[0].size < 2 << 20, "holes are not packed: {}", prints[0].size);
}

#[test]
fn our_own_archive() {
    let (top, bench) = (tempfile::tempdir().unwrap(), Bench::new());
    rich_tree(top.path());
    let options = TreeOptions { prefix: "rootfs", in_use: false, left_empty: &[] };
    let mut archive = Vec::new();
    let fd = File::open(top.path()).unwrap();
    let tree = pack_tree(fd.as_fd(), &options, &mut archive, &mut Observer::none()).unwrap();
    let mut image = Vec::new();
    let (templates, compress) = (BTreeMap::new(), Compress::default());
    let packed = pack_archive(&metadata(), &templates, &*archive, &mut image, compress, &mut Observer::none()).unwrap();
    assert_eq!((packed.entries, packed.size), (tree.entries, image.len() as u64));
    bench.unpack(&image, &quick()).unwrap();
    assert_same(top.path(), &bench.path("out/rootfs"), false);
    assert!(allocated(&bench.path("out/rootfs/sparse")) < 1 << 20);
}

#[test]
fn our_own_split_image() {
    let bench = Bench::new();
    let top = bench.path("tree");
    fs::create_dir(&top).unwrap();
    rich_tree(&top);
    let fd = File::open(&top).unwrap();
    let metadata = metadata();
    let source = PackSource { rootfs: fd.as_fd(), metadata: &metadata, templates: &BTreeMap::new() };
    let (meta, rootfs) = (bench.path("meta"), bench.path("rootfs"));
    let outs = (File::create(&meta).unwrap(), File::create(&rootfs).unwrap());
    let packed = pack_split(&source, outs.0, outs.1, Compress::Zstd(1), &mut Observer::none()).unwrap();
    assert_eq!(packed.fingerprint, fingerprint(&meta, Some(&rootfs), &mut Observer::none()).unwrap());
    // As anybody would compute it.
    let sum =
        Command::new("sh").arg("-c").arg("cat meta rootfs | sha256sum").current_dir(bench.dir.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&sum.stdout).split_whitespace().next().unwrap(), packed.fingerprint);
    let files = ImageFiles { meta, rootfs: Some(rootfs) };
    let options = duet_images::UnpackOptions { fingerprint: Some(packed.fingerprint), ..quick() };
    let unpacked = unpack(&files, &bench.path("out"), &options, &mut Observer::none()).unwrap();
    assert_eq!(unpacked.rootfs_format, Some(ImageFormat::Tar(Compression::Zstd)));
    assert_same(&top, &bench.path("out/rootfs"), false);
}

/// GNU tar reads what we write: names, links, attributes and holes.
#[test]
fn gnu_tar_reads_ours() {
    let bench = Bench::new();
    let top = bench.path("tree");
    fs::create_dir(&top).unwrap();
    rich_tree(&top);
    let image = bench.path("image");
    pack_to(&top, &image, Compress::None);
    let out = bench.path("out");
    fs::create_dir(&out).unwrap();
    let done = Command::new("tar")
        .args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf"])
        .arg(&image)
        .arg("-C")
        .arg(&out)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_same(&top, &out.join("rootfs"), false);
    assert!(allocated(&out.join("rootfs/sparse")) <= 64 << 10);
}

/// And we read what GNU tar writes, in each of its formats.
#[test]
fn we_read_gnu_tars() {
    let bench = Bench::new();
    let top = bench.path("rootfs");
    fs::create_dir(&top).unwrap();
    rich_tree(&top);
    bench.put("metadata.yaml", METADATA.as_bytes());
    for (arguments, whole) in [
        (&["--format=pax", "--sparse", "--sparse-version=1.0", "--xattrs", "--xattrs-include=*"][..], false),
        (&["--format=pax", "--sparse", "--sparse-version=0.1", "--xattrs", "--xattrs-include=*"], false),
        (&["--format=pax", "--sparse", "--sparse-version=0.0", "--xattrs", "--xattrs-include=*"], false),
        (&["--format=pax", "--xattrs", "--xattrs-include=*", "--acls"], false),
        (&["--format=gnu", "--sparse"], true),
    ] {
        let image = bench.path("image.tar");
        let done = Command::new("tar")
            .args(["--numeric-owner", "-cf"])
            .arg(&image)
            .args(arguments)
            .arg("-C")
            .arg(bench.dir.path())
            .args(["metadata.yaml", "rootfs"])
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let out = bench.path("out");
        let files = ImageFiles { meta: image, rootfs: None };
        unpack(&files, &out, &quick(), &mut Observer::none()).unwrap_or_else(|e| panic!("{arguments:?}: {e}"));
        let (mut before, mut after) = (tree(&top, whole), tree(&out.join("rootfs"), whole));
        if whole {
            // The GNU format holds no attributes, and no times before 1970.
            for node in before.values_mut().chain(after.values_mut()) {
                node.xattrs.clear();
                node.mtime.0 = node.mtime.0.max(0);
            }
        }
        for (path, node) in &before {
            assert_eq!(after.get(path), Some(node), "{arguments:?}: {path:?}");
        }
        assert_eq!(before.len(), after.len());
        assert!(allocated(&out.join("rootfs/sparse")) <= 64 << 10, "{arguments:?}");
        fs::remove_dir_all(&out).unwrap();
    }
}

/// An ACL that names users, as GNU tar writes it, is resolved by the image's own files.
#[test]
fn acls_by_name() {
    let text = "user::rwx\nuser:joe:r-x\ngroup::r-x\nmask::r-x\nother::---\n";
    let unknown = text.replace("joe", "nobody-knows");
    let bench = Bench::new();
    let bytes = image(&[
        file("rootfs/a", "").pax("SCHILY.acl.access", text),
        dir("rootfs/d").pax("SCHILY.acl.default", text),
        file("rootfs/b", "").pax("SCHILY.acl.access", &unknown),
        dir("rootfs/etc"),
        file("rootfs/etc/passwd", "root:x:0:0\njoe:x:1000:1000\n"),
    ]);
    let unpacked = bench.unpack(&bytes, &quick()).unwrap();
    assert_eq!(unpacked.rootfs.dropped_xattrs, 1);
    assert_eq!(xattrs(&bench.path("out/rootfs/a"))["system.posix_acl_access"], acl());
    assert_eq!(xattrs(&bench.path("out/rootfs/d"))["system.posix_acl_default"], acl());
    assert!(xattrs(&bench.path("out/rootfs/b")).is_empty());
}

#[test]
fn what_is_kept_and_what_is_not() {
    let bench = Bench::new();
    let bytes = image(&[
        dir("rootfs/d").pax("SCHILY.xattr.trusted.overlay.opaque", "y").pax("SCHILY.xattr.user.a", "1"),
        file("rootfs/d/f", "x")
            .pax("SCHILY.xattr.security.selinux", "label")
            .pax("LIBARCHIVE.xattr.user.b%20c", "aGVsbG8="),
        common::symlink("rootfs/l", "d").pax("SCHILY.xattr.user.a", "1"),
        file("rootfs/.wh.x", "ordinary"),
        file("rootfs/not/named/before", "x"),
        // A folder may be described after what is in it.
        Entry { mode: 0o2750, ..dir("rootfs/not/named") },
    ]);
    let unpacked = bench.unpack(&bytes, &quick()).unwrap();
    let out = bench.path("out/rootfs");
    assert_eq!(unpacked.rootfs.dropped_xattrs, 3);
    assert_eq!(xattrs(&out.join("d")).keys().collect::<Vec<_>>(), ["user.a"]);
    assert_eq!(xattrs(&out.join("d/f"))["user.b c"], b"hello");
    assert_eq!(fs::read_to_string(out.join(".wh.x")).unwrap(), "ordinary");
    assert_eq!(fs::metadata(out.join("not/named")).unwrap().mode() & 0o7777, 0o2750);
    assert_eq!(fs::metadata(out.join("not")).unwrap().mode() & 0o7777, 0o755);
}

/// A default ACL on a folder must not leak into files that have none.
#[test]
fn default_acls_are_not_inherited() {
    let bench = Bench::new();
    let bytes = image(&[
        dir("rootfs/d").pax("SCHILY.xattr.system.posix_acl_default", acl()),
        file("rootfs/d/f", "x"),
        dir("rootfs/d/e"),
    ]);
    bench.unpack(&bytes, &quick()).unwrap();
    assert!(xattrs(&bench.path("out/rootfs/d/f")).is_empty());
    assert!(xattrs(&bench.path("out/rootfs/d/e")).is_empty());
    assert_eq!(fs::metadata(bench.path("out/rootfs/d/f")).unwrap().mode() & 0o7777, 0o644);
}

#[test]
fn squashfs_of_each_compression() {
    let bench = Bench::new();
    let top = bench.path("tree");
    fs::create_dir(&top).unwrap();
    rich_tree(&top);
    // More than one block with an end in a fragment, a block of zeros, and a folder of several metadata blocks.
    let mut blocks = (0..3_000_001u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect::<Vec<_>>();
    blocks[1 << 20..2 << 20].fill(0);
    fs::write(top.join("blocks"), blocks).unwrap();
    fs::create_dir(top.join("many")).unwrap();
    for n in 0..1200 {
        fs::write(top.join(format!("many/a-file-with-a-longer-name-{n}")), n.to_string()).unwrap();
    }
    fs::write(top.join("many-attributes"), "").unwrap();
    for n in 0..40 {
        set_xattr(&top.join("many-attributes"), &format!("user.{n}"), &[n; 80]);
    }
    // The format has no ACLs, and times are unsigned seconds of 32 bits.
    let mut before = tree(&top, true);
    for node in before.values_mut() {
        node.xattrs.retain(|name, _| !name.starts_with("system."));
        if !(0..=i64::from(u32::MAX)).contains(&node.mtime.0) {
            node.mtime.0 = 0;
        }
    }
    let meta = tarball(&[file("metadata.yaml", METADATA)]);
    for (compression, block) in [("gzip", "131072"), ("xz", "1048576"), ("zstd", "4096")] {
        let image = bench.path("root.squashfs");
        let _ = fs::remove_file(&image);
        let done = Command::new("mksquashfs")
            .arg(&top)
            .arg(&image)
            .args(["-comp", compression, "-b", block, "-noappend", "-no-progress", "-quiet", "-xattrs"])
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let meta_path = bench.put("meta", &compress(&meta, Compression::Gzip));
        let print = fingerprint(&meta_path, Some(&image), &mut Observer::none()).unwrap();
        let options = duet_images::UnpackOptions { fingerprint: Some(print), ..quick() };
        let out = bench.path("out");
        let files = ImageFiles { meta: meta_path, rootfs: Some(image.clone()) };
        let unpacked =
            unpack(&files, &out, &options, &mut Observer::none()).unwrap_or_else(|e| panic!("{compression}: {e}"));
        assert_eq!(unpacked.rootfs_format, Some(ImageFormat::Squashfs));
        let mut after = tree(&out.join("rootfs"), true);
        for path in ["bin/link", "etc/empty"] {
            after.get_mut(Path::new(path)).unwrap().mtime.0 = 0;
        }
        for (path, node) in &before {
            let mut node = node.clone();
            if ["bin/link", "etc/empty"].iter().any(|p| path == Path::new(p)) {
                node.mtime.0 = 0;
            }
            // With an ACL the mode's group bits are its mask; they stay in the mode.
            assert_eq!(after.get(path), Some(&node), "{compression}: {path:?}");
        }
        assert_eq!(before.len(), after.len());
        assert!(allocated(&out.join("rootfs/sparse")) <= 64 << 10);
        fs::remove_dir_all(&out).unwrap();

        // Cut anywhere, or with a byte changed, it is refused or unpacked, and nothing is left of a refusal.
        let whole = fs::read(&image).unwrap();
        for part in 1..12 {
            let mut bytes = whole.clone();
            if part % 2 == 0 {
                bytes.truncate(whole.len() * part / 12);
            } else {
                let at = whole.len() - whole.len() * part / 200 - 1;
                bytes[at] ^= 0x55;
            }
            let outcome = unpack(
                &ImageFiles { meta: bench.path("meta"), rootfs: Some(bench.put("damaged", &bytes)) },
                &out,
                &quick(),
                &mut Observer::none(),
            );
            match outcome {
                Ok(_) => fs::remove_dir_all(&out).unwrap(),
                Err(_) => assert!(!out.exists(), "{compression}: left over after {outcome:?}"),
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Made {
    File { size: usize, hole: bool },
    Dir,
    Link(String),
    HardLink(prop::sample::Index),
    Char(u32, u32),
    Pipe,
}

#[derive(Debug, Clone)]
struct Thing {
    made: Made,
    parent: prop::sample::Index,
    name: String,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    xattr: Option<Vec<u8>>,
}

fn thing() -> impl Strategy<Value = Thing> {
    let made = prop_oneof![
        4 => (0usize..9000, any::<bool>()).prop_map(|(size, hole)| Made::File { size, hole }),
        3 => Just(Made::Dir),
        1 => "[a-z./]{1,200}".prop_map(Made::Link),
        2 => any::<prop::sample::Index>().prop_map(Made::HardLink),
        1 => (1u32..4096, 0u32..1 << 20).prop_map(|(a, b)| Made::Char(a, b)),
        1 => Just(Made::Pipe),
    ];
    (
        made,
        any::<prop::sample::Index>(),
        "[a-zA-Zäß .\n]{1,60}",
        0u32..0o10000,
        (0u32..u32::MAX, 0u32..u32::MAX),
        (-1_000_000i64..10_000_000_000, 0i64..1_000_000_000),
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300)),
    )
        .prop_map(|(made, parent, name, mode, owner, mtime, xattr)| Thing {
            made,
            parent,
            name,
            mode,
            owner,
            mtime,
            xattr,
        })
}

fn make(top: &Path, things: &[Thing]) {
    let mut folders = vec![top.to_owned()];
    let mut files = Vec::new();
    let mut all: Vec<(std::path::PathBuf, &Thing)> = Vec::new();
    for thing in things {
        let path = thing.parent.get(&folders).join(&thing.name);
        if fs::symlink_metadata(&path).is_ok() || thing.name.trim_matches('.').is_empty() {
            continue;
        }
        match &thing.made {
            Made::File { size, hole } => {
                let file = File::create(&path).unwrap();
                file.write_all_at(&vec![b'x'; *size], 0).unwrap();
                if *hole {
                    file.write_all_at(b"end", 300_000).unwrap();
                }
                files.push(path.clone());
            }
            Made::Dir => {
                fs::create_dir(&path).unwrap();
                folders.push(path.clone());
            }
            Made::Link(target) => symlink(target, &path).unwrap(),
            Made::HardLink(to) if !files.is_empty() => {
                fs::hard_link(to.get(&files), &path).unwrap();
                continue;
            }
            Made::HardLink(_) => continue,
            Made::Char(major, minor) => node(&path, FileType::CharacterDevice, 0o600, makedev(*major, *minor)),
            Made::Pipe => node(&path, FileType::Fifo, 0o600, 0),
        }
        all.push((path, thing));
    }
    for (path, thing) in all.iter().rev() {
        owner(path, thing.owner.0, thing.owner.1);
        if !matches!(thing.made, Made::Link(_)) {
            fs::set_permissions(path, fs::Permissions::from_mode(thing.mode)).unwrap();
        }
        if let (Some(value), Made::File { .. } | Made::Dir) = (&thing.xattr, &thing.made) {
            set_xattr(path, "user.any", value);
        }
        time(path, thing.mtime.0, thing.mtime.1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn any_tree(things in proptest::collection::vec(thing(), 0..40), compress in prop_oneof![Just(Compress::None), Just(Compress::Zstd(1)), Just(Compress::Gzip(1))]) {
        let bench = Bench::new();
        let top = bench.path("tree");
        fs::create_dir(&top).unwrap();
        make(&top, &things);
        let image = bench.path("image");
        let packed = pack_to(&top, &image, compress);
        let options = duet_images::UnpackOptions { fingerprint: Some(packed.fingerprint.clone()), ..quick() };
        let unpacked = unpack(&ImageFiles { meta: image, rootfs: None }, &bench.path("out"), &options, &mut Observer::none()).unwrap();
        prop_assert_eq!(unpacked.rootfs.entries, packed.entries);
        assert_same(&top, &bench.path("out/rootfs"), false);
    }
}
