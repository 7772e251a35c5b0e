//! Making and removing, so that a kill at any instant leaves nothing but what a sweep finds.

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;

use super::Result;
use super::pins::Instant;
use super::pool::Inner;
use super::value::{Object, References};

/// Something new on disk that the inventory does not know yet.
///
/// It and all it stands on cannot be removed while this exists. Dropped, it removes its new layers again; so commit
/// the value to the inventory, then call [`Made::keep`].
#[derive(Debug)]
#[must_use = "dropping it removes what was made; commit it and call keep()"]
pub struct Made<T> {
    value: Option<T>,
    hold: Hold,
}

impl<T> Made<T> {
    pub(super) fn new(value: T, hold: Hold) -> Self {
        Self { value: Some(value), hold }
    }

    /// The inventory knows it now: nothing is undone any more.
    pub fn keep(mut self) -> T {
        self.hold.created.iter().for_each(|object| self.hold.held.push(object.clone()));
        self.hold.created.clear();
        self.value.take().expect("only keep() takes the value, and it consumes self")
    }
}

impl<T> Deref for Made<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("only keep() takes the value, and it consumes self")
    }
}

/// The pins of one operation and the layers that it created.
#[derive(Debug)]
pub(super) struct Hold {
    pool: Arc<Inner>,
    held: Vec<Object>,
    created: Vec<Object>,
}

impl Hold {
    /// Pins what an operation starts from. Fails when any of it is gone.
    pub(super) fn on(pool: &Arc<Inner>, objects: Vec<Object>) -> Result<Self> {
        pool.pins.hold(&objects, || objects.iter().try_for_each(|object| pool.require(object)))?;
        Ok(Self { pool: Arc::clone(pool), held: objects, created: Vec::new() })
    }

    /// Pins a name that is about to appear and stays if the operation fails.
    pub(super) fn also(&mut self, object: Object) {
        self.pin(&object);
        self.held.push(object);
    }

    /// Pins a name that is about to appear and goes if the operation fails.
    pub(super) fn creating(&mut self, object: Object) {
        self.pin(&object);
        self.created.push(object);
    }

    fn pin(&self, object: &Object) {
        let Ok(()) = self.pool.pins.hold(std::slice::from_ref(object), || Ok::<_, std::convert::Infallible>(()));
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.pool.pins.release(&self.held);
        match self.pool.pins.abandon(&self.created, |object| self.pool.retire(object)) {
            Ok(retired) => drop(Trash::new(Arc::clone(&self.pool), retired)),
            Err(error) => {
                tracing::warn!(%error, "cannot undo; the next sweep removes what is left")
            }
        }
    }
}

/// The right to remove what the inventory does not need: open it *before* reading the inventory, and use it soon.
#[derive(Debug)]
pub struct Survey {
    pool: Arc<Inner>,
    began: Instant,
}

impl Survey {
    pub(super) fn new(pool: Arc<Inner>) -> Self {
        let began = pool.pins.begin_survey();
        Self { pool, began }
    }

    /// Takes away those of the candidates that the inventory does not need any more: after a volume or snapshot was
    /// deleted or replaced, its [`objects`](super::Volume::objects). What an operation under way still uses is left to
    /// the next call. Quick; freeing is for [`Trash::empty`].
    pub fn discard(&self, candidates: impl IntoIterator<Item = Object>, needed: &References) -> Result<Trash> {
        let retire = |object: &Object| self.pool.retire(object);
        let retired = self.pool.pins.retire_free(self.began, candidates, |object| needed.contains(object), retire)?;
        Ok(Trash::new(Arc::clone(&self.pool), retired))
    }

    /// Takes away everything in the pool that the inventory does not need: after the daemon was killed.
    pub fn sweep(&self, needed: &References) -> Result<Trash> {
        self.discard(self.pool.driver.objects()?, needed)
    }
}

impl Drop for Survey {
    fn drop(&mut self) {
        self.pool.pins.end_survey(self.began);
    }
}

/// What has lost its name and waits to be freed. Dropped, it is freed as well, with errors only logged. What a kill
/// leaves of it is found when the pool is opened next.
#[derive(Debug)]
#[must_use = "freeing it may take long: call empty() where that is fine"]
pub struct Trash {
    pool: Arc<Inner>,
    retired: Vec<PathBuf>,
}

impl Trash {
    pub(super) fn new(pool: Arc<Inner>, retired: Vec<PathBuf>) -> Self {
        Self { pool, retired }
    }

    /// How many things wait here.
    pub fn len(&self) -> usize {
        self.retired.len()
    }

    /// Whether there is nothing to free.
    pub fn is_empty(&self) -> bool {
        self.retired.is_empty()
    }

    /// Frees everything. Goes on after an error and returns the first one.
    pub fn empty(mut self) -> Result<()> {
        self.free()
    }

    /// It was not trash after all.
    pub(super) fn disarm(&mut self) {
        self.retired.clear();
    }

    fn free(&mut self) -> Result<()> {
        let mut first = Ok(());
        for path in self.retired.drain(..) {
            let freed = self.pool.driver.destroy(&path);
            first = first.and(freed);
        }
        first
    }
}

impl Drop for Trash {
    fn drop(&mut self) {
        if let Err(error) = self.free() {
            tracing::warn!(%error, "cannot free removed storage; it is tried again when the daemon starts");
        }
    }
}
