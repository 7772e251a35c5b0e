//! The ACPI tables: what a stock kernel finds the machine by, and no more (ACPI 6.5).

use acpi_tables::Aml;
use acpi_tables::aml::{
    self, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use super::BootError;
use crate::{layout, power};

const OEM: [u8; 6] = *b"DUET  ";
const OEM_TABLE: [u8; 8] = *b"DUETVMM ";
const OEM_REVISION: u32 = 1;
/// `IAPC_BOOT_ARCH`: no VGA to be probed, no CMOS clock (ACPI 6.5, 5.2.9.3). No legacy devices and no i8042 either,
/// which is what the absence of their bits says.
const NO_VGA_NO_CMOS: u16 = 1 << 2 | 1 << 5;

/// The tables of a machine, to be put at [`layout::ACPI`], where the root pointer is then.
///
/// # Errors
/// If they do not fit, which no number of CPUs that a machine can have leads to.
pub fn tables(cpus: u8) -> Result<Vec<u8>, BootError> {
    let mut all = vec![0; Rsdp::len().next_multiple_of(8)];
    let mut add = |table: &dyn Aml| -> u64 {
        let address = layout::ACPI + all.len() as u64;
        table.to_aml_bytes(&mut all);
        all.resize(all.len().next_multiple_of(8), 0);
        address
    };
    let dsdt = add(&dsdt());
    let entries = [add(&fadt(dsdt)), add(&madt(cpus)), add(&mcfg())];
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    for entry in entries {
        xsdt.add_entry(entry);
    }
    let xsdt = add(&xsdt);
    let mut root = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut root);
    all[..root.len()].copy_from_slice(&root);
    if all.len() as u64 > layout::ACPI_END - layout::ACPI {
        return Err(BootError::Tables(all.len()));
    }
    Ok(all)
}

fn port(number: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, number.into())
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = NO_VGA_NO_CMOS.into();
    fadt.reset_reg = port(layout::RESET_PORT);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = port(layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(layout::SLEEP_STATUS_PORT);
    fadt.finalize()
}

fn madt(cpus: u8) -> impl Aml {
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, LocalInterruptController::Address(layout::LOCAL_APIC));
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    madt
}

fn mcfg() -> impl Aml {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM, 0, 0, 0);
    mcfg
}

fn name(path: &str, value: &dyn Aml) -> Name {
    Name::new(Path::new(path), value)
}

/// An edge-triggered interrupt of its own.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn dsdt() -> Sdt {
    let mut code = Vec::new();
    name("_S5_", &Package::new(vec![&power::SLEEP_TYPE_OFF])).to_aml_bytes(&mut code);
    pci_host_bridge(&mut code);
    serial_port(&mut code);
    power_button(&mut code);
    panic_port(&mut code);

    let mut table = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&code);
    table
}

/// Adds a device below `\_SB`.
fn system_device(code: &mut Vec<u8>, path: &str, children: Vec<&dyn Aml>) {
    Scope::new(Path::new("_SB_"), vec![&Device::new(Path::new(path), children)]).to_aml_bytes(code);
}

fn pci_host_bridge(code: &mut Vec<u8>) {
    // A configuration space that is no board's resource is not believed in (PCI Firmware 3.3, 4.1.2).
    system_device(
        code,
        "MRES",
        vec![
            &name("_HID", &EISAName::new("PNP0C02")),
            &name(
                "_CRS",
                &ResourceTemplate::new(vec![&Memory32Fixed::new(true, layout::ECAM as u32, layout::ECAM_SIZE as u32)]),
            ),
        ],
    );
    system_device(
        code,
        "PCI0",
        vec![
            &name("_HID", &EISAName::new("PNP0A08")),
            &name("_CID", &EISAName::new("PNP0A03")),
            &name("_SEG", &aml::ZERO),
            &name("_BBN", &aml::ZERO),
            &name("_UID", &aml::ZERO),
            &name(
                "_CRS",
                &ResourceTemplate::new(vec![
                    &aml::AddressSpace::new_bus_number(0u16, 0u16),
                    &aml::AddressSpace::new_memory(
                        AddressSpaceCacheable::NotCacheable,
                        true,
                        layout::BARS as u32,
                        (layout::BARS_END - 1) as u32,
                        None,
                    ),
                ]),
            ),
        ],
    );
}

fn serial_port(code: &mut Vec<u8>) {
    let resources =
        [&IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 1, 8) as &dyn Aml, &interrupt(layout::SERIAL_GSI)];
    system_device(
        code,
        "COM1",
        vec![
            &name("_HID", &EISAName::new("PNP0501")),
            &name("_UID", &aml::ONE),
            &name("_CRS", &ResourceTemplate::new(resources.to_vec())),
        ],
    );
}

fn power_button(code: &mut Vec<u8>) {
    system_device(code, "PWRB", vec![&name("_HID", &EISAName::new("PNP0C0C")), &name("_UID", &aml::ZERO)]);
    // 0x80: "pressed" (ACPI 6.5, table 5.161). The event device has one interrupt, so its number need not be asked for.
    system_device(
        code,
        "GED_",
        vec![
            &name("_HID", &"ACPI0013"),
            &name("_UID", &aml::ZERO),
            &name("_CRS", &ResourceTemplate::new(vec![&interrupt(layout::POWER_BUTTON_GSI)])),
            &Method::new(Path::new("_EVT"), 1, true, vec![&Notify::new(&Path::new("\\_SB_.PWRB"), &0x80u8)]),
        ],
    );
}

fn panic_port(code: &mut Vec<u8>) {
    system_device(
        code,
        "PEVT",
        vec![
            &name("_HID", &"QEMU0001"),
            &name("_CRS", &ResourceTemplate::new(vec![&IO::new(layout::PANIC_PORT, layout::PANIC_PORT, 1, 1)])),
        ],
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::MAX_CPUS;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> usize {
        usize::try_from(u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())).unwrap()
    }

    fn table(all: &[u8], address: usize) -> &[u8] {
        let start = address - usize::try_from(layout::ACPI).unwrap();
        let table = &all[start..start + u32_at(all, start + 4) as usize];
        assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "{:?}", &table[..4]);
        table
    }

    #[test]
    fn every_table_is_found_from_the_root_pointer_and_sums_up_to_nothing() {
        for cpus in [1, 2, MAX_CPUS] {
            let all = tables(cpus).unwrap();
            assert_eq!(&all[..8], b"RSD PTR ");
            let xsdt = table(&all, u64_at(&all, 24));
            let found: Vec<&[u8]> = (36..xsdt.len()).step_by(8).map(|at| table(&all, u64_at(xsdt, at))).collect();
            assert_eq!(found.iter().map(|table| &table[..4]).collect::<Vec<_>>(), [b"FACP", b"APIC", b"MCFG"]);
            assert_eq!(&table(&all, u64_at(found[0], 140))[..4], b"DSDT");
            // 8 bytes for each CPU, 12 for the I/O interrupt controller.
            assert_eq!(found[1].len(), 44 + usize::from(cpus) * 8 + 12);
        }
    }
}
