//! An ELF kernel with a PVH entry (docs/misc/pvh.pandoc and include/xen/interface/hvm/start_info.h).

use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, Loaded, memory_map};
use crate::layout;

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;
/// The first version that has a memory map.
const VERSION: u32 = 1;
/// Where the initial RAM disk's description and the memory map lie, in the page of the start information.
const MODULES: u64 = layout::PVH_INFO + 0x100;
const MEMORY_MAP: u64 = layout::PVH_INFO + 0x200;

/// Writes what the kernel is told.
pub fn tell(loaded: &Loaded<'_>) -> Result<(), BootError> {
    if let Some((paddr, size)) = loaded.initrd {
        loaded.memory.write_obj(hvm_modlist_entry { paddr, size, ..Default::default() }, GuestAddress(MODULES))?;
    }
    let map = memory_map(loaded.memory);
    let told = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: loaded.initrd.is_some().into(),
        modlist_paddr: MODULES,
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: layout::ACPI,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut at = MEMORY_MAP;
    for (addr, size, type_) in map {
        loaded.memory.write_obj(hvm_memmap_table_entry { addr, size, type_, reserved: 0 }, GuestAddress(at))?;
        at += size_of::<hvm_memmap_table_entry>() as u64;
    }
    loaded.memory.write_obj(told, GuestAddress(layout::PVH_INFO))?;
    Ok(())
}
