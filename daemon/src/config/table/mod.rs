//! The table of every key that Duet understands: one row per key, one list per scope.
//!
//! A row is all there is to say about a key: what values it takes, what it is without one, for which kind of
//! instance it works, whether a running instance feels a change, and how it is described to users. Validation
//! (`validate`), the documentation served at `/1.0/metadata/configuration` (`metadata`) and the choice between
//! live and at-next-start (`changes`) all read these rows and nothing else, so they cannot disagree.
//!
//! A key is listed only when it does something. Keys of Incus that are not listed are refused with a sentence
//! (`foreign`), since a limit that is accepted and ignored is worse than one that is refused.

mod devices;
mod foreign;
mod instance;
mod kind;
mod network;
mod server;

use std::fmt;

pub use kind::Kind;

use super::InstanceKind;

pub(super) use devices::{DISK, NIC, TYPES, UNIX_CHAR};
pub(super) use foreign::{foreign_device_option, foreign_key};

/// Where a key may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The daemon itself (`PUT /1.0`).
    Server,
    /// Instances and profiles.
    Instance,
    /// Managed bridges.
    Network,
    /// Storage pools.
    Pool,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "server",
            Self::Instance => "instance",
            Self::Network => "network",
            Self::Pool => "storage pool",
        })
    }
}

impl Scope {
    /// Every key of the scope, in the order in which they are documented.
    #[must_use]
    pub fn keys(self) -> &'static [Key] {
        match self {
            Self::Server => server::SERVER,
            Self::Instance => instance::INSTANCE,
            Self::Network => network::NETWORK,
            Self::Pool => server::POOL,
        }
    }

    /// The row of a key. Families (`user.*`, `volatile.<device>.hwaddr`) answer for each of their members.
    #[must_use]
    pub fn find(self, key: &str) -> Option<&'static Key> {
        self.keys().iter().find(|row| row.covers(key))
    }
}

/// What happens when a key of a running instance changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Live {
    /// The running instance feels it at once.
    Yes,
    /// It is stored, and the next start uses it.
    NextStart,
    /// Processes started from then on see it (`exec`); the ones that run don't.
    NextExec,
}

/// Who gives a key its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The user.
    User,
    /// The daemon. A client sends back what it has read, perhaps late, so a write to such a key is ignored.
    Server,
}

/// One row of the table.
#[derive(Debug, Clone)]
pub struct Key {
    /// The key; `*` and `<device>` stand for what varies.
    pub name: &'static str,
    /// The heading under which it is documented.
    pub group: &'static str,
    /// What its values are.
    pub kind: Kind,
    /// What it is when unset, in words.
    pub default: &'static str,
    /// The kind of instance that has it; `None` for both.
    pub only: Option<InstanceKind>,
    /// Whether running instances feel a change.
    pub live: Live,
    /// Who writes it.
    pub owner: Owner,
    /// One line that says what it does.
    pub short: &'static str,
    /// What else is worth knowing; may be empty.
    pub long: &'static str,
}

impl Key {
    /// A user's key without default that works for both kinds and takes effect at once.
    const fn new(name: &'static str, group: &'static str, kind: Kind, short: &'static str) -> Self {
        Self { name, group, kind, default: "", only: None, live: Live::Yes, owner: Owner::User, short, long: "" }
    }

    const fn default(mut self, default: &'static str) -> Self {
        self.default = default;
        self
    }

    const fn containers_only(mut self) -> Self {
        self.only = Some(InstanceKind::Container);
        self
    }

    const fn live(mut self, live: Live) -> Self {
        self.live = live;
        self
    }

    const fn long(mut self, long: &'static str) -> Self {
        self.long = long;
        self
    }

    const fn by_server(mut self) -> Self {
        self.owner = Owner::Server;
        self
    }

    /// Whether this row answers for `key`.
    #[must_use]
    pub fn covers(&self, key: &str) -> bool {
        if let Some(prefix) = self.name.strip_suffix('*') {
            return key.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty());
        }
        if let Some((prefix, suffix)) = self.name.split_once("<device>") {
            let device = key.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix));
            return device.is_some_and(|device| !device.is_empty());
        }
        self.name == key
    }
}

/// One option of a device type.
#[derive(Debug, Clone)]
pub struct DeviceOption {
    /// The option's name.
    pub name: &'static str,
    /// What its values are.
    pub kind: Kind,
    /// What it is when unset, in words.
    pub default: &'static str,
    /// Whether the device makes no sense without it, or when: "yes", "no", or a condition.
    pub required: &'static str,
    /// One line that says what it does.
    pub short: &'static str,
    /// What else is worth knowing; may be empty.
    pub long: &'static str,
}

/// One type of device.
#[derive(Debug)]
pub struct DeviceType {
    /// The value of `type`.
    pub name: &'static str,
    /// The heading in the documentation, as Incus has it.
    pub heading: &'static str,
    /// Its options, `type` aside.
    pub options: &'static [DeviceOption],
}

impl DeviceType {
    /// The row of an option.
    #[must_use]
    pub fn find(&self, option: &str) -> Option<&'static DeviceOption> {
        self.options.iter().find(|row| row.name == option)
    }
}

/// The known name that comes nearest to a mistyped one: the same name without its beginning (`memory` for
/// `limits.memory`), or one at most a third of whose characters differ.
pub(super) fn nearest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    // Distances are quadratic in the length; nothing so long is a slip of the hand.
    if wrong.len() > 80 || wrong.is_empty() {
        return None;
    }
    let lower = wrong.to_ascii_lowercase();
    known
        .filter(|name| !name.contains(['*', '<']))
        .filter_map(|name| {
            let tail = name.strip_suffix(lower.as_str()).is_some_and(|head| head.ends_with('.'));
            let distance = if tail { 1 } else { edit_distance(&lower, name) };
            (distance <= (name.len() / 3).clamp(1, 4)).then_some((distance, name))
        })
        .min()
        .map(|(_, name)| name.to_owned())
}

/// Levenshtein's distance in bytes: how many insertions, deletions and replacements lie between two names.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCOPES: [Scope; 4] = [Scope::Server, Scope::Instance, Scope::Network, Scope::Pool];

    #[test]
    fn every_row_is_complete_and_unique() {
        for scope in SCOPES {
            for (i, row) in scope.keys().iter().enumerate() {
                assert!(row.short.ends_with(|c: char| c.is_alphanumeric() || c == ')'), "{}: {}", row.name, row.short);
                assert!(row.long.is_empty() || row.long.ends_with('.'), "{}: {}", row.name, row.long);
                assert!(!scope.keys()[..i].iter().any(|other| other.name == row.name), "{} twice", row.name);
                assert!(foreign_key(scope, row.name).is_none(), "{} is both known and foreign", row.name);
            }
        }
        for kind in TYPES {
            for (i, row) in kind.options.iter().enumerate() {
                assert!(!row.short.is_empty());
                assert!(!kind.options[..i].iter().any(|other| other.name == row.name), "{} twice", row.name);
                assert!(foreign_device_option(kind.name, row.name).is_none(), "{}", row.name);
            }
        }
    }

    #[test]
    fn families_answer_for_their_members() {
        let find = |key| Scope::Instance.find(key).map(|row| row.name);
        assert_eq!(find("user.foo"), Some("user.*"));
        assert_eq!(find("user."), None);
        assert_eq!(find("volatile.eth0.hwaddr"), Some("volatile.<device>.hwaddr"));
        assert_eq!(find("volatile.eth0.5.hwaddr"), Some("volatile.<device>.hwaddr"));
        assert_eq!(find("volatile..hwaddr"), None);
        assert_eq!(find("limits.cpu"), Some("limits.cpu"));
        assert_eq!(find("limits.cpus"), None);
    }

    #[test]
    fn slips_of_the_hand_are_recognised() {
        let near = |wrong| nearest(wrong, Scope::Instance.keys().iter().map(|row| row.name));
        assert_eq!(near("limits.cpus").as_deref(), Some("limits.cpu"));
        assert_eq!(near("limit.memory").as_deref(), Some("limits.memory"));
        assert_eq!(near("memory").as_deref(), Some("limits.memory"));
        assert_eq!(near("security.nested").as_deref(), Some("security.nesting"));
        assert_eq!(near("Limits.Memory").as_deref(), Some("limits.memory"));
        assert_eq!(near("zzz"), None);
        assert_eq!(near(&"é".repeat(1000)), None);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
    }
}
