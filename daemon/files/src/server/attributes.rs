//! Attributes of files: reading them, and changing them through a descriptor.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Statx, StatxFlags, StatxTimestamp, Timespec, Timestamps, UTIME_OMIT, Uid, chmodat,
    chownat, ftruncate, openat, statx, utimensat,
};
use rustix::io::Errno;

use super::enter::descriptor_name;
use super::{Failure, Outcome};
use crate::protocol::{Changes, FailureKind, FileKind, Owner, Stat, Time};

/// All bits that chmod(2) sets.
const MODE_BITS: u32 = 0o7777;

/// The attributes of what `fd` holds, be it open or by `O_PATH`.
pub(super) fn stat(fd: impl AsFd) -> Result<Stat, Errno> {
    stat_at(fd, c"", AtFlags::EMPTY_PATH)
}

/// The attributes of a name in a directory, a link not followed.
pub(super) fn stat_entry(dir: impl AsFd, name: &CStr) -> Result<Stat, Errno> {
    stat_at(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

fn stat_at(dir: impl AsFd, name: &CStr, flags: AtFlags) -> Result<Stat, Errno> {
    // Mounting something because somebody looked at it is not for us to do.
    let found = statx(dir, name, flags | AtFlags::NO_AUTOMOUNT, StatxFlags::BASIC_STATS)?;
    Ok(Stat {
        kind: kind_of(&found),
        mode: u32::from(found.stx_mode) & MODE_BITS,
        uid: found.stx_uid,
        gid: found.stx_gid,
        size: found.stx_size,
        allocated: found.stx_blocks.saturating_mul(512),
        links: found.stx_nlink,
        atime: time_of(found.stx_atime),
        mtime: time_of(found.stx_mtime),
        ctime: time_of(found.stx_ctime),
    })
}

fn kind_of(found: &Statx) -> FileKind {
    use rustix::fs::FileType;
    match FileType::from_raw_mode(found.stx_mode.into()) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::CharacterDevice => FileKind::CharDevice,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::Unknown => FileKind::Unknown,
    }
}

fn time_of(time: StatxTimestamp) -> Time {
    Time { seconds: time.tv_sec, nanoseconds: time.tv_nsec }
}

/// Changes files on behalf of the container's root.
pub(super) struct Changer<'a> {
    /// `/proc/self/fd`.
    pub descriptors: &'a OwnedFd,
    /// Ids from here on don't exist.
    pub id_limit: Option<u32>,
}

impl Changer<'_> {
    /// Applies `changes` to what `fd` holds. In this order, since a change of owner clears set-user-ID bits, and a change of
    /// length sets the time.
    pub fn change(&self, fd: impl AsFd, changes: &Changes) -> Outcome<()> {
        let fd = fd.as_fd();
        if let Some(size) = changes.size {
            ftruncate(self.open_file(fd, OFlags::WRONLY)?, size)?;
        }
        self.own(fd, changes.owner)?;
        if let Some(mode) = changes.mode {
            self.set_mode(fd, mode)?;
        }
        if changes.atime.is_some() || changes.mtime.is_some() {
            let times = Timestamps { last_access: timespec(changes.atime), last_modification: timespec(changes.mtime) };
            utimensat(fd, c"", &times, AtFlags::EMPTY_PATH)?;
        }
        Ok(())
    }

    /// Gives what `fd` holds, a link too, to `owner`.
    pub fn own(&self, fd: impl AsFd, owner: Owner) -> Outcome<()> {
        if owner == Owner::default() {
            return Ok(());
        }
        let bad = || Failure::of(FailureKind::BadId);
        // All ones means "leave it" to the kernel, so it is no id either.
        let known = |id: &u32| *id != u32::MAX && self.id_limit.is_none_or(|limit| *id < limit);
        if ![owner.uid, owner.gid].iter().flatten().all(known) {
            return Err(bad());
        }
        let (uid, gid) = (owner.uid.map(Uid::from_raw), owner.gid.map(Gid::from_raw));
        match chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH) {
            // What the user namespace has no mapping for.
            Err(Errno::INVAL) => Err(bad()),
            other => Ok(other?),
        }
    }

    /// Sets the permission bits of what `fd` holds; for a link that is `EOPNOTSUPP`.
    pub fn set_mode(&self, fd: impl AsFd, mode: u32) -> Outcome<()> {
        let name = descriptor_name(fd);
        Ok(chmodat(self.descriptors, name, Mode::from_raw_mode(mode & MODE_BITS), AtFlags::empty())?)
    }

    /// Opens what is held by `fd` if it is a regular file. It is the same file whatever its name leads to by now.
    pub fn open_file(&self, fd: impl AsFd, flags: OFlags) -> Outcome<OwnedFd> {
        let fd = fd.as_fd();
        match stat(fd)?.kind {
            FileKind::File => {}
            FileKind::Directory => return Err(Errno::ISDIR.into()),
            FileKind::Symlink
            | FileKind::Fifo
            | FileKind::Socket
            | FileKind::CharDevice
            | FileKind::BlockDevice
            | FileKind::Unknown => return Err(Failure::of(FailureKind::SpecialFile)),
        }
        // Not blocking, because a regular file can still make an open wait: by a lease on it (fcntl(2)), or by being one
        // of proc's that block.
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(openat(self.descriptors, descriptor_name(fd), flags, Mode::empty())?)
    }
}

fn timespec(time: Option<Time>) -> Timespec {
    match time {
        // More than a second's nanoseconds is refused by the kernel, but the numbers above mean "now" and "leave it".
        Some(time) => Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanoseconds.min(999_999_999)) },
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
    }
}
