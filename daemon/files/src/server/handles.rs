//! What a session holds open: a bounded table.

use std::os::fd::OwnedFd;

use rustix::fs::Dir;

use super::{Failure, Outcome};
use crate::protocol::FailureKind;

/// How many files and directories one session may have open.
const MAX_OPEN: usize = 256;

/// An open file or directory.
pub(super) enum Open {
    File(OwnedFd),
    /// Its entries as they are being read.
    Dir(Dir),
}

/// The table. A handle is a position; a position is used again after it was closed.
#[derive(Default)]
pub(super) struct Handles(Vec<Option<Open>>);

impl Handles {
    pub fn add(&mut self, open: Open) -> Outcome<u32> {
        let at = match self.0.iter().position(Option::is_none) {
            Some(free) => free,
            None if self.0.len() < MAX_OPEN => {
                self.0.push(None);
                self.0.len() - 1
            }
            None => return Err(Failure::of(FailureKind::TooManyHandles)),
        };
        self.0[at] = Some(open);
        u32::try_from(at).map_err(|_| Failure::of(FailureKind::TooManyHandles))
    }

    pub fn get(&mut self, handle: u32) -> Outcome<&mut Open> {
        self.0.get_mut(handle as usize).and_then(Option::as_mut).ok_or_else(|| Failure::of(FailureKind::BadHandle))
    }

    pub fn file(&mut self, handle: u32) -> Outcome<&OwnedFd> {
        match self.get(handle)? {
            Open::File(file) => Ok(file),
            Open::Dir(_) => Err(Failure::of(FailureKind::BadHandle)),
        }
    }

    pub fn dir(&mut self, handle: u32) -> Outcome<&mut Dir> {
        match self.get(handle)? {
            Open::Dir(dir) => Ok(dir),
            Open::File(_) => Err(Failure::of(FailureKind::BadHandle)),
        }
    }

    pub fn close(&mut self, handle: u32) -> Outcome<()> {
        self.get(handle)?;
        self.0[handle as usize] = None;
        Ok(())
    }
}
