//! POSIX ACLs in the text form that star and GNU tar store (`SCHILY.acl.access`), turned into the binary form of the
//! `system.posix_acl_*` attributes (linux/posix_acl_xattr.h: a version word, then entries of tag, permission and id).
//!
//! GNU tar writes users and groups by name, even under `--numeric-owner`. Names only mean something in the image, so
//! they are looked up in its own `/etc/passwd` and `/etc/group`, once it is complete.

use crate::entry::Xattr;

/// Pseudo attribute under which an ACL with names travels until it can be resolved.
pub(crate) const ACCESS_TEXT: &[u8] = b"SCHILY.acl.access";
/// The same for a directory's default ACL.
pub(crate) const DEFAULT_TEXT: &[u8] = b"SCHILY.acl.default";

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// The id of entries that have none.
const NO_ID: u32 = u32::MAX;

/// What an entry applies to, as the text names it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Who {
    Nobody,
    Id(u32),
    Name(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    tag: u16,
    permission: u16,
    who: Who,
}

/// An ACL that was understood, though perhaps not resolved yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Acl(Vec<Entry>);

impl Acl {
    /// Takes the text apart. An id is the number in the entry's second field or, where that is a name, the fourth
    /// field, as star writes it.
    ///
    /// # Errors
    /// The part that cannot be understood.
    pub(crate) fn parse(text: &[u8]) -> Result<Acl, String> {
        let text = std::str::from_utf8(text).map_err(|_| "its ACL is not text".to_owned())?;
        let mut entries = Vec::new();
        for line in text.split([',', '\n']) {
            let line = line.split('#').next().unwrap_or("").trim();
            if !line.is_empty() {
                entries.push(entry(line).ok_or_else(|| format!("its ACL has {line:?}, which has no clear meaning"))?);
            }
        }
        Ok(Acl(entries))
    }

    /// The attribute's value; `None` when a name is not known to `passwd` and `group`, which are texts of that form.
    pub(crate) fn to_value(&self, passwd: &str, group: &str) -> Option<Vec<u8>> {
        let mut entries = Vec::with_capacity(self.0.len());
        for Entry { tag, permission, who } in &self.0 {
            let id = match who {
                Who::Nobody => NO_ID,
                Who::Id(id) => *id,
                Who::Name(name) if *tag == USER => look_up(passwd, name)?,
                Who::Name(name) => look_up(group, name)?,
            };
            entries.push((*tag, *permission, id));
        }
        // The kernel wants them in this order (posix_acl_valid).
        entries.sort_by_key(|(tag, _, id)| (*tag, *id));
        let mut value = VERSION.to_le_bytes().to_vec();
        for (tag, permission, id) in entries {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&permission.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        Some(value)
    }
}

/// The attribute for a text stored under `key`, or the text itself under the same key while it has names.
pub(crate) fn to_xattr(key: &[u8], text: &[u8]) -> Result<Xattr, String> {
    let acl = Acl::parse(text)?;
    Ok(match acl.to_value("", "") {
        Some(value) => (attribute(key).to_vec(), value),
        None => (key.to_vec(), text.to_vec()),
    })
}

/// The attribute that a pseudo attribute stands for.
pub(crate) fn attribute(key: &[u8]) -> &'static [u8] {
    if key == DEFAULT_TEXT { b"system.posix_acl_default" } else { b"system.posix_acl_access" }
}

/// Finds a name in a text of the form of `/etc/passwd` or `/etc/group`: name, password, id.
fn look_up(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

fn entry(line: &str) -> Option<Entry> {
    let mut fields = line.split(':').map(str::trim);
    let tag = fields.next()?;
    let (mut name, mut letters) = (fields.next()?, fields.next());
    if letters.is_none() && matches!(tag, "other" | "o" | "mask" | "m") {
        // The short form "other:r-x".
        (name, letters) = ("", Some(name));
    }
    let mut permission = 0;
    for letter in letters?.chars() {
        permission |= match letter {
            'r' => 4,
            'w' => 2,
            'x' => 1,
            '-' => 0,
            _ => return None,
        };
    }
    let id = fields.next();
    let who = || -> Who {
        let number = name.parse().ok().or_else(|| id?.parse().ok()).filter(|n| *n != NO_ID);
        number.map_or_else(|| Who::Name(name.to_owned()), Who::Id)
    };
    let (tag, who) = match (tag, name.is_empty()) {
        ("user" | "u", true) => (USER_OBJ, Who::Nobody),
        ("user" | "u", false) => (USER, who()),
        ("group" | "g", true) => (GROUP_OBJ, Who::Nobody),
        ("group" | "g", false) => (GROUP, who()),
        ("mask" | "m", true) => (MASK, Who::Nobody),
        ("other" | "o", true) => (OTHER, Who::Nobody),
        _ => return None,
    };
    Some(Entry { tag, permission, who })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gnu_tar_and_star_forms() {
        let plain = to_xattr(ACCESS_TEXT, b"user::rw-\nuser:1000:r-x\ngroup::r--\nmask::r-x\nother::---\n").unwrap();
        let star = to_xattr(ACCESS_TEXT, b"other::---,mask::r-x,group::r--,user:joe:r-x:1000,user::rw-").unwrap();
        assert_eq!(plain, star);
        assert_eq!(plain.0, b"system.posix_acl_access");
        assert_eq!(plain.1.len(), 4 + 5 * 8);
        assert_eq!(plain.1[..12], [2, 0, 0, 0, 1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(plain.1[12..20], [2, 0, 5, 0, 0xe8, 3, 0, 0]);
    }

    #[test]
    fn names_wait_for_the_image() {
        let text = b"user::rwx\ngroup::r-x\ngroup:adm:r-x\nmask::r-x\nother::r-x\n";
        assert_eq!(to_xattr(DEFAULT_TEXT, text).unwrap(), (DEFAULT_TEXT.to_vec(), text.to_vec()));
        let acl = Acl::parse(text).unwrap();
        assert_eq!(acl.to_value("adm:x:9:9", "root:x:0:\n"), None);
        let value = acl.to_value("", "root:x:0:\nadm:x:4:\n").unwrap();
        assert_eq!(value[4 + 16..4 + 24], [8, 0, 5, 0, 4, 0, 0, 0]);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["user::rwz", "thing::rwx", "user", "mask:5:rwx"] {
            assert!(Acl::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
