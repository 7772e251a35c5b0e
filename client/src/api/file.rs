//! Files inside instances: what `/1.0/instances/{name}/files` says in its headers.
//!
//! `GET` of a file answers its bytes, of a symlink its target, of a directory a sync envelope whose metadata is the
//! list of names. `POST` makes any of the three. Header names are matched without regard to case; a server should
//! take the `X-LXD-` spelling as well, which `lxc` sends.

use std::fmt;
use std::str::FromStr;

/// The owner's id inside the instance, decimal.
pub const HEADER_UID: &str = "x-incus-uid";
/// The group's id inside the instance, decimal.
pub const HEADER_GID: &str = "x-incus-gid";
/// The permission bits, octal with a leading zero ("0644").
pub const HEADER_MODE: &str = "x-incus-mode";
/// "file", "directory" or "symlink".
pub const HEADER_TYPE: &str = "x-incus-type";
/// On upload "overwrite" (the default) or "append".
pub const HEADER_WRITE: &str = "x-incus-write";
/// On deletion "true" for directories with all that is in them.
pub const HEADER_FORCE: &str = "x-incus-force";
/// When the file was last changed, as Go's `time.String` prints it.
pub const HEADER_MODIFIED: &str = "x-incus-modified";

/// What stands at a path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    #[default]
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
}

impl FileKind {
    /// The value of [`HEADER_TYPE`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Directory => "directory",
            Self::Symlink => "symlink",
        }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FileKind {
    type Err = UnknownFileKind;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "file" => Ok(Self::File),
            "directory" => Ok(Self::Directory),
            "symlink" => Ok(Self::Symlink),
            _ => Err(UnknownFileKind(text.to_owned())),
        }
    }
}

/// A name that is not a [`FileKind`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown file type {0:?}; expected file, directory or symlink")]
pub struct UnknownFileKind(pub String);
