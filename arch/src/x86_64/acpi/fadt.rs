//! FADT (ACPI 6.5, section 5.2.9): the machine is hardware-reduced, sleeps and resets through one port.

use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes_of};
use crate::x86_64::layout::{ACPI_CONTROL_PORT, ACPI_RESET_VALUE};

/// `IAPC_BOOT_ARCH`: no VGA to probe. Without "8042" Linux does not look for a keyboard, which saves half a second.
const BOOT_ARCH_NO_VGA: u16 = 1 << 2;
/// `IAPC_BOOT_ARCH`: links of passed-through devices belong to the host.
const BOOT_ARCH_NO_ASPM: u16 = 1 << 4;

/// The table, pointing to the DSDT at guest address `dsdt`.
pub(super) fn fadt(dsdt: u64) -> Vec<u8> {
    let control = GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        u64::from(ACPI_CONTROL_PORT),
    );
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        // Set means "control method device": the button is in the DSDT. There is no sleep button at all.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = (BOOT_ARCH_NO_VGA | BOOT_ARCH_NO_ASPM).into();
    fadt.reset_reg = control;
    fadt.reset_value = ACPI_RESET_VALUE;
    fadt.sleep_control_reg = control;
    fadt.sleep_status_reg = control;
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE_ID).into();
    bytes_of(&fadt.finalize())
}
