//! The life of an instance as a value: what is asked, against what is, gives accept, nothing to do, or a refusal.
//!
//! ```text
//!             create                start                 pause
//!   (nothing) ------> Stopped ----------------> Running ---------> Frozen
//!                      ^  |                      |  ^                |
//!                      |  | delete, rename,      |  |     resume     |
//!                      |  v restore, ...         |  +----------------+
//!                      +--(busy)<----------------+---------- stop ---+
//! ```
//!
//! Nothing here does I/O, so property tests walk it. [`super::Manager`] holds one [`State`] for each instance,
//! claims it with [`State::decide`] before any work, and settles it with [`Claim::finish`]: two conflicting
//! requests can never both be accepted, and no lock is held while the disk or the guest is worked on.

use std::fmt;

/// What the kernel shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Observed {
    /// No process.
    Stopped,
    /// Its init runs.
    Running,
    /// Its processes are held by the freezer.
    Frozen,
}

/// What may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// Boot it.
    Start,
    /// End it, cleanly or not.
    Stop,
    /// End it and boot it.
    Restart,
    /// Hold its processes.
    Freeze,
    /// Let them go on.
    Unfreeze,
    /// Remove it.
    Delete,
    /// Give it another name.
    Rename,
    /// Take a snapshot.
    Snapshot,
    /// Go back to a snapshot.
    Restore,
    /// Change its configuration.
    Update,
    /// Make another from it.
    Copy,
    /// Make an image of it.
    Publish,
}

impl Request {
    /// Every request, for tables and tests.
    pub const ALL: [Self; 12] = [
        Self::Start,
        Self::Stop,
        Self::Restart,
        Self::Freeze,
        Self::Unfreeze,
        Self::Delete,
        Self::Rename,
        Self::Snapshot,
        Self::Restore,
        Self::Update,
        Self::Copy,
        Self::Publish,
    ];

    /// The word that Incus uses in its busy message.
    pub fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Freeze => "freeze",
            Self::Unfreeze => "unfreeze",
            Self::Delete => "delete",
            Self::Rename => "rename",
            Self::Snapshot => "snapshot",
            Self::Restore => "restore",
            Self::Update => "update",
            Self::Copy => "copy",
            Self::Publish => "publish",
        }
    }
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Another operation holds the instance.
    Busy(Request),
    /// It runs already.
    AlreadyRunning,
    /// It is stopped already.
    AlreadyStopped,
    /// It does not run, as it would have to.
    NotRunning,
    /// It is frozen already.
    AlreadyFrozen,
    /// It runs and is not frozen.
    NotFrozen,
    /// Only a stopped one can be treated so.
    MustBeStopped(Request),
    /// It must be resumed first.
    MustNotBeFrozen(Request),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy(by) => write!(f, "Instance is busy running a \"{}\" operation", by.word()),
            Self::AlreadyRunning => f.write_str("The instance is already running"),
            Self::AlreadyStopped => f.write_str("The instance is already stopped"),
            Self::NotRunning => f.write_str("The instance isn't running"),
            Self::AlreadyFrozen => f.write_str("The container is already frozen"),
            Self::NotFrozen => f.write_str("The container is already running"),
            Self::MustBeStopped(what) => match what {
                Request::Delete => f.write_str("Instance is running"),
                Request::Rename => f.write_str("Renaming of running instance not allowed"),
                other => write!(f, "The instance must be stopped for \"{}\"", other.word()),
            },
            Self::MustNotBeFrozen(what) => {
                write!(f, "The instance is frozen: resume it before \"{}\"", what.word())
            }
        }
    }
}

/// One instance's place in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    observed: Observed,
    busy: Option<Request>,
}

/// An accepted request: whoever holds it is the only one to change the instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an accepted request is settled with State::finish"]
pub struct Claim {
    /// What was accepted.
    pub request: Request,
    /// What was observed when it was.
    pub from: Observed,
}

impl State {
    /// An idle instance.
    pub fn new(observed: Observed) -> Self {
        Self { observed, busy: None }
    }

    /// What the kernel last showed.
    pub fn observed(self) -> Observed {
        self.observed
    }

    /// What holds it, if anything.
    pub fn busy(self) -> Option<Request> {
        self.busy
    }

    /// Accepts the request, making the instance busy, or says why not.
    ///
    /// # Errors
    /// A [`Refusal`]; the state is then as it was.
    pub fn decide(&mut self, request: Request) -> Result<Claim, Refusal> {
        if let Some(by) = self.busy {
            return Err(Refusal::Busy(by));
        }
        allowed(self.observed, request)?;
        self.busy = Some(request);
        Ok(Claim { request, from: self.observed })
    }

    /// Settles a claim.
    pub fn finish(&mut self, claim: Claim, observed: Observed) {
        debug_assert_eq!(self.busy, Some(claim.request), "a claim is settled once, by its holder");
        self.busy = None;
        self.observed = observed;
    }

    /// Takes what the kernel shows while nobody holds the instance: its init ended, or it was adopted.
    /// While it is held, the holder settles it.
    pub fn observe(&mut self, observed: Observed) {
        if self.busy.is_none() {
            self.observed = observed;
        }
    }
}

/// Whether `request` makes sense for an idle instance that is `observed`.
fn allowed(observed: Observed, request: Request) -> Result<(), Refusal> {
    use Observed as O;
    use Request as R;
    match (request, observed) {
        (R::Start, O::Stopped) | (R::Stop | R::Restart | R::Freeze, O::Running) => Ok(()),
        (R::Start, O::Running | O::Frozen) => Err(Refusal::AlreadyRunning),
        // A frozen instance can be stopped by force; the stop itself thaws it.
        (R::Stop | R::Restart, O::Frozen) => Ok(()),
        (R::Stop | R::Restart, O::Stopped) => Err(Refusal::AlreadyStopped),
        (R::Freeze, O::Frozen) => Err(Refusal::AlreadyFrozen),
        (R::Freeze | R::Unfreeze, O::Stopped) => Err(Refusal::NotRunning),
        (R::Unfreeze, O::Frozen) => Ok(()),
        (R::Unfreeze, O::Running) => Err(Refusal::NotFrozen),
        (R::Delete | R::Rename | R::Publish, O::Stopped) => Ok(()),
        (R::Delete | R::Rename | R::Publish, O::Running | O::Frozen) => Err(Refusal::MustBeStopped(request)),
        // A running instance is stopped for the restore and started again.
        (R::Restore, O::Stopped | O::Running) => Ok(()),
        (R::Restore, O::Frozen) => Err(Refusal::MustNotBeFrozen(request)),
        (R::Snapshot | R::Update | R::Copy, O::Stopped | O::Running | O::Frozen) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Where an accepted request leads when all goes well.
    fn destination(claim: Claim) -> Observed {
        match claim.request {
            Request::Start | Request::Restart | Request::Unfreeze => Observed::Running,
            Request::Stop | Request::Delete => Observed::Stopped,
            Request::Freeze => Observed::Frozen,
            Request::Rename
            | Request::Snapshot
            | Request::Restore
            | Request::Update
            | Request::Copy
            | Request::Publish => claim.from,
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ask(Request),
        Finish { well: bool },
        InitEnds,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => proptest::sample::select(&Request::ALL[..]).prop_map(Step::Ask),
            4 => any::<bool>().prop_map(|well| Step::Finish { well }),
            1 => Just(Step::InitEnds),
        ];
        proptest::collection::vec(step, 1..200)
    }

    proptest! {
        /// Whatever is asked in whatever order: at most one claim is out, a refusal changes nothing, and the
        /// observed state moves only by a finished claim or by the end of init.
        #[test]
        fn one_holder_at_a_time(steps in steps()) {
            let mut state = State::new(Observed::Stopped);
            let mut held: Option<Claim> = None;
            for step in steps {
                let before = state;
                match step {
                    Step::Ask(request) => match state.decide(request) {
                        Ok(claim) => {
                            prop_assert!(held.is_none());
                            prop_assert_eq!(state.busy(), Some(request));
                            prop_assert_eq!(state.observed(), before.observed());
                            held = Some(claim);
                        }
                        Err(refusal) => {
                            prop_assert_eq!(state, before);
                            if let Some(claim) = held {
                                prop_assert_eq!(refusal, Refusal::Busy(claim.request));
                            }
                        }
                    },
                    Step::Finish { well } => if let Some(claim) = held.take() {
                        let to = if well { destination(claim) } else { claim.from };
                        state.finish(claim, to);
                        prop_assert_eq!(state, State::new(to));
                    },
                    Step::InitEnds => {
                        state.observe(Observed::Stopped);
                        if held.is_some() { prop_assert_eq!(state, before); }
                        else { prop_assert_eq!(state.observed(), Observed::Stopped); }
                    }
                }
            }
        }

        /// From anywhere, an idle instance can be stopped and deleted.
        #[test]
        fn every_state_has_a_way_out(observed in proptest::sample::select(
            &[Observed::Stopped, Observed::Running, Observed::Frozen][..])) {
            let mut state = State::new(observed);
            if observed != Observed::Stopped {
                let claim = state.decide(Request::Stop).expect("what runs can be stopped");
                state.finish(claim, Observed::Stopped);
            }
            prop_assert!(state.decide(Request::Delete).is_ok());
        }
    }

    #[test]
    fn refusals_say_what_incus_says() {
        let mut state = State::new(Observed::Running);
        assert_eq!(state.decide(Request::Delete).unwrap_err().to_string(), "Instance is running");
        let _claim = state.decide(Request::Stop).expect("accepted");
        assert_eq!(
            state.decide(Request::Start).unwrap_err().to_string(),
            "Instance is busy running a \"stop\" operation"
        );
    }
}
