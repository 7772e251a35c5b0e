//! One entry of a directory that is not a directory itself.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, chmodat, fstat, linkat, mknodat, openat, readlinkat, statat, symlinkat,
};
use rustix::io::Errno;

use super::data::DataCopier;
use super::meta::{Attributes, Carrier};

/// What became of an entry that was to be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryOutcome {
    /// It was copied, or linked to the copy of another name of the same file.
    Copied,
    /// It is a directory: left to the caller.
    Directory,
    /// It vanished, or became something else, while it was being copied.
    Vanished,
}

/// A step that failed: what was tried, and the errno.
pub type StepError = (&'static str, Errno);

/// Copies files, links, devices, FIFOs and sockets between directories of one filesystem.
///
/// Other names of a file already copied become links to its copy. Which those are is not remembered in memory, which a
/// hostile tree could exhaust, but in a directory on the destination's filesystem: there each file of several names has
/// one more, made of its inode number and change time (an inode freed and used again meanwhile has another).
#[derive(Debug)]
pub struct EntryCopier<'a> {
    links: BorrowedFd<'a>,
    data: DataCopier,
}

impl<'a> EntryCopier<'a> {
    /// `links` is an empty directory on the destination's filesystem; its contents are garbage afterwards.
    pub fn new(links: BorrowedFd<'a>) -> Self {
        Self { links, data: DataCopier::new() }
    }

    /// Whether data is shared with the source (reflink) rather than copied.
    pub fn reflinks(&self) -> bool {
        self.data.reflinks()
    }

    /// Copies the entry `name` of one directory under the same name into another, with owner, mode, times and all
    /// extended attributes. `hint` is what readdir said of its type.
    pub fn copy(
        &mut self,
        from: BorrowedFd<'_>,
        name: &CStr,
        hint: FileType,
        to: BorrowedFd<'_>,
    ) -> Result<EntryOutcome, StepError> {
        match hint {
            FileType::Directory => Ok(EntryOutcome::Directory),
            FileType::RegularFile => self.regular(from, name, to),
            _ => match statat(from, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => Ok(EntryOutcome::Directory),
                    FileType::RegularFile => self.regular(from, name, to),
                    file_type => self.special(from, name, file_type, &stat, to),
                },
                Err(Errno::NOENT) => Ok(EntryOutcome::Vanished),
                Err(e) => Err(("read attributes of", e)),
            },
        }
    }

    fn regular(&mut self, from: BorrowedFd<'_>, name: &CStr, to: BorrowedFd<'_>) -> Result<EntryOutcome, StepError> {
        let Some((source, stat)) = open_regular(from, name)? else {
            return Ok(EntryOutcome::Vanished);
        };
        let key = Self::link_key(&stat);
        if self.linked(key.as_deref(), to, name)? {
            return Ok(EntryOutcome::Copied);
        }
        let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let copy = openat(to, name, create, Mode::RUSR | Mode::WUSR).map_err(|e| ("create the copy of", e))?;
        let attributes = Attributes::of(&stat);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let allocated = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        self.data.copy(source.as_fd(), copy.as_fd(), size, allocated).map_err(|e| ("copy", e))?;
        attributes.set_owner_and_mode(copy.as_fd()).map_err(|e| ("set owner and mode of", e))?;
        let (old, new) = (Carrier::Open(source.as_fd()), Carrier::Open(copy.as_fd()));
        old.copy_to(&new, |_| true).map_err(|e| ("copy extended attributes of", e))?;
        attributes.set_times(copy.as_fd()).map_err(|e| ("set times of", e))?;
        self.remember(key.as_deref(), to, name)?;
        Ok(EntryOutcome::Copied)
    }

    fn special(
        &mut self,
        from: BorrowedFd<'_>,
        name: &CStr,
        file_type: FileType,
        stat: &Stat,
        to: BorrowedFd<'_>,
    ) -> Result<EntryOutcome, StepError> {
        let key = Self::link_key(stat);
        if self.linked(key.as_deref(), to, name)? {
            return Ok(EntryOutcome::Copied);
        }
        let attributes = Attributes::of(stat);
        if file_type == FileType::Symlink {
            let target = match readlinkat(from, name, Vec::new()) {
                Ok(target) => target,
                Err(Errno::NOENT | Errno::INVAL) => return Ok(EntryOutcome::Vanished),
                Err(e) => return Err(("read link", e)),
            };
            symlinkat(target.as_c_str(), to, name).map_err(|e| ("create the copy of link", e))?;
        } else {
            mknodat(to, name, file_type, attributes.mode(), stat.st_rdev).map_err(|e| ("create the copy of", e))?;
        }
        attributes.set_owner_at(to, name).map_err(|e| ("set owner of", e))?;
        if file_type != FileType::Symlink {
            // mknod(2) took the umask off, and nobody else can have put a link in its place.
            chmodat(to, name, attributes.mode(), AtFlags::empty()).map_err(|e| ("set mode of", e))?;
        }
        let (old, new) = (Carrier::entry(from, name), Carrier::entry(to, name));
        match old.copy_to(&new, |_| true) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(("copy extended attributes of", e)),
        }
        attributes.set_times_at(to, name).map_err(|e| ("set times of", e))?;
        self.remember(key.as_deref(), to, name)?;
        Ok(EntryOutcome::Copied)
    }

    /// The name under which a file with several names is remembered.
    fn link_key(stat: &Stat) -> Option<CString> {
        if stat.st_nlink < 2 {
            return None;
        }
        let key = format!("{:x}.{:x}.{:x}", stat.st_ino, stat.st_ctime, stat.st_ctime_nsec);
        Some(CString::new(key).expect("digits and dots"))
    }

    /// Makes the entry a link to an earlier copy of the same file, if there is one.
    fn linked(&self, key: Option<&CStr>, to: BorrowedFd<'_>, name: &CStr) -> Result<bool, StepError> {
        let Some(key) = key else { return Ok(false) };
        match linkat(self.links, key, to, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            // As many links as the filesystem allows: another copy then serves for the rest.
            Err(Errno::MLINK) => rustix::fs::unlinkat(self.links, key, AtFlags::empty())
                .map(|()| false)
                .map_err(|e| ("forget a link to", e)),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(("link to the copy of", e)),
        }
    }

    fn remember(&self, key: Option<&CStr>, to: BorrowedFd<'_>, name: &CStr) -> Result<(), StepError> {
        let Some(key) = key else { return Ok(()) };
        linkat(to, name, self.links, key, AtFlags::empty()).map_err(|e| ("remember a link to", e))
    }
}

/// Opens what readdir called a regular file. None when it is that no more.
///
/// Without O_NONBLOCK a FIFO in its place would block for ever. A device in its place would be opened: only a privileged
/// container can make one, and it may open the device itself anyway.
fn open_regular(from: BorrowedFd<'_>, name: &CStr) -> Result<Option<(OwnedFd, Stat)>, StepError> {
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOATIME | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = match openat(from, name, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::NODEV) => return Ok(None),
        Err(e) => return Err(("open", e)),
    };
    let stat = fstat(&fd).map_err(|e| ("read attributes of", e))?;
    let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    Ok(is_regular.then_some((fd, stat)))
}
