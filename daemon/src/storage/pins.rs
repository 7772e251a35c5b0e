//! What must not be removed although no committed value names it (yet).
//!
//! Between creating a layer and committing the value that names it, and between reading a value and standing a new one
//! on it, the inventory does not protect the layers involved; the pins do. A removal works from a survey: the
//! references read from the inventory at some moment. A pin that is released while a survey is open may have been
//! committed *after* the survey read the inventory, so it keeps protecting its object until all surveys of that time
//! are over.
//!
//! This is the only state that the module holds, it is about operations of this very process, and losing it with the
//! process is right: those operations are gone too.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::value::Object;

/// The pins of one pool.
#[derive(Debug, Default)]
pub(super) struct Pins(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    held: HashMap<Object, usize>,
    surveys: usize,
    /// Released while a survey was open.
    lingering: HashSet<Object>,
}

impl Pins {
    /// Protects these objects until [`Pins::release`]. What is checked under `check` cannot be removed in between.
    pub(super) fn hold<E>(
        &self,
        objects: &[Object],
        check: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut table = self.lock();
        check()?;
        for object in objects {
            *table.held.entry(object.clone()).or_default() += 1;
        }
        Ok(())
    }

    /// Ends the protection by one [`Pins::hold`].
    pub(super) fn release(&self, objects: &[Object]) {
        let mut table = self.lock();
        for object in objects {
            table.unpin(object);
        }
    }

    /// Ends the protection by one [`Pins::hold`] of things that were never committed, and retires those of them that
    /// this leaves without any protection.
    pub(super) fn abandon<T, E>(
        &self,
        objects: &[Object],
        mut retire: impl FnMut(&Object) -> Result<Option<T>, E>,
    ) -> Result<Vec<T>, E> {
        let mut table = self.lock();
        let mut retired = Vec::new();
        for object in objects {
            if table.held.get(object) == Some(&1) {
                table.held.remove(object);
                retired.extend(retire(object)?);
            } else {
                table.unpin(object);
            }
        }
        Ok(retired)
    }

    /// Opens a survey.
    pub(super) fn begin_survey(&self) {
        self.lock().surveys += 1;
    }

    /// Closes a survey.
    pub(super) fn end_survey(&self) {
        let mut table = self.lock();
        table.surveys -= 1;
        if table.surveys == 0 {
            table.lingering.clear();
        }
    }

    /// Runs `retire` on each object that nobody holds. Nobody can begin to hold one meanwhile, so `retire` must be
    /// quick.
    pub(super) fn retire_free<T, E>(
        &self,
        objects: impl IntoIterator<Item = Object>,
        mut retire: impl FnMut(&Object) -> Result<Option<T>, E>,
    ) -> Result<Vec<T>, E> {
        let table = self.lock();
        let free = objects
            .into_iter()
            .filter(|object| !table.held.contains_key(object) && !table.lingering.contains(object));
        free.filter_map(|object| retire(&object).transpose())
            .collect()
    }

    /// The table is consistent after any panic: each change to it is a single call on a map.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn unpin(&mut self, object: &Object) {
        let Some(count) = self.held.get_mut(object) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            self.held.remove(object);
            if self.surveys > 0 {
                self.lingering.insert(object.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::value::LayerId;

    fn free(pins: &Pins, object: &Object) -> bool {
        let retired = pins.retire_free([object.clone()], |o| Ok::<_, ()>(Some(o.clone())));
        !retired.expect("nothing fails here").is_empty()
    }

    #[test]
    fn held_objects_are_not_retired() {
        let (pins, object) = (Pins::default(), Object::Layer(LayerId::fresh()));
        assert!(free(&pins, &object));
        for _ in 0..2 {
            pins.hold(std::slice::from_ref(&object), || Ok::<_, ()>(()))
                .unwrap();
        }
        pins.release(std::slice::from_ref(&object));
        assert!(!free(&pins, &object), "still held once");
        pins.release(std::slice::from_ref(&object));
        assert!(free(&pins, &object));
    }

    #[test]
    fn what_was_held_during_a_survey_outlives_it() {
        let (pins, object) = (Pins::default(), Object::Layer(LayerId::fresh()));
        pins.hold(std::slice::from_ref(&object), || Ok::<_, ()>(()))
            .unwrap();
        pins.begin_survey();
        pins.release(std::slice::from_ref(&object));
        assert!(
            !free(&pins, &object),
            "its commit may be newer than the survey's reading"
        );
        pins.end_survey();
        assert!(free(&pins, &object));
    }

    #[test]
    fn a_failed_check_holds_nothing() {
        let (pins, object) = (Pins::default(), Object::Layer(LayerId::fresh()));
        assert_eq!(
            pins.hold(std::slice::from_ref(&object), || Err("gone")),
            Err("gone")
        );
        assert!(free(&pins, &object));
    }
}
