//! The policy of a pool: see the module's documentation for chains and for the order of changes.
//!
//! # How long a chain may grow
//!
//! Each layer makes every lookup of an absent name a little dearer, and kernels before 6.5 take all layers in one
//! mount option of bounded size. So a chain that would grow past [`Capabilities::fold_above`] is folded: its layers
//! above the image become one new layer that shows the same. Folding costs what changed since the image, never the
//! image's own size, and happens once in so many snapshots. What cannot be folded (see [`Error::Unfoldable`]) is
//! copied instead, which keeps the volume's own chain as it is.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::btrfs::Btrfs;
use super::driver::{Below, Capabilities, Chain, Driver, Files, Purpose};
use super::made::{Hold, Made, Survey, Trash};
use super::overlay::Overlay;
use super::pins::Pins;
use super::value::{Fingerprint, LayerId, Object, References, Resources, RootSource, Snapshot, Usage, Volume};
use super::zfs::Zfs;
use super::{Backing, Error, Kind, Result};

/// Whether something writes to a volume right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Nothing has it mounted: its upper layer can be frozen.
    Stopped,
    /// It is mounted: its upper layer stays where it is and is copied. For a copy of one instant, freeze the
    /// instance's processes for the duration of the call.
    Running,
}

/// A snapshot or copy, and what became of the volume it was taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken<T> {
    /// The volume as it is now. Commit it together with what was taken: its old upper may be frozen. If its chain was
    /// folded, layers of the old value are needed no more: discard its objects.
    pub source: Volume,
    /// The snapshot or the new volume.
    pub taken: T,
}

/// A storage pool. Cheap to clone; every method may be called from any thread and blocks.
#[derive(Debug, Clone)]
pub struct Pool(Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) driver: Box<dyn Driver>,
    pub(super) pins: Pins,
    /// Sizes of what never changes any more. Forgotten with the object.
    sizes: Mutex<HashMap<Object, u64>>,
}

impl Pool {
    /// Makes a pool on what was made for it (a directory is created if needed), after trying whether its filesystem can
    /// hold one. On an existing pool this only repeats the check.
    pub fn create(kind: Kind, on: &Backing) -> Result<Self> {
        let directory = on.directory();
        Ok(match (kind, on.dataset()) {
            (Kind::Overlay, _) => Self::over(Box::new(Overlay::create(directory)?)),
            (Kind::Btrfs, _) => Self::over(Box::new(Btrfs::create(directory)?)),
            (Kind::Zfs, dataset) => Self::over(Box::new(Zfs::create(directory, require_dataset(dataset, on)?)?)),
        })
    }

    /// Opens a pool and finds what an earlier process left half-done in it: empty the trash when convenient, then
    /// [`Pool::survey`] and [`Survey::sweep`].
    pub fn open(kind: Kind, on: &Backing) -> Result<(Self, Trash)> {
        let directory = on.directory();
        let pool = match (kind, on.dataset()) {
            (Kind::Overlay, _) => Self::over(Box::new(Overlay::open(directory)?)),
            (Kind::Btrfs, _) => Self::over(Box::new(Btrfs::open(directory)?)),
            (Kind::Zfs, dataset) => Self::over(Box::new(Zfs::open(directory, require_dataset(dataset, on)?)?)),
        };
        let leftovers = pool.0.driver.leftovers()?;
        let trash = Trash::new(Arc::clone(&pool.0), leftovers);
        Ok((pool, trash))
    }

    pub(super) fn over(driver: Box<dyn Driver>) -> Self {
        Self(Arc::new(Inner { driver, pins: Pins::default(), sizes: Mutex::default() }))
    }

    /// The driver's name in the API.
    pub fn driver(&self) -> &'static str {
        self.0.driver.name()
    }

    /// The pool's directory.
    pub fn directory(&self) -> &Path {
        self.0.driver.directory()
    }

    /// What the pool can do.
    pub fn capabilities(&self) -> Capabilities {
        self.0.driver.capabilities()
    }

    /// The room that is left.
    pub fn resources(&self) -> Result<Resources> {
        self.0.driver.resources()
    }

    /// Flushes the pool's filesystem (`syncfs`). It waits for everybody's writes there, so not while an instance is
    /// frozen.
    pub fn sync(&self) -> Result<()> {
        self.0.driver.sync()
    }

    /// Begins a removal: open it before reading the references from the inventory.
    pub fn survey(&self) -> Survey {
        Survey::new(Arc::clone(&self.0))
    }

    /// Adds an image by calling `unpack` with an empty private directory on the pool's filesystem, in which it is to
    /// make `rootfs/` and whatever else belongs to the image. Then everything is flushed and gets its name at once.
    ///
    /// Not called, and `None`, when the pool has the image already. When the caller fails to commit, the image stays
    /// until it is discarded like any other.
    pub fn image_add<T, E: From<Error>>(
        &self,
        image: &Fingerprint,
        unpack: impl FnOnce(&Path) -> Result<T, E>,
    ) -> Result<Made<Option<T>>, E> {
        let mut hold = Hold::on(&self.0, Vec::new())?;
        let object = Object::Image(image.clone());
        hold.also(object.clone());
        if self.0.driver.exists(&object)? {
            return Ok(Made::new(None, hold));
        }
        let stage = self.0.driver.image_stage()?;
        let mut guard = Trash::new(Arc::clone(&self.0), vec![stage.clone()]);
        let unpacked = unpack(&stage)?;
        self.0.driver.image_publish(&stage, image).map_err(|error| self.0.locate(error))?;
        guard.disarm();
        Ok(Made::new(Some(unpacked), hold))
    }

    /// Whether the pool has the image.
    pub fn has_image(&self, image: &Fingerprint) -> Result<bool> {
        self.0.driver.exists(&Object::Image(image.clone()))
    }

    /// Where an image is (or would be): `rootfs/` in it, and what else `unpack` made. Read-only.
    pub fn image_dir(&self, image: &Fingerprint) -> PathBuf {
        self.0.driver.image_dir(image)
    }

    /// A new volume: an image unchanged, or empty.
    pub fn volume_create(&self, image: Option<&Fingerprint>) -> Result<Made<Volume>> {
        let hold = Hold::on(&self.0, image.cloned().map(Object::Image).into_iter().collect())?;
        self.finish(hold, |hold| {
            let upper = self.layer(hold, image, &[])?;
            Ok(Volume { image: image.cloned(), lowers: Vec::new(), upper })
        })
    }

    /// A second volume with the same contents. Of a stopped one this shares all layers; of a running one, the upper
    /// layer is copied.
    pub fn volume_copy(&self, source: &Volume, activity: Activity) -> Result<Made<Taken<Volume>>> {
        let hold = Hold::on(&self.0, source.objects())?;
        self.finish(hold, |hold| {
            if activity == Activity::Running || !self.capabilities().stacked {
                let upper = self.copy(hold, source.upper, Purpose::Upper)?;
                return Ok(Taken { source: source.clone(), taken: Volume { upper, ..source.clone() } });
            }
            let (source, lowers) = self.freeze(hold, source)?;
            let volume = self.stand_on(hold, source.image.as_ref(), lowers)?;
            Ok(Taken { source, taken: volume })
        })
    }

    /// A snapshot. Of a stopped volume, its upper layer becomes a frozen one under a new one; of a running one, the
    /// upper layer is copied.
    pub fn snapshot_create(&self, source: &Volume, activity: Activity) -> Result<Made<Taken<Snapshot>>> {
        let hold = Hold::on(&self.0, source.objects())?;
        self.finish(hold, |hold| {
            let (source, lowers) = if activity == Activity::Running || !self.capabilities().stacked {
                self.copy_frozen(hold, source)?
            } else {
                self.freeze(hold, source)?
            };
            let snapshot = Snapshot { image: source.image.clone(), lowers };
            Ok(Taken { source, taken: snapshot })
        })
    }

    /// A volume with a snapshot's contents: a copy of the snapshot as a new instance, or, committed in the place of
    /// the instance's own volume (which is discarded afterwards), its restoration.
    pub fn volume_from_snapshot(&self, snapshot: &Snapshot) -> Result<Made<Volume>> {
        let hold = Hold::on(&self.0, snapshot.objects())?;
        self.finish(hold, |hold| self.stand_on(hold, snapshot.image.as_ref(), snapshot.lowers.clone()))
    }

    /// The same volume with fewer layers: runs of layers that nothing else needs (`others` are the references of all but
    /// this volume) become one each, and what later layers had overwritten in them is freed. Worth calling after a
    /// snapshot was deleted. None when there is no such run. The volume is stopped; commit the new value in the place of
    /// the old one and discard the old one's objects.
    ///
    /// Files are linked, not copied, those of the upper layer too. So until the old layers are gone, nobody may read
    /// them who must not see what the volume writes: hold the instance, and with it all that its snapshots are made
    /// of, from before `others` are counted.
    pub fn volume_compact(&self, volume: &Volume, others: &References) -> Result<Option<Made<Volume>>> {
        let hold = Hold::on(&self.0, volume.objects())?;
        let is_own = |layer: &LayerId| !others.contains(&Object::Layer(*layer));
        let layers: Vec<LayerId> = volume.layers().collect();
        let runs: Vec<&[LayerId]> = layers.chunk_by(|one, next| is_own(one) && is_own(next)).collect();
        if !self.capabilities().stacked || runs.iter().all(|run| run.len() < 2) {
            return Ok(None);
        }
        let made = self.finish(hold, |hold| {
            let mut compact = Vec::with_capacity(runs.len());
            for run in runs {
                match run {
                    [one] => compact.push(*one),
                    run => match self.fold(hold, run, Files::Link) {
                        Err(Error::Unfoldable { .. }) => compact.extend_from_slice(run),
                        folded => compact.push(folded?),
                    },
                }
            }
            let upper = compact.pop().unwrap_or(volume.upper);
            Ok(Volume { image: volume.image.clone(), lowers: compact, upper })
        })?;
        Ok((*made != *volume).then_some(made))
    }

    /// Removes the pool with all that is in it. No instance or snapshot is left in it.
    pub fn delete(self) -> Result<()> {
        self.survey().sweep(&References::new())?.empty()?;
        self.0.driver.remove()
    }

    /// Whether sizes of volumes are enforced here. The error says why not.
    pub fn quota(&self) -> Result<()> {
        self.0.driver.quota()
    }

    /// Limits a volume to so many bytes, from now on and whatever has it mounted; `None` takes the limit away. What was
    /// written and not flushed (see [`Pool::sync`]) may not count yet.
    ///
    /// # Errors
    /// [`Error::TooSmall`] where there is more in it already, [`Error::NoQuota`] where no size is enforced.
    pub fn volume_limit(&self, volume: &Volume, size: Option<u64>) -> Result<()> {
        if let Some(asked) = size {
            self.quota()?;
            let used = self.volume_counted(volume)?;
            if used > asked {
                return Err(Error::TooSmall { asked, used });
            }
        }
        self.limit(volume, size)
    }

    /// The bytes that count against a volume's size, as of some seconds ago: of its own layers, or, where a layer is
    /// a whole filesystem, of all that it shows.
    pub fn volume_counted(&self, volume: &Volume) -> Result<u64> {
        Ok(self.frozen_part(volume)? + self.0.driver.counted(volume.upper)?)
    }

    fn limit(&self, volume: &Volume, size: Option<u64>) -> Result<()> {
        let left = match size {
            Some(size) => Some(size.saturating_sub(self.frozen_part(volume)?)),
            None => None,
        };
        self.0.driver.limit(volume.upper, left)
    }

    /// What of a volume's size its frozen layers take.
    fn frozen_part(&self, volume: &Volume) -> Result<u64> {
        volume.lowers.iter().map(|layer| self.0.frozen_size(&Object::Layer(*layer))).sum()
    }

    /// Removes what [`Pool::create`] made, unless there is something in it.
    pub fn abandon(self) {
        if let Err(error) = self.0.driver.remove() {
            tracing::warn!(%error, "a storage pool's empty directories stay behind");
        }
    }

    /// How the runtime mounts a volume, which is limited to so many bytes from then on. Fails when any of its layers is
    /// missing.
    pub fn volume_root(&self, volume: &Volume, size: Option<u64>) -> Result<RootSource> {
        volume.objects().iter().try_for_each(|object| self.0.require(object))?;
        self.limit(volume, size)?;
        let chain = Chain { image: volume.image.as_ref(), lowers: &volume.lowers, upper: Some(volume.upper) };
        self.0.driver.root(chain)
    }

    /// How a snapshot is mounted, read-only by nature. Fails when any of its layers is missing.
    pub fn snapshot_root(&self, snapshot: &Snapshot) -> Result<RootSource> {
        snapshot.objects().iter().try_for_each(|object| self.0.require(object))?;
        self.0.driver.root(Chain { image: snapshot.image.as_ref(), lowers: &snapshot.lowers, upper: None })
    }

    /// What a volume occupies. `others` are the references of everything that should make a layer count as shared:
    /// for an instance, of all but itself and its own snapshots.
    pub fn volume_usage(&self, volume: &Volume, others: &References) -> Result<Usage> {
        let mut usage =
            self.usage(Snapshot { image: volume.image.clone(), lowers: volume.lowers.clone() }.objects(), others)?;
        let own = self.0.driver.size(&Object::Layer(volume.upper))?;
        usage.own += own;
        if !self.capabilities().stacked {
            // The image is in it.
            usage.shared = self.0.driver.counted(volume.upper)?.saturating_sub(own);
        }
        Ok(usage)
    }

    /// What a snapshot occupies. `others` are the references of all but this snapshot.
    pub fn snapshot_usage(&self, snapshot: &Snapshot, others: &References) -> Result<Usage> {
        self.usage(snapshot.objects(), others)
    }

    fn usage(&self, frozen: Vec<Object>, others: &References) -> Result<Usage> {
        let mut usage = Usage::default();
        for object in frozen {
            let size = self.0.frozen_size(&object)?;
            let shared = matches!(object, Object::Image(_)) || others.contains(&object);
            *(if shared { &mut usage.shared } else { &mut usage.own }) += size;
        }
        Ok(usage)
    }

    fn finish<T>(&self, mut hold: Hold, make: impl FnOnce(&mut Hold) -> Result<T>) -> Result<Made<T>> {
        match make(&mut hold) {
            Ok(value) => Ok(Made::new(value, hold)),
            Err(error) => Err(self.0.locate(error)),
        }
    }

    /// The volume with its upper frozen, and the chain that shows its present contents. The volume is stopped.
    fn freeze(&self, hold: &mut Hold, volume: &Volume) -> Result<(Volume, Vec<LayerId>)> {
        let image = volume.image.as_ref();
        if self.0.driver.layer_is_unchanged(volume.upper, below(image, &volume.lowers))? {
            return Ok((volume.clone(), volume.lowers.clone()));
        }
        let all: Vec<LayerId> = volume.layers().collect();
        let lowers = match self.bounded(hold, &all) {
            Err(Error::Unfoldable { .. }) => return self.copy_frozen(hold, volume),
            lowers => lowers?,
        };
        let upper = self.layer(hold, image, &lowers)?;
        Ok((Volume { image: volume.image.clone(), lowers: lowers.clone(), upper }, lowers))
    }

    /// The volume as it is, and the chain that shows its present contents by a copy of its upper.
    fn copy_frozen(&self, hold: &mut Hold, volume: &Volume) -> Result<(Volume, Vec<LayerId>)> {
        let copy = self.copy(hold, volume.upper, Purpose::Frozen)?;
        Ok((volume.clone(), volume.lowers.iter().copied().chain([copy]).collect()))
    }

    /// A new volume over a frozen chain.
    fn stand_on(&self, hold: &mut Hold, image: Option<&Fingerprint>, lowers: Vec<LayerId>) -> Result<Volume> {
        let capabilities = self.capabilities();
        if !capabilities.stacked {
            let upper = self.layer(hold, image, &lowers)?;
            return Ok(Volume { image: image.cloned(), lowers: Vec::new(), upper });
        }
        let lowers = match self.bounded(hold, &lowers) {
            Err(error @ Error::Unfoldable { .. }) if lowers.len() > capabilities.max_depth => {
                return Err(Error::ChainTooLong { depth: lowers.len(), source: Box::new(error) });
            }
            Err(Error::Unfoldable { .. }) => lowers,
            bounded => bounded?,
        };
        let upper = self.layer(hold, image, &lowers)?;
        Ok(Volume { image: image.cloned(), lowers, upper })
    }

    /// The same chain, folded into one layer when it is too long.
    fn bounded(&self, hold: &mut Hold, lowers: &[LayerId]) -> Result<Vec<LayerId>> {
        if lowers.len() <= self.capabilities().fold_above {
            return Ok(lowers.to_vec());
        }
        Ok(vec![self.fold(hold, lowers, Files::Copy)?])
    }

    fn fold(&self, hold: &mut Hold, layers: &[LayerId], files: Files) -> Result<LayerId> {
        let folded = LayerId::fresh();
        hold.creating(Object::Layer(folded));
        self.0.driver.layer_fold(folded, layers, files)?;
        Ok(folded)
    }

    fn layer(&self, hold: &mut Hold, image: Option<&Fingerprint>, lowers: &[LayerId]) -> Result<LayerId> {
        let layer = LayerId::fresh();
        hold.creating(Object::Layer(layer));
        self.0.driver.layer_create(layer, below(image, lowers))?;
        Ok(layer)
    }

    fn copy(&self, hold: &mut Hold, from: LayerId, purpose: Purpose) -> Result<LayerId> {
        let layer = LayerId::fresh();
        hold.creating(Object::Layer(layer));
        self.0.driver.layer_copy(layer, from, purpose)?;
        Ok(layer)
    }
}

fn require_dataset<'a>(dataset: Option<&'a str>, on: &Backing) -> Result<&'a str> {
    dataset.ok_or_else(|| Error::NoPool { path: on.directory().to_owned() })
}

fn below<'a>(image: Option<&'a Fingerprint>, lowers: &[LayerId]) -> Below<'a> {
    match (lowers.last(), image) {
        (Some(layer), _) => Below::Layer(*layer),
        (None, Some(image)) => Below::Image(image),
        (None, None) => Below::Nothing,
    }
}

impl Inner {
    /// Fails with a sentence of its own when the object is gone.
    pub(super) fn require(&self, object: &Object) -> Result<()> {
        if self.driver.exists(object)? {
            return Ok(());
        }
        let pool = self.driver.directory().to_owned();
        Err(match object {
            Object::Image(image) => Error::MissingImage { pool, image: image.clone() },
            Object::Layer(layer) => Error::MissingLayer { pool, layer: *layer },
        })
    }

    pub(super) fn retire(&self, object: &Object) -> Result<Option<PathBuf>> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner).remove(object);
        self.driver.retire(object)
    }

    /// Two threads may measure the same object at once, to the same result.
    fn frozen_size(&self, object: &Object) -> Result<u64> {
        if !self.driver.capabilities().stacked {
            // What it shares with no other grows as others go.
            return self.driver.size(object);
        }
        let known = self.sizes.lock().unwrap_or_else(PoisonError::into_inner).get(object).copied();
        if let Some(size) = known {
            return Ok(size);
        }
        let size = self.driver.size(object)?;
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner).insert(object.clone(), size);
        Ok(size)
    }

    fn locate(&self, error: Error) -> Error {
        error.in_pool(self.driver.directory())
    }
}
