//! An instance's life through the CLIs, one verb after the other, the contenders taking turns at each.

use std::time::Instant;

use super::contender::Contender;
use super::sample::Sample;
use super::table::{Shape, Table, Target};

/// An image to measure with.
#[derive(Debug, Clone, Copy)]
pub struct Image {
    /// Its alias.
    pub alias: &'static str,
    /// How the table names it.
    pub title: &'static str,
    /// Whether systemd is its init.
    pub systemd: bool,
    /// Whether the targets, which are meant for a whole distribution, are held against it.
    pub targets: bool,
}

/// What is measured, in the order in which it happens, and what Duet is meant to reach there.
const VERBS: &[(Verb, &str, Target)] = &[
    (Verb::Launch, "launch", Target { dir: Some(20.0), btrfs: Some(10.0) }),
    (Verb::Lease, "launch to an IPv4 lease", Target::NONE),
    (Verb::Exec, "exec true", Target::both(6.0)),
    (Verb::SnapshotRunning, "snapshot, running", Target { dir: None, btrfs: Some(3.0) }),
    (Verb::List, "list, 1 or 2 instances", Target::NONE),
    (Verb::Stop, "stop -f", Target::both(8.0)),
    (Verb::Snapshot, "snapshot, stopped", Target { dir: None, btrfs: Some(3.0) }),
    (Verb::Restore, "restore", Target { dir: None, btrfs: Some(3.0) }),
    (Verb::Copy, "copy", Target { dir: None, btrfs: Some(3.0) }),
    (Verb::Start, "start", Target::both(8.0)),
    (Verb::Create, "init (create, not start)", Target::NONE),
    (Verb::Delete, "delete, stopped", Target::NONE),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Launch,
    Lease,
    Exec,
    SnapshotRunning,
    List,
    Stop,
    Snapshot,
    Restore,
    Copy,
    Start,
    Create,
    Delete,
}

/// Measures every verb, once in each round.
pub fn measure(table: &mut Table, contenders: &[Contender], image: Image, rounds: usize) {
    let mut lives: Vec<Life<'_>> = contenders.iter().map(|contender| Life::new(contender, image)).collect();
    for life in &mut lives {
        // The first of a pool may unpack the image into it, which is no part of a launch.
        life.rehearse();
    }
    for round in 0..rounds {
        for (verb, _, _) in VERBS {
            for turn in 0..lives.len() {
                // Who comes first changes, so that nobody always has the same one's writes to wait for.
                let turn = (turn + round) % lives.len();
                // Nor does anybody pay for what the others have left to be written.
                rustix::fs::sync();
                lives[turn].act(*verb, round);
            }
        }
        for life in &lives {
            life.clean(round);
        }
    }
    let titles: Vec<&str> = contenders.iter().map(|contender| contender.title.as_str()).collect();
    table.begin(&format!("{}, ms: median (least-most)", image.title), &titles);
    for (index, (_, title, target)) in VERBS.iter().enumerate() {
        let samples: Vec<Option<Sample>> = lives.iter().map(|life| Some(life.samples[index].clone())).collect();
        table.row(title, Shape::Spread, &samples, if image.targets { *target } else { Target::NONE });
    }
}

/// One contender's instances and figures.
struct Life<'a> {
    contender: &'a Contender,
    image: Image,
    launched: Instant,
    samples: Vec<Sample>,
}

impl<'a> Life<'a> {
    fn new(contender: &'a Contender, image: Image) -> Self {
        Self { contender, image, launched: Instant::now(), samples: vec![Sample::default(); VERBS.len()] }
    }

    fn rehearse(&mut self) {
        let name = self.contender.name(0);
        self.contender.timed(&format!("launch {} {name} {}", self.image.alias, self.contender.storage()));
        self.contender.leased(&name);
        self.settle(&name);
        self.contender.timed(&format!("delete --force {name}"));
    }

    /// Lets an instance that has just been started come to rest.
    fn settle(&self, name: &str) {
        if self.image.systemd {
            self.contender.settled(name);
        } else {
            self.contender.leased(name);
        }
    }

    fn act(&mut self, verb: Verb, round: usize) {
        let name = self.contender.name(round);
        let other = format!("{name}-other");
        let storage = self.contender.storage();
        let took = match verb {
            Verb::Launch => {
                self.launched = Instant::now();
                let took = self.contender.timed(&format!("launch {} {name} {storage}", self.image.alias));
                // Watched from here on, or the others' turns would be counted.
                let leased = self.contender.leased(&name) - self.launched;
                self.add(Verb::Lease, leased);
                self.settle(&name);
                took
            }
            Verb::Lease => return,
            Verb::Exec => self.contender.timed(&format!("exec {name} -- true")),
            Verb::SnapshotRunning => self.contender.timed(&format!("snapshot create {name} running")),
            Verb::List => self.contender.timed("list"),
            Verb::Stop => self.contender.timed(&format!("stop --force {name}")),
            Verb::Snapshot => self.contender.timed(&format!("snapshot create {name} stopped")),
            Verb::Restore => self.contender.timed(&format!("snapshot restore {name} stopped")),
            Verb::Copy => self.contender.timed(&format!("copy {name} {other} --instance-only")),
            Verb::Start => {
                let took = self.contender.timed(&format!("start {name}"));
                self.settle(&name);
                took
            }
            Verb::Create => {
                self.contender.timed(&format!("delete {other}"));
                self.contender.timed(&format!("create {} {other} {storage}", self.image.alias))
            }
            Verb::Delete => self.contender.timed(&format!("delete {other}")),
        };
        self.add(verb, took);
    }

    fn add(&mut self, verb: Verb, took: std::time::Duration) {
        let index = VERBS.iter().position(|(other, _, _)| *other == verb);
        if let Some(sample) = index.and_then(|index| self.samples.get_mut(index)) {
            sample.add(took);
        }
    }

    fn clean(&self, round: usize) {
        self.contender.timed(&format!("delete --force {}", self.contender.name(round)));
    }
}
