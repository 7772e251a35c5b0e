//! One instance's place in memory: where it is in its life, and what of it runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::lifecycle::{Claim, Observed, Request, State};
use super::live::Live;
use crate::error::{Error, Kind, Result};

/// One instance's place in memory.
pub struct Slot {
    id: i64,
    inner: Mutex<Inner>,
    /// Counts every change of state or liveness, to be waited on.
    changed: watch::Sender<u64>,
}

struct Inner {
    state: State,
    live: Option<Arc<Live>>,
}

impl Slot {
    fn new(id: i64) -> Self {
        let inner = Inner { state: State::new(Observed::Stopped), live: None };
        Self { id, inner: Mutex::new(inner), changed: watch::Sender::new(0) }
    }

    /// The inventory's id of it.
    pub fn id(&self) -> i64 {
        self.id
    }

    /// What runs of it.
    pub fn live(&self) -> Option<Arc<Live>> {
        self.lock().live.clone()
    }

    /// What the kernel last showed.
    pub fn observed(&self) -> Observed {
        observe(&self.lock().live)
    }

    /// What holds it.
    pub fn busy(&self) -> Option<Request> {
        self.lock().state.busy()
    }

    /// Changes are counted here.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Claims it for `request`; the claim ends when the guard is dropped.
    ///
    /// # Errors
    /// Where the request makes no sense now, or something else holds it.
    pub fn claim(self: &Arc<Self>, request: Request) -> Result<Held> {
        let claim = self.lock().state.decide(request).map_err(|r| Error::new(Kind::Invalid, r.to_string()))?;
        self.announce();
        Ok(Held { slot: Arc::clone(self), claim })
    }

    /// Waits until nothing holds it, then claims it. Used by the daemon itself, never for a client's request.
    ///
    /// # Errors
    /// Where the request makes no sense once it is idle.
    pub async fn claim_when_idle(self: &Arc<Self>, request: Request) -> Result<Held> {
        let mut changed = self.watch();
        loop {
            changed.borrow_and_update();
            if self.busy().is_none() {
                match self.claim(request) {
                    Err(_) if self.busy().is_some() => {}
                    outcome => return outcome,
                }
            }
            // The sender lives in self.
            let _ = changed.changed().await;
        }
    }

    /// Records that it runs, or (None) that it does not.
    pub fn set_live(&self, live: Option<Arc<Live>>) {
        {
            let mut inner = self.lock();
            let observed = observe(&live);
            inner.live = live;
            inner.state.observe(observed);
        }
        self.announce();
    }

    /// Says that something about it changed (an address, say).
    pub fn announce(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn observe(live: &Option<Arc<Live>>) -> Observed {
    match live {
        None => Observed::Stopped,
        Some(live) if live.is_frozen() => Observed::Frozen,
        Some(_) => Observed::Running,
    }
}

/// A claim that ends when it is dropped, whatever became of the work: what is then observed is what is true.
pub struct Held {
    slot: Arc<Slot>,
    claim: Claim,
}

impl Held {
    /// The slot that it holds.
    pub fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }

    /// What was observed when it was claimed.
    pub fn from(&self) -> Observed {
        self.claim.from
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        {
            let mut inner = self.slot.lock();
            let observed = observe(&inner.live);
            inner.state.finish(self.claim, observed);
        }
        self.slot.announce();
    }
}

/// The slots of all instances.
#[derive(Default)]
pub struct Slots {
    known: Mutex<HashMap<i64, Arc<Slot>>>,
}

impl Slots {
    /// The slot of an instance, made on first use.
    pub fn get(&self, id: i64) -> Arc<Slot> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(known.entry(id).or_insert_with(|| Arc::new(Slot::new(id))))
    }

    /// Forgets a deleted instance; ids are never reused.
    pub fn forget(&self, id: i64) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// Every slot whose instance runs.
    pub fn running(&self) -> Vec<Arc<Slot>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.values().filter(|slot| slot.live().is_some()).cloned().collect()
    }
}
