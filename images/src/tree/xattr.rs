//! Which extended attributes are kept, and how they are set without following anything.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{Mode, OFlags, XattrFlags, fgetxattr, flistxattr, fsetxattr, getxattr, listxattr, openat, setxattr};
use rustix::io::{Errno, Result};

use crate::acl;
use crate::entry::{Attributes, Xattr};

/// Whether an image keeps this attribute on this kind of file.
///
/// `user.*` and ACLs belong to users; capabilities only mean something on programs. `trusted.*` is the host's own, most
/// of all `trusted.overlay.*`, by which an image could give orders to the overlay it becomes a layer of. Labels
/// (`security.selinux`, `security.ima`, …) belong to another host's policy.
pub(crate) fn is_kept(name: &[u8], file: bool, directory: bool, link: bool) -> bool {
    match name {
        b"security.capability" => file,
        b"system.posix_acl_access" => !link,
        b"system.posix_acl_default" => directory,
        // The kernel keeps these off links and devices (xattr(7), "Extended user attributes").
        _ => name.starts_with(b"user.") && name.len() > 5 && (file || directory),
    }
}

/// Whether this is an ACL that waits for its names; it is neither kept nor dropped yet.
fn is_waiting(name: &[u8]) -> bool {
    name == acl::ACCESS_TEXT || name == acl::DEFAULT_TEXT
}

/// Sets the kept ones on an open file or directory; returns how many were not kept.
pub(super) fn set_on_file(fd: BorrowedFd<'_>, attributes: &Attributes, directory: bool) -> Result<u64> {
    let mut dropped = 0;
    for (name, value) in &attributes.xattrs {
        if is_kept(name, !directory, directory, false) {
            fsetxattr(fd, name.as_slice(), value, XattrFlags::empty())?;
        } else if !is_waiting(name) {
            dropped += 1;
        }
    }
    Ok(dropped)
}

/// Sets the kept ones on a link, device or pipe; returns how many were not kept.
pub(super) fn set_on_node(parent: BorrowedFd<'_>, name: &[u8], attributes: &Attributes, link: bool) -> Result<u64> {
    let mut dropped = 0;
    for (key, value) in &attributes.xattrs {
        if is_kept(key, false, false, link) {
            let node = openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            set_by_path_fd(node.as_fd(), key, value)?;
        } else if !is_waiting(key) {
            dropped += 1;
        }
    }
    Ok(dropped)
}

/// Sets one on whatever an `O_PATH` descriptor is of. Such a descriptor takes no `fsetxattr`; its magic link in /proc
/// leads to the node itself and no further.
pub(super) fn set_by_path_fd(node: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> Result<()> {
    let path = format!("/proc/self/fd/{}", node.as_raw_fd());
    setxattr(path.as_str(), name, value, XattrFlags::empty())
}

/// Reads the ones that an image keeps, in order of their names. An `O_PATH` descriptor will do for what is neither file
/// nor directory.
pub(crate) fn read_xattrs(fd: BorrowedFd<'_>, file: bool, directory: bool, link: bool) -> Result<Vec<Xattr>> {
    let node = (!file && !directory).then(|| format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let list = |buffer: &mut [u8]| match &node {
        Some(path) => listxattr(path.as_str(), buffer),
        None => flistxattr(fd, buffer),
    };
    let get = |name: &[u8], buffer: &mut [u8]| match &node {
        Some(path) => getxattr(path.as_str(), name, buffer),
        None => fgetxattr(fd, name, buffer),
    };
    let names = match grown(list) {
        // The file system has none.
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        other => other?,
    };
    let mut kept = Vec::new();
    for name in names.split(|b| *b == 0).filter(|n| is_kept(n, file, directory, link)) {
        match grown(|buffer| get(name, buffer)) {
            Ok(value) => kept.push((name.to_vec(), value)),
            Err(Errno::NODATA) => {} // removed since
            Err(e) => return Err(e),
        }
    }
    kept.sort();
    Ok(kept)
}

/// Calls with ever larger buffers, up to what the kernel allows (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`: 64 KiB).
fn grown(call: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    loop {
        match call(&mut buffer) {
            Ok(n) => {
                buffer.truncate(n);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < 64 << 10 => buffer.resize(64 << 10, 0),
            Err(e) => return Err(e),
        }
    }
}
