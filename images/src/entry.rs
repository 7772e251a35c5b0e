//! What an archive says about one file, whatever the archive's format: the common language of the tar reader, the
//! squashfs reader and the tree that is written from them.

use crate::limits::Limits;
use crate::{ImageError, Result};

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file; its bytes follow.
    File,
    /// A directory.
    Directory,
    /// A symbolic link to this text, which is kept as it is.
    Symlink(Vec<u8>),
    /// Another name of the entry that has this path in the archive.
    HardLink(Vec<u8>),
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket: only squashfs can hold one; it means nothing without its process.
    Socket,
}

/// A point in time: seconds since 1970 and nanoseconds after that second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// Nanoseconds, 0 to 999 999 999.
    pub nanoseconds: u32,
}

/// An extended attribute: name and value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// Everything about a file but its name, kind and content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits with setuid, setgid and sticky: 0 to 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Timestamp,
    /// Extended attributes as the archive has them.
    pub xattrs: Vec<Xattr>,
}

/// A path from an archive, made safe to use beneath a directory: relative, no `.` or `..`, no empty components.
///
/// The empty path is the top itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CleanPath(Vec<u8>);

impl CleanPath {
    /// Cleans an archive's name: `./` and `/` at the end and doubled slashes vanish; `..`, an absolute name and a NUL
    /// are refused, and so is what passes the limits.
    ///
    /// # Errors
    /// [`ImageError::Refused`] with the name.
    pub fn parse(name: &[u8], limits: &Limits) -> Result<CleanPath> {
        let refuse = |reason: String| Err(ImageError::refused(show(name), reason));
        if name.is_empty() {
            return refuse("it has no name".into());
        }
        if name[0] == b'/' {
            return refuse("its name is absolute; an image's entries are relative".into());
        }
        if name.contains(&0) {
            return refuse("its name has a NUL byte".into());
        }
        if name.len() >= limits.max_path {
            return refuse(format!("its name is longer than {} bytes", limits.max_path));
        }
        let mut clean = Vec::with_capacity(name.len());
        let mut depth = 0;
        for part in name.split(|b| *b == b'/') {
            match part {
                b"" | b"." => continue,
                b".." => return refuse("its name climbs with \"..\"".into()),
                _ if part.len() > 255 => return refuse("a part of its name is longer than 255 bytes".into()),
                _ => {}
            }
            depth += 1;
            if !clean.is_empty() {
                clean.push(b'/');
            }
            clean.extend_from_slice(part);
        }
        if depth > limits.max_depth {
            return refuse(format!("it is more than {} directories deep", limits.max_depth));
        }
        Ok(CleanPath(clean))
    }

    /// The bytes, without a slash at either end.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the top itself.
    pub fn is_top(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory it is in, and its name there.
    pub fn split(&self) -> (&[u8], &[u8]) {
        match self.0.iter().rposition(|b| *b == b'/') {
            Some(at) => (&self.0[..at], &self.0[at + 1..]),
            None => (b"", &self.0),
        }
    }

    /// The first component, and what is beneath it.
    pub fn split_first(&self) -> (&[u8], CleanPath) {
        match self.0.iter().position(|b| *b == b'/') {
            Some(at) => (&self.0[..at], CleanPath(self.0[at + 1..].to_vec())),
            None => (&self.0, CleanPath(Vec::new())),
        }
    }
}

impl std::fmt::Display for CleanPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&show(&self.0))
    }
}

/// A name for messages: what is not UTF-8 is replaced, and a very long one is cut.
pub(crate) fn show(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    match text.char_indices().nth(200) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(name: &[u8]) -> Result<CleanPath> {
        CleanPath::parse(name, &Limits::default())
    }

    #[test]
    fn cleans_and_refuses() {
        for (name, clean) in [("a/b", "a/b"), ("./a//b/", "a/b"), (".", ""), ("./", ""), ("..a/b..", "..a/b..")] {
            assert_eq!(parse(name.as_bytes()).unwrap().as_bytes(), clean.as_bytes());
        }
        let long = "x".repeat(256);
        let deep = "d/".repeat(300);
        let far = "abcdefgh/".repeat(500);
        for name in ["", "/etc/passwd", "../a", "a/../b", "a/..", "..", "a\0b", &long, &deep, &far] {
            assert!(matches!(parse(name.as_bytes()), Err(ImageError::Refused { .. })), "{name:?}");
        }
    }

    #[test]
    fn splits() {
        let path = parse(b"a/b/c").unwrap();
        assert_eq!(path.split(), (&b"a/b"[..], &b"c"[..]));
        let (first, rest) = path.split_first();
        assert_eq!((first, rest.as_bytes()), (&b"a"[..], &b"b/c"[..]));
        assert_eq!(parse(b"a").unwrap().split(), (&b""[..], &b"a"[..]));
    }

    proptest! {
        #[test]
        fn never_leaves_the_top(name in proptest::collection::vec(prop_oneof![Just(b'/'), Just(b'.'), Just(b'a'), any::<u8>()], 0..40)) {
            if let Ok(path) = parse(&name) {
                prop_assert!(!path.as_bytes().starts_with(b"/"));
                for part in path.as_bytes().split(|b| *b == b'/') {
                    prop_assert!(path.is_top() || !(part.is_empty() || part == b"." || part == b".." || part.contains(&0)));
                }
            }
        }
    }
}
