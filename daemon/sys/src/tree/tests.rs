//! Hostile trees, each copied, measured and removed. Needs root (devices, owners, `trusted.*`).

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{
    CWD, FileType, IFlags, Mode, OFlags, XattrFlags, ioctl_getflags, ioctl_setflags, lgetxattr, llistxattr, lsetxattr,
    mkdirat, mknodat, openat,
};
use tempfile::TempDir;

use super::*;

/// All that can be seen of an entry, and which other entries are the same file.
type Seen = (u32, (u32, u32), u64, (i64, i64), BTreeMap<Vec<u8>, Vec<u8>>, Content, Vec<PathBuf>);

#[derive(Debug, PartialEq, Eq)]
enum Content {
    /// Size, blocks, the first and the last 64 KiB.
    Data(u64, u64, Vec<u8>),
    Target(PathBuf),
    Other,
}

fn see(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut names: HashMap<u64, Vec<PathBuf>> = HashMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let full = root.join(&path);
        let meta = fs::symlink_metadata(&full).unwrap();
        if meta.is_dir() {
            pending.extend(fs::read_dir(&full).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        } else {
            names.entry(meta.ino()).or_default().push(path.clone());
        }
        seen.insert(path, meta);
    }
    names.values_mut().for_each(|paths| paths.sort());
    let entry = |(path, meta): (PathBuf, fs::Metadata)| {
        let full = root.join(&path);
        let content = match meta.file_type() {
            t if t.is_file() => Content::Data(meta.len(), meta.blocks(), ends(&full, meta.len())),
            t if t.is_symlink() => Content::Target(fs::read_link(&full).unwrap()),
            _ => Content::Other,
        };
        let same = names.get(&meta.ino()).cloned().unwrap_or_default();
        let times = (meta.mtime(), meta.mtime_nsec());
        (path, (meta.mode(), (meta.uid(), meta.gid()), meta.rdev(), times, xattrs(&full), content, same))
    };
    seen.into_iter().map(entry).collect()
}

fn ends(path: &Path, len: u64) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let file = File::open(path).unwrap();
    let mut data = Vec::new();
    for at in [0, (len / 2) & !0xffff, len.saturating_sub(65536)] {
        let mut part = vec![0; 65536];
        let got = file.read_at(&mut part, at).unwrap();
        data.extend_from_slice(&part[..got]);
    }
    data
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 65536];
    let len = llistxattr(path, &mut list[..]).unwrap();
    let names = list[..len].split(|&b| b == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 65536];
            let len = lgetxattr(path, name, &mut value[..]).unwrap();
            (name.to_vec(), value[..len].to_vec())
        })
        .collect()
}

/// Directories for the copy of `from`, and the copy made.
fn copied(from: &Path) -> (TempDir, Result<Copied, TreeError>) {
    let dir = TempDir::new().unwrap();
    for name in ["copy", "links"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    let open = |path: &Path| File::open(path).unwrap();
    let (to, links) = (open(&dir.path().join("copy")), open(&dir.path().join("links")));
    let result = copy_tree(open(from).as_fd(), to.as_fd(), links.as_fd(), |_| true);
    (dir, result)
}

fn xattr(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn node(path: PathBuf, file_type: FileType, device: u64) {
    mknodat(CWD, path, file_type, Mode::from_raw_mode(0o640), device).unwrap();
}

/// A POSIX ACL as the kernel takes it (linux/posix_acl_xattr.h): version 2, then tag, permissions and id of each entry.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

const NAMED_ACL: [(u16, u16, u32); 5] =
    [(0x01, 7, u32::MAX), (0x02, 5, 1234), (0x04, 5, u32::MAX), (0x10, 7, u32::MAX), (0x20, 1, u32::MAX)];

fn names(dir: &Path) {
    for name in [&b"new\nline"[..], b"\xff\xfe", b"-rf", b" ", b"*", b"...", &[b'n'; 255]] {
        fs::write(dir.join(OsStr::from_bytes(name)), name).unwrap();
        let sub = [&name[..name.len().min(254)], b"d"].concat();
        fs::create_dir(dir.join(std::ffi::OsString::from_vec(sub))).unwrap();
    }
}

fn links(dir: &Path) {
    fs::create_dir_all(dir.join("a/b")).unwrap();
    symlink("/etc/passwd", dir.join("absolute")).unwrap();
    symlink("../../../../../../etc", dir.join("a/up")).unwrap();
    symlink("loop", dir.join("loop")).unwrap();
    symlink("nowhere", dir.join("dangling")).unwrap();
    fs::write(dir.join("file"), "data").unwrap();
    node(dir.join("fifo"), FileType::Fifo, 0);
    for n in 0..100 {
        fs::hard_link(dir.join("file"), dir.join(format!("a/file{n}"))).unwrap();
        fs::hard_link(dir.join("fifo"), dir.join(format!("a/b/fifo{n}"))).unwrap();
        fs::hard_link(dir.join("dangling"), dir.join(format!("a/b/dangling{n}"))).unwrap();
    }
}

fn specials(dir: &Path) {
    node(dir.join("whiteout"), FileType::CharacterDevice, 0);
    node(dir.join("null"), FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    node(dir.join("block"), FileType::BlockDevice, rustix::fs::makedev(7, 200));
    node(dir.join("fifo"), FileType::Fifo, 0);
    node(dir.join("socket"), FileType::Socket, 0);
    xattr(&dir.join("fifo"), "trusted.overlay.origin", b"x");
    symlink("x", dir.join("link")).unwrap();
    xattr(&dir.join("link"), "trusted.test", b"on a link");
}

fn holes(dir: &Path) {
    let sparse = |name: &str, len: u64, data: &[u64]| {
        let mut file = File::create(dir.join(name)).unwrap();
        for at in data {
            file.seek(SeekFrom::Start(*at)).unwrap();
            file.write_all(&[7; 5000]).unwrap();
        }
        file.set_len(len).unwrap();
    };
    sparse("nothing", 1 << 40, &[]);
    sparse("middle", 1 << 40, &[1 << 39]);
    sparse("start", 1 << 30, &[0]);
    sparse("end", (1 << 30) + 5000, &[1 << 30]);
    sparse("comb", 1 << 24, &(0..64).map(|n| n << 18).collect::<Vec<_>>());
    fs::write(dir.join("dense"), vec![1; 3_000_001]).unwrap();
    fs::write(dir.join("empty"), "").unwrap();
}

fn attributes(dir: &Path) {
    for (n, mode) in [0o000, 0o4755, 0o2755, 0o1777, 0o7777, 0o111].into_iter().enumerate() {
        let (file, sub) = (dir.join(format!("f{n}")), dir.join(format!("d{n}")));
        fs::write(&file, "x").unwrap();
        fs::create_dir(&sub).unwrap();
        fs::write(sub.join("inner"), "x").unwrap();
        fs::create_dir(sub.join("deeper")).unwrap();
        for path in [&file, &sub] {
            std::os::unix::fs::chown(path, Some(100_000 + n as u32), Some(7)).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            let before_1970 = SystemTime::UNIX_EPOCH - Duration::new(1000, 123_456_789);
            File::open(path).unwrap().set_modified(before_1970).unwrap();
        }
    }
    fs::write(dir.join("capable"), "x").unwrap();
    // VFS_CAP_REVISION_2, CAP_NET_RAW effective and permitted.
    xattr(
        &dir.join("capable"),
        "security.capability",
        &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    xattr(&dir.join("capable"), "user.large", &[9; 2000]);
    for n in 0..40 {
        xattr(&dir.join("d1"), &format!("trusted.overlay.many{n}"), b"value");
    }
    xattr(&dir.join("d2"), "trusted.overlay.opaque", b"y");
    xattr(&dir.join("d3"), "system.posix_acl_default", &acl(&NAMED_ACL));
    xattr(&dir.join("f1"), "system.posix_acl_access", &acl(&NAMED_ACL));
    // Must not be inherited by what the copy creates in it.
    let root_default = dir.join("d5");
    xattr(&root_default, "system.posix_acl_default", &acl(&NAMED_ACL));
}

fn wide(dir: &Path) {
    for n in 0..3000 {
        fs::write(dir.join(format!("file{n}")), "").unwrap();
        fs::create_dir(dir.join(format!("dir{n}"))).unwrap();
    }
}

#[test]
fn hostile_trees_are_copied_measured_and_removed() {
    type Make = fn(&Path);
    let table: [(&str, Make); 7] = [
        ("nothing at all", |_| {}),
        ("names", names),
        ("links", links),
        ("special files", specials),
        ("holes", holes),
        ("attributes", attributes),
        ("wide", wide),
    ];
    for (name, build) in table {
        let parent = TempDir::new().unwrap();
        let tree = parent.path().join("tree");
        fs::create_dir(&tree).unwrap();
        build(&tree);
        let (copy_dir, copied) = copied(&tree);
        let copied = copied.unwrap_or_else(|e| panic!("{name}: {e}"));
        let copy = copy_dir.path().join("copy");
        let (before, after) = (see(&tree), see(&copy));
        for (path, entry) in &before {
            assert_eq!(after.get(path), Some(entry), "{name}: {path:?}");
        }
        assert_eq!(before.len(), after.len(), "{name}");
        assert_eq!(copied.entries + 1, before.len() as u64, "{name}");
        let sizes = [&tree, &copy].map(|dir| tree_size(File::open(dir).unwrap().as_fd()).unwrap());
        assert_eq!(sizes[0].entries, before.len() as u64, "{name}");
        assert_eq!(sizes[0].entries, sizes[1].entries, "{name}");
        remove_tree(File::open(parent.path()).unwrap().as_fd(), c"tree").unwrap();
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0, "{name}");
    }
}

#[test]
fn preallocated_space_is_not_copied() {
    let tree = TempDir::new().unwrap();
    let file = |name: &str| tree.path().join(name);
    let mut journal = vec![0; 8 << 20];
    journal[..100_000].fill(3);
    journal[(8 << 20) - 1] = 4;
    fs::write(file("journal"), &journal).unwrap();
    // Ends within a block, and no block has anything in it.
    fs::write(file("zeros"), vec![0; 1_000_001]).unwrap();
    let (copy_dir, copied) = copied(tree.path());
    let copied = copied.unwrap();
    let copy = |name: &str| copy_dir.path().join("copy").join(name);
    assert!(fs::read(copy("journal")).unwrap() == journal);
    assert!(fs::read(copy("zeros")).unwrap() == vec![0; 1_000_001]);
    let allocated = |path| fs::metadata(path).unwrap().blocks() * 512;
    // Where the filesystem shares data, nothing is written at all.
    if !copied.reflinked {
        assert!(allocated(copy("journal")) < 512 << 10);
        assert_eq!(allocated(copy("zeros")), 0);
    }
}

/// Deeper than any path, than the open levels, and than the descriptors of a process usually are.
#[test]
fn depth_costs_neither_stack_nor_descriptors() {
    let parent = TempDir::new().unwrap();
    let tree = parent.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let levels = 3000;
    let mut at: std::os::fd::OwnedFd = File::open(&tree).unwrap().into();
    for n in 0..levels {
        mkdirat(&at, "deep", Mode::RWXU).unwrap();
        mkdirat(&at, format!("side{n}"), Mode::RWXU).unwrap();
        openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
        at = openat(&at, "deep", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    drop(at);
    let (copy_dir, copied) = copied(&tree);
    assert_eq!(copied.unwrap().entries, 3 * levels);
    for root in [&tree, &copy_dir.path().join("copy")] {
        assert_eq!(tree_size(File::open(root).unwrap().as_fd()).unwrap().entries, 3 * levels + 1);
        remove_contents(File::open(root).unwrap().as_fd()).unwrap();
        assert_eq!(fs::read_dir(root).unwrap().count(), 0);
    }
}

#[test]
fn removal_never_follows_links_and_takes_flags_off() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path();
    fs::create_dir_all(dir.join("outside")).unwrap();
    fs::write(dir.join("outside/precious"), "x").unwrap();
    fs::create_dir_all(dir.join("tree/append")).unwrap();
    fs::create_dir_all(dir.join("tree/immutable/inner")).unwrap();
    symlink(dir.join("outside"), dir.join("tree/link")).unwrap();
    fs::write(dir.join("tree/append/file"), "x").unwrap();
    let flag = |path: &str, flag| {
        let fd = File::open(dir.join(path)).unwrap();
        ioctl_setflags(&fd, ioctl_getflags(&fd).unwrap() | flag).unwrap();
    };
    flag("tree/append/file", IFlags::IMMUTABLE);
    flag("tree/append", IFlags::APPEND);
    flag("tree/immutable", IFlags::IMMUTABLE);
    flag("tree", IFlags::IMMUTABLE);
    let root = File::open(dir).unwrap();
    remove_tree(root.as_fd(), c"tree").unwrap();
    remove_tree(root.as_fd(), c"tree").unwrap();
    assert_eq!(fs::read_to_string(dir.join("outside/precious")).unwrap(), "x");
    symlink("outside", dir.join("tree")).unwrap();
    remove_tree(root.as_fd(), c"tree").unwrap();
    assert!(!dir.join("tree").is_symlink());
    assert!(dir.join("outside/precious").exists());
}

/// A tree that another thread keeps changing in every way at once.
#[test]
fn a_changing_tree_is_copied_and_measured() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let parent = TempDir::new().unwrap();
    let tree = parent.path().join("tree");
    for n in 0..40 {
        fs::create_dir_all(tree.join(format!("d{n}/sub"))).unwrap();
        fs::write(tree.join(format!("d{n}/file")), vec![1; 20_000]).unwrap();
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0_usize;
            while !stop.load(Ordering::Relaxed) {
                let (one, other) = (tree.join(format!("d{}", n % 40)), tree.join(format!("d{}", (n * 7 + 3) % 40)));
                // Each of these may fail, depending on what went before.
                let _ = fs::rename(one.join("file"), other.join("moved"));
                let _ = fs::rename(one.join("sub"), other.join("sub2"));
                let _ = fs::remove_dir(other.join("sub2"));
                let _ = fs::write(one.join("file"), vec![2; 70_000]);
                let _ = fs::remove_file(other.join("moved"));
                let _ = symlink("x", other.join("moved"));
                let _ = fs::hard_link(one.join("file"), one.join("linked"));
                let _ = fs::remove_file(other.join("linked"));
                let _ = fs::create_dir(one.join("sub"));
                n += 1;
            }
        });
        for round in 0..30 {
            let (_dir, copied) = copied(&tree);
            let copied = copied.map(|copied| copied.entries);
            let size = tree_size(File::open(&tree).unwrap().as_fd());
            if copied.is_err() || size.is_err() || round == 29 {
                stop.store(true, Ordering::Relaxed);
            }
            assert!(copied.unwrap() >= 40);
            assert!(size.unwrap().entries >= 41);
        }
    });
}

#[test]
fn errors_name_the_place() {
    let parent = TempDir::new().unwrap();
    let tree = parent.path().join("tree");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    fs::write(tree.join("a/b/file"), "x").unwrap();
    let dir = TempDir::new().unwrap();
    for name in ["copy", "links"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    fs::create_dir_all(dir.path().join("copy/a")).unwrap();
    let open = |name: &str| File::open(dir.path().join(name)).unwrap();
    let result = copy_tree(File::open(&tree).unwrap().as_fd(), open("copy").as_fd(), open("links").as_fd(), |_| true);
    let text = result.unwrap_err().to_string();
    assert_eq!(text, "\"a/\": cannot create its copy: File exists (os error 17)");
    let name = CString::new("x".repeat(256)).unwrap();
    let error = remove_tree(File::open(&tree).unwrap().as_fd(), &name).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::NAMETOOLONG));
}
