//! What a tree occupies.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, Stat, statat};
use rustix::io::Errno;

use super::TreeError;
use super::stack::{DirStack, ListBuffer, Names};

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
    let (mut stack, stat) = DirStack::new(root)?;
    let mut count = Count::default();
    let mut list = ListBuffer::new();
    let mut pending = Vec::new();
    count.add(&stat);
    pending.push(subdirectories(&stack, &mut list, &mut count)?);
    while let Some(names) = pending.last_mut() {
        match names.pop() {
            Some(name) => {
                if let Some(stat) = stack.enter(&name)? {
                    count.add(&stat);
                    pending.push(subdirectories(&stack, &mut list, &mut count)?);
                }
            }
            None => {
                pending.pop();
                if !pending.is_empty() {
                    stack.leave()?;
                    // After a move, what is left of the levels in between is not counted.
                    pending.truncate(stack.depth());
                }
            }
        }
    }
    Ok(count.size)
}

/// Counts all entries of the current directory but its subdirectories, and returns those.
fn subdirectories(stack: &DirStack, list: &mut ListBuffer, count: &mut Count) -> Result<Names, TreeError> {
    let mut names = Names::default();
    let visited = list.for_each(stack.top(), |name, hint| {
        if hint == FileType::Directory {
            names.push(name);
            return Ok(());
        }
        match statat(stack.top(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => names.push(name),
            Ok(stat) => count.add(&stat),
            Err(Errno::NOENT) => {}
            Err(e) => return Err(stack.error_at("read attributes of", name, e)),
        }
        Ok(())
    });
    visited.map_err(|e| stack.error("list it", e))??;
    Ok(names)
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
