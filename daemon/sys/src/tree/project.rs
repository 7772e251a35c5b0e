//! Moving a tree into a project.

use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Mode, OFlags, openat};
use rustix::io::Errno;

use super::TreeError;
use super::walk::{Found, walk};
use crate::project_quota;

/// Moves a directory with all that is in it into a project (see [`project_quota`]), each directory before what is in it:
/// what is made in it meanwhile is then of that project as well. Symbolic links, devices, FIFOs and sockets, which
/// occupy next to nothing, stay where they are.
pub fn set_project(root: BorrowedFd<'_>, project: u32) -> Result<(), TreeError> {
    let failed = |error: io::Error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
    walk(root, |stack, found| match found {
        Found::Directory(_) => project_quota::set_project(stack.top(), project, true)
            .map_err(|e| stack.error("move it into a project", failed(e))),
        Found::Other(name, stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
            match open(stack.top(), name) {
                Ok(file) => project_quota::set_project(file, project, false)
                    .map_err(|e| stack.error_at("move into a project", name, failed(e))),
                Err(Errno::NOENT | Errno::LOOP) => Ok(()),
                Err(e) => Err(stack.error_at("open", name, e)),
            }
        }
        Found::Other(..) => Ok(()),
    })
}

/// What a file became meanwhile must not hold this up.
fn open(directory: BorrowedFd<'_>, name: &CStr) -> Result<std::os::fd::OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::empty())
}
