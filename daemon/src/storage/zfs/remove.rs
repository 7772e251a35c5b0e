//! Removing datasets whose snapshots others stand on.
//!
//! A clone needs the snapshot that it was made of, and so the dataset that has this snapshot. zfs-promote(8) turns the
//! two around: the clone takes over the snapshot and all older ones, and the other dataset becomes its clone, which can
//! be destroyed. So what goes is freed at once, however many stand on it.
//!
//! In a pool of Duet's a snapshot of a layer is there for the clones of it alone: with the last of them it goes.

use super::super::{Error, LayerId, Result};
use super::programs::{is_absent, properties, table, unless_busy, zfs};

/// How often it is begun anew, since somebody took a snapshot meanwhile, or a clone lost its name.
const ATTEMPTS: usize = 20;

/// Destroys a dataset, with the snapshots of it that nothing stands on. One that is gone is no error. Where `is_layer`
/// knows the dataset that it was cloned of, the snapshot there goes with the last clone.
pub(super) fn dataset(name: &str, is_layer: impl Fn(&str) -> bool) -> Result<()> {
    let mut attempts = ATTEMPTS;
    let origin = loop {
        make_way(name)?;
        let Some([origin]) = properties(["origin"], name)? else { return Ok(()) };
        match unless_busy(|| zfs(&["destroy", name])) {
            Err(Error::Zfs { said, .. }) if said.contains(&format!("{name}@")) && attempts > 0 => attempts -= 1,
            destroyed => break destroyed.map(|_| origin)?,
        }
    };
    match origin.split_once('@') {
        Some((below, _)) if is_layer(below) => destroy_snapshot(&origin),
        _ => Ok(()),
    }
}

/// Takes a dataset's snapshots away: those with clones go to one of these, the others are destroyed. A clone that loses
/// its name meanwhile, since it is to be removed as well, is found by its next.
fn make_way(name: &str) -> Result<()> {
    const LIST: [&str; 11] = ["list", "-H", "-p", "-t", "snapshot", "-d", "1", "-s", "createtxg", "-o", "name,clones"];
    let mut attempts = ATTEMPTS;
    loop {
        let listed = match zfs(&[&LIST[..], &[name]].concat()) {
            Err(error) if is_absent(&error) => return Ok(()),
            listed => listed?,
        };
        let snapshots = table::<2>(&listed)?;
        // An administrator's own, of a tool that makes them by the clock, may be called the same in several datasets, and
        // then could not be taken over.
        for [snapshot, _] in snapshots.iter().filter(|[_, clones]| first_clone(clones).is_none()) {
            destroy_snapshot(snapshot)?;
        }
        match snapshots.iter().rev().find_map(|[_, clones]| first_clone(clones)) {
            None => return Ok(()),
            Some(clone) => match zfs(&["promote", clone]) {
                Err(error) if is_absent(&error) && attempts > 0 => attempts -= 1,
                promoted => promoted.map(drop)?,
            },
        }
    }
}

/// Destroys a snapshot as soon as no clone of it is left (zfs-destroy(8), -d).
pub(super) fn destroy_snapshot(name: &str) -> Result<()> {
    match zfs(&["destroy", "-d", name]) {
        Err(error) if is_absent(&error) => Ok(()),
        destroyed => destroyed.map(drop),
    }
}

/// Destroys snapshots of layers that no clone was made of: one of a process that was killed between the two.
pub(super) fn unused_snapshots(layers: &str) -> Result<()> {
    let all = zfs(&["list", "-H", "-p", "-t", "snapshot", "-r", "-o", "name,clones", layers])?;
    for [snapshot, clones] in table::<2>(&all)? {
        let own = snapshot.split_once('@').is_some_and(|(_, name)| LayerId::from_file_name(name).is_some());
        if own && first_clone(clones).is_none() {
            destroy_snapshot(snapshot)?;
        }
    }
    Ok(())
}

/// The first of a comma list (zfsprops(7), `clones`).
fn first_clone(clones: &str) -> Option<&str> {
    clones.split(',').next().filter(|clone| !clone.is_empty() && *clone != "-")
}

#[cfg(test)]
mod tests {
    use super::first_clone;

    #[test]
    fn clones_of_a_snapshot() {
        assert_eq!(first_clone("tank/a,tank/b"), Some("tank/a"));
        assert_eq!((first_clone(""), first_clone("-")), (None, None));
    }
}
