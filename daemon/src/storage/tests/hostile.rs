//! A container that works against its own snapshot: what overlayfs makes of its doings is copied while it goes on.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::{Activity, Kind};
use super::model::model;
use super::tree::capture;
use super::{Fixture, for_each_driver, keep, references};

for_each_driver!(
    a_running_copy_shows_the_same,
    snapshots_succeed_while_the_volume_is_changed_by_force,
    operations_at_once_do_not_disturb_each_other,
);

/// Everything that overlayfs notes in an upper layer: whiteouts, opaque and renamed directories, copied-up files,
/// broken hard links.
fn stir(root: &Path) {
    fs::remove_file(root.join("c")).unwrap();
    fs::rename(root.join("a"), root.join("moved")).unwrap();
    fs::rename(root.join("moved/b"), root.join("b/b")).unwrap();
    fs::remove_dir_all(root.join("b/a")).unwrap();
    fs::create_dir(root.join("b/a")).unwrap();
    fs::write(root.join("etc/hostname"), "copied up").unwrap();
    fs::hard_link(root.join("etc/hostname"), root.join("etc/other")).unwrap();
    symlink("/proc/self/mem", root.join("etc/mem")).unwrap();
}

fn a_running_copy_shows_the_same(kind: Kind) {
    let fixture = Fixture::new(kind);
    let image = fixture.image();
    let volume = keep(fixture.pool.volume_create(Some(&image)));
    let root = fixture.mount(&volume);
    stir(&root.path(""));
    let taken = keep(fixture.pool.snapshot_create(&volume, Activity::Running));
    let copied = keep(fixture.pool.volume_copy(&volume, Activity::Running));
    let expected = capture(&root.path(""));
    assert_eq!(capture(&fixture.mount_snapshot(&taken.taken).path("")), expected);
    let copy = fixture.mount(&copied.taken);
    assert_eq!(capture(&copy.path("")), expected);
    // The copy is as usable as the original: names that whiteouts and redirects stand for can be taken again.
    fs::create_dir(copy.path("a")).unwrap();
    fs::write(copy.path("c"), "again").unwrap();
    fs::rename(copy.path("moved"), copy.path("a/back")).unwrap();
    assert_eq!(copy.read("a/back/c").as_deref(), Some("ac"));
    assert_eq!(copy.read("b/b/c").as_deref(), Some("abc"));
    assert_eq!(capture(&root.path("")), expected);
}

fn snapshots_succeed_while_the_volume_is_changed_by_force(kind: Kind) {
    let fixture = Fixture::new(kind);
    let image = fixture.image();
    let volume = keep(fixture.pool.volume_create(Some(&image)));
    let root = fixture.mount(&volume);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let path = |path: &str| root.path(path);
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                // Each of these may fail, depending on what went before.
                let _ = fs::rename(path("a"), path("b/x"));
                let _ = fs::rename(path("b/x"), path("a"));
                let _ = fs::write(path(&format!("etc/{}", n % 50)), vec![1; 30_000]);
                let _ = fs::remove_file(path(&format!("etc/{}", (n + 25) % 50)));
                let _ = fs::remove_dir_all(path("b/a"));
                let _ = fs::create_dir_all(path("b/a/q/r"));
                let _ = fs::hard_link(path("a/c"), path(&format!("b/l{}", n % 7)));
                let _ = fs::remove_file(path(&format!("b/l{}", (n + 3) % 7)));
            }
        });
        for round in 0..25 {
            let taken = fixture.pool.snapshot_create(&volume, Activity::Running).map(|made| made.keep().taken);
            let usage = fixture.pool.volume_usage(&volume, &references(&[], &[], &[]));
            if taken.is_err() || usage.is_err() || round == 24 {
                stop.store(true, Ordering::Relaxed);
            }
            // It shows something whole, whatever moment that is.
            let shown = model(&capture(&fixture.mount_snapshot(&taken.unwrap()).path("")));
            assert!(shown.contains_key(Path::new("etc/hostname")));
            usage.unwrap();
        }
    });
    assert_eq!(fixture.temporary(), Vec::<String>::new());
}

fn operations_at_once_do_not_disturb_each_other(kind: Kind) {
    let fixture = Fixture::new(kind);
    let image = fixture.image();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (fixture, image) = (&fixture, &image);
            scope.spawn(move || {
                for round in 0..10 {
                    let volume = keep(fixture.pool.volume_create(Some(image)));
                    fs::write(fixture.mount(&volume).path("file"), format!("{thread}.{round}")).unwrap();
                    let taken = keep(fixture.pool.snapshot_create(&volume, Activity::Stopped));
                    let copy = keep(fixture.pool.volume_from_snapshot(&taken.taken));
                    assert_eq!(fixture.mount(&copy).read("file"), Some(format!("{thread}.{round}")));
                    // Only its own things: what others have is in their "inventory", which this thread cannot see.
                    let survey = fixture.pool.survey();
                    let needed = references(&[], &[], &[image]);
                    let own = [taken.source.objects(), copy.objects(), taken.taken.objects()].concat();
                    survey.discard(own, &needed).unwrap().empty().unwrap();
                }
            });
        }
    });
    assert_eq!(fixture.layers_on_disk(), Vec::<String>::new());
    assert_eq!(fixture.temporary(), Vec::<String>::new());
}
