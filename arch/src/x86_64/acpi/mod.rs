//! The ACPI tables of the machine: RSDP, XSDT, FADT, MADT, MCFG, DSDT.
//!
//! ACPI 6.5. The machine is hardware-reduced: no fixed power management registers, no SCI, no FACS. All tables lie in the
//! reserved area at [`layout::ACPI`](crate::x86_64::layout::ACPI), the RSDP first. Called by `vmm` once per boot; a
//! restored guest finds them in its RAM.

mod dsdt;
mod fadt;
mod madt;
mod mcfg;
#[cfg(test)]
mod tests;

use std::ops::Range;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::x86_64::layout::{ACPI, ACPI_END};

const OEM_ID: [u8; 6] = *b"DORMSE";
const OEM_TABLE_ID: [u8; 8] = *b"DORMOUSE";
const OEM_REVISION: u32 = 1;
/// Tables start on a cache line.
const TABLE_ALIGN: u64 = 64;

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More tables than the area holds.
    #[error(
        "the ACPI tables for {cpus} CPUs end at {end:#x}, beyond the area reserved for them ({ACPI_END:#x})"
    )]
    AreaFull {
        /// Number of CPUs described.
        cpus: usize,
        /// Where the tables would end.
        end: u64,
    },
    /// RAM ends below the area.
    #[error(
        "cannot write the ACPI tables at guest address {address:#x}; give the machine more memory"
    )]
    Write {
        /// Where a table was to go.
        address: u64,
        /// What failed.
        #[source]
        source: GuestMemoryError,
    },
}

/// What the tables depend on.
#[derive(Clone, Debug)]
pub struct AcpiParams<'a> {
    /// APIC id of each vCPU that is there at boot; the index is its ACPI processor UID.
    pub apic_ids: &'a [u32],
    /// Window for 64-bit BARs; none is announced when it is empty.
    pub mmio64: Range<u64>,
    /// Whether there is a serial port.
    pub serial_port: bool,
}

/// Writes all tables and returns the address of the RSDP.
///
/// # Errors
///
/// [`Error`] when the tables do not fit into their area or the area is not in `memory`.
pub fn write_acpi(
    memory: &GuestMemoryMmap,
    params: &AcpiParams<'_>,
) -> Result<GuestAddress, Error> {
    let mut area = vec![0; Rsdp::len()];
    let dsdt = append(&mut area, &dsdt::dsdt(params));
    let tables = [
        append(&mut area, &fadt::fadt(dsdt)),
        append(&mut area, &madt::madt(params.apic_ids)),
        append(&mut area, &mcfg::mcfg()),
    ];
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for address in tables {
        xsdt.add_entry(address);
    }
    let xsdt = append(&mut area, &bytes_of(&xsdt));
    area[..Rsdp::len()].copy_from_slice(&bytes_of(&Rsdp::new(OEM_ID, xsdt)));

    let end = ACPI + area.len() as u64;
    if end > ACPI_END {
        return Err(Error::AreaFull {
            cpus: params.apic_ids.len(),
            end,
        });
    }
    memory
        .write_slice(&area, GuestAddress(ACPI))
        .map_err(|source| Error::Write {
            address: ACPI,
            source,
        })?;
    Ok(GuestAddress(ACPI))
}

/// Appends a table to the area and returns its guest address.
fn append(area: &mut Vec<u8>, table: &[u8]) -> u64 {
    let offset = area.len().next_multiple_of(TABLE_ALIGN as usize);
    area.resize(offset, 0);
    area.extend_from_slice(table);
    ACPI + offset as u64
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}
