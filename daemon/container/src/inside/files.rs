//! Files that the daemon wants in the root filesystem before init runs: the image's templates, filled in.
//!
//! They are written by init itself, as the container's root and within its root directory, before anything is mounted
//! on that. Nothing of the container runs yet, so nothing changes between a look and an act.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fstat};

use super::paths::{self, Kind};
use crate::spec::FileSpec;
use crate::step::{Step, StepError};

/// Writes all of them. Files that exist keep their owner and mode, new ones are root's and 0644.
pub(crate) fn write(root: &OwnedFd, files: &[FileSpec]) -> Result<(), StepError> {
    files.iter().try_for_each(|file| write_one(root, file).step_at("write", &file.path))
}

fn write_one(root: &OwnedFd, file: &FileSpec) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::NOCTTY;
    let out = match paths::open(root, &file.path) {
        Ok(_) if file.create_only => return Ok(()),
        // To open a device or a pipe for writing would be an act in itself.
        Ok(found) if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::RegularFile => {
            return Err(io::Error::other("the image has something there that is no regular file"));
        }
        Ok(_) => paths::open_with(root, &file.path, flags | OFlags::TRUNC, Mode::empty())?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = file.path.parent().filter(|parent| *parent != Path::new("/")) {
                paths::open_or_make(root, parent, Kind::Directory)?;
            }
            paths::open_with(root, &file.path, flags | OFlags::CREATE, Mode::from_raw_mode(0o644))?
        }
        Err(error) => return Err(error),
    };
    File::from(out).write_all(file.content.as_bytes())
}
