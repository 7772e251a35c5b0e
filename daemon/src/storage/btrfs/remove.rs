//! Removing what a container made within its subvolume: it may nest more of them, as deep and under as long a path as
//! it likes, and protect them from writing. So they are found and removed by their numbers, never by a path.

use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;

use duet_sys::btrfs::{self, Access, ROOT_INODE};

/// Removes every subvolume within the one of this number, the deepest first, and tells `gone` their numbers. Nobody
/// makes any in it meanwhile.
pub(super) fn nested(filesystem: BorrowedFd<'_>, id: u64, mut gone: impl FnMut(u64)) -> io::Result<()> {
    let mut chain = vec![id];
    while let Some(&parent) = chain.last() {
        let Some(found) = btrfs::first_nested(filesystem, parent)? else {
            // Nothing is in it any more: its own parent has it first again, and removes it.
            chain.pop();
            continue;
        };
        if btrfs::first_nested(filesystem, found.id)?.is_some() {
            chain.push(found.id);
            continue;
        }
        let root = btrfs::open_directory(filesystem, parent, ROOT_INODE)?;
        btrfs::set_access(&root, Access::Writable)?;
        let directory = btrfs::open_directory(filesystem, parent, found.directory)?;
        let name = CString::new(found.name).map_err(|_| io::ErrorKind::InvalidData)?;
        btrfs::remove_subvolume(&directory, &name)?;
        gone(found.id);
    }
    Ok(())
}
