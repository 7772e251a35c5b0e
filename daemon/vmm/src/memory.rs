//! The guest's memory: anonymous, never touched before the guest or the loader does, in huge pages where the host has
//! them, since each page that the guest touches first costs it an exit.

use std::io;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

use crate::layout;

/// A guest's memory. Its addresses are checked at each access, and clones are the same memory.
pub type Memory = GuestMemoryMmap<()>;

/// Why there is no memory.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The host has no room for it.
    #[error("{bytes} bytes of guest memory could not be mapped: {source}")]
    Map {
        /// How much.
        bytes: u64,
        /// Why.
        source: io::Error,
    },
}

/// The ranges of memory of a machine with this much: address and length.
#[must_use]
pub fn ranges(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(layout::LOW_END);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((layout::HIGH_START, bytes - low));
    }
    ranges
}

/// Maps the memory of a machine. `bytes` is a multiple of the page size.
///
/// # Errors
/// If the host has no room for it.
pub fn allocate(bytes: u64) -> Result<Memory, MemoryError> {
    let failed = |source| MemoryError::Map { bytes, source };
    let regions = ranges(bytes).into_iter().map(|(start, len)| region(start, len).map_err(failed));
    Memory::from_regions(regions.collect::<Result<_, _>>()?).map_err(|error| failed(io::Error::other(error)))
}

fn region(start: u64, len: u64) -> io::Result<GuestRegionMmap> {
    let len = usize::try_from(len).map_err(io::Error::other)?;
    let mapping = MmapRegion::new(len).map_err(io::Error::other)?;
    // SAFETY: the range is exactly the new mapping, and huge pages change nothing that can be seen. A host without them
    // refuses, which is all the same.
    unsafe {
        libc::madvise(mapping.as_ptr().cast(), len, libc::MADV_HUGEPAGE);
        libc::madvise(mapping.as_ptr().cast(), len, libc::MADV_DONTDUMP);
    }
    GuestRegionMmap::new(mapping, GuestAddress(start)).ok_or_else(|| io::Error::other("the address space ends before"))
}

/// Each region: its first address in the guest, its length in bytes, and where it lies in this process.
pub fn regions(memory: &Memory) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
    memory.iter().map(|region| (region.start_addr().0, region.len(), region.get_mmap().as_ptr() as u64))
}

/// Gives a machine its memory, of which this process makes no references: vm-memory's accesses are volatile.
///
/// # Errors
/// What KVM says.
///
/// # Safety
/// `memory` is kept until the machine's CPUs have ended.
pub unsafe fn give(vm: &VmFd, memory: &Memory) -> Result<(), kvm_ioctls::Error> {
    for (slot, (start, len, here)) in (0..).zip(regions(memory)) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: start,
            memory_size: len,
            userspace_addr: here,
        };
        // SAFETY: the range is a mapping of `memory`, and the caller keeps that.
        unsafe { vm.set_user_memory_region(region) }?;
    }
    Ok(())
}

/// Where a range of the guest's memory lies in this process, if all of it is memory.
#[must_use]
pub fn place(memory: &Memory, start: GuestAddress, len: usize) -> Option<u64> {
    memory.get_slice(start, len).ok().map(|slice| slice.ptr_guard_mut().as_ptr() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_leaves_the_hole_free() {
        assert_eq!(ranges(1 << 20), [(0, 1 << 20)]);
        assert_eq!(ranges(layout::LOW_END), [(0, layout::LOW_END)]);
        assert_eq!(ranges(layout::LOW_END + 4096), [(0, layout::LOW_END), (layout::HIGH_START, 4096)]);
    }
}
