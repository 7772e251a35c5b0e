//! What a kind of pool must be able to do.
//!
//! A driver knows layers and images by name and decides nothing: no chain, no snapshot, no reference count. Its
//! methods are idempotent where they can be, make things visible only when they are whole, and leave nothing behind
//! when they fail.

use std::fmt;
use std::path::{Path, PathBuf};

use super::Result;
use super::value::{Fingerprint, LayerId, Object, Resources, RootSource};

/// How a driver differs from another, for the policy above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// A layer holds only what differs from the chain below, so the chain stays needed and freezing a layer is free.
    /// Where this is false a layer is a whole filesystem, chains have length one, and a snapshot is a copy.
    pub stacked: bool,
    /// Copying a layer shares its blocks (reflink, subvolume or dataset clone) and costs no space.
    pub shares_blocks: bool,
    /// Above this many layers a chain is folded before it grows.
    pub fold_above: usize,
    /// No chain may be longer than this, not even one that cannot be folded.
    pub max_depth: usize,
}

/// What lies directly under a new layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Below<'a> {
    /// Nothing: the new layer begins as an empty filesystem.
    Nothing,
    /// An image.
    Image(&'a Fingerprint),
    /// A frozen layer.
    Layer(LayerId),
}

/// A chain of frozen layers over an image, with or without a writable layer on top.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a> {
    /// The image at the bottom.
    pub image: Option<&'a Fingerprint>,
    /// Frozen layers, bottom first.
    pub lowers: &'a [LayerId],
    /// The writable layer.
    pub upper: Option<LayerId>,
}

/// How the files of folded layers get into the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// As copies: the old layers stay in use. Were they linked, programs that refuse files of several names (cron does,
    /// for its tables) would refuse theirs.
    Copy,
    /// As links, which costs no space: the old layers are about to go.
    Link,
}

/// What becomes of a copy of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It is the upper layer of a volume.
    Upper,
    /// It is never written to.
    Frozen,
}

/// One kind of pool.
pub trait Driver: Send + Sync + fmt::Debug {
    /// The driver's name in the API: `overlay`.
    fn name(&self) -> &'static str;

    /// The pool's directory.
    fn directory(&self) -> &Path;

    /// How it differs from the others, on this pool's filesystem.
    fn capabilities(&self) -> Capabilities;

    /// Makes a private directory (mode 0700) in which an image can be unpacked.
    fn image_stage(&self) -> Result<PathBuf>;

    /// Flushes a staged image and gives it its name. False when the pool had it already; the staged one is then gone.
    fn image_publish(&self, staged: &Path, image: &Fingerprint) -> Result<bool>;

    /// Where an image is.
    fn image_dir(&self, image: &Fingerprint) -> PathBuf;

    /// Makes a layer that shows exactly what is below it.
    fn layer_create(&self, layer: LayerId, below: Below<'_>) -> Result<()>;

    /// Makes a layer with the contents of another, which may be in use.
    fn layer_copy(&self, layer: LayerId, from: LayerId, purpose: Purpose) -> Result<()>;

    /// Makes one layer that shows, over anything, what these layers (bottom first) show over it. They are not written
    /// to meanwhile.
    fn layer_fold(&self, layer: LayerId, layers: &[LayerId], files: Files) -> Result<()>;

    /// Whether a layer shows exactly what is below it, so that freezing it would be pointless. May say false in doubt.
    fn layer_is_unchanged(&self, layer: LayerId, below: Below<'_>) -> Result<bool>;

    /// Whether a limit of a layer is enforced here. The error says why not.
    fn quota(&self) -> Result<()>;

    /// Limits how many bytes a layer may hold (where layers are whole filesystems, all that it shows), or takes that
    /// limit away. A limit below what it holds keeps it from growing.
    fn limit(&self, layer: LayerId, bytes: Option<u64>) -> Result<()>;

    /// The bytes of a layer that count against its limit, as of some seconds ago.
    fn counted(&self, layer: LayerId) -> Result<u64>;

    /// Whether the object is in the pool.
    fn exists(&self, object: &Object) -> Result<bool>;

    /// Every object in the pool.
    fn objects(&self) -> Result<Vec<Object>>;

    /// Takes an object's name away, at once and atomically. Returns what [`Driver::destroy`] needs; none when the pool
    /// had no such object.
    fn retire(&self, object: &Object) -> Result<Option<PathBuf>>;

    /// Frees what was retired. However large; interrupted, it can be repeated.
    fn destroy(&self, retired: &Path) -> Result<()>;

    /// What an earlier process left half-made or half-removed, in the form that [`Driver::destroy`] takes. Meant for the
    /// moment the pool is opened, before anything else is made.
    fn leftovers(&self) -> Result<Vec<PathBuf>>;

    /// Allocated bytes of an object, hard links counted once. It may be changing meanwhile. Where layers are whole
    /// filesystems: those that it shares with no other, as far as that is known.
    fn size(&self, object: &Object) -> Result<u64>;

    /// How the runtime mounts a chain.
    fn root(&self, chain: Chain<'_>) -> Result<RootSource>;

    /// Removes the pool, which holds nothing any more. Its directory itself goes only when nothing else is in it.
    fn remove(&self) -> Result<()>;

    /// The room that is left.
    fn resources(&self) -> Result<Resources>;

    /// Flushes the pool's filesystem.
    fn sync(&self) -> Result<()>;
}
