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
