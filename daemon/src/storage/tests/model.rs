//! Random lives of volumes and snapshots against a model in memory. Also the generator of random changes to a tree.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};

use super::super::{Activity, Fingerprint, Kind as Driver, References, Snapshot, Volume};
use super::tree::{Kind, Node, Tree, capture};
use super::{Fixture, Mounted, cases, keep};

/// A change to a tree. One that makes no sense at that moment changes nothing.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Write(PathBuf, u8),
    MakeDirectory(PathBuf),
    MakeLink(PathBuf, u8),
    MakeFifo(PathBuf),
    /// With all below it.
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
    /// From what exists, chosen by number, into a directory that exists, chosen by number, under this name.
    Move(usize, usize, &'static str),
    /// What exists, chosen by number, with all below it.
    RemoveAny(usize),
    /// A file or a directory in a directory that exists, chosen by number.
    MakeIn(usize, &'static str, Option<u8>),
    SetMode(PathBuf, u32),
    SetXattr(PathBuf, u8),
}

pub(super) fn path() -> impl Strategy<Value = PathBuf> {
    vec(prop::sample::select(vec!["a", "b", "c"]), 1..=3).prop_map(|parts| parts.iter().collect())
}

pub(super) fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => (path(), any::<u8>()).prop_map(|(p, n)| Change::Write(p, n)),
        3 => path().prop_map(Change::MakeDirectory),
        1 => (path(), any::<u8>()).prop_map(|(p, n)| Change::MakeLink(p, n)),
        1 => path().prop_map(Change::MakeFifo),
        3 => path().prop_map(Change::Remove),
        5 => (path(), path()).prop_map(|(from, to)| Change::Rename(from, to)),
        1 => (path(), 0o400..0o1000u32).prop_map(|(p, m)| Change::SetMode(p, m)),
        1 => (path(), any::<u8>()).prop_map(|(p, n)| Change::SetXattr(p, n)),
        5 => moving_change(),
    ]
}

/// Changes that tend to be possible, and above all move directories about.
pub(super) fn moving_change() -> impl Strategy<Value = Change> {
    let (n, name) = (any::<usize>, || prop::sample::select(vec!["a", "b", "c", "d"]));
    prop_oneof![
        6 => (n(), n(), name()).prop_map(|(from, to, name)| Change::Move(from, to, name)),
        2 => n().prop_map(Change::RemoveAny),
        2 => (n(), name(), any::<Option<u8>>()).prop_map(|(dir, name, file)| Change::MakeIn(dir, name, file)),
    ]
}

/// A change that chooses by number, as one that names paths.
fn resolve(tree: &Model, change: &Change) -> Change {
    let any = |n: usize| tree.keys().nth(n % tree.len()).unwrap().clone();
    let directory = |n: usize| {
        let all: Vec<_> =
            tree.iter().filter(|(_, (kind, ..))| *kind == Kind::Directory).map(|(path, _)| path).collect();
        all[n % all.len()].clone()
    };
    match change {
        Change::Move(from, to, name) => Change::Rename(any(*from), directory(*to).join(name)),
        Change::RemoveAny(n) => Change::Remove(any(*n)),
        Change::MakeIn(dir, name, None) => Change::MakeDirectory(directory(*dir).join(name)),
        Change::MakeIn(dir, name, Some(data)) => Change::Write(directory(*dir).join(name), *data),
        other => other.clone(),
    }
}

/// The model's own idea of a tree: what matters to it of each entry.
pub(super) type Model = BTreeMap<PathBuf, (Kind, u32, BTreeMap<String, Vec<u8>>)>;

pub(super) fn model(tree: &Tree) -> Model {
    tree.iter().map(|(p, Node { kind, mode, xattrs, .. })| (p.clone(), (kind.clone(), *mode, xattrs.clone()))).collect()
}

/// Applies a change to the model; false when it makes no sense.
fn apply_to_model(tree: &mut Model, change: &Change) -> bool {
    let is_dir = |tree: &Model, path: &Path| tree.get(path).is_some_and(|(kind, ..)| *kind == Kind::Directory);
    let parent_is_dir = |tree: &Model, path: &Path| is_dir(tree, path.parent().unwrap());
    let below = |tree: &Model, path: &Path| tree.keys().filter(|p| p.starts_with(path)).cloned().collect::<Vec<_>>();
    let make = |tree: &mut Model, path: &Path, kind, mode| {
        let possible = parent_is_dir(tree, path) && !tree.contains_key(path);
        if possible {
            tree.insert(path.to_owned(), (kind, mode, BTreeMap::new()));
        }
        possible
    };
    match change {
        Change::Write(path, n) => {
            let data = content(*n);
            match tree.get_mut(path) {
                Some((Kind::File(old), ..)) => {
                    *old = data;
                    true
                }
                Some(_) => false,
                None => make(tree, path, Kind::File(data), 0o644),
            }
        }
        Change::MakeDirectory(path) => make(tree, path, Kind::Directory, 0o755),
        Change::MakeLink(path, n) => make(tree, path, Kind::Link(format!("to{n}").into()), 0o777),
        Change::MakeFifo(path) => make(tree, path, Kind::Fifo, 0o600),
        Change::Move(..) | Change::RemoveAny(_) | Change::MakeIn(..) => unreachable!("resolved before"),
        Change::Remove(path) if path.as_os_str().is_empty() => false,
        Change::Remove(path) => {
            let gone = below(tree, path);
            gone.iter().for_each(|p| drop(tree.remove(p)));
            !gone.is_empty()
        }
        Change::Rename(from, to) => {
            let replaces = match (tree.get(from), tree.get(to)) {
                (Some(_), None) => true,
                (Some((one, ..)), Some((other, ..))) => *one != Kind::Directory && *other != Kind::Directory,
                (None, _) => false,
            };
            if !replaces || from == to || to.starts_with(from) || !parent_is_dir(tree, to) {
                return false;
            }
            for path in below(tree, from) {
                let node = tree.remove(&path).unwrap();
                let rest = path.strip_prefix(from).unwrap();
                tree.insert(if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) }, node);
            }
            true
        }
        Change::SetMode(path, mode) => match tree.get_mut(path) {
            Some((Kind::Directory | Kind::File(_) | Kind::Fifo, old, _)) => {
                *old = *mode;
                true
            }
            _ => false,
        },
        Change::SetXattr(path, n) => match tree.get_mut(path) {
            Some((Kind::Directory | Kind::File(_), _, xattrs)) => {
                xattrs.insert("user.test".into(), vec![*n; 9]);
                true
            }
            _ => false,
        },
    }
}

fn content(n: u8) -> Vec<u8> {
    vec![n; usize::from(n) * 40]
}

/// Applies a change to a real tree that the model says is possible there.
fn apply_to_disk(root: &Path, change: &Change) {
    match change {
        Change::Write(path, n) => {
            let fresh = !root.join(path).exists();
            fs::write(root.join(path), content(*n)).unwrap();
            if fresh {
                fs::set_permissions(root.join(path), fs::Permissions::from_mode(0o644)).unwrap();
            }
        }
        Change::MakeDirectory(path) => {
            fs::create_dir(root.join(path)).unwrap();
            fs::set_permissions(root.join(path), fs::Permissions::from_mode(0o755)).unwrap();
        }
        Change::MakeLink(path, n) => std::os::unix::fs::symlink(format!("to{n}"), root.join(path)).unwrap(),
        Change::MakeFifo(path) => {
            mknodat(CWD, root.join(path), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        }
        Change::Remove(path) => {
            let root = fs::File::open(root).unwrap();
            let name = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
            duet_sys::tree::remove_tree(std::os::fd::AsFd::as_fd(&root), &name).unwrap();
        }
        Change::Move(..) | Change::RemoveAny(_) | Change::MakeIn(..) => unreachable!("resolved before"),
        Change::Rename(from, to) => fs::rename(root.join(from), root.join(to)).unwrap(),
        Change::SetMode(path, mode) => {
            fs::set_permissions(root.join(path), fs::Permissions::from_mode(*mode)).unwrap();
        }
        Change::SetXattr(path, n) => {
            lsetxattr(root.join(path), "user.test", &[*n; 9], XattrFlags::empty()).unwrap();
        }
    }
}

/// Applies a change to both.
pub(super) fn apply(root: &Path, tree: &mut Model, change: &Change) {
    let change = resolve(tree, change);
    if apply_to_model(tree, &change) {
        apply_to_disk(root, &change);
    }
}

/// A step in the lives of some volumes and snapshots, which are chosen by number, modulo how many there are.
#[derive(Debug, Clone)]
enum Step {
    Create { from_image: bool },
    Start(usize),
    Stop(usize),
    Change(usize, Vec<Change>),
    Snapshot(usize),
    Copy(usize),
    CopySnapshot(usize),
    Restore { volume: usize, snapshot: usize },
    Compact(usize),
    Delete(usize),
    DeleteSnapshot(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let n = any::<usize>;
    prop_oneof![
        1 => any::<bool>().prop_map(|from_image| Step::Create { from_image }),
        2 => n().prop_map(Step::Start),
        2 => n().prop_map(Step::Stop),
        8 => (n(), vec(change(), 1..8)).prop_map(|(v, changes)| Step::Change(v, changes)),
        5 => n().prop_map(Step::Snapshot),
        2 => n().prop_map(Step::Copy),
        2 => n().prop_map(Step::CopySnapshot),
        3 => (n(), n()).prop_map(|(volume, snapshot)| Step::Restore { volume, snapshot }),
        2 => n().prop_map(Step::Compact),
        1 => n().prop_map(Step::Delete),
        2 => n().prop_map(Step::DeleteSnapshot),
    ]
}

struct Live {
    volume: Volume,
    model: Model,
    /// While it "runs".
    mounted: Option<Mounted>,
}

/// What the inventory would hold, with what each should show.
struct World {
    fixture: Fixture,
    image: Fingerprint,
    volumes: Vec<Live>,
    snapshots: Vec<(Snapshot, Model)>,
}

impl World {
    fn new(kind: Driver) -> Self {
        let fixture = Fixture::folding_above(kind, 3);
        let image = fixture.image();
        let mut world = Self { fixture, image, volumes: Vec::new(), snapshots: Vec::new() };
        world.step(&Step::Create { from_image: true });
        world
    }

    fn step(&mut self, step: &Step) {
        let pool = self.fixture.pool.clone();
        let volume_of = |index: &usize| (!self.volumes.is_empty()).then(|| index % self.volumes.len());
        let snapshot_of = |index: &usize| (!self.snapshots.is_empty()).then(|| index % self.snapshots.len());
        match step {
            Step::Create { from_image } => {
                let volume = keep(pool.volume_create(from_image.then_some(&self.image)));
                let model = model(&capture(&self.fixture.mount(&volume).path("")));
                self.volumes.push(Live { volume, model, mounted: None });
            }
            Step::Start(index) => {
                let Some(index) = volume_of(index) else { return };
                if self.volumes[index].mounted.is_none() {
                    self.volumes[index].mounted = Some(self.fixture.mount(&self.volumes[index].volume));
                }
            }
            Step::Stop(index) => {
                let Some(index) = volume_of(index) else { return };
                self.volumes[index].mounted = None;
            }
            Step::Change(index, changes) => {
                let Some(index) = volume_of(index) else { return };
                let live = &mut self.volumes[index];
                let stopped;
                let root = match &live.mounted {
                    Some(root) => root,
                    None => {
                        stopped = self.fixture.mount(&live.volume);
                        &stopped
                    }
                };
                changes.iter().for_each(|change| apply(&root.path(""), &mut live.model, change));
            }
            Step::Snapshot(index) => {
                let Some(index) = volume_of(index) else { return };
                let live = &mut self.volumes[index];
                let taken = keep(pool.snapshot_create(&live.volume, activity(live)));
                live.volume = taken.source;
                self.snapshots.push((taken.taken, live.model.clone()));
            }
            Step::Copy(index) => {
                let Some(index) = volume_of(index) else { return };
                let live = &mut self.volumes[index];
                let taken = keep(pool.volume_copy(&live.volume, activity(live)));
                live.volume = taken.source;
                let model = live.model.clone();
                self.volumes.push(Live { volume: taken.taken, model, mounted: None });
            }
            Step::CopySnapshot(index) => {
                let Some(index) = snapshot_of(index) else { return };
                let (snapshot, model) = &self.snapshots[index];
                let volume = keep(pool.volume_from_snapshot(snapshot));
                self.volumes.push(Live { volume, model: model.clone(), mounted: None });
            }
            Step::Restore { volume, snapshot } => {
                let (Some(volume), Some(snapshot)) = (volume_of(volume), snapshot_of(snapshot)) else { return };
                let (snapshot, model) = &self.snapshots[snapshot];
                let restored = keep(pool.volume_from_snapshot(snapshot));
                self.volumes[volume] = Live { volume: restored, model: model.clone(), mounted: None };
            }
            Step::Compact(index) => {
                let Some(index) = volume_of(index) else { return };
                if self.volumes[index].mounted.is_some() {
                    return;
                }
                let mut others = References::new();
                let others_volumes = self.volumes.iter().enumerate().filter(|(other, _)| *other != index);
                others_volumes.for_each(|(_, live)| others.add_volume(&live.volume));
                self.snapshots.iter().for_each(|(snapshot, _)| others.add_snapshot(snapshot));
                if let Some(made) = pool.volume_compact(&self.volumes[index].volume, &others).unwrap() {
                    assert!(made.lowers.len() < self.volumes[index].volume.lowers.len());
                    self.volumes[index].volume = made.keep();
                }
            }
            Step::Delete(index) => {
                let Some(index) = volume_of(index) else { return };
                self.volumes.swap_remove(index);
            }
            Step::DeleteSnapshot(index) => {
                let Some(index) = snapshot_of(index) else { return };
                self.snapshots.swap_remove(index);
            }
        }
        self.collect();
    }

    /// Removes what nothing needs, and checks that exactly that is gone.
    fn collect(&self) {
        let survey = self.fixture.pool.survey();
        let mut needed = References::new();
        needed.add_image(&self.image);
        self.volumes.iter().for_each(|live| needed.add_volume(&live.volume));
        self.snapshots.iter().for_each(|(snapshot, _)| needed.add_snapshot(snapshot));
        survey.sweep(&needed).unwrap().empty().unwrap();
        let volumes = self.volumes.iter().flat_map(|live| live.volume.layers());
        let snapshots = self.snapshots.iter().flat_map(|(snapshot, _)| snapshot.layers());
        let mut layers: Vec<String> = volumes.chain(snapshots).map(|layer| layer.to_string()).collect();
        layers.sort();
        layers.dedup();
        assert_eq!(self.fixture.layers_on_disk(), layers);
        assert_eq!(self.fixture.temporary(), Vec::<String>::new());
    }

    fn verify(&self) {
        for live in &self.volumes {
            assert!(live.volume.lowers.len() <= 3, "{:?}", live.volume);
            let fresh;
            let root = match &live.mounted {
                Some(root) => root,
                None => {
                    fresh = self.fixture.mount(&live.volume);
                    &fresh
                }
            };
            assert_eq!(model(&capture(&root.path(""))), live.model, "{:?}", live.volume);
        }
        for (snapshot, expected) in &self.snapshots {
            assert!(snapshot.lowers.len() <= 4, "{snapshot:?}");
            let root = self.fixture.mount_snapshot(snapshot);
            assert_eq!(&model(&capture(&root.path(""))), expected, "{snapshot:?}");
        }
    }
}

fn activity(live: &Live) -> Activity {
    if live.mounted.is_some() { Activity::Running } else { Activity::Stopped }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(24), max_shrink_iters: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn overlay_volumes_and_snapshots_show_what_was_written(steps in vec(step(), 1..40)) {
        live(Driver::Overlay, &steps);
    }
}

proptest! {
    // Each step commits transactions to a loop device.
    #![proptest_config(ProptestConfig { cases: cases(6), max_shrink_iters: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn btrfs_volumes_and_snapshots_show_what_was_written(steps in vec(step(), 1..40)) {
        live(Driver::Btrfs, &steps);
    }
}

fn live(kind: Driver, steps: &[Step]) {
    let mut world = World::new(kind);
    for step in steps {
        world.step(step);
        world.verify();
    }
}
