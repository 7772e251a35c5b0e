//! Archives that mean harm, as a table: each is refused with a sentence, leaves nothing behind, and touches nothing
//! outside of its target.

mod common;

use common::*;
use duet_images::{Compression, ImageError, Limits, UnpackOptions};
use proptest::prelude::*;

struct Case {
    name: &'static str,
    image: Vec<u8>,
    /// What the sentence must hold.
    says: &'static str,
    options: UnpackOptions,
}

fn case(name: &'static str, entries: &[Entry], says: &'static str) -> Case {
    Case { name, image: image(entries), says, options: quick() }
}

fn raw(name: &'static str, image: Vec<u8>, says: &'static str) -> Case {
    Case { name, image, says, options: quick() }
}

fn limited(name: &'static str, entries: &[Entry], says: &'static str, limit: impl FnOnce(&mut Limits)) -> Case {
    let mut case = case(name, entries, says);
    limit(&mut case.options.limits);
    case
}

fn check(cases: Vec<Case>) {
    for case in cases {
        let bench = Bench::new();
        match bench.unpack(&case.image, &case.options) {
            Ok(_) => panic!("{}: was accepted", case.name),
            Err(e) => {
                let text = e.to_string();
                assert!(text.contains(case.says), "{}: says {text:?}, should hold {:?}", case.name, case.says);
                assert!(e.is_bad_image(), "{}: {e:?} should be the image's fault", case.name);
                assert!(!text.contains('\n') && text.len() < 800, "{}: {text:?} is no sentence", case.name);
            }
        }
        bench.assert_clean(case.name);
    }
}

#[test]
fn names_that_leave_the_root() {
    let outside = "../outside/victim";
    check(vec![
        case("dot dot", &[file("rootfs/../../outside/x", "x")], "climbs with \"..\""),
        case("dot dot at the start", &[file(outside, "x")], "climbs with \"..\""),
        case("absolute", &[file("/tmp/duet-should-not-exist", "x")], "absolute"),
        case("absolute in a pax name", &[file("x", "x").pax("path", "/tmp/x")], "absolute"),
        case("dot dot in a pax name", &[file("x", "x").pax("path", "rootfs/../../x")], "climbs"),
        case(
            "dot dot in a long name",
            &[Entry { data: b"rootfs/../../x\0".to_vec(), ..entry(b'L', "././@LongLink") }, file("x", "")],
            "climbs",
        ),
        case("NUL in a name", &[file("x", "x").pax("path", "rootfs/a\0b")], "NUL"),
        case("another top", &[file("elsewhere/x", "x")], "and nothing else"),
        case("a file beside", &[file("rootfs.txt", "x")], "and nothing else"),
        case("a disk", &[file("rootfs.img", "x")], "virtual machine"),
        case("long part", &[file("x", "x").pax("path", format!("rootfs/{}", "n".repeat(300)))], "longer than 255"),
        case(
            "long path",
            &[file("x", "x").pax("path", format!("rootfs/{}", "abcdefgh/".repeat(600)))],
            "longer than 4096",
        ),
        case("deep path", &[file("x", "x").pax("path", format!("rootfs/{}x", "d/".repeat(400)))], "directories deep"),
        case("empty name", &[file("x", "x").pax("path", "")], "no name"),
    ]);
    assert!(!std::path::Path::new("/tmp/duet-should-not-exist").exists());
}

#[test]
fn links_that_leave_the_root() {
    check(vec![
        case("through a link", &[symlink("rootfs/l", "../../outside"), file("rootfs/l/x", "x")], "symbolic link"),
        case("through an absolute link", &[symlink("rootfs/l", "/tmp"), file("rootfs/l/x", "x")], "symbolic link"),
        case(
            "through a link inside",
            &[dir("rootfs/d"), symlink("rootfs/l", "d"), file("rootfs/l/x", "x")],
            "symbolic link",
        ),
        case("deep through a link", &[symlink("rootfs/l", "/"), file("rootfs/l/a/b/c/x", "x")], "symbolic link"),
        case("a folder through a link", &[symlink("rootfs/l", "/tmp"), dir("rootfs/l/duet-x")], "symbolic link"),
        case("over a link", &[symlink("rootfs/l", "../../outside/victim"), file("rootfs/l", "x")], "same name"),
        case(
            "a folder over a link",
            &[symlink("rootfs/l", "../../outside"), dir("rootfs/l"), file("rootfs/l/x", "x")],
            "same name",
        ),
        case("a link for the root", &[], "same name").with(&[symlink("rootfs", "/tmp")]),
        case("hard link outside", &[hard_link("rootfs/h", "../outside/victim")], "outside of the tree"),
        case("hard link absolute", &[hard_link("rootfs/h", "/etc/passwd")], "outside of the tree"),
        case("hard link to metadata", &[hard_link("rootfs/h", "metadata.yaml")], "outside of the tree"),
        case(
            "hard link through a link",
            &[symlink("rootfs/l", "../../outside"), hard_link("rootfs/h", "rootfs/l/victim")],
            "symbolic link",
        ),
        case("hard link to nothing", &[hard_link("rootfs/h", "rootfs/none")], "no earlier entry"),
        case("hard link to a folder", &[dir("rootfs/d"), hard_link("rootfs/h", "rootfs/d")], "directory"),
        case("hard link to the root", &[hard_link("rootfs/h", "rootfs")], "directory"),
        case(
            "hard link in a folder that is none",
            &[file("rootfs/f", ""), hard_link("rootfs/h", "rootfs/f/x")],
            "not a directory",
        ),
        case("empty link", &[symlink("rootfs/l", "")], "impossible target"),
        case("endless link", &[symlink("rootfs/l", "").pax("linkpath", "x".repeat(5000))], "impossible target"),
    ]);
}

impl Case {
    /// The same with entries before the usual head.
    fn with(mut self, before: &[Entry]) -> Case {
        self.image = tarball(&[before, &[file("metadata.yaml", METADATA), dir("rootfs/")]].concat());
        self.says = "can only be a directory";
        self
    }
}

#[test]
fn entries_that_collide() {
    check(vec![
        case("file twice", &[file("rootfs/a", "1"), file("rootfs/a", "2")], "same name"),
        case("file twice by another spelling", &[file("rootfs/a", "1"), file("./rootfs//./a", "2")], "same name"),
        case("folder twice", &[dir("rootfs/a"), dir("rootfs/a/")], "same name"),
        case("file over folder", &[dir("rootfs/a"), file("rootfs/a", "x")], "same name"),
        case("folder over file", &[file("rootfs/a", "x"), dir("rootfs/a")], "same name"),
        case("file in a file", &[file("rootfs/a", "x"), file("rootfs/a/b", "x")], "not a directory"),
        case("device over file", &[file("rootfs/a", "x"), char_device("rootfs/a", 1, 3)], "same name"),
        case("link over file", &[file("rootfs/a", "x"), symlink("rootfs/a", "b")], "same name"),
        case(
            "hard link over file",
            &[file("rootfs/a", ""), file("rootfs/b", ""), hard_link("rootfs/a", "rootfs/b")],
            "same name",
        ),
        case("metadata twice", &[file("metadata.yaml", METADATA)], "same name"),
        case("template twice", &[file("templates/a", ""), file("templates/a", "")], "same name"),
        case("whiteout", &[char_device("rootfs/a", 0, 0)], "whiteout"),
        case("root as a file", &[], "").with(&[file("rootfs", "x")]),
        case("root as a device", &[], "").with(&[char_device("rootfs", 1, 3)]),
    ]);
}

#[test]
fn what_is_not_root() {
    check(vec![
        raw("no metadata", tarball(&[dir("rootfs/")]), "metadata.yaml is missing"),
        raw("no root", tarball(&[file("metadata.yaml", METADATA)]), "no rootfs folder"),
        raw("nothing", tarball(&[]), "metadata.yaml is missing"),
        raw(
            "metadata as a link",
            tarball(&[symlink("metadata.yaml", "/etc/passwd"), dir("rootfs")]),
            "should be a regular file",
        ),
        raw("metadata as a folder", tarball(&[dir("metadata.yaml"), dir("rootfs")]), "should be a regular file"),
        raw("metadata that is none", tarball(&[file("metadata.yaml", "a: [b"), dir("rootfs")]), "cannot be understood"),
        raw(
            "metadata that is too long",
            tarball(&[file("metadata.yaml", "# ".repeat(1 << 20)), dir("rootfs")]),
            "more than the limit",
        ),
        case("template as a link", &[symlink("templates/x", "/etc/shadow")], "regular file"),
        case("template as a hard link", &[hard_link("templates/x", "/etc/shadow")], "regular file"),
        case("template in a folder", &[file("templates/a/b", "x")], "right under templates"),
        limited(
            "templates without end",
            &[file("templates/a", "x".repeat(600)), file("templates/b", "x".repeat(600))],
            "size of its templates",
            |l| l.max_templates = 1000,
        ),
    ]);
}

#[test]
fn bombs() {
    let zeros = vec![0u8; 4 << 20];
    let many: Vec<Entry> = (0..200).map(|n| file(format!("rootfs/{n}"), "")).collect();
    let folders: Vec<Entry> = (0..150).map(|n| file(format!("rootfs/{n}/x"), "")).collect();
    let tops: Vec<Entry> = (0..200).map(|_| dir("./")).collect();
    let pax = file("rootfs/a", "").pax("SCHILY.xattr.user.a", vec![b'x'; 2 << 20]);
    let mut cases = vec![
        limited("too many bytes", &[file("rootfs/a", &zeros)], "size of its files", |l| l.max_bytes = 1 << 20),
        limited("too many entries", &many, "number of its entries", |l| l.max_entries = 100),
        limited("too many folders that are not named", &folders, "number of its entries", |l| l.max_entries = 200),
        limited("too many tops", &tops, "number of its entries", |l| l.max_entries = 100),
        limited(
            "too large a file",
            &[file("rootfs/a", "x").pax("GNU.sparse.size", "99999999999999").pax("GNU.sparse.map", "0,1")],
            "size of \"a\"",
            |_| {},
        ),
        case(
            "a header without end",
            &[Entry { flag: b'x', ..file("x", "").size(1 << 40) }],
            "size of an extended header",
        ),
        case("a long name without end", &[Entry { flag: b'L', ..file("x", "").size(1 << 40) }], "size of a long name"),
        case("an attribute that is too long", &[pax], "more than the limit"),
        case(
            "a sparse map that is too long",
            &[file("rootfs/a", "99999999999\n").pax("GNU.sparse.major", "1").pax("GNU.sparse.minor", "0")],
            "a sparse file's map",
        ),
    ];
    for compression in [Compression::Gzip, Compression::Xz, Compression::Zstd] {
        let mut bomb = limited("too dense", &[], "compression ratio", |l| {
            l.ratio_free_bytes = 1 << 20;
            l.max_ratio = 20;
        });
        bomb.image = compress(&image(&[file("rootfs/a", vec![0u8; 64 << 20])]), compression);
        cases.push(bomb);
    }
    check(cases);
}

#[test]
fn damage() {
    let good = image(&[file("rootfs/a", "hello")]);
    let mut checksum = good.clone();
    checksum[512 * 2 + 1] ^= 1;
    let mut garbage = good.clone();
    garbage.extend_from_slice(b"something more");
    let mut no_end = good.clone();
    no_end.truncate(good.len() - 1024);
    let mut orphan = image(&[]);
    orphan.truncate(orphan.len() - 1024);
    file("x", "").pax("path", "y").write(&mut orphan);
    orphan.truncate(orphan.len() - 512);
    orphan.resize(orphan.len() + 1024, 0);
    check(vec![
        raw("a wrong checksum", checksum, "checksum"),
        raw("something after the end", garbage, "follows the end"),
        raw("no end", no_end, "truncated"),
        raw("a header for nobody", orphan, "belongs to no entry"),
        raw(
            "a compressed web page",
            compress(b"<html>not found</html>".repeat(99).as_slice(), Compression::Gzip),
            "web page",
        ),
        raw("a compressed disk", compress(&[b"QFI\xfb".as_slice(), &[1; 4096]].concat(), Compression::Zstd), "qcow2"),
        raw("a disk", [b"QFI\xfb".as_slice(), &[1; 4096]].concat(), "qcow2"),
        raw("nothing at all", Vec::new(), "is empty"),
        case("an unknown type", &[entry(b'Z', "rootfs/x")], "unknown type"),
        case("a volume label", &[entry(b'V', "label")], "unknown type"),
        case("size that is too large", &[file("rootfs/a", "").pax("size", "18446744073709551615")], "impossible size"),
        case("size that is no number", &[file("rootfs/a", "").pax("size", "-1")], "not a number"),
        case("owner that is too large", &[file("rootfs/a", "").pax("uid", "4294967295")], "impossible uid"),
        case("time that is none", &[file("rootfs/a", "").pax("mtime", "yesterday")], "no clear time"),
        case(
            "map that overlaps",
            &[file("rootfs/a", "abcd").pax("GNU.sparse.size", "9").pax("GNU.sparse.map", "0,2,1,2")],
            "overlaps",
        ),
        case(
            "map past the end",
            &[file("rootfs/a", "abcd").pax("GNU.sparse.size", "3").pax("GNU.sparse.map", "0,4")],
            "past the file's end",
        ),
        case(
            "map of other data",
            &[file("rootfs/a", "abcd").pax("GNU.sparse.size", "9").pax("GNU.sparse.map", "0,3")],
            "does not match",
        ),
        case("ACL that is none", &[file("rootfs/a", "").pax("SCHILY.acl.access", "user::wat")], "ACL"),
    ]);
}

#[test]
fn truncation_is_always_noticed() {
    let entries =
        [dir("rootfs/d"), file("rootfs/d/a", "x".repeat(3000)), file("rootfs/d/b", ""), symlink("rootfs/l", "d")];
    for compression in [Compression::None, Compression::Gzip, Compression::Xz, Compression::Zstd] {
        let whole = compress(&image(&entries), compression);
        // The last block of a plain archive's end mark is padding that a reader may do without.
        let needed = if compression == Compression::None { whole.len() - 512 } else { whole.len() };
        let step = (needed / 60).max(1);
        for length in (0..needed).step_by(step).chain([needed - 1]) {
            let bench = Bench::new();
            let error = bench.unpack(&whole[..length], &quick()).expect_err("a cut archive is refused");
            assert!(error.is_bad_image(), "{compression:?} at {length}: {error:?}");
            bench.assert_clean("truncation");
        }
    }
}

#[test]
fn the_wrong_fingerprint() {
    let bench = Bench::new();
    let options = UnpackOptions { fingerprint: Some("0".repeat(64)), ..quick() };
    let error = bench.unpack(&image(&[file("rootfs/a", "x")]), &options).unwrap_err();
    assert!(
        matches!(&error, ImageError::FingerprintMismatch { expected, .. } if *expected == "0".repeat(64)),
        "{error}"
    );
    bench.assert_clean("fingerprint");
}

#[test]
fn split_parts_keep_to_their_side() {
    let meta = |more: &[Entry]| tarball(&[&[file("metadata.yaml", METADATA)], more].concat());
    let root = tarball(&[dir("./"), file("./a", "x")]);
    let table = [
        (meta(&[dir("rootfs"), file("rootfs/a", "")]), root.clone(), "holds only metadata.yaml and templates"),
        (meta(&[]), tarball(&[file("../outside/x", "x")]), "climbs"),
        (meta(&[]), tarball(&[hard_link("h", "/etc/passwd")]), "outside of the tree"),
        (tarball(&[dir("templates")]), root.clone(), "metadata.yaml is missing"),
        (root.clone(), meta(&[]), "holds only metadata.yaml and templates"),
        (meta(&[]), b"QFI\xfb etc.".to_vec(), "qcow2"),
        (b"hsqs".to_vec(), root.clone(), "metadata tarball first"),
    ];
    for (meta, rootfs, says) in table {
        let bench = Bench::new();
        let error = bench.unpack_split(&meta, &rootfs, &quick()).unwrap_err().to_string();
        assert!(error.contains(says), "{error:?} should hold {says:?}");
        bench.assert_clean(says);
    }
}

#[test]
fn a_target_that_is_used_is_left_alone() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("out")).unwrap();
    std::fs::write(bench.path("out/mine"), "x").unwrap();
    let error = bench.unpack(&image(&[]), &quick()).unwrap_err().to_string();
    assert!(error.contains("not empty"), "{error}");
    assert_eq!(std::fs::read_to_string(bench.path("out/mine")).unwrap(), "x");
    // An empty one is used, and is empty again when it fails.
    std::fs::remove_file(bench.path("out/mine")).unwrap();
    bench.unpack(&image(&[file("rootfs/a", ""), file("rootfs/a", "")]), &quick()).unwrap_err();
    assert_eq!(std::fs::read_dir(bench.path("out")).unwrap().count(), 0);
}

#[test]
fn cancelling_leaves_nothing() {
    let bench = Bench::new();
    let meta = bench.put("image", &image(&(0..2000).map(|n| file(format!("rootfs/{n}"), "x")).collect::<Vec<_>>()));
    let calls = std::cell::Cell::new(0);
    let mut progress = |_| calls.set(calls.get() + 1);
    let cancelled = || calls.get() >= 3;
    let mut observer = duet_images::Observer::new(&mut progress, &cancelled);
    let files = duet_images::ImageFiles { meta, rootfs: None };
    let outcome = duet_images::unpack(&files, &bench.path("out"), &quick(), &mut observer);
    assert!(matches!(outcome, Err(ImageError::Cancelled)), "{outcome:?}");
    bench.assert_clean("cancelled");
}

fn rich() -> Vec<u8> {
    image(&[
        dir("rootfs/d"),
        file("rootfs/d/a", "x".repeat(700)).pax("SCHILY.xattr.user.a", "1\n2").pax("mtime", "1.5"),
        hard_link("rootfs/d/h", "rootfs/d/a"),
        symlink("rootfs/l", "d/a"),
        char_device("rootfs/null", 1, 3),
        entry(b'6', "rootfs/pipe"),
        file("rootfs/s", "abcd").pax("GNU.sparse.size", "9000").pax("GNU.sparse.map", "0,2,8000,2"),
        file("templates/t", "{{ container.name }}"),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Bytes are changed at random, with the checksums made right again so that the change is seen: whatever happens,
    /// it does not panic, and nothing outside changes.
    #[test]
    fn changed_bytes(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), fix in any::<bool>()) {
        let mut bytes = rich();
        for (at, value) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *value;
        }
        if fix {
            for block in bytes.chunks_exact_mut(512).filter(|b| b[257..262] == *b"ustar") {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
                block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            }
        }
        let bench = Bench::new();
        let mut options = quick();
        options.limits.max_bytes = 1 << 20;
        if bench.unpack(&bytes, &options).is_ok() {
            std::fs::remove_dir_all(bench.path("out")).unwrap();
        }
        bench.assert_clean("changed bytes");
    }
}
