//! What can be wrong with a configuration, as types whose `Display` is the sentence that the user reads.
//!
//! Two layers: [`ValueError`] knows only a value and what was expected of it; [`ConfigError`] says where the
//! value stood. Each sentence is complete on its own (it already contains its cause), so no `source()` is
//! offered and nothing is printed twice.

use std::fmt;

use super::InstanceKind;
use super::names::NameKind;
use super::table::Scope;

/// How much of a bad value is quoted back, in characters: enough to recognise it.
const QUOTED_CHARS: usize = 60;

/// A value that does not fit what its key takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// The value is not of the expected form.
    #[error("{} is not {what}; {hint}", Quoted(value))]
    Malformed {
        /// The value as given.
        value: String,
        /// What it should be, with its article: "a size".
        what: &'static str,
        /// What to write instead, with an example.
        hint: &'static str,
    },
    /// The value is a number of the right form, but too small or too large.
    #[error("{} is out of range; write a number from {min} to {max}", Quoted(value))]
    OutOfRange {
        /// The value as given.
        value: String,
        /// The least number allowed.
        min: i64,
        /// The largest number allowed.
        max: i64,
    },
    /// The value is none of the words that the key takes.
    #[error("{} is not known here; write {}", Quoted(value), Choice(allowed))]
    NotOneOf {
        /// The value as given.
        value: String,
        /// Every word that is allowed.
        allowed: &'static [&'static str],
    },
    /// The value is of the right form, but one part of it makes no sense.
    #[error("{} is not usable: {reason}", Quoted(value))]
    Senseless {
        /// The value as given.
        value: String,
        /// Why, as a clause that also says what would be right.
        reason: &'static str,
    },
}

impl ValueError {
    pub(super) fn malformed(value: &str, what: &'static str, hint: &'static str) -> Self {
        Self::Malformed { value: value.to_owned(), what, hint }
    }

    pub(super) fn senseless(value: &str, reason: &'static str) -> Self {
        Self::Senseless { value: value.to_owned(), reason }
    }

    pub(super) fn out_of_range(value: &str, min: i64, max: i64) -> Self {
        Self::OutOfRange { value: value.to_owned(), min, max }
    }
}

/// A configuration that Duet does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No key of that name exists in this scope.
    #[error("unknown {scope} option {}{}", Quoted(key), Suggestion(nearest))]
    UnknownKey {
        /// Where it was written.
        scope: Scope,
        /// The key.
        key: String,
        /// The known key that comes nearest, when one comes near.
        nearest: Option<String>,
    },
    /// A key that Incus has and Duet has not: taking it silently would promise what is not done.
    #[error("{scope} option {} is not supported by Duet: {reason}", Quoted(key))]
    Unsupported {
        /// Where it was written.
        scope: Scope,
        /// The key.
        key: String,
        /// Why, or what to use instead.
        reason: &'static str,
    },
    /// The key exists, but for the other kind of instance.
    #[error("{key} works for {} only, and this is a {}", only.plural(), only.other())]
    WrongKind {
        /// The key.
        key: String,
        /// The kind that has it.
        only: InstanceKind,
    },
    /// A key that describes one instance stands in a profile.
    #[error("{key} tells of one instance and cannot stand in a profile")]
    InstanceOnly {
        /// The key.
        key: String,
    },
    /// The key's value does not fit.
    #[error("{key}: {problem}")]
    BadValue {
        /// The key.
        key: String,
        /// What is wrong with the value.
        problem: ValueError,
    },
    /// Two keys that contradict each other.
    #[error("{key} does not go with {with}: {reason}")]
    Conflict {
        /// The key that is at fault.
        key: String,
        /// The key it contradicts.
        with: String,
        /// Why, and what would be right.
        reason: &'static str,
    },
    /// A name that is not allowed.
    #[error("{} is not a valid {kind} name: {reason}", Quoted(name))]
    BadName {
        /// What was to be named.
        kind: NameKind,
        /// The name.
        name: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// Something is wrong with one device.
    #[error("device {}: {problem}", Quoted(device))]
    Device {
        /// The device's name.
        device: String,
        /// What is wrong.
        problem: DeviceError,
    },
    /// The devices as a whole have no root disk.
    #[error(
        "no root disk device; add one with path=/ and a pool, or use a profile that has it \
         (for example: duet config device add NAME root disk path=/ pool=default)"
    )]
    NoRootDisk,
    /// Two devices lay claim to one thing.
    #[error(
        "devices {} and {} both use {what} {}; one of them must change",
        Quoted(first),
        Quoted(second),
        Quoted(value)
    )]
    DeviceClash {
        /// One device's name.
        first: String,
        /// The other's.
        second: String,
        /// What they share, for example "path".
        what: &'static str,
        /// The value they share.
        value: String,
    },
}

/// What can be wrong with a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The device has no `type`.
    #[error("the type is missing; write type=disk, type=nic, type=unix-char or type=none")]
    NoType,
    /// The type is not one of ours.
    #[error("type {} is not supported{}; Duet has disk, nic, unix-char and none", Quoted(kind), Suggestion(nearest))]
    UnknownType {
        /// The type as given.
        kind: String,
        /// The type that comes nearest, when one comes near.
        nearest: Option<String>,
    },
    /// No option of that name exists for this type.
    #[error("{kind} devices have no option {}{}", Quoted(option), Suggestion(nearest))]
    UnknownOption {
        /// The device's type.
        kind: &'static str,
        /// The option.
        option: String,
        /// The option that comes nearest, when one comes near.
        nearest: Option<String>,
    },
    /// An option that Incus has and Duet has not.
    #[error("option {} is not supported by Duet: {reason}", Quoted(option))]
    UnsupportedOption {
        /// The option.
        option: String,
        /// Why, or what to use instead.
        reason: &'static str,
    },
    /// An option's value does not fit.
    #[error("{option}: {problem}")]
    BadOption {
        /// The option.
        option: String,
        /// What is wrong with the value.
        problem: ValueError,
    },
    /// An option that must be there is not.
    #[error("{option} is missing; {hint}")]
    Missing {
        /// The option.
        option: &'static str,
        /// What to write.
        hint: &'static str,
    },
    /// Two options that contradict each other.
    #[error("{option} does not go with {with}; {hint}")]
    Contradiction {
        /// One option.
        option: &'static str,
        /// The other.
        with: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
}

/// A value in quotes, shortened, with control characters made visible.
pub(super) struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown: String = self.0.chars().take(QUOTED_CHARS).collect();
        if shown.len() < self.0.len() {
            shown.push('…');
        }
        write!(f, "{shown:?}")
    }
}

/// `: did you mean "limits.cpu"?`, or nothing.
struct Suggestion<'a>(&'a Option<String>);

impl fmt::Display for Suggestion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(key) => write!(f, " (did you mean {key:?}?)"),
            None => Ok(()),
        }
    }
}

/// `one of "a", "b" or "c"`.
struct Choice<'a>(&'a [&'static str]);

impl fmt::Display for Choice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, word) in self.0.iter().enumerate() {
            match i {
                0 => {}
                _ if i + 1 == self.0.len() => f.write_str(" or ")?,
                _ => f.write_str(", ")?,
            }
            write!(f, "{word:?}")?;
        }
        Ok(())
    }
}
