//! From files to a machine that is ready to run: kernel, initial RAM disk, command line and ACPI tables in memory, and
//! the state in which the first CPU starts. There is no firmware.
//!
//! The kernel may come out of a guest's own disk, so the files are as little trusted as the guest: all that is read from
//! them ends in guest memory or is checked.

use std::fs::File;
use std::io::{self, Seek};

use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{Error as LoaderError, KernelLoader};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use crate::layout;
use crate::memory::{self, Memory};

pub mod acpi;
mod bzimage;
mod pvh;

/// Why a kernel cannot be booted.
#[derive(Debug, Error)]
pub enum BootError {
    /// Neither of the two kinds.
    #[error(
        "the kernel is neither a 64-bit bzImage of boot protocol 2.12 or newer nor an ELF file with a PVH entry: {0}"
    )]
    Kernel(LoaderError),
    /// A bzImage without a 64-bit entry.
    #[error("the kernel is a bzImage without a 64-bit entry that can be relocated")]
    Not64Bit,
    /// An ELF file without a PVH entry.
    #[error("the kernel is an ELF file without a PVH entry (CONFIG_PVH)")]
    NoPvhEntry,
    /// An initial RAM disk that cannot be read.
    #[error("the initial RAM disk cannot be read: {0}")]
    Initrd(#[source] io::Error),
    /// Too little memory.
    #[error("kernel and initial RAM disk ({needed} bytes at least) do not fit the machine's memory")]
    TooSmall {
        /// How much there would have to be.
        needed: u64,
    },
    /// An access outside of memory.
    #[error("the guest's memory has no room for what a kernel is told: {0}")]
    Memory(#[from] GuestMemoryError),
    /// ACPI tables that are too long.
    #[error("the ACPI tables take {0} bytes, which is more than their room")]
    Tables(usize),
}

/// The state in which the first CPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// In 64-bit mode with the page tables at [`layout::PAGE_TABLES`] (Documentation/arch/x86/boot.rst, "64-bit boot
    /// protocol").
    Linux64(u64),
    /// In 32-bit protected mode without paging (docs/misc/pvh.pandoc of Xen).
    Pvh(u64),
}

/// What is loaded besides the kernel.
#[derive(Debug, Clone, Copy)]
struct Loaded<'a> {
    memory: &'a Memory,
    /// Address and length.
    initrd: Option<(u64, u64)>,
    /// Its length without the zero at its end.
    command_line: u32,
}

/// Kinds of memory as both protocols number them (include/uapi/asm/setup_data.h: E820_TYPE).
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// The memory map: address, length, kind.
fn memory_map(memory: &Memory) -> Vec<(u64, u64, u32)> {
    let mut map = vec![(0, layout::CONVENTIONAL_END, RAM), (layout::ECAM, layout::ECAM_SIZE, RESERVED)];
    for (start, len, _) in memory::regions(memory) {
        let skipped = if start == 0 { layout::KERNEL } else { 0 };
        map.push((start + skipped, len - skipped, RAM));
    }
    map.sort_unstable();
    map
}

/// The whole of the machine's firmware: a reset by way of the BIOS leads here, in real mode. Linux takes that way on
/// hardware-reduced ACPI without EFI (arch/x86/kernel/reboot.c: BOOT_EFI, then BOOT_BIOS).
const RESET_CODE: [u8; 9] = [
    0xba,
    layout::RESET_PORT.to_le_bytes()[0],
    layout::RESET_PORT.to_le_bytes()[1], // mov dx, RESET_PORT
    0xb0,
    crate::power::RESET_VALUE, // mov al, RESET_VALUE
    0xee,                      // out dx, al
    0xf4,                      // again: hlt
    0xeb,
    0xfd, // jmp again
];

/// Loads everything and says how to start.
///
/// # Errors
/// If one of the files is not what it should be, or does not fit.
pub fn load(
    memory: &Memory,
    mut kernel: File,
    initrd: Option<File>,
    command_line: &str,
    tables: &[u8],
) -> Result<Entry, BootError> {
    memory.write_slice(tables, GuestAddress(layout::ACPI))?;
    memory.write_slice(&RESET_CODE, GuestAddress(layout::RESET_CODE))?;
    memory.write_slice(command_line.as_bytes(), GuestAddress(layout::COMMAND_LINE))?;
    // The checked length of a command line is far below this.
    let command_line = u32::try_from(command_line.len()).unwrap_or(0);

    let start = match Elf::load(memory, None, &mut kernel, Some(GuestAddress(layout::KERNEL))) {
        Ok(elf) => {
            let PvhBootCapability::PvhEntryPresent(entry) = elf.pvh_boot_cap else { return Err(BootError::NoPvhEntry) };
            let loaded =
                Loaded { memory, initrd: place_initrd(memory, initrd, elf.kernel_end, u64::MAX)?, command_line };
            pvh::tell(&loaded)?;
            Entry::Pvh(entry.0)
        }
        Err(LoaderError::Elf(linux_loader::loader::elf::Error::InvalidElfMagicNumber)) => {
            let image = bzimage::load(memory, &mut kernel)?;
            let initrd = place_initrd(memory, initrd, image.end, image.initrd_max)?;
            bzimage::tell(&Loaded { memory, initrd, command_line }, &image)?;
            Entry::Linux64(image.entry)
        }
        Err(error) => return Err(BootError::Kernel(error)),
    };
    Ok(start)
}

/// Reads the initial RAM disk to the end of low memory, above `lowest` and not beyond `highest`.
fn place_initrd(
    memory: &Memory,
    initrd: Option<File>,
    lowest: u64,
    highest: u64,
) -> Result<Option<(u64, u64)>, BootError> {
    let Some(mut file) = initrd else { return Ok(None) };
    let len = file.seek(io::SeekFrom::End(0)).map_err(BootError::Initrd)?;
    file.rewind().map_err(BootError::Initrd)?;
    if len == 0 {
        return Ok(None);
    }
    let low_end = memory::regions(memory).next().map_or(0, |(_, len, _)| len);
    let end = low_end.min(highest.saturating_add(1));
    let start = end.checked_sub(len).map(|start| start & !(layout::PAGE - 1)).filter(|start| *start >= lowest);
    let Some(start) = start else { return Err(BootError::TooSmall { needed: lowest.saturating_add(len) }) };
    let count = usize::try_from(len).map_err(|_| BootError::TooSmall { needed: len })?;
    memory
        .read_exact_volatile_from(GuestAddress(start), &mut file, count)
        .map_err(|error| BootError::Initrd(io::Error::other(error)))?;
    Ok(Some((start, len)))
}

/// Whether an address range is memory.
fn is_memory(memory: &Memory, start: u64, len: u64) -> bool {
    usize::try_from(len).is_ok_and(|len| memory.check_range(GuestAddress(start), len))
}

/// A page table's bits: present and writable; in its lowest level here also "a page of 2 MiB".
const TABLE: u64 = 3;
const PAGE_2M: u64 = TABLE | 1 << 7;

/// Writes page tables to [`layout::PAGE_TABLES`] in which each address of the first GiB is itself: a kernel makes its own
/// before it needs more.
///
/// # Errors
/// If there is no memory.
pub fn identity_map(memory: &Memory) -> Result<(), GuestMemoryError> {
    let [top, second, third] = [0, 1, 2].map(|table| layout::PAGE_TABLES + table * layout::PAGE);
    memory.write_obj(second | TABLE, GuestAddress(top))?;
    memory.write_obj(third | TABLE, GuestAddress(second))?;
    let entries: Vec<u8> = (0..512u64).flat_map(|entry| (entry << 21 | PAGE_2M).to_le_bytes()).collect();
    memory.write_slice(&entries, GuestAddress(third))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
        bytes[at..at + value.len()].copy_from_slice(value);
    }

    /// The header of a bzImage of one setup sector, and a page after it.
    fn bzimage() -> Vec<u8> {
        let mut bytes = vec![0; 1024 + 4096];
        for (at, value) in [
            (0x1f1, &[1][..]),
            (0x202, b"HdrS"),
            (0x206, &0x20fu16.to_le_bytes()),
            (0x211, &[1]),
            (0x22c, &0x7fff_ffffu32.to_le_bytes()),
            (0x234, &[1]),
            (0x236, &1u16.to_le_bytes()),
            (0x258, &0x20_0000u64.to_le_bytes()),
            (0x260, &0x10_0000u32.to_le_bytes()),
        ] {
            put(&mut bytes, at, value);
        }
        bytes[1024..].fill(0x90);
        bytes
    }

    /// An ELF file with a PVH note, of one loaded page.
    fn elf() -> Vec<u8> {
        let mut bytes = vec![0; 196 + 4096];
        for (at, value) in [
            (0, &b"\x7fELF\x02\x01\x01"[..]),
            (16, &[2, 0, 62, 0, 1]),
            (24, &0x20_0000u64.to_le_bytes()),
            (32, &[64]),
            (52, &[64, 0, 56, 0, 2]),
            (64, &[4]),
            (64 + 8, &[176]),
            (64 + 32, &[20]),
            (64 + 40, &[20]),
            (64 + 48, &[4]),
            (120, &[1]),
            (120 + 8, &[196]),
            (120 + 16, &0x20_0000u64.to_le_bytes()),
            (120 + 24, &0x20_0000u64.to_le_bytes()),
            (120 + 32, &4096u64.to_le_bytes()),
            (120 + 40, &4096u64.to_le_bytes()),
            (176, b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\0\0\x20\0"),
        ] {
            put(&mut bytes, at, value);
        }
        bytes
    }

    fn load_both(kernel: &[u8], initrd: Option<&[u8]>) -> Result<(Memory, Entry), BootError> {
        let memory = memory::allocate(32 << 20).unwrap();
        let entry = load(&memory, file(kernel), initrd.map(file), "root=/dev/vda", b"tables")?;
        Ok((memory, entry))
    }

    fn bytes(memory: &Memory, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    #[test]
    fn both_kinds_of_kernel_are_loaded_and_told_of_the_rest() {
        let (memory, entry) = load_both(&bzimage(), Some(b"initrd")).unwrap();
        assert_eq!(entry, Entry::Linux64(layout::KERNEL + 0x200));
        assert_eq!(bytes(&memory, layout::KERNEL, 4096), [0x90; 4096]);
        let told = bytes(&memory, layout::ZERO_PAGE, 4096);
        let initrd = u32::from_le_bytes(told[0x218..0x21c].try_into().unwrap());
        assert_eq!((u64::from(initrd), told[0x21c]), ((32 << 20) - 4096, 6));
        assert_eq!(bytes(&memory, initrd.into(), 6), b"initrd");
        assert_eq!(bytes(&memory, layout::COMMAND_LINE, 14), b"root=/dev/vda\0");
        // Conventional memory, the rest of it, the PCI bus's configuration.
        assert_eq!(told[0x1e8], 3);

        let (memory, entry) = load_both(&elf(), Some(b"initrd")).unwrap();
        assert_eq!(entry, Entry::Pvh(0x20_0000));
        assert_eq!(bytes(&memory, layout::PVH_INFO, 4), 0x336e_c578u32.to_le_bytes());
    }

    #[test]
    fn what_does_not_fit_or_is_no_kernel_is_refused() {
        let huge = vec![0; 31 << 20];
        assert!(matches!(load_both(&bzimage(), Some(&huge)), Err(BootError::TooSmall { .. })));
        assert!(matches!(load_both(&elf(), Some(&huge)), Err(BootError::TooSmall { .. })));
        assert!(matches!(load_both(b"#!/bin/sh", None), Err(BootError::Kernel(_))));
        let mut old = bzimage();
        put(&mut old, 0x236, &[0]);
        assert!(matches!(load_both(&old, None), Err(BootError::Not64Bit)));
        let mut wants_more = bzimage();
        put(&mut wants_more, 0x260, &u32::MAX.to_le_bytes());
        assert!(matches!(load_both(&wants_more, None), Err(BootError::TooSmall { .. })));
        let mut no_note = elf();
        no_note[64] = 0;
        assert!(matches!(load_both(&no_note, None), Err(BootError::NoPvhEntry)));
    }

    proptest! {
        /// A kernel may come from a guest's disk: whatever is in it, it is loaded or refused.
        #[test]
        fn a_broken_kernel_breaks_nothing(
            is_elf in any::<bool>(),
            changes in prop::collection::vec((0usize..700, prop::collection::vec(any::<u8>(), 1..9)), 1..6),
            len in 0usize..6000,
        ) {
            let mut kernel = if is_elf { elf() } else { bzimage() };
            for (at, value) in changes {
                // The headers are what counts.
                let at = if is_elf { at % 196 } else { at };
                put(&mut kernel, at, &value);
            }
            // Half of them are cut off.
            kernel.truncate(len.max(if len % 2 == 0 { 6000 } else { 0 }));
            let _ = load_both(&kernel, Some(b"initrd"));
        }
    }
}
