//! A Linux bzImage, entered in 64-bit mode (Documentation/arch/x86/boot.rst).

use std::fs::File;

use linux_loader::loader::KernelLoader;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::bzimage::BzImage;
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, Loaded, identity_map, is_memory, memory_map};
use crate::layout;
use crate::memory::Memory;

/// The first version whose header says whether there is a 64-bit entry.
const OLDEST_PROTOCOL: u16 = 0x20c;
/// `XLF_KERNEL_64` of `xloadflags`.
const HAS_64_BIT_ENTRY: u16 = 1;
/// Where the 64-bit entry is, from the beginning of what was loaded.
const ENTRY_64_BIT: u64 = 0x200;
/// `type_of_loader`: none of those that have a number.
const OTHER_LOADER: u8 = 0xff;

/// A loaded bzImage.
pub struct Image {
    header: setup_header,
    /// Where the first CPU starts.
    pub entry: u64,
    /// The end of the memory that the kernel uses before it has read its memory map.
    pub end: u64,
    /// The last address of an initial RAM disk.
    pub initrd_max: u64,
}

/// Loads the image.
pub fn load(memory: &Memory, kernel: &mut File) -> Result<Image, BootError> {
    let loaded = BzImage::load(memory, Some(GuestAddress(layout::KERNEL)), kernel, None).map_err(BootError::Kernel)?;
    let header = loaded.setup_header.ok_or(BootError::Not64Bit)?;
    if header.version < OLDEST_PROTOCOL || header.xloadflags & HAS_64_BIT_ENTRY == 0 || header.relocatable_kernel == 0 {
        return Err(BootError::Not64Bit);
    }
    // It unpacks itself to where it would rather be, which takes `init_size` from there on.
    let start = header.pref_address.max(layout::KERNEL);
    let end = start.saturating_add(header.init_size.into()).max(loaded.kernel_end);
    if !is_memory(memory, layout::KERNEL, end - layout::KERNEL) {
        return Err(BootError::TooSmall { needed: end });
    }
    Ok(Image { header, entry: layout::KERNEL + ENTRY_64_BIT, end, initrd_max: header.initrd_addr_max.into() })
}

/// Writes what the kernel is told and the page tables with which it starts.
pub fn tell(loaded: &Loaded<'_>, image: &Image) -> Result<(), BootError> {
    let mut told = boot_params { hdr: image.header, acpi_rsdp_addr: layout::ACPI, ..Default::default() };
    told.hdr.type_of_loader = OTHER_LOADER;
    told.hdr.code32_start = layout::KERNEL as u32;
    told.hdr.cmd_line_ptr = layout::COMMAND_LINE as u32;
    told.hdr.cmdline_size = loaded.command_line;
    if let Some((start, len)) = loaded.initrd {
        // Both are below the end of low memory.
        told.hdr.ramdisk_image = start as u32;
        told.hdr.ramdisk_size = len as u32;
    }
    let map = memory_map(loaded.memory);
    told.e820_entries = map.len() as u8;
    for (slot, (addr, size, kind)) in told.e820_table.iter_mut().zip(map) {
        *slot = boot_e820_entry { addr, size, r#type: kind };
    }
    loaded.memory.write_obj(told, GuestAddress(layout::ZERO_PAGE))?;

    identity_map(loaded.memory)?;
    Ok(())
}
