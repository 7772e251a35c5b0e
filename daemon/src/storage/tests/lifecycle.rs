//! Each operation once, on trees small enough to reason about.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::super::{Activity, Backing, Error, Kind, Object, Pool};
use super::{Fixture, fingerprint, for_each_driver, keep, list, references};

for_each_driver!(
    a_volume_shows_its_image_and_takes_changes,
    a_new_root_has_the_attributes_of_what_is_below,
    an_empty_volume_is_empty_and_snapshots_like_any_other,
    snapshots_stay_what_they_were_and_can_be_restored,
    copies_are_independent,
    what_is_not_kept_is_undone,
    discarding_removes_exactly_what_nothing_needs,
    nothing_under_way_is_swept,
    what_a_killed_process_leaves_is_found,
    a_failed_unpack_leaves_nothing,
    an_image_is_unpacked_once,
    values_survive_json,
    no_pool_and_no_image_are_said_so,
    a_deleted_pool_leaves_only_what_is_not_its_own,
);

fn a_volume_shows_its_image_and_takes_changes(kind: Kind) {
    let fixture = Fixture::new(kind);
    let image = fixture.image();
    let volume = keep(fixture.pool.volume_create(Some(&image)));
    let other = keep(fixture.pool.volume_create(Some(&image)));
    let root = fixture.mount(&volume);
    assert_eq!(root.read("etc/hostname").as_deref(), Some("image"));
    fs::write(root.path("etc/hostname"), "changed").unwrap();
    fs::remove_file(root.path("c")).unwrap();
    fs::rename(root.path("a"), root.path("moved")).unwrap();
    drop(root);
    let root = fixture.mount(&volume);
    assert_eq!(root.read("etc/hostname").as_deref(), Some("changed"));
    assert_eq!(root.read("c"), None);
    assert_eq!(root.read("moved/b/c").as_deref(), Some("abc"));
    assert_eq!(fixture.mount(&other).read("etc/hostname").as_deref(), Some("image"));
    assert_eq!(fs::read(fixture.pool.image_dir(&image).join("rootfs/etc/hostname")).unwrap(), b"image");
}

fn a_new_root_has_the_attributes_of_what_is_below(kind: Kind) {
    let fixture = Fixture::new(kind);
    let image = fingerprint('b');
    let added = fixture.pool.image_add(&image, |dir| {
        let root = dir.join("rootfs");
        fs::create_dir(&root).map_err(|e| super::TestError(e.to_string()))?;
        std::os::unix::fs::chown(&root, Some(7), Some(8))?;
        fs::set_permissions(&root, fs::Permissions::from_mode(0o1751))?;
        Ok::<_, super::TestError>(())
    });
    added.unwrap().keep();
    let volume = keep(fixture.pool.volume_create(Some(&image)));
    let meta = fs::metadata(fixture.mount(&volume).path(".")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (7, 8, 0o1751));
}

fn an_empty_volume_is_empty_and_snapshots_like_any_other(kind: Kind) {
    let fixture = Fixture::new(kind);
    let volume = keep(fixture.pool.volume_create(None));
    let root = fixture.mount(&volume);
    assert_eq!(fs::read_dir(root.path(".")).unwrap().count(), 0);
    fs::write(root.path("file"), "one").unwrap();
    drop(root);
    let taken = keep(fixture.pool.snapshot_create(&volume, Activity::Stopped));
    fs::write(fixture.mount(&taken.source).path("file"), "two").unwrap();
    assert_eq!(fixture.mount_snapshot(&taken.taken).read("file").as_deref(), Some("one"));
    assert_eq!(fixture.mount(&taken.source).read("file").as_deref(), Some("two"));
}

fn snapshots_stay_what_they_were_and_can_be_restored(kind: Kind) {
    let fixture = Fixture::new(kind);
    let image = fixture.image();
    let mut volume = keep(fixture.pool.volume_create(Some(&image)));
    let mut snapshots = Vec::new();
    for activity in [Activity::Stopped, Activity::Running, Activity::Running, Activity::Stopped] {
        let root = fixture.mount(&volume);
        fs::write(root.path("etc/hostname"), format!("{}", snapshots.len())).unwrap();
        if activity == Activity::Stopped {
            drop(root);
        }
        let taken = keep(fixture.pool.snapshot_create(&volume, activity));
        if activity == Activity::Running {
            assert_eq!(taken.source, volume, "a mounted volume must not change");
        }
        volume = taken.source;
        snapshots.push(taken.taken);
    }
    for (index, snapshot) in snapshots.iter().enumerate() {
        let expected = format!("{index}");
        assert_eq!(fixture.mount_snapshot(snapshot).read("etc/hostname"), Some(expected.clone()));
        let restored = keep(fixture.pool.volume_from_snapshot(snapshot));
        let root = fixture.mount(&restored);
        assert_eq!(root.read("etc/hostname"), Some(expected.clone()));
        fs::remove_file(root.path("etc/hostname")).unwrap();
        assert_eq!(fixture.mount_snapshot(snapshot).read("etc/hostname"), Some(expected));
    }
}

#[test]
fn a_snapshot_of_what_did_not_change_adds_nothing() {
    let fixture = Fixture::new(Kind::Overlay);
    let image = fixture.image();
    let volume = keep(fixture.pool.volume_create(Some(&image)));
    drop(fixture.mount(&volume));
    let taken = keep(fixture.pool.snapshot_create(&volume, Activity::Stopped));
    assert_eq!(taken.source, volume);
    assert!(taken.taken.lowers.is_empty());
    assert_eq!(fixture.mount_snapshot(&taken.taken).read("c").as_deref(), Some("c"));
    fs::set_permissions(fixture.mount(&volume).path("."), fs::Permissions::from_mode(0o700)).unwrap();
    let taken = keep(fixture.pool.snapshot_create(&volume, Activity::Stopped));
    assert_eq!(taken.taken.lowers, [volume.upper], "the root's mode is a change, too");
}

fn copies_are_independent(kind: Kind) {
    let fixture = Fixture::new(kind);
    let image = fixture.image();
    let volume = keep(fixture.pool.volume_create(Some(&image)));
    fs::write(fixture.mount(&volume).path("file"), "source").unwrap();
    let stopped = keep(fixture.pool.volume_copy(&volume, Activity::Stopped));
    let shares = stopped.taken.lowers.contains(&volume.upper);
    assert_eq!(shares, fixture.pool.capabilities().stacked, "a stopped source's layers are shared where there are any");
    let root = fixture.mount(&stopped.source);
    fs::write(root.path("file"), "later").unwrap();
    let running = keep(fixture.pool.volume_copy(&stopped.source, Activity::Running));
    assert_eq!(running.source, stopped.source);
    fs::write(root.path("file"), "latest").unwrap();
    assert_eq!(fixture.mount(&stopped.taken).read("file").as_deref(), Some("source"));
    assert_eq!(fixture.mount(&running.taken).read("file").as_deref(), Some("later"));
    fs::write(fixture.mount(&running.taken).path("file"), "other").unwrap();
    assert_eq!(root.read("file").as_deref(), Some("latest"));
}

fn what_is_not_kept_is_undone(kind: Kind) {
    let fixture = Fixture::new(kind);
    let image = fixture.image();
    let volume = keep(fixture.pool.volume_create(Some(&image)));
    fs::write(fixture.mount(&volume).path("file"), "x").unwrap();
    let before = fixture.layers_on_disk();
    drop(fixture.pool.volume_create(Some(&image)).unwrap());
    drop(fixture.pool.snapshot_create(&volume, Activity::Stopped).unwrap());
    drop(fixture.pool.snapshot_create(&volume, Activity::Running).unwrap());
    drop(fixture.pool.volume_copy(&volume, Activity::Stopped).unwrap());
    assert_eq!(fixture.layers_on_disk(), before);
    assert_eq!(fixture.temporary(), Vec::<String>::new());
    assert_eq!(fixture.mount(&volume).read("file").as_deref(), Some("x"));
}

fn discarding_removes_exactly_what_nothing_needs(kind: Kind) {
    let fixture = Fixture::new(kind);
    let image = fixture.image();
    let volume = keep(fixture.pool.volume_create(Some(&image)));
    fs::write(fixture.mount(&volume).path("file"), "x").unwrap();
    let taken = keep(fixture.pool.snapshot_create(&volume, Activity::Stopped));
    let survey = fixture.pool.survey();
    let needed = references(&[], &[&taken.taken], &[]);
    survey.discard(taken.source.objects(), &needed).unwrap().empty().unwrap();
    assert_eq!(fixture.layers_on_disk(), [taken.taken.lowers[0].to_string()]);
    assert!(fixture.pool.has_image(&image).unwrap(), "the snapshot needs it, listed or not");
    survey.discard(taken.taken.objects(), &references(&[], &[], &[])).unwrap().empty().unwrap();
    assert_eq!(fixture.layers_on_disk(), Vec::<String>::new());
    assert!(!fixture.pool.has_image(&image).unwrap());
    assert_eq!(fixture.temporary(), Vec::<String>::new());
}

fn nothing_under_way_is_swept(kind: Kind) {
    let fixture = Fixture::new(kind);
    let image = fixture.image();
    let survey = fixture.pool.survey();
    let before_commit = references(&[], &[], &[]);
    let made = fixture.pool.volume_create(Some(&image)).unwrap();
    assert!(survey.sweep(&before_commit).unwrap().is_empty(), "not committed yet");
    let volume = made.keep();
    assert!(survey.sweep(&before_commit).unwrap().is_empty(), "committed after the inventory was read");
    drop(survey);
    assert_eq!(fixture.pool.survey().sweep(&before_commit).unwrap().len(), 2);
    assert!(matches!(fixture.pool.volume_root(&volume, None), Err(Error::MissingImage { .. })));
    assert!(matches!(fixture.pool.volume_copy(&volume, Activity::Stopped), Err(Error::MissingImage { .. })));
}

fn what_a_killed_process_leaves_is_found(kind: Kind) {
    let fixture = Fixture::new(kind);
    let image = fixture.image();
    let volume = keep(fixture.pool.volume_create(Some(&image)));
    std::mem::forget(fixture.pool.volume_create(Some(&image)).unwrap());
    fs::create_dir_all(fixture.directory().join("tmp/half/diff")).unwrap();
    fs::create_dir_all(fixture.directory().join("layers/not-a-layer")).unwrap();
    let (pool, leftovers) = Pool::open(kind, &Backing::Directory(fixture.directory().to_owned())).unwrap();
    assert_eq!(leftovers.len(), 1);
    leftovers.empty().unwrap();
    pool.survey().sweep(&references(&[&volume], &[], &[])).unwrap().empty().unwrap();
    assert_eq!(list(&fixture.directory().join("tmp")), Vec::<String>::new());
    assert_eq!(fixture.layers_on_disk(), [volume.upper.to_string(), "not-a-layer".to_owned()]);
}

fn a_failed_unpack_leaves_nothing(kind: Kind) {
    let fixture = Fixture::new(kind);
    let image = fingerprint('c');
    let result = fixture.pool.image_add(&image, |dir| {
        fs::create_dir_all(dir.join("rootfs/deep/deeper"))?;
        Err::<(), _>(super::TestError("truncated".into()))
    });
    assert_eq!(result.unwrap_err().to_string(), "truncated");
    assert!(!fixture.pool.has_image(&image).unwrap());
    assert_eq!(fixture.temporary(), Vec::<String>::new());
}

fn an_image_is_unpacked_once(kind: Kind) {
    let fixture = Fixture::new(kind);
    let image = fixture.image();
    let again = fixture.pool.image_add(&image, |_| -> Result<(), super::TestError> { panic!("it is there already") });
    assert!(again.unwrap().keep().is_none());
}

#[test]
fn chains_stay_short() {
    let fixture = Fixture::folding_above(Kind::Overlay, 3);
    let image = fixture.image();
    let mut volume = keep(fixture.pool.volume_create(Some(&image)));
    let mut snapshots = Vec::new();
    for round in 0..12 {
        let root = fixture.mount(&volume);
        fs::write(root.path(&format!("file{}", round % 5)), format!("{round}")).unwrap();
        fs::remove_file(root.path("a/c")).ok();
        drop(root);
        let activity = if round % 3 == 2 { Activity::Running } else { Activity::Stopped };
        let taken = keep(fixture.pool.snapshot_create(&volume, activity));
        volume = if round % 4 == 3 { keep(fixture.pool.volume_from_snapshot(&taken.taken)) } else { taken.source };
        assert!(volume.lowers.len() <= 3, "{volume:?}");
        assert!(taken.taken.lowers.len() <= 4, "{:?}", taken.taken);
        snapshots.push(taken.taken);
    }
    for (round, snapshot) in snapshots.iter().enumerate() {
        let root = fixture.mount_snapshot(snapshot);
        assert_eq!(root.read(&format!("file{}", round % 5)), Some(format!("{round}")));
        assert_eq!(root.read("a/c"), None);
        assert_eq!(root.read("a/b/c").as_deref(), Some("abc"));
    }
}

#[test]
fn usage_is_what_deleting_would_free() {
    let fixture = Fixture::new(Kind::Overlay);
    let image = fixture.image();
    let volume = keep(fixture.pool.volume_create(Some(&image)));
    let root = fixture.mount(&volume);
    fs::write(root.path("big"), vec![1; 1 << 20]).unwrap();
    fs::hard_link(root.path("big"), root.path("same")).unwrap();
    fs::File::create(root.path("sparse")).unwrap().set_len(1 << 30).unwrap();
    drop(root);
    let none = references(&[], &[], &[]);
    let usage = fixture.pool.volume_usage(&volume, &none).unwrap();
    assert!(((1 << 20)..(1 << 20) + (1 << 16)).contains(&usage.own), "{usage:?}");
    assert!(usage.shared > 0 && usage.shared < 1 << 17, "the image: {usage:?}");
    let taken = keep(fixture.pool.snapshot_create(&volume, Activity::Stopped));
    let others = references(&[], &[&taken.taken], &[]);
    assert!(fixture.pool.volume_usage(&taken.source, &others).unwrap().own < 1 << 16);
    assert!(fixture.pool.volume_usage(&taken.source, &none).unwrap().own >= 1 << 20);
    let others = references(&[&taken.source], &[], &[]);
    assert_eq!(fixture.pool.snapshot_usage(&taken.taken, &others).unwrap().own, 0);
    let resources = fixture.pool.resources().unwrap();
    assert!(resources.space_used < resources.space_total, "{resources:?}");
}

fn values_survive_json(kind: Kind) {
    let fixture = Fixture::new(kind);
    let image = fixture.image();
    let volume = keep(fixture.pool.volume_create(Some(&image)));
    let text = serde_json::to_string(&volume).unwrap();
    assert_eq!(serde_json::from_str::<super::Volume>(&text).unwrap(), volume);
    let bad = text.replace(image.as_str(), "../../etc");
    assert!(serde_json::from_str::<super::Volume>(&bad).is_err());
    assert_eq!(volume.objects(), [Object::Image(image), Object::Layer(volume.upper)]);
}

fn no_pool_and_no_image_are_said_so(kind: Kind) {
    let fixture = Fixture::new(kind);
    let absent = fingerprint('d');
    let error = fixture.pool.volume_create(Some(&absent)).unwrap_err();
    assert!(error.to_string().contains("does not hold image dddd"), "{error}");
    let error = Pool::open(kind, &Backing::Directory(fixture.directory().join("nowhere"))).unwrap_err();
    assert!(error.to_string().starts_with("there is no storage pool in "), "{error}");
}

#[test]
fn compacting_frees_what_was_overwritten() {
    let fixture = Fixture::new(Kind::Overlay);
    let image = fixture.image();
    let mut volume = keep(fixture.pool.volume_create(Some(&image)));
    let mut snapshots = Vec::new();
    for round in 0..5u8 {
        fs::write(fixture.mount(&volume).path("big"), vec![round; 1 << 20]).unwrap();
        let taken = keep(fixture.pool.snapshot_create(&volume, Activity::Stopped));
        volume = taken.source;
        snapshots.push(taken.taken);
    }
    // All snapshots but the second are deleted.
    let others = references(&[], &[&snapshots[1]], &[]);
    let before = fixture.pool.volume_usage(&volume, &others).unwrap();
    let compact = fixture.pool.volume_compact(&volume, &others).unwrap().unwrap().keep();
    assert_eq!(compact.lowers, snapshots[1].lowers, "two of the snapshot's; the three others went into the upper one");
    let needed = references(&[&compact], &[&snapshots[1]], &[&image]);
    fixture.pool.survey().discard(volume.objects(), &needed).unwrap().empty().unwrap();
    let after = fixture.pool.volume_usage(&compact, &others).unwrap();
    assert_eq!((before.own >> 20, after.own >> 20), (3, 1));
    let root = fixture.mount(&compact);
    assert_eq!(fs::read(root.path("big")).unwrap(), vec![4; 1 << 20]);
    assert_eq!(fs::metadata(root.path("big")).unwrap().nlink(), 1);
    fs::write(root.path("big"), "written to again").unwrap();
    drop(root);
    assert_eq!(fs::read(fixture.mount(&compact).path("big")).unwrap(), b"written to again");
    assert!(fixture.pool.volume_compact(&compact, &others).unwrap().is_none());
}

fn a_deleted_pool_leaves_only_what_is_not_its_own(kind: Kind) {
    let fixture = Fixture::new(kind);
    let image = fixture.image();
    keep(fixture.pool.volume_create(Some(&image)));
    fs::write(fixture.directory().join("note"), "the administrator's").unwrap();
    fixture.pool.clone().delete().unwrap();
    assert_eq!(list(fixture.directory()), ["note"]);
}
