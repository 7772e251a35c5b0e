//! Where a kernel's files are read from, on the host: a directory, or the ext4 of a disk that is not mounted.
//!
//! Neither is trusted: whoever owns it may have put anything there, and may have made the filesystem itself by hand. What
//! is read has bounds, only regular files are opened, and links lead nowhere but within.

mod ext4;
mod guard;
mod journal;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

pub use ext4::Ext4Disk;

/// A root below which files are read. Paths lead from the root, with or without a `/` before them; links are followed within
/// it.
///
/// Besides those of reading, the errors are of these kinds: [`io::ErrorKind::NotFound`],
/// [`io::ErrorKind::NotADirectory`], [`io::ErrorKind::InvalidInput`] for what is no regular file, and
/// [`io::ErrorKind::FileTooLarge`] for what is longer than was asked for.
pub trait Tree {
    /// The content of a regular file of at most `limit` bytes.
    ///
    /// # Errors
    /// Those above.
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>>;

    /// A regular file of at most `limit` bytes, open for reading at its beginning.
    ///
    /// # Errors
    /// Those above.
    fn file(&self, path: &Path, limit: u64) -> io::Result<File>;

    /// Names in a directory, in no order. Only the first `most` entries are looked at, and names that are no UTF-8 are
    /// passed over.
    ///
    /// # Errors
    /// Those above.
    fn names(&self, dir: &Path, most: usize) -> io::Result<Vec<String>>;
}

/// An open directory is a root. Paths are resolved in it by the kernel (openat2(2)).
impl<T: AsFd> Tree for T {
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        // It may grow while it is read.
        regular_file(self, path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
    }

    fn file(&self, path: &Path, limit: u64) -> io::Result<File> {
        let file = regular_file(self, path)?;
        if file.metadata()?.len() > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(file) }
    }

    fn names(&self, dir: &Path, most: usize) -> io::Result<Vec<String>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir: OwnedFd = openat2(self, within(dir), flags, Mode::empty(), RESOLVE)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(dir)?.take(most) {
            names.extend(entry?.file_name().to_str().ok().map(str::to_owned));
        }
        Ok(names)
    }
}

const RESOLVE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// A path for openat2(2), which takes no empty one.
fn within(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// Opens a regular file below a root. It is looked at before it is opened, because to open a device would be an act in
/// itself.
fn regular_file(root: impl AsFd, path: &Path) -> io::Result<File> {
    let found = openat2(root, within(path), OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), RESOLVE)?;
    if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::RegularFile {
        return Err(not_regular());
    }
    // The very file that was looked at, by the host's own /proc.
    File::open(PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd())))
}

fn not_regular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")
}
