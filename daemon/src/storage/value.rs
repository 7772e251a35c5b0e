//! The values that the inventory keeps for this module, and the ones it gets back.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::Error;

pub use duet_container::rootfs::RootSource;

/// An image's name in the pool: its SHA-256 in 64 lower-case hexadecimal digits. Safe as a path component.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint(String);

impl Fingerprint {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The fingerprint of what this text describes wholly.
    pub fn of(description: &str) -> Self {
        Self(Sha256::digest(description).iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == 64 && text.bytes().all(digit) { Ok(Self(text)) } else { Err(Error::BadFingerprint(text)) }
    }
}

impl FromStr for Fingerprint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::try_from(text.to_owned())
    }
}

impl From<Fingerprint> for String {
    fn from(value: Fingerprint) -> Self {
        value.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A layer's name in the pool. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LayerId(Uuid);

impl LayerId {
    /// A name that no layer has yet.
    pub(super) fn fresh() -> Self {
        Self(Uuid::new_v4())
    }

    /// Reads a directory name; nothing else than the canonical spelling is taken.
    pub(super) fn from_file_name(name: &str) -> Option<Self> {
        let id = Self(Uuid::try_parse(name).ok()?);
        (id.to_string() == name).then_some(id)
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

/// What is writable: an instance's root filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Volume {
    /// The image at the bottom; none for an instance that began empty.
    pub image: Option<Fingerprint>,
    /// Frozen layers above the image, bottom first.
    #[serde(default)]
    pub lowers: Vec<LayerId>,
    /// The layer that is written to. It belongs to this volume alone.
    pub upper: LayerId,
}

impl Volume {
    /// Every layer of the chain, bottom first.
    pub fn layers(&self) -> impl Iterator<Item = LayerId> + '_ {
        self.lowers.iter().copied().chain([self.upper])
    }

    /// Everything in the pool that this value needs.
    pub fn objects(&self) -> Vec<Object> {
        objects(self.image.as_ref(), self.layers())
    }
}

/// What is not written any more. A snapshot of a volume that had not changed since its last snapshot stands on the very
/// same layers; one of a volume fresh from its image has none at all.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Snapshot {
    /// The image at the bottom; none for an instance that began empty.
    pub image: Option<Fingerprint>,
    /// Frozen layers above the image, bottom first.
    #[serde(default)]
    pub lowers: Vec<LayerId>,
}

impl Snapshot {
    /// Every layer of the chain, bottom first.
    pub fn layers(&self) -> impl Iterator<Item = LayerId> + '_ {
        self.lowers.iter().copied()
    }

    /// Everything in the pool that this value needs.
    pub fn objects(&self) -> Vec<Object> {
        objects(self.image.as_ref(), self.layers())
    }
}

fn objects(image: Option<&Fingerprint>, layers: impl Iterator<Item = LayerId>) -> Vec<Object> {
    image.cloned().map(Object::Image).into_iter().chain(layers.map(Object::Layer)).collect()
}

/// A thing in the pool with a name of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Object {
    /// An unpacked image.
    Image(Fingerprint),
    /// A layer.
    Layer(LayerId),
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(image) => write!(f, "image {image}"),
            Self::Layer(layer) => write!(f, "layer {layer}"),
        }
    }
}

/// How many values need each object: read from the inventory, never kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct References(HashMap<Object, usize>);

impl References {
    /// No references at all.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts a volume's needs.
    pub fn add_volume(&mut self, volume: &Volume) {
        self.add(volume.objects());
    }

    /// Counts a snapshot's needs.
    pub fn add_snapshot(&mut self, snapshot: &Snapshot) {
        self.add(snapshot.objects());
    }

    /// Counts an image that is listed, whether an instance uses it or not.
    pub fn add_image(&mut self, image: &Fingerprint) {
        self.add([Object::Image(image.clone())]);
    }

    /// How many values need this object.
    pub fn count(&self, object: &Object) -> usize {
        self.0.get(object).copied().unwrap_or(0)
    }

    /// Whether any value needs this object.
    pub fn contains(&self, object: &Object) -> bool {
        self.0.contains_key(object)
    }

    /// Which of these no value needs.
    pub fn unreferenced(&self, candidates: impl IntoIterator<Item = Object>) -> Vec<Object> {
        candidates.into_iter().filter(|object| !self.contains(object)).collect()
    }

    fn add(&mut self, objects: impl IntoIterator<Item = Object>) {
        for object in objects {
            *self.0.entry(object).or_default() += 1;
        }
    }
}

/// Bytes that a volume or a snapshot occupies on disk: allocated blocks, holes not counted, hard links once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in layers that nothing else needs: what deleting it would free.
    pub own: u64,
    /// Bytes in layers and the image that others need as well.
    pub shared: u64,
}

/// The room of the filesystem that a pool is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Bytes in use, by anyone.
    pub space_used: u64,
    /// Bytes of the filesystem, without those that only a privileged process could still take.
    pub space_total: u64,
    /// Inodes in use; 0 where the filesystem makes them as needed (btrfs).
    pub inodes_used: u64,
    /// Inodes of the filesystem; 0 where it makes them as needed.
    pub inodes_total: u64,
}
