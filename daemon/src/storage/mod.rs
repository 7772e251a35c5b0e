//! Storage pools: where the root filesystems of instances live.
//!
//! # Who owns what
//!
//! - The **inventory** (not this module) owns the truth: each instance row holds a [`Volume`], each snapshot row a
//!   [`Snapshot`], as JSON. They are plain values; nothing here remembers them.
//! - A [`Pool`] owns a directory and the *policy*: when a layer is frozen and when it is copied, how long a chain may
//!   grow, what is in use while a change is under way, and in which order disk and inventory change.
//! - A [`driver::Driver`] owns the *mechanism* of one kind of pool: make, copy, fold, measure and remove a layer. It is
//!   small on purpose: a driver whose layers are whole filesystems (a btrfs subvolume, a zfs dataset) fits the same
//!   trait and the same values with chains of length one, and [`driver::Capabilities`] tells the policy so.
//!
//! # Chains
//!
//! ```text
//!   volume                      volume after a snapshot      snapshot
//!   ┌───────────┐ upper         ┌───────────┐ upper (new)
//!   │ layer B   │ (writable)    │ layer C   │
//!   ├───────────┤               ├───────────┤                ┌───────────┐
//!   │ layer A   │ lowers        │ layer B   │ ◄─ frozen ───► │ layer B   │ lowers
//!   ├───────────┤               ├───────────┤                ├───────────┤
//!   │ image     │               │ layer A   │                │ layer A   │
//!   └───────────┘               │ image     │                │ image     │
//!                               └───────────┘                └───────────┘
//! ```
//!
//! A layer is named by a UUID and is written only while it is the upper of exactly one volume. Once frozen it never
//! changes, so any number of volumes and snapshots may stand on it. Ids are never shifted on disk.
//!
//! # Order of changes
//!
//! 1. Create on disk. The new things come back in a [`Made`], which removes them again when dropped.
//! 2. The caller commits the new values to the inventory.
//! 3. [`Made::keep`] disarms the undo.
//! 4. What the old values alone referenced is removed: [`Pool::survey`], read all values from the inventory,
//!    [`Survey::discard`] (or [`Survey::sweep`] for everything at start).
//!
//! Killed between any two steps, the disk holds at most things that no value names; a sweep finds and removes them.
//! Half-made things are never visible under their final names: they are made under `tmp/` and renamed.
//!
//! # Durability
//!
//! An image is flushed (`syncfs`) before it gets its name, because it is checked against its fingerprint only once.
//! Layers are not flushed: creating one costs a few directory operations, which the filesystem's own journal orders
//! before a later commit of the inventory. Whoever wants a *copied* layer (the snapshot of a running instance) to
//! survive a power failure calls [`Pool::sync`] after thawing the instance and before committing.

pub mod backing;
mod btrfs;
mod directory;
pub mod driver;
mod error;
mod folders;
mod kind;
mod made;
mod overlay;
mod pins;
mod pool;
#[cfg(test)]
mod tests;
mod value;
mod zfs;

pub use backing::Backing;
pub use driver::Capabilities;
pub use error::Error;
pub use kind::Kind;
pub use made::{Made, Survey, Trash};
pub use pool::{Activity, Pool, Taken};
pub use value::{Fingerprint, LayerId, Object, References, Resources, RootSource, Snapshot, Usage, Volume};
pub use zfs::check_dataset;

/// The result of a storage operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;
