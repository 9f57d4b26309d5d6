//! The MSI-X capability: PCI Local Bus Specification 3.0, section 6.8.2.
//!
//! The capability says where in the BARs the table and the pending bits lie and holds the enable
//! and function-mask bits; vectors are the business of [`MsixTable`].

use crate::address::BarIndex;
use crate::bar::{BarKind, BarSet};
use crate::cap::CapabilityError;
use crate::msix_table::{MAX_MSIX_VECTORS, MsixTable};
use crate::register_file::{RegisterFile, Role};

/// Bytes of the capability.
pub(crate) const LEN: u16 = 12;
const ENABLE: u16 = 0x8000;
const FUNCTION_MASK: u16 = 0x4000;
const COUNT_MASK: u16 = 0x07ff;
/// Low bits of the two location registers that name the BAR.
const BAR_MASK: u32 = 0x7;

/// A place in a BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarOffset {
    /// The BAR.
    pub bar: BarIndex,
    /// Bytes from its start, a multiple of 8.
    pub offset: u32,
}

impl BarOffset {
    fn from_register(offset: u16, value: u32) -> Result<Self, CapabilityError> {
        let [number, ..] = (value & BAR_MASK).to_le_bytes();
        let bar =
            BarIndex::new(number).map_err(|_| CapabilityError::MsixBarNumber { offset, number })?;
        Ok(Self {
            bar,
            offset: value & !BAR_MASK,
        })
    }

    fn register(self) -> u32 {
        // A BAR's position is at most 6 and fits its three bits.
        self.offset & !BAR_MASK | self.bar.position().try_into().unwrap_or(BAR_MASK)
    }
}

/// Shape of an MSI-X capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixCapability {
    /// Number of vectors, 1 to 2048.
    pub vectors: u16,
    /// Where the vector table lies: 16 bytes a vector.
    pub table: BarOffset,
    /// Where the pending bits lie: 8 bytes per 64 vectors.
    pub pba: BarOffset,
}

impl MsixCapability {
    /// The shape that the three dwords of a device's capability at `offset` describe.
    pub fn from_registers(offset: u16, dwords: [u32; 3]) -> Result<Self, CapabilityError> {
        let [control, table, pba] = dwords;
        let [_, _, low, high] = control.to_le_bytes();
        Ok(Self {
            vectors: (u16::from_le_bytes([low, high]) & COUNT_MASK) + 1,
            table: BarOffset::from_register(offset + 4, table)?,
            pba: BarOffset::from_register(offset + 8, pba)?,
        })
    }

    /// Bytes of the vector table.
    pub const fn table_len(self) -> u64 {
        self.vectors as u64 * 16
    }

    /// Bytes of the pending bit array.
    pub const fn pba_len(self) -> u64 {
        (self.vectors as u64).div_ceil(64) * 8
    }

    /// Refuses a shape that does not fit the function's BARs.
    fn check(self, bars: &BarSet) -> Result<(), CapabilityError> {
        if self.vectors == 0 || self.vectors > MAX_MSIX_VECTORS {
            return Err(CapabilityError::MsixVectors {
                vectors: self.vectors,
            });
        }
        let parts = [(self.table, self.table_len()), (self.pba, self.pba_len())];
        for (at, len) in parts {
            let bar_len = match bars.kind(at.bar) {
                Some(BarKind::Mem32 { size, .. } | BarKind::Mem64 { size, .. }) => size,
                Some(BarKind::Io { .. }) | None => 0,
            };
            let fits = u64::from(at.offset) + len <= bar_len;
            if at.bar.is_rom() || at.offset & BAR_MASK != 0 || !fits {
                return Err(CapabilityError::MsixPlacement {
                    bar: at.bar,
                    offset: at.offset,
                    len,
                });
            }
        }
        let end = |at: BarOffset, len| u64::from(at.offset) + len;
        let apart = self.table.bar != self.pba.bar
            || end(self.table, self.table_len()) <= u64::from(self.pba.offset)
            || end(self.pba, self.pba_len()) <= u64::from(self.table.offset);
        if apart {
            Ok(())
        } else {
            Err(CapabilityError::MsixOverlap {
                bar: self.table.bar,
            })
        }
    }
}

/// An MSI-X capability in a register file, with its table.
#[derive(Debug, Clone)]
pub(crate) struct Msix {
    offset: u16,
    pub shape: MsixCapability,
    pub table: MsixTable,
}

impl Msix {
    /// Defines the registers of a capability at `offset`, whose id and link are there already.
    pub fn define(
        registers: &mut RegisterFile,
        bars: &BarSet,
        offset: u16,
        shape: MsixCapability,
    ) -> Result<Self, CapabilityError> {
        shape.check(bars)?;
        let table = MsixTable::new(shape.vectors).map_err(|_| CapabilityError::MsixVectors {
            vectors: shape.vectors,
        })?;
        if let Some(header) = registers.register_mut(offset) {
            header.reset = header.reset & 0xffff | u32::from(shape.vectors - 1) << 16;
            header.writable = u32::from(ENABLE | FUNCTION_MASK) << 16;
            header.role = Role::Msix;
        }
        for (offset, place) in [(offset + 4, shape.table), (offset + 8, shape.pba)] {
            if let Some(register) = registers.register_mut(offset) {
                register.reset = place.register();
                register.writable = 0;
                register.role = Role::Msix;
            }
        }
        Ok(Self {
            offset,
            shape,
            table,
        })
    }

    /// The control register's enable and function-mask bits.
    pub fn control(&self, registers: &RegisterFile) -> (bool, bool) {
        let control = registers.read_u16(self.offset + 2);
        (control & ENABLE != 0, control & FUNCTION_MASK != 0)
    }
}
