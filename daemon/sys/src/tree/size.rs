//! What a tree occupies.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Stat};

use super::TreeError;
use super::walk::{Found, walk};

/// The size of a tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TreeSize {
    /// Allocated bytes (`st_blocks`, in units of 512): holes not counted, hard links once.
    pub bytes: u64,
    /// Entries, the root among them; each name of a file counts.
    pub entries: u64,
}

/// Measures a tree, which may change meanwhile: the result is then of no particular moment.
pub fn tree_size(root: BorrowedFd<'_>) -> Result<TreeSize, TreeError> {
    let mut count = Count::default();
    walk(root, |_, found| {
        let (Found::Directory(stat) | Found::Other(_, stat)) = found;
        count.add(stat);
        Ok(())
    })?;
    Ok(count.size)
}

#[derive(Default)]
struct Count {
    size: TreeSize,
    /// Files of several names that were counted. Those without blocks (whiteouts above all) need not be remembered.
    seen: HashSet<(u64, u64)>,
}

impl Count {
    fn add(&mut self, stat: &Stat) {
        self.size.entries += 1;
        let bytes = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let first = bytes == 0 || is_directory || stat.st_nlink < 2 || self.seen.insert((stat.st_dev, stat.st_ino));
        if first {
            self.size.bytes += bytes;
        }
    }
}
