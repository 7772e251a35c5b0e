//! A walk through a tree that looks at everything once.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, Stat, statat};
use rustix::io::Errno;

use super::TreeError;
use super::stack::{DirStack, ListBuffer, Names};

/// What a walk has come upon.
pub(super) enum Found<'a> {
    /// The current directory, before anything in it.
    Directory(&'a Stat),
    /// An entry of the current directory that is none itself.
    Other(&'a CStr, &'a Stat),
}

/// Shows everything in a tree to `visit`, the root among it. What comes and goes meanwhile may be shown or not, and
/// what was moved twice or not at all.
pub(super) fn walk(
    root: BorrowedFd<'_>,
    mut visit: impl FnMut(&DirStack, Found<'_>) -> Result<(), TreeError>,
) -> Result<(), TreeError> {
    let (mut stack, stat) = DirStack::new(root)?;
    let mut list = ListBuffer::new();
    let mut pending = vec![enter(&stack, &stat, &mut list, &mut visit)?];
    while let Some(names) = pending.last_mut() {
        match names.pop() {
            Some(name) => {
                if let Some(stat) = stack.enter(&name)? {
                    pending.push(enter(&stack, &stat, &mut list, &mut visit)?);
                }
            }
            None => {
                pending.pop();
                if !pending.is_empty() {
                    stack.leave()?;
                    // After a move, what is left of the levels in between is not shown.
                    pending.truncate(stack.depth());
                }
            }
        }
    }
    Ok(())
}

/// Shows the current directory and its entries but for its subdirectories, and returns those.
fn enter(
    stack: &DirStack,
    stat: &Stat,
    list: &mut ListBuffer,
    visit: &mut impl FnMut(&DirStack, Found<'_>) -> Result<(), TreeError>,
) -> Result<Names, TreeError> {
    visit(stack, Found::Directory(stat))?;
    let mut names = Names::default();
    let visited = list.for_each(stack.top(), |name, hint| {
        if hint == FileType::Directory {
            names.push(name);
            return Ok(());
        }
        match statat(stack.top(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => names.push(name),
            Ok(stat) => visit(stack, Found::Other(name, &stat))?,
            Err(Errno::NOENT) => {}
            Err(e) => return Err(stack.error_at("read attributes of", name, e)),
        }
        Ok(())
    });
    visited.map_err(|e| stack.error("list it", e))??;
    Ok(names)
}
