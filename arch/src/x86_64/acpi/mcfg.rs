//! MCFG (PCI Firmware Specification 3.3, section 4.1.2): enhanced configuration access for bus 0.

use acpi_tables::mcfg::MCFG;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes_of};
use crate::x86_64::layout::ECAM;

/// The table.
pub(super) fn mcfg() -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(ECAM, 0, 0, 0);
    bytes_of(&mcfg)
}
