//! Capabilities: the lists that link them, and the ones the model understands.
//!
//! A function's builder adds its own capabilities here, or takes over the lists of a real device
//! after [`walk`] has vetted them. Either way the lists are kept as values beside the registers,
//! so that hiding a capability re-links its neighbours and never follows a pointer again.

pub(crate) mod msi;
pub(crate) mod msix;
pub(crate) mod reset;
pub mod walk;

use thiserror::Error;

use crate::address::BarIndex;
use crate::cap::walk::{CapabilityHeader, ExtendedCapabilityHeader};
use crate::register_file::RegisterFile;
use crate::regs::{self, CapabilityId, FIRST_CAPABILITY, FIRST_EXTENDED_CAPABILITY, Status};

/// Dwords of conventional configuration space.
const LEGACY_DWORDS: u16 = 64;

/// Why a capability could not be part of a function.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CapabilityError {
    /// The capability does not fit any more.
    #[error("no room for a capability of {len} bytes in conventional configuration space")]
    NoRoom {
        /// Bytes of the capability.
        len: usize,
    },
    /// The capability was to lie where another one is, or outside of the space.
    #[error(
        "a capability of {len} bytes cannot lie at {offset:#x}: the place is taken or reserved"
    )]
    Placement {
        /// The offset asked for.
        offset: u16,
        /// Bytes of the capability.
        len: usize,
    },
    /// No capability begins at the offset.
    #[error("no capability begins at {offset:#x}")]
    Absent {
        /// The offset asked for.
        offset: u16,
    },
    /// A capability of this kind can be there only once.
    #[error("the function already has a modelled capability {id:#04x}")]
    Duplicate {
        /// Identifier of the capability.
        id: u8,
    },
    /// MSI cannot have this number of vectors.
    #[error("MSI has 1, 2, 4, 8, 16 or 32 vectors, not {vectors}")]
    MsiVectors {
        /// The number asked for.
        vectors: u8,
    },
    /// A device's MSI control register is malformed.
    #[error("the MSI capability at {offset:#x} has the reserved vector count in {control:#06x}")]
    MsiControl {
        /// Offset of the capability.
        offset: u16,
        /// Its control register.
        control: u16,
    },
    /// MSI-X cannot have this number of vectors.
    #[error("MSI-X has 1 to 2048 vectors, not {vectors}")]
    MsixVectors {
        /// The number asked for.
        vectors: u16,
    },
    /// A device's MSI-X capability names a BAR that no function has.
    #[error("the MSI-X register at {offset:#x} names BAR {number}")]
    MsixBarNumber {
        /// Offset of the register.
        offset: u16,
        /// The BAR number in it.
        number: u8,
    },
    /// The MSI-X table or pending bits do not lie inside a memory BAR of the function.
    #[error("{len:#x} bytes of MSI-X structures at {offset:#x} do not fit {bar}")]
    MsixPlacement {
        /// The BAR.
        bar: BarIndex,
        /// Bytes from its start.
        offset: u32,
        /// Bytes of the structure.
        len: u64,
    },
    /// The MSI-X table and the pending bits overlap.
    #[error("the MSI-X table and its pending bits overlap in {bar}")]
    MsixOverlap {
        /// The BAR.
        bar: BarIndex,
    },
}

/// A capability whose registers have no meaning to the model beyond their masks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// Its identifier.
    pub id: CapabilityId,
    /// The bytes behind identifier and link, as after a reset.
    pub body: Vec<u8>,
    /// For each byte of the body the bits that a guest can write; missing bytes are read-only.
    pub writable: Vec<u8>,
}

/// The two capability lists of a function and what they occupy.
#[derive(Debug, Clone, Default)]
pub(crate) struct CapabilityLists {
    legacy: Vec<CapabilityHeader>,
    extended: Vec<ExtendedCapabilityHeader>,
    /// Dwords of conventional space that capabilities occupy, one bit each.
    occupied: u64,
}

impl CapabilityLists {
    /// The lists of a real device. Nothing can be added to them: what its capabilities occupy
    /// beyond their known registers is known only to the device.
    pub fn of_device(
        legacy: Vec<CapabilityHeader>,
        extended: Vec<ExtendedCapabilityHeader>,
    ) -> Self {
        Self {
            legacy,
            extended,
            occupied: u64::MAX,
        }
    }

    /// The capabilities of the conventional list, in its order.
    pub fn legacy(&self) -> &[CapabilityHeader] {
        &self.legacy
    }

    /// The extended capabilities, in the order of their list.
    pub fn extended(&self) -> &[ExtendedCapabilityHeader] {
        &self.extended
    }

    /// Appends a capability of `len` bytes at `place`, or where there is room, and returns its
    /// offset.
    pub fn append(
        &mut self,
        registers: &mut RegisterFile,
        id: CapabilityId,
        len: usize,
        place: Option<u8>,
    ) -> Result<u8, CapabilityError> {
        let offset = match place {
            Some(offset) if self.is_free(offset, len) => offset,
            Some(offset) => {
                return Err(CapabilityError::Placement {
                    offset: offset.into(),
                    len,
                });
            }
            None => (0..=u8::MAX)
                .find(|offset| self.is_free(*offset, len))
                .ok_or(CapabilityError::NoRoom { len })?,
        };
        self.occupied |= dwords(offset, len).unwrap_or(0);
        self.legacy.push(CapabilityHeader { id, offset });
        self.relink(registers);
        Ok(offset)
    }

    /// Takes the conventional capability at `offset` out of the list.
    pub fn hide(
        &mut self,
        registers: &mut RegisterFile,
        offset: u8,
    ) -> Result<(), CapabilityError> {
        let position = self.legacy.iter().position(|cap| cap.offset == offset);
        let position = position.ok_or(CapabilityError::Absent {
            offset: offset.into(),
        })?;
        self.legacy.remove(position);
        if let Some(register) = registers.register_mut(offset.into()) {
            register.reset &= 0xffff_0000;
        }
        self.relink(registers);
        Ok(())
    }

    /// Takes the extended capability at `offset` out of the list.
    pub fn hide_extended(
        &mut self,
        registers: &mut RegisterFile,
        offset: u16,
    ) -> Result<(), CapabilityError> {
        let position = self.extended.iter().position(|cap| cap.offset == offset);
        let position = position.ok_or(CapabilityError::Absent { offset })?;
        self.extended.remove(position);
        if let Some(register) = registers.register_mut(offset) {
            register.reset = 0;
        }
        self.relink_extended(registers);
        Ok(())
    }

    /// Writes identifiers and links of both lists.
    pub fn link(&self, registers: &mut RegisterFile) {
        self.relink(registers);
        if !self.extended.is_empty() {
            self.relink_extended(registers);
        }
    }

    /// Withdraws identifiers and links from what is passed through.
    pub fn keep_links(&self, registers: &mut RegisterFile) {
        let legacy = self.legacy.iter().map(|cap| (cap.offset.into(), 0xffff));
        let extended = self.extended.iter().map(|cap| (cap.offset, u32::MAX));
        let anchors = [
            (regs::CAPABILITIES_POINTER, u32::MAX),
            (FIRST_EXTENDED_CAPABILITY, u32::MAX),
        ];
        for (offset, links) in legacy.chain(extended).chain(anchors) {
            if let Some(register) = registers.register_mut(offset) {
                register.passed_through &= !links;
            }
        }
    }

    fn is_free(&self, offset: u8, len: usize) -> bool {
        let aligned = offset.is_multiple_of(4) && u16::from(offset) >= FIRST_CAPABILITY;
        aligned && dwords(offset, len).is_some_and(|dwords| self.occupied & dwords == 0)
    }

    /// Writes identifiers and links of the conventional list.
    fn relink(&self, registers: &mut RegisterFile) {
        let first = self.legacy.first().map_or(0, |cap| cap.offset);
        if let Some(pointer) = registers.register_mut(regs::CAPABILITIES_POINTER) {
            pointer.reset = first.into();
        }
        let list_bit = u32::from(Status::CAPABILITY_LIST.bits()) << 16;
        if let Some(status) = registers.register_mut(regs::STATUS) {
            status.reset &= !list_bit;
            if first != 0 {
                status.reset |= list_bit;
            }
        }
        for (position, cap) in self.legacy.iter().enumerate() {
            let next = self.legacy.get(position + 1).map_or(0, |cap| cap.offset);
            if let Some(header) = registers.register_mut(cap.offset.into()) {
                let link = u32::from(next) << 8 | u32::from(cap.id.0);
                header.reset = header.reset & 0xffff_0000 | link;
            }
        }
    }

    /// Writes identifiers and links of the extended list, which always begins at 0x100: a null
    /// capability stands in when the one there is hidden.
    fn relink_extended(&self, registers: &mut RegisterFile) {
        let next_of = |position: usize| self.extended.get(position).map_or(0, |cap| cap.offset);
        let first = next_of(0);
        if first != FIRST_EXTENDED_CAPABILITY
            && let Some(header) = registers.register_mut(FIRST_EXTENDED_CAPABILITY)
        {
            header.reset = u32::from(first) << 20;
        }
        for (position, cap) in self.extended.iter().enumerate() {
            if let Some(header) = registers.register_mut(cap.offset) {
                header.reset = u32::from(next_of(position + 1)) << 20
                    | u32::from(cap.version) << 16
                    | u32::from(cap.id.0);
            }
        }
    }
}

/// One bit for each dword of conventional space that `len` bytes at `offset` touch; `None` when
/// they leave it.
fn dwords(offset: u8, len: usize) -> Option<u64> {
    let count = u16::try_from(len.div_ceil(4)).ok()?;
    let first = u16::from(offset) / 4;
    if count == 0 || first + count.min(LEGACY_DWORDS) > LEGACY_DWORDS || count > LEGACY_DWORDS {
        return None;
    }
    Some(u64::MAX >> (LEGACY_DWORDS - count) << first)
}

#[cfg(test)]
mod tests;
