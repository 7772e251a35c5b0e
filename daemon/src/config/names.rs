//! The rules for names: what a user may call an instance, a snapshot, a profile and so on.
//!
//! The rules are those of Incus' documentation where it states one (instances: a DNS label, as the name
//! becomes the host name and a DNS record), and otherwise what the places need in which the name is used:
//! URLs, file names and, for networks, kernel link names.

use std::fmt;

use super::ConfigError;

/// What a name is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameKind {
    /// A container or virtual machine.
    Instance,
    /// A snapshot of one.
    Snapshot,
    /// A profile.
    Profile,
    /// A network, which is also the bridge's link name.
    Network,
    /// A storage pool.
    Pool,
    /// An image alias.
    Alias,
    /// A device of an instance or profile.
    Device,
}

impl fmt::Display for NameKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Instance => "instance",
            Self::Snapshot => "snapshot",
            Self::Profile => "profile",
            Self::Network => "network",
            Self::Pool => "storage pool",
            Self::Alias => "image alias",
            Self::Device => "device",
        })
    }
}

/// Checks a name for its use.
///
/// # Errors
/// [`ConfigError::BadName`], with the one rule that is broken.
pub fn validate_name(kind: NameKind, name: &str) -> Result<(), ConfigError> {
    let verdict = match kind {
        NameKind::Instance => host_label(name),
        NameKind::Snapshot => file_like(name),
        NameKind::Profile => file_like(name),
        NameKind::Network => link_name(name),
        NameKind::Pool => plain(name),
        NameKind::Alias => alias(name),
        NameKind::Device => plain(name),
    };
    verdict.map_err(|reason| ConfigError::BadName { kind, name: name.to_owned(), reason })
}

/// Checks an instance's name.
///
/// # Errors
/// As [`validate_name`].
pub fn validate_instance_name(name: &str) -> Result<(), ConfigError> {
    validate_name(NameKind::Instance, name)
}

/// Checks a snapshot's name.
///
/// # Errors
/// As [`validate_name`].
pub fn validate_snapshot_name(name: &str) -> Result<(), ConfigError> {
    validate_name(NameKind::Snapshot, name)
}

/// Checks a profile's name.
///
/// # Errors
/// As [`validate_name`].
pub fn validate_profile_name(name: &str) -> Result<(), ConfigError> {
    validate_name(NameKind::Profile, name)
}

/// Checks a network's name.
///
/// # Errors
/// As [`validate_name`].
pub fn validate_network_name(name: &str) -> Result<(), ConfigError> {
    validate_name(NameKind::Network, name)
}

/// Checks a storage pool's name.
///
/// # Errors
/// As [`validate_name`].
pub fn validate_pool_name(name: &str) -> Result<(), ConfigError> {
    validate_name(NameKind::Pool, name)
}

/// Checks an image alias's name.
///
/// # Errors
/// As [`validate_name`].
pub fn validate_alias_name(name: &str) -> Result<(), ConfigError> {
    validate_name(NameKind::Alias, name)
}

type Verdict = Result<(), &'static str>;

/// A DNS label (RFC 1123 section 2.1) that does not begin with a digit, so that no program takes it for an address.
fn host_label(name: &str) -> Verdict {
    let first = name.bytes().next().ok_or("it is empty")?;
    if name.len() > 63 {
        return Err("it is longer than 63 characters");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err("only ASCII letters, digits and dashes are allowed");
    }
    if !first.is_ascii_alphabetic() {
        return Err("it must begin with a letter");
    }
    if name.ends_with('-') {
        return Err("it must not end with a dash");
    }
    Ok(())
}

/// A name that becomes one component of a path or URL.
fn file_like(name: &str) -> Verdict {
    if name.is_empty() {
        return Err("it is empty");
    }
    if name.len() > 127 {
        return Err("it is longer than 127 bytes");
    }
    if name == "." || name == ".." {
        return Err("it means a directory in a path");
    }
    if name.contains('/') {
        return Err("a slash is not allowed");
    }
    if name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("spaces and control characters are not allowed");
    }
    if name.starts_with('-') {
        return Err("it must not begin with a dash, or commands take it for a flag");
    }
    Ok(())
}

/// Letters, digits, dot, dash and underscore; what fits into a path, a key and a command line unquoted.
fn plain(name: &str) -> Verdict {
    let first = name.bytes().next().ok_or("it is empty")?;
    if name.len() > 63 {
        return Err("it is longer than 63 characters");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')) {
        return Err("only ASCII letters, digits, dots, dashes and underscores are allowed");
    }
    if !first.is_ascii_alphanumeric() {
        return Err("it must begin with a letter or digit");
    }
    Ok(())
}

/// A kernel link name: IFNAMSIZ is 16 with the closing NUL, and `dev_valid_name()` refuses slash, colon and white space.
pub(super) fn link_name(name: &str) -> Verdict {
    let first = name.bytes().next().ok_or("it is empty")?;
    if name.len() > 15 {
        return Err("it is longer than 15 characters, which is all that the kernel takes for a link name");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')) {
        return Err("only ASCII letters, digits, dots, dashes and underscores are allowed");
    }
    if !first.is_ascii_alphanumeric() {
        return Err("it must begin with a letter or digit");
    }
    if name.contains("..") {
        return Err("two dots in a row are not allowed");
    }
    Ok(())
}

/// An alias may have slashes (`debian/13`), but every part between them must say something.
fn alias(name: &str) -> Verdict {
    if name.is_empty() {
        return Err("it is empty");
    }
    if name.len() > 255 {
        return Err("it is longer than 255 bytes");
    }
    if name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("spaces and control characters are not allowed");
    }
    if name.contains(':') {
        return Err("a colon is not allowed, as it separates a remote from a name");
    }
    if name.starts_with('-') {
        return Err("it must not begin with a dash, or commands take it for a flag");
    }
    if name.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err("the parts between slashes must not be empty, \".\" or \"..\"");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(kind: NameKind, name: &str) -> bool {
        validate_name(kind, name).is_ok()
    }

    #[test]
    fn instance_names_are_dns_labels() {
        for name in ["c1", "a", "Web-01", "x--y", &"a".repeat(63)] {
            assert!(ok(NameKind::Instance, name), "{name}");
        }
        for name in ["", "1c", "-c", "c-", "c_1", "c.1", "c/1", "c 1", "é", "..", &"a".repeat(64)] {
            assert!(!ok(NameKind::Instance, name), "{name}");
        }
    }

    #[test]
    fn network_names_fit_the_kernel() {
        assert!(ok(NameKind::Network, "duetbr0"));
        assert!(ok(NameKind::Network, "123456789012345"));
        for name in ["", "1234567890123456", "a/b", "a b", "a:b", "..", ".a"] {
            assert!(!ok(NameKind::Network, name), "{name}");
        }
    }

    #[test]
    fn no_name_leaves_its_directory() {
        let kinds = [
            NameKind::Instance,
            NameKind::Snapshot,
            NameKind::Profile,
            NameKind::Network,
            NameKind::Pool,
            NameKind::Alias,
            NameKind::Device,
        ];
        for kind in kinds {
            for name in ["", ".", "..", "../x", "/x", "x/../y", "x\0y", "x\ny", "-x"] {
                assert!(!ok(kind, name), "{kind}: {name:?}");
            }
        }
        assert!(ok(NameKind::Alias, "debian/13"));
        assert!(ok(NameKind::Snapshot, "before:upgrade"));
        assert!(ok(NameKind::Device, "eth0.5"));
        assert!(ok(NameKind::Pool, "fast_1"));
    }

    #[test]
    fn the_sentence_names_the_rule() {
        let error = validate_name(NameKind::Instance, "9lives").unwrap_err();
        assert_eq!(error.to_string(), "\"9lives\" is not a valid instance name: it must begin with a letter");
    }
}
