//! MADT (ACPI 6.5, section 5.2.12): one local x2APIC entry for each vCPU, and the I/O APIC.
//!
//! There are no interrupt source overrides: with reduced hardware there is no 8259 wiring to override, a GSI is the
//! I/O APIC input of that number.

use acpi_tables::Aml;
use acpi_tables::madt::IoApic;
use acpi_tables::sdt::Sdt;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::x86_64::layout::{IOAPIC, LAPIC};

const HEADER_SIZE: u32 = 36;
const REVISION: u8 = 6;
const TYPE_LOCAL_X2APIC: u8 = 9;
const LOCAL_X2APIC_SIZE: u8 = 16;
const FLAG_ENABLED: u32 = 1;
/// The id KVM's I/O APIC reports.
const IOAPIC_ID: u8 = 0;

/// The table for vCPUs with these APIC ids.
pub(super) fn madt(apic_ids: &[u32]) -> Vec<u8> {
    let mut body = Vec::with_capacity(24 + apic_ids.len() * usize::from(LOCAL_X2APIC_SIZE));
    body.extend((LAPIC as u32).to_le_bytes());
    body.extend(0u32.to_le_bytes());
    IoApic::new(IOAPIC_ID, IOAPIC as u32, 0).to_aml_bytes(&mut body);
    for (uid, apic_id) in (0u32..).zip(apic_ids) {
        body.extend([TYPE_LOCAL_X2APIC, LOCAL_X2APIC_SIZE, 0, 0]);
        for field in [*apic_id, FLAG_ENABLED, uid] {
            body.extend(field.to_le_bytes());
        }
    }
    let mut madt = Sdt::new(
        *b"APIC",
        HEADER_SIZE,
        REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    madt.append_slice(&body);
    madt.as_slice().to_vec()
}
