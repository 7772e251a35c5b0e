//! Owners, modes, times and extended attributes.
//!
//! Order matters (chown(2), xattr(7)): a change of owner clears set-user-ID bits and `security.capability`; a POSIX
//! ACL is also stored in the mode's group bits; every change of attributes leaves mtime alone but reading updates
//! atime. So: owner, mode, extended attributes, times.

use std::ffi::{CStr, CString};
use std::fmt::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{
    AtFlags, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown, fgetxattr, flistxattr,
    fsetxattr, futimens, lgetxattr, llistxattr, lsetxattr, utimensat,
};
use rustix::io::Errno;

/// XATTR_LIST_MAX and XATTR_SIZE_MAX of linux/limits.h.
const XATTR_MAX: usize = 65_536;

/// Kernel integrity's own attributes: only the kernel can write them, and it does so for the copy by itself.
const KERNEL_OWNED: [&[u8]; 2] = [b"security.ima", b"security.evm"];

/// What carries extended attributes.
#[derive(Debug)]
pub(super) enum Carrier<'a> {
    /// An open file or directory.
    Open(BorrowedFd<'a>),
    /// Anything at all, by a path whose last component is not followed.
    Path(CString),
}

impl Carrier<'_> {
    /// An entry that cannot be opened: a symbolic link, a device, a FIFO. There is no `lgetxattrat` before Linux 6.13,
    /// but `/proc/self/fd/N/name` is one step from the descriptor and follows nothing at its end.
    pub(super) fn entry(dir: BorrowedFd<'_>, name: &CStr) -> Self {
        let mut path = String::new();
        let Ok(()) = write!(path, "/proc/self/fd/{}/", dir.as_raw_fd()) else { unreachable!("a String takes all") };
        let mut path = path.into_bytes();
        path.extend_from_slice(name.to_bytes());
        Self::Path(CString::new(path).expect("neither part holds a NUL"))
    }

    fn list(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Open(fd) => flistxattr(fd, buf),
            Self::Path(path) => llistxattr(path, buf),
        }
    }

    fn get(&self, name: &CStr, buf: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Open(fd) => fgetxattr(fd, name, buf),
            Self::Path(path) => lgetxattr(path, name, buf),
        }
    }

    fn set(&self, name: &CStr, value: &[u8]) -> Result<(), Errno> {
        match self {
            Self::Open(fd) => fsetxattr(fd, name, value, XattrFlags::empty()),
            Self::Path(path) => lsetxattr(path, name, value, XattrFlags::empty()),
        }
    }

    /// Every attribute's name. None where the filesystem has no attributes.
    pub(super) fn names(&self) -> Result<Vec<CString>, Errno> {
        let mut small = [0; 1024];
        match self.list(&mut small) {
            Ok(len) => Ok(split_names(&small[..len])),
            Err(Errno::RANGE) => {
                let mut large = vec![0; XATTR_MAX];
                let len = self.list(&mut large)?;
                Ok(split_names(&large[..len]))
            }
            Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }

    /// An attribute's value. None when there is none.
    pub(super) fn value(&self, name: &CStr) -> Result<Option<Vec<u8>>, Errno> {
        let mut small = [0; 512];
        match self.get(name, &mut small) {
            Ok(len) => Ok(Some(small[..len].to_vec())),
            Err(Errno::RANGE) => {
                let mut large = vec![0; XATTR_MAX];
                let len = self.get(name, &mut large)?;
                large.truncate(len);
                Ok(Some(large))
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Gives `to` every attribute of this one for which `wanted` says so.
    pub(super) fn copy_to(&self, to: &Carrier<'_>, wanted: impl Fn(&[u8]) -> bool) -> Result<(), Errno> {
        for name in self.names()? {
            let bytes = name.to_bytes();
            if KERNEL_OWNED.contains(&bytes) || !wanted(bytes) {
                continue;
            }
            if let Some(value) = self.value(&name)? {
                to.set(&name, &value)?;
            }
        }
        Ok(())
    }
}

fn split_names(list: &[u8]) -> Vec<CString> {
    list.split_inclusive(|&b| b == 0)
        .filter_map(|name| CStr::from_bytes_with_nul(name).ok())
        .map(CStr::to_owned)
        .collect()
}

/// The value of an extended attribute of an open file; none when it has no such attribute.
pub fn get_xattr(fd: impl AsFd, name: &CStr) -> Result<Option<Vec<u8>>, Errno> {
    Carrier::Open(fd.as_fd()).value(name)
}

/// The names of all extended attributes of an open file.
pub fn list_xattrs(fd: impl AsFd) -> Result<Vec<CString>, Errno> {
    Carrier::Open(fd.as_fd()).names()
}

/// Gives an open file every extended attribute of another for which `wanted` says so.
pub fn copy_xattrs(from: impl AsFd, to: impl AsFd, wanted: impl Fn(&[u8]) -> bool) -> Result<(), Errno> {
    Carrier::Open(from.as_fd()).copy_to(&Carrier::Open(to.as_fd()), wanted)
}

/// Owner, mode and times.
#[derive(Debug, Clone)]
pub(super) struct Attributes {
    owner: Uid,
    group: Gid,
    mode: Mode,
    times: Timestamps,
}

/// The times of access and change of a file, to be given to another.
pub fn timestamps(stat: &Stat) -> Timestamps {
    let time = |tv_sec: i64, tv_nsec: u64| Timespec { tv_sec, tv_nsec: tv_nsec as _ };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

impl Attributes {
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            owner: Uid::from_raw(stat.st_uid),
            group: Gid::from_raw(stat.st_gid),
            mode: Mode::from_raw_mode(stat.st_mode),
            times: timestamps(stat),
        }
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) fn set_owner_and_mode(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        fchown(fd, Some(self.owner), Some(self.group))?;
        fchmod(fd, self.mode)
    }

    pub(super) fn set_times(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        futimens(fd, &self.times)
    }

    /// Like [`Attributes::set_times`], of an entry that is not opened.
    pub(super) fn set_times_at(&self, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        utimensat(dir, name, &self.times, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// The owner of an entry that is not opened. Its mode is set by whatever makes it.
    pub(super) fn set_owner_at(&self, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        chownat(dir, name, Some(self.owner), Some(self.group), AtFlags::SYMLINK_NOFOLLOW)
    }
}
