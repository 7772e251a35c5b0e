//! A folded run of layers shows what the layers show, wherever in a chain it stands.

use std::fs;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::driver::{Driver, Files};
use super::super::overlay::Overlay;
use super::super::{Activity, Error, Kind, LayerId, Snapshot};
use super::model::{Change, apply, change, model, moving_change};
use super::tree::capture;
use super::{Fixture, cases, keep};

/// Compares a chain with the same chain in which a run of layers is folded.
fn check(fixture: &Fixture, snapshot: &Snapshot, run: std::ops::Range<usize>) {
    let overlay = Overlay::open(fixture.directory()).unwrap();
    let folded = LayerId::fresh();
    overlay.layer_fold(folded, &snapshot.lowers[run.clone()], Files::Copy).unwrap();
    let mut lowers = snapshot.lowers.clone();
    lowers.splice(run.clone(), [folded]);
    let expected = capture(&fixture.mount_snapshot(snapshot).path(""));
    let found = capture(&fixture.mount_snapshot(&Snapshot { image: snapshot.image.clone(), lowers }).path(""));
    assert_eq!(found, expected, "layers {run:?} of {} folded", snapshot.lowers.len());
}

/// A chain of layers, each with these changes.
fn chain(fixture: &Fixture, layers: &[Vec<Change>]) -> Snapshot {
    let image = fixture.image();
    let mut volume = keep(fixture.pool.volume_create(Some(&image)));
    let mut snapshot = Snapshot { image: Some(image), lowers: Vec::new() };
    for changes in layers {
        let root = fixture.mount(&volume);
        let mut tree = model(&capture(&root.path("")));
        changes.iter().for_each(|change| apply(&root.path(""), &mut tree, change));
        drop(root);
        let taken = keep(fixture.pool.snapshot_create(&volume, Activity::Stopped));
        (volume, snapshot) = (taken.source, taken.taken);
    }
    snapshot
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(32), max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_run_of_layers_folds_to_the_same(layers in vec(vec(change(), 1..10), 2..6)) {
        check_all_runs(&layers);
    }

    #[test]
    fn directories_moved_about_fold_to_the_same(layers in vec(vec(moving_change(), 1..5), 2..8)) {
        check_all_runs(&layers);
    }
}

fn check_all_runs(layers: &[Vec<Change>]) {
    let fixture = Fixture::new(Kind::Overlay);
    let snapshot = chain(&fixture, layers);
    for start in 0..snapshot.lowers.len() {
        for end in start + 1..=snapshot.lowers.len() {
            check(&fixture, &snapshot, start..end);
        }
    }
}

/// The cases that the rules were written for, by name.
#[test]
fn the_known_difficult_cases_fold() {
    let p = |path: &str| path.into();
    let rename = |from: &str, to: &str| Change::Rename(from.into(), to.into());
    let cases: [(&str, Vec<Vec<Change>>); 8] = [
        ("a whiteout over the image", vec![vec![Change::Remove(p("c"))], vec![Change::Write(p("b/c"), 1)]]),
        ("a whiteout over a folded file", vec![vec![Change::Write(p("b/c"), 1)], vec![Change::Remove(p("b/c"))]]),
        (
            "an opaque directory",
            vec![vec![Change::Remove(p("a")), Change::MakeDirectory(p("a"))], vec![Change::Write(p("a/c"), 2)]],
        ),
        (
            "a file where a directory was, and a directory again",
            vec![
                vec![Change::Remove(p("a")), Change::Write(p("a"), 1)],
                vec![Change::Remove(p("a")), Change::MakeDirectory(p("a"))],
            ],
        ),
        ("renamed twice", vec![vec![rename("a", "b/c")], vec![rename("b/c", "a")], vec![rename("a/b", "a/d")]]),
        ("renamed within its parent", vec![vec![rename("a/b", "a/a")], vec![rename("a/a", "a/c2")]]),
        (
            "renamed out of a renamed parent",
            vec![vec![rename("a", "x")], vec![rename("x/b", "y")], vec![rename("x", "y/x")]],
        ),
        ("exchanged", vec![vec![rename("a", "t"), rename("b", "a"), rename("t", "b")], vec![rename("a/a", "b/a")]]),
    ];
    for (name, layers) in cases {
        eprintln!("{name}");
        check_all_runs(&layers);
    }
}

#[test]
fn what_cannot_be_folded_is_copied() {
    let fixture = Fixture::folding_above(Kind::Overlay, 1);
    let image = fixture.image();
    let volume = keep(fixture.pool.volume_create(Some(&image)));
    let root = fixture.mount(&volume);
    // Deeper than a path can name.
    let mut deepest = fs::File::open(root.path(".")).unwrap();
    for _ in 0..100 {
        let name = "d".repeat(60);
        rustix::fs::mkdirat(&deepest, &name, rustix::fs::Mode::RWXU).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        deepest = rustix::fs::openat(&deepest, &name, flags, rustix::fs::Mode::empty()).unwrap().into();
    }
    drop(deepest);
    drop(root);
    let first = keep(fixture.pool.snapshot_create(&volume, Activity::Stopped));
    fs::write(fixture.mount(&first.source).path("file"), "x").unwrap();
    let overlay = Overlay::open(fixture.directory()).unwrap();
    let error = overlay.layer_fold(LayerId::fresh(), &[volume.upper], Files::Copy).unwrap_err();
    assert!(matches!(error, Error::Unfoldable { .. }), "{error}");
    let second = keep(fixture.pool.snapshot_create(&first.source, Activity::Stopped));
    assert_eq!(second.source, first.source, "its upper was copied");
    assert_eq!(second.taken.lowers.len(), 2);
    let restored = keep(fixture.pool.volume_from_snapshot(&second.taken));
    assert_eq!(fixture.mount(&restored).read("file").as_deref(), Some("x"));
    drop(fixture.pool.survey().sweep(&super::references(&[], &[], &[])).unwrap().empty());
}
