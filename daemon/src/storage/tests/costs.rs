//! What the operations cost, as a table. Run with
//! `cargo test --release -p duetd storage::tests::costs -- --ignored --nocapture`.

use std::fs;
use std::time::{Duration, Instant};

use super::super::{Activity, Kind, Volume};
use super::{Fixture, TestError, fingerprint, keep, references};

const ROUNDS: usize = 200;

/// Runs an operation so many times and prints the median and the 90th percentile.
fn measure<T>(what: &str, rounds: usize, mut operation: impl FnMut(usize) -> T) -> Vec<T> {
    let mut times = Vec::with_capacity(rounds);
    let results = (0..rounds)
        .map(|round| {
            let start = Instant::now();
            let result = operation(round);
            times.push(start.elapsed());
            result
        })
        .collect();
    times.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!("{what:<58} {:>9.3} ms  p90 {:>9.3} ms", ms(times[rounds / 2]), ms(times[rounds * 9 / 10]));
    results
}

#[test]
#[ignore = "a measurement"]
fn costs() {
    let kind = std::env::var("DUET_TEST_DRIVER").map_or(Kind::Overlay, |name| name.parse().unwrap());
    let fixture = Fixture::new(kind);
    let image = fingerprint('7');
    measure("add an image of 300 MiB in 3000 files (written, flushed)", 1, |_| {
        let added = fixture.pool.image_add(&image, |dir| {
            for n in 0..3000 {
                let sub = dir.join(format!("rootfs/usr/{}", n % 100));
                fs::create_dir_all(&sub)?;
                fs::write(sub.join(format!("file{n}")), vec![1; 100 << 10])?;
            }
            Ok::<_, TestError>(())
        });
        added.unwrap().keep();
    });
    let volumes = measure("create a volume", ROUNDS, |_| keep(fixture.pool.volume_create(Some(&image))));
    measure("  its root as a value", ROUNDS, |n| fixture.pool.volume_root(&volumes[n], None).unwrap());
    measure("  mounted", 20, |n| drop(fixture.mount(&volumes[n])));
    let change = |volume: &Volume| fs::write(fixture.mount(volume).path("file"), "x").unwrap();
    volumes.iter().for_each(change);
    let taken = measure("snapshot of a stopped volume", ROUNDS, |n| {
        keep(fixture.pool.snapshot_create(&volumes[n], Activity::Stopped))
    });
    measure("snapshot of the same again, unchanged", ROUNDS, |n| {
        keep(fixture.pool.snapshot_create(&taken[n].source, Activity::Stopped))
    });
    measure("restore or copy a snapshot", ROUNDS, |n| keep(fixture.pool.volume_from_snapshot(&taken[n].taken)));
    taken.iter().for_each(|taken| change(&taken.source));
    measure("copy of a stopped volume", ROUNDS, |n| {
        keep(fixture.pool.volume_copy(&taken[n].source, Activity::Stopped))
    });

    let busy = &volumes[0];
    let root = fixture.mount(&taken[0].source);
    for n in 0..2000 {
        fs::create_dir_all(root.path(&format!("var/{}", n % 50))).unwrap();
        fs::write(root.path(&format!("var/{}/file{n}", n % 50)), vec![1; 10 << 10]).unwrap();
    }
    let busy_taken = &taken[0].source;
    measure("snapshot of a running volume, 20 MB changed in 2000 files", 5, |_| {
        keep(fixture.pool.snapshot_create(busy_taken, Activity::Running))
    });
    fs::write(root.path("big"), vec![1; 200 << 20]).unwrap();
    measure("the same and one file of 200 MiB", 3, |_| {
        keep(fixture.pool.snapshot_create(busy_taken, Activity::Running))
    });
    let none = references(&[], &[], &[]);
    measure("usage of that volume", 5, |_| fixture.pool.volume_usage(busy_taken, &none).unwrap());
    drop(root);

    let mut volume = busy.clone();
    measure("snapshot of a stopped volume, folding each 13th", 26, |_| {
        change(&volume);
        let taken = keep(fixture.pool.snapshot_create(&volume, Activity::Stopped));
        volume = taken.source;
    });
    let survey = fixture.pool.survey();
    let all = fixture.layers_on_disk().len();
    let trash = measure(&format!("take the names of all {all} layers away"), 1, |_| survey.sweep(&none).unwrap());
    let start = Instant::now();
    trash.into_iter().for_each(|trash| trash.empty().unwrap());
    println!("freed in {:?}", start.elapsed());
}
