//! Where everything lies in the guest's address space, its I/O ports and its interrupt lines.
//!
//! Low memory ends at 3 GiB; what does not fit goes above 4 GiB. Between them are the windows of the PCI bus and of the
//! interrupt controllers. No address depends on the guest or changes while it runs.

/// The page size of x86.
pub const PAGE: u64 = 4096;
/// The first address that is not low memory.
pub const LOW_END: u64 = 3 << 30;
/// Where memory that is not low begins.
pub const HIGH_START: u64 = 4 << 30;

/// The descriptor table that the first CPU starts with.
pub const GDT: u64 = 0x500;
/// What a PVH kernel is told (`hvm_start_info`, include/xen/interface/hvm/start_info.h).
pub const PVH_INFO: u64 = 0x6000;
/// What a bzImage is told (`boot_params`, Documentation/arch/x86/zero-page.rst).
pub const ZERO_PAGE: u64 = 0x7000;
/// The page tables that a bzImage starts with: three pages.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// The most bytes of a command line, its end included (COMMAND_LINE_SIZE of x86).
pub const COMMAND_LINE_MAX: usize = 2048;
/// The end of conventional memory. Up to [`KERNEL`] there is memory too, but it is not the kernel's to use.
pub const CONVENTIONAL_END: u64 = 0xa_0000;
/// The ACPI tables, where an operating system also looks for them by itself (ACPI 6.5, 5.2.5.1).
pub const ACPI: u64 = 0xe_0000;
/// The end of the room for ACPI tables.
pub const ACPI_END: u64 = RESET_CODE;
/// Where a CPU in real mode begins after a reset, and jumps to cause one: F000:FFF0.
pub const RESET_CODE: u64 = 0xf_fff0;
/// Where a bzImage is loaded.
pub const KERNEL: u64 = 0x10_0000;

/// The window in which each PCI function has its registers: [`BAR_SIZE`] bytes for each slot.
pub const BARS: u64 = LOW_END;
/// The size of a function's one register window. It is a power of two, as PCI wants it.
pub const BAR_SIZE: u64 = 0x8000;
/// The end of the PCI bus's memory window.
pub const BARS_END: u64 = 0xe000_0000;
/// The configuration space of PCI bus 0 (PCI Express enhanced configuration access).
pub const ECAM: u64 = 0xe000_0000;
/// The size of one bus's configuration space: 32 slots of 8 functions of 4 KiB.
pub const ECAM_SIZE: u64 = 1 << 20;
/// The I/O interrupt controller, which is KVM's.
pub const IO_APIC: u32 = 0xfec0_0000;
/// The CPUs' own interrupt controllers, which are KVM's.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM needs on Intel's CPUs (KVM_SET_TSS_ADDR).
pub const TSS: usize = 0xfffb_d000;

/// The first serial port, eight ports.
pub const SERIAL_PORT: u16 = 0x3f8;
/// The serial port's interrupt line.
pub const SERIAL_GSI: u32 = 4;
/// Where a guest says that it panicked (docs/specs/pvpanic.rst of QEMU).
pub const PANIC_PORT: u16 = 0x505;
/// The ACPI sleep control register.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// The ACPI sleep status register.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// The ACPI reset register.
pub const RESET_PORT: u16 = 0x602;
/// The interrupt line that says that the power button was pressed.
pub const POWER_BUTTON_GSI: u32 = 5;
/// The inputs of the I/O interrupt controller. Numbers from here on are message-signalled interrupts.
pub const IO_APIC_PINS: u32 = 24;
