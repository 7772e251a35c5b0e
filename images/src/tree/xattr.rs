//! Which extended attributes are kept, and how they are set without following anything.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{Mode, OFlags, XattrFlags, fsetxattr, openat, setxattr};
use rustix::io::Result;

use crate::acl;
use crate::entry::Attributes;

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
