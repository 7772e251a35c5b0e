//! What only btrfs has: quota groups and nested subvolumes.

use std::fs;
use std::io::Write;
use std::path::Path;

use duet_sys::btrfs;
use rustix::fs::{Mode, OFlags, mkdirat, openat};

use super::super::{Activity, Error, Kind};
use super::{Fixture, Mounted, keep, references};

const MIB: u64 = 1 << 20;

/// What a subvolume counts includes what it shares, and metadata of some blocks of 16 KiB.
#[test]
fn usage_is_what_a_subvolume_refers_to() {
    let fixture = Fixture::new(Kind::Btrfs);
    let image = fixture.image();
    let volume = keep(fixture.pool.volume_create(Some(&image)));
    let none = references(&[], &[], &[]);
    fs::write(fixture.mount(&volume).path("big"), vec![1; 1 << 20]).unwrap();
    fixture.pool.sync().unwrap();
    let usage = fixture.pool.volume_usage(&volume, &none).unwrap();
    assert!((MIB..MIB + (MIB >> 2)).contains(&usage.own), "{usage:?}");
    let taken = keep(fixture.pool.snapshot_create(&volume, Activity::Running));
    fixture.pool.sync().unwrap();
    let usage = fixture.pool.volume_usage(&volume, &none).unwrap();
    assert!(usage.own < MIB >> 2 && usage.shared >= MIB, "a snapshot has it as well: {usage:?}");
    assert!(fixture.pool.volume_counted(&volume).unwrap() >= MIB);
    assert!(fixture.pool.snapshot_usage(&taken.taken, &none).unwrap().own < MIB >> 2);
    let resources = fixture.pool.resources().unwrap();
    assert!(resources.space_used < resources.space_total, "{resources:?}");
}

/// Writes a file until that fails, and gives how much was written by then.
fn fill(path: &Path) -> (u64, std::io::Error) {
    let mut file = fs::File::create(path).unwrap();
    let mut written = 0;
    loop {
        let flushed = |file: &mut fs::File| if written % (8 * MIB) == 0 { file.sync_all() } else { Ok(()) };
        match file.write_all(&[7; 1 << 20]).and_then(|()| flushed(&mut file)) {
            Ok(()) => written += MIB,
            Err(error) => return (written, error),
        }
    }
}

#[test]
fn a_size_is_enforced_and_changes_while_it_is_mounted() {
    let fixture = Fixture::new(Kind::Btrfs);
    let image = fixture.image();
    let volume = keep(fixture.pool.volume_create(Some(&image)));
    let root = Mounted::new(&fixture.pool.volume_root(&volume, Some(64 * MIB)).unwrap());
    let full = |written: u64, error: &std::io::Error, at: u64| {
        assert!(matches!(error.raw_os_error(), Some(libc::EDQUOT | libc::ENOSPC)), "{error}");
        assert!((at - 16 * MIB..=at).contains(&written), "{written} bytes were written");
    };
    let (written, error) = fill(&root.path("one"));
    full(written, &error, 64 * MIB);
    fixture.pool.sync().unwrap();
    let small = fixture.pool.volume_limit(&volume, Some(32 * MIB)).unwrap_err();
    assert!(matches!(small, Error::TooSmall { .. }), "{small}");
    fixture.pool.volume_limit(&volume, Some(128 * MIB)).unwrap();
    let (more, error) = fill(&root.path("two"));
    full(written + more, &error, 128 * MIB);
    // What is removed can be written again.
    fs::remove_file(root.path("one")).unwrap();
    fs::remove_file(root.path("two")).unwrap();
    fixture.pool.sync().unwrap();
    fs::write(root.path("three"), vec![1; 40 << 20]).unwrap();
    fixture.pool.volume_limit(&volume, None).unwrap();
    fs::write(root.path("four"), vec![1; 200 << 20]).unwrap();
    let copy = keep(fixture.pool.volume_copy(&volume, Activity::Running)).taken;
    let error = fixture.pool.volume_limit(&copy, Some(100 * MIB)).unwrap_err();
    assert!(error.to_string().starts_with("a size of 100.0 MiB is too small: 24"), "{error}");
}

/// A container can nest subvolumes in its own, protect them, and hide them below long paths.
#[test]
fn nested_subvolumes_go_with_their_volume() {
    let fixture = Fixture::new(Kind::Btrfs);
    let image = fixture.image();
    let volume = keep(fixture.pool.volume_create(Some(&image)));
    let root = fixture.mount(&volume);
    let enter = |place, name: &str| openat(place, name, OFlags::RDONLY, Mode::empty()).unwrap();
    let mut place = enter(root.0.try_clone().unwrap(), ".");
    let mut protected = Vec::new();
    for _ in 0..12 {
        btrfs::create_subvolume(&place, c"sub").unwrap();
        btrfs::create_subvolume(&place, c"other").unwrap();
        place = enter(place, "sub");
        protected.push(place.try_clone().unwrap());
        let long = "n".repeat(250);
        for _ in 0..3 {
            mkdirat(&place, &long, Mode::RWXU).unwrap();
            place = enter(place, &long);
        }
    }
    protected.iter().for_each(|fd| btrfs::set_access(fd, btrfs::Access::ReadOnly).unwrap());
    drop((root, place, protected));
    let nothing = references(&[], &[], &[&image]);
    fixture.pool.survey().discard(volume.objects(), &nothing).unwrap().empty().unwrap();
    assert_eq!((fixture.layers_on_disk(), fixture.temporary()), (Vec::new(), Vec::new()));
    // BTRFS_FS_TREE_OBJECTID: the image is all that lies in the filesystem's own tree.
    let pool = fs::File::open(fixture.directory()).unwrap();
    let left = btrfs::first_nested(&pool, 5).unwrap().unwrap();
    assert_eq!(left.name, image.as_str().as_bytes());
}
