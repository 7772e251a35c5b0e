//! What must not be removed although no committed value names it (yet).
//!
//! Between creating a layer and committing the value that names it, and between reading a value and standing a new one
//! on it, the inventory does not protect the layers involved; the pins do. A removal works from a survey: the
//! references read from the inventory some time after the survey began. What was pinned at any time since then may
//! have been committed *after* the inventory was read, so a pin protects its object from all surveys that began before
//! it was released.
//!
//! What a removal had to spare is put off: the next removal considers it again.
//!
//! This is the only state that the module holds. It is about operations of this very process, and losing it with the
//! process is right: those operations are gone too, and the sweep at the next start finds what was put off.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::value::Object;

/// When a survey began, in the order of beginnings and releases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Instant(u64);

/// The pins of one pool.
#[derive(Debug, Default)]
pub(super) struct Pins(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    now: u64,
    held: HashMap<Object, usize>,
    /// Released after some open survey began, and when.
    released: HashMap<Object, Instant>,
    /// The beginnings of the open surveys; several may share one.
    surveys: BTreeMap<Instant, usize>,
    put_off: HashSet<Object>,
}

impl Pins {
    /// Protects these objects until [`Pins::release`]. What is checked under `check` cannot be removed in between.
    pub(super) fn hold<E>(&self, objects: &[Object], check: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
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
    pub(super) fn begin_survey(&self) -> Instant {
        let mut table = self.lock();
        let now = Instant(table.now);
        *table.surveys.entry(now).or_default() += 1;
        now
    }

    /// Closes a survey.
    pub(super) fn end_survey(&self, began: Instant) {
        let mut table = self.lock();
        if let Some(count) = table.surveys.get_mut(&began) {
            *count -= 1;
            if *count == 0 {
                table.surveys.remove(&began);
            }
        }
        match table.surveys.keys().next().copied() {
            Some(oldest) => table.released.retain(|_, at| *at > oldest),
            None => table.released.clear(),
        }
    }

    /// Runs `retire` on each unneeded object that nobody has held since the survey began, those included that earlier
    /// calls had to spare. Nobody can begin to hold one meanwhile, so `retire` must be quick.
    pub(super) fn retire_free<T, E>(
        &self,
        began: Instant,
        candidates: impl IntoIterator<Item = Object>,
        is_needed: impl Fn(&Object) -> bool,
        mut retire: impl FnMut(&Object) -> Result<Option<T>, E>,
    ) -> Result<Vec<T>, E> {
        let mut table = self.lock();
        let put_off = std::mem::take(&mut table.put_off);
        let mut retired = Vec::new();
        for object in candidates.into_iter().chain(put_off) {
            let is_held = table.held.contains_key(&object) || table.released.get(&object).is_some_and(|at| *at > began);
            if is_needed(&object) {
                continue;
            }
            if is_held {
                table.put_off.insert(object);
            } else {
                retired.extend(retire(&object)?);
            }
        }
        Ok(retired)
    }

    /// The table is consistent after any panic: each change to it is a single call on a map.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn unpin(&mut self, object: &Object) {
        let Some(count) = self.held.get_mut(object) else { return };
        *count -= 1;
        if *count == 0 {
            self.held.remove(object);
            if !self.surveys.is_empty() {
                self.now += 1;
                self.released.insert(object.clone(), Instant(self.now));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::value::LayerId;

    struct Case {
        pins: Pins,
        object: Object,
    }

    impl Case {
        fn new() -> Self {
            Self { pins: Pins::default(), object: Object::Layer(LayerId::fresh()) }
        }

        fn hold(&self) {
            let Ok(()) = self.pins.hold(self.one(), || Ok::<_, std::convert::Infallible>(()));
        }

        fn release(&self) {
            self.pins.release(self.one());
        }

        fn one(&self) -> &[Object] {
            std::slice::from_ref(&self.object)
        }

        /// How many are retired by this survey.
        fn retired(&self, began: Instant, candidates: &[Object]) -> usize {
            let retire = |object: &Object| Ok::<_, ()>(Some(object.clone()));
            self.pins.retire_free(began, candidates.to_vec(), |_| false, retire).unwrap().len()
        }
    }

    #[test]
    fn held_objects_are_spared_until_the_next_removal() {
        let case = Case::new();
        case.hold();
        case.hold();
        case.release();
        let survey = case.pins.begin_survey();
        assert_eq!(case.retired(survey, case.one()), 0, "still held once");
        case.pins.end_survey(survey);
        case.release();
        let survey = case.pins.begin_survey();
        assert_eq!(case.retired(survey, &[]), 1, "put off before");
        assert_eq!(case.retired(survey, &[]), 0);
    }

    #[test]
    fn what_was_held_since_a_survey_began_outlives_it_but_no_later_one() {
        let case = Case::new();
        case.hold();
        let early = case.pins.begin_survey();
        case.release();
        let late = case.pins.begin_survey();
        assert_eq!(case.retired(early, case.one()), 0, "its commit may be newer than the survey's reading");
        case.pins.end_survey(early);
        assert_eq!(case.retired(late, &[]), 1);
        case.pins.end_survey(late);
        assert!(case.pins.lock().released.is_empty());
    }

    #[test]
    fn what_is_needed_after_all_is_forgotten() {
        let case = Case::new();
        case.hold();
        let survey = case.pins.begin_survey();
        assert_eq!(case.retired(survey, case.one()), 0);
        case.release();
        let later = case.pins.begin_survey();
        let retire = |_: &Object| -> Result<Option<()>, ()> { panic!("it is needed") };
        assert!(case.pins.retire_free(later, [], |_| true, retire).unwrap().is_empty());
        assert_eq!(case.retired(later, &[]), 0);
    }

    #[test]
    fn a_failed_check_holds_nothing() {
        let case = Case::new();
        assert_eq!(case.pins.hold(case.one(), || Err("gone")), Err("gone"));
        let survey = case.pins.begin_survey();
        assert_eq!(case.retired(survey, case.one()), 1);
    }

    #[test]
    fn what_is_abandoned_goes_at_once_unless_others_hold_it() {
        let case = Case::new();
        let retire = |object: &Object| Ok::<_, ()>(Some(object.clone()));
        case.hold();
        case.hold();
        assert_eq!(case.pins.abandon(case.one(), retire).unwrap(), []);
        assert_eq!(case.pins.abandon(case.one(), retire).unwrap(), case.one());
    }
}
