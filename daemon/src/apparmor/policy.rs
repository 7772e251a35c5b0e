//! A compiled profile, in which only its name is looked at.

/// The type of a string (`AA_STRING` in the kernel's security/apparmor/policy_unpack.c); its length and its bytes with a
/// zero byte at the end follow.
const STRING: u8 = 5;

/// A profile's name of this many bytes that is in no profile otherwise.
pub(super) fn placeholder(len: usize) -> String {
    "q".repeat(len)
}

/// The compiled profile with `name` in the place of `placeholder`, which is as long: tables are aligned by where they
/// are, so nothing may move. None where the placeholder is not there exactly once.
pub(super) fn named(mut compiled: Vec<u8>, placeholder: &str, name: &str) -> Option<Vec<u8>> {
    let string = |text: &str| {
        let len = u16::try_from(text.len() + 1).ok()?;
        Some([&[STRING], len.to_le_bytes().as_slice(), text.as_bytes(), &[0]].concat())
    };
    let (old, new) = (string(placeholder)?, string(name)?);
    if old.len() != new.len() {
        return None;
    }
    let mut found = (0..compiled.len()).filter(|at| compiled[*at..].starts_with(&old));
    let (at, more) = (found.next()?, found.next());
    if more.is_some() {
        return None;
    }
    compiled[at..at + new.len()].copy_from_slice(&new);
    Some(compiled)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "version", the profile and its name, as apparmor_parser(8) writes them.
    fn compiled(name: &str) -> Vec<u8> {
        let len = u8::try_from(name.len() + 1).unwrap();
        let head = b"\x04\x08\x00version\x00\x02\x05\x00\x00\x00\x04\x08\x00profile\x00\x07\x05";
        [head.as_slice(), &[len, 0], name.as_bytes(), b"\x00\x04\x06\x00flags\x00\x07"].concat()
    }

    #[test]
    fn a_name_takes_the_place_of_another_of_its_length() {
        let old = placeholder(7);
        assert_eq!(named(compiled(&old), &old, "duet_c1"), Some(compiled("duet_c1")));
    }

    #[test]
    fn nothing_moves_and_nothing_is_guessed() {
        let old = placeholder(7);
        assert_eq!(named(compiled(&old), &old, "duet_c12"), None, "another length");
        assert_eq!(named(compiled("duet_c1"), &old, "duet_c2"), None, "not there");
        let twice = [compiled(&old), compiled(&old)].concat();
        assert_eq!(named(twice, &old, "duet_c1"), None, "twice");
        assert_eq!(named(compiled(&placeholder(8)), &old, "duet_c1"), None, "a longer one");
    }
}
