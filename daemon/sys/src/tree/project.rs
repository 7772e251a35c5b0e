//! Moving a tree into a project.

use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;

use super::TreeError;
use super::stack::{DirStack, ListBuffer, Names};
use crate::project_quota;

/// Moves a directory with all that is in it into a project (see [`project_quota`]), each directory before what is in it:
/// what is made in it meanwhile is then of that project as well. Symbolic links, devices, FIFOs and sockets, which
/// occupy next to nothing, stay where they are.
pub fn set_project(root: BorrowedFd<'_>, project: u32) -> Result<(), TreeError> {
    let (mut stack, _) = DirStack::new(root)?;
    let mut list = ListBuffer::new();
    let mut pending = vec![enter(&stack, &mut list, project)?];
    while let Some(names) = pending.last_mut() {
        match names.pop() {
            Some(name) => {
                if stack.enter(&name)?.is_some() {
                    pending.push(enter(&stack, &mut list, project)?);
                }
            }
            None => {
                pending.pop();
                if !pending.is_empty() {
                    stack.leave()?;
                    pending.truncate(stack.depth());
                }
            }
        }
    }
    Ok(())
}

/// Moves the current directory and its files, and returns its subdirectories.
fn enter(stack: &DirStack, list: &mut ListBuffer, project: u32) -> Result<Names, TreeError> {
    let failed = |error: io::Error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
    project_quota::set_project(stack.top(), project, true)
        .map_err(|e| stack.error("move it into a project", failed(e)))?;
    let mut names = Names::default();
    let visited = list.for_each(stack.top(), |name, _| {
        match statat(stack.top(), name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Ok(FileType::Directory) => names.push(name),
            Ok(FileType::RegularFile) => match open(stack.top(), name) {
                Ok(file) => project_quota::set_project(file, project, false)
                    .map_err(|e| stack.error_at("move into a project", name, failed(e)))?,
                Err(Errno::NOENT | Errno::LOOP) => {}
                Err(e) => return Err(stack.error_at("open", name, e)),
            },
            Ok(_) | Err(Errno::NOENT) => {}
            Err(e) => return Err(stack.error_at("read attributes of", name, e)),
        }
        Ok(())
    });
    visited.map_err(|e| stack.error("list it", e))??;
    Ok(names)
}

/// What a file became meanwhile must not hold this up.
fn open(directory: BorrowedFd<'_>, name: &CStr) -> Result<std::os::fd::OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::empty())
}
