//! A stranger's archive of a root file system, as a part of an image.

mod common;

use std::collections::BTreeMap;

use common::*;
use duet_images::{Compress, ImageError, Observer, Packed, Result, pack_archive};

fn packed(archive: &[u8]) -> (Vec<u8>, Result<Packed>) {
    let mut image = Vec::new();
    let none = Compress::default();
    let packed = pack_archive(&metadata(), &BTreeMap::new(), archive, &mut image, none, &mut Observer::none());
    (image, packed)
}

#[test]
fn only_the_root_file_system_is_taken() {
    let good = [dir("./rootfs/"), file("rootfs//a", "x"), hard_link("rootfs/b", "rootfs/a"), symlink("rootfs/l", "/x")];
    let (image, made) = packed(&tarball(&good));
    assert_eq!(made.unwrap().entries, 4);
    Bench::new().unpack(&image, &quick()).unwrap();
    for bad in [
        file("metadata.yaml", "architecture: none"),
        file("rootfs/../metadata.yaml", ""),
        file("/rootfs/a", ""),
        file("rootfsx", ""),
        hard_link("rootfs/c", "templates/t"),
        hard_link("rootfs/c", "/etc/shadow"),
    ] {
        let (_, made) = packed(&tarball(&[good[0].clone(), bad.clone()]));
        assert!(matches!(made, Err(ImageError::Refused { .. })), "{bad:?}: {made:?}");
    }
}

#[test]
fn an_archive_that_was_cut_off_is_told_from_a_whole_one() {
    let whole = tarball(&[dir("rootfs/"), file("rootfs/a", "x".repeat(2000))]);
    packed(&whole).1.unwrap();
    for end in [0, 100, 512, 1024, 2000, 3072, 3584] {
        let (_, made) = packed(&whole[..end.min(whole.len() - 1024)]);
        assert!(matches!(made, Err(ImageError::Truncated { .. })), "{end}: {made:?}");
    }
    let more = [&whole[..], b"more"].concat();
    assert!(matches!(packed(&more).1, Err(ImageError::Damaged(_))));
}

#[test]
fn what_unpacking_would_drop_is_not_kept() {
    let label = file("rootfs/a", "").pax("SCHILY.xattr.security.selinux", "x").pax("SCHILY.xattr.user.note", "kept");
    let (image, made) = packed(&tarball(&[dir("rootfs/"), label]));
    made.unwrap();
    let bench = Bench::new();
    bench.unpack(&image, &quick()).unwrap();
    let found = xattrs(&bench.path("out/rootfs/a"));
    assert_eq!(found.into_keys().collect::<Vec<_>>(), ["user.note"]);
}
