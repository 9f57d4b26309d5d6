//! The MSI capability: PCI Local Bus Specification 3.0, section 6.8.1.
//!
//! All of its state lies in the register file; this file says where and decodes it. Four shapes
//! exist: 32- or 64-bit addresses, with or without a mask bit per vector.

use crate::access::DwordWrite;
use crate::cap::CapabilityError;
use crate::message::{MessageChange, MsiMessage, VectorChange, VectorState};
use crate::register_file::{RegisterFile, Role};

const ENABLE: u16 = 0x0001;
const CAPABLE_SHIFT: u32 = 1;
const ENABLED_SHIFT: u32 = 4;
const COUNT_MASK: u16 = 0x7;
const ADDRESS_64: u16 = 0x0080;
const PER_VECTOR_MASKING: u16 = 0x0100;
/// Control bits that a guest can write: enable and the number of messages it uses.
const CONTROL_WRITABLE: u16 = ENABLE | COUNT_MASK << ENABLED_SHIFT;
/// Largest encoded number of messages: 32.
const MAX_COUNT_LOG2: u16 = 5;

/// Shape of an MSI capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiCapability {
    /// Number of vectors: 1, 2, 4, 8, 16 or 32.
    pub vectors: u8,
    /// The message address has 64 bits.
    pub address_64: bool,
    /// Each vector has a mask and a pending bit.
    pub per_vector_masking: bool,
}

impl MsiCapability {
    /// The shape that a device's control register at `offset` + 2 describes.
    pub fn from_control(offset: u16, control: u16) -> Result<Self, CapabilityError> {
        let log2 = control >> CAPABLE_SHIFT & COUNT_MASK;
        if log2 > MAX_COUNT_LOG2 {
            return Err(CapabilityError::MsiControl { offset, control });
        }
        Ok(Self {
            vectors: 1 << log2,
            address_64: control & ADDRESS_64 != 0,
            per_vector_masking: control & PER_VECTOR_MASKING != 0,
        })
    }

    /// Bytes of the capability, rounded up to whole dwords.
    pub const fn len_bytes(self) -> u16 {
        let upper_address = if self.address_64 { 4 } else { 0 };
        let masks = if self.per_vector_masking { 8 } else { 0 };
        12 + upper_address + masks
    }

    /// The control register after a reset.
    fn control(self) -> Result<u16, CapabilityError> {
        let log2 = (0..=MAX_COUNT_LOG2)
            .find(|log2| 1 << log2 == u32::from(self.vectors))
            .ok_or(CapabilityError::MsiVectors {
                vectors: self.vectors,
            })?;
        let flag = |on, bit| if on { bit } else { 0 };
        Ok(log2 << CAPABLE_SHIFT
            | flag(self.address_64, ADDRESS_64)
            | flag(self.per_vector_masking, PER_VECTOR_MASKING))
    }
}

/// Bytes of the capability with this control register, for which its vector count does not matter.
pub(crate) fn len_of_control(control: u16) -> u16 {
    let shape = MsiCapability {
        vectors: 1,
        address_64: control & ADDRESS_64 != 0,
        per_vector_masking: control & PER_VECTOR_MASKING != 0,
    };
    shape.len_bytes()
}

/// An MSI capability in a register file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Msi {
    offset: u16,
    shape: MsiCapability,
}

impl Msi {
    /// Defines the registers of a capability at `offset`, whose id and link are there already.
    pub fn define(
        registers: &mut RegisterFile,
        offset: u16,
        shape: MsiCapability,
    ) -> Result<Self, CapabilityError> {
        let control = shape.control()?;
        let msi = Self { offset, shape };
        let vector_bits = u32::MAX >> (32 - u32::from(shape.vectors));
        let mut define = |offset, writable, volatile| {
            if let Some(register) = registers.register_mut(offset) {
                register.reset = 0;
                register.writable = writable;
                register.volatile = volatile;
                register.role = Role::Msi;
            }
        };
        define(msi.address(), 0xffff_fffc, 0);
        if shape.address_64 {
            define(msi.address() + 4, u32::MAX, 0);
        }
        define(msi.data(), 0x0000_ffff, 0);
        if shape.per_vector_masking {
            define(msi.mask(), vector_bits, 0);
            define(msi.pending(), 0, vector_bits);
        }
        if let Some(header) = registers.register_mut(offset) {
            header.reset = header.reset & 0xffff | u32::from(control) << 16;
            header.writable = u32::from(CONTROL_WRITABLE) << 16;
            header.role = Role::Msi;
        }
        Ok(msi)
    }

    /// Whether MSI is the function's interrupt mode.
    pub fn is_enabled(self, registers: &RegisterFile) -> bool {
        self.control(registers) & ENABLE != 0
    }

    /// State of every vector that the device has.
    pub fn vectors(self, registers: &RegisterFile) -> Vec<VectorState> {
        (0..self.shape.vectors)
            .map(|vector| self.vector(registers, vector))
            .collect()
    }

    /// A guest write to one of the capability's registers.
    pub fn write(self, registers: &mut RegisterFile, write: DwordWrite) -> MessageChange {
        self.observing(registers, |registers| registers.write(write))
    }

    /// Runs `change` and reports what it did. A pending vector that is unmasked stops being
    /// pending and fires at the owner.
    pub fn observing(
        self,
        registers: &mut RegisterFile,
        change: impl FnOnce(&mut RegisterFile),
    ) -> MessageChange {
        let was_enabled = self.is_enabled(registers);
        let before = self.vectors(registers);
        change(registers);
        let after = self.vectors(registers);

        let mut vectors = Vec::new();
        for (vector, (before, after)) in (0u8..).zip(before.into_iter().zip(after)) {
            if before == after {
                continue;
            }
            let fire = after != VectorState::Masked && self.take_pending(registers, vector);
            vectors.push(VectorChange {
                vector: vector.into(),
                before,
                after,
                fire,
            });
        }
        MessageChange {
            enabled: self.is_enabled(registers),
            was_enabled,
            vectors,
        }
    }

    /// The device raises `vector`: the message to send now, if it is not masked.
    pub fn raise(self, registers: &mut RegisterFile, vector: u8) -> Option<MsiMessage> {
        if vector >= self.shape.vectors {
            return None;
        }
        match self.vector(registers, vector) {
            VectorState::Unmasked(message) => Some(message),
            VectorState::Masked => {
                if self.shape.per_vector_masking
                    && self.is_enabled(registers)
                    && let Some(pending) = registers.register_mut(self.pending())
                {
                    pending.value |= 1 << vector;
                }
                None
            }
        }
    }

    /// A vector that is pending without being masked: only hostile state has one.
    pub fn pending_unmasked(self, registers: &RegisterFile) -> Option<u8> {
        (0..self.shape.vectors).find(|vector| {
            self.shape.per_vector_masking
                && registers.read(self.pending()) >> vector & 1 != 0
                && self.vector(registers, *vector) != VectorState::Masked
        })
    }

    fn vector(self, registers: &RegisterFile, vector: u8) -> VectorState {
        let used = self.vectors_in_use(registers);
        let masked =
            self.shape.per_vector_masking && registers.read(self.mask()) >> vector & 1 != 0;
        if !self.is_enabled(registers) || vector >= used || masked {
            return VectorState::Masked;
        }
        let low = u64::from(registers.read(self.address()));
        let high = if self.shape.address_64 {
            u64::from(registers.read(self.address() + 4))
        } else {
            0
        };
        // The device puts the vector's number into the low bits of the data, 6.8.1.6.
        let data = registers.read(self.data()) & !(u32::from(used) - 1) | u32::from(vector);
        VectorState::Unmasked(MsiMessage {
            address: high << 32 | low,
            data,
        })
    }

    /// How many vectors the guest enabled; reserved encodings and more than there are mean all.
    fn vectors_in_use(self, registers: &RegisterFile) -> u8 {
        let log2 = self.control(registers) >> ENABLED_SHIFT & COUNT_MASK;
        1u8.checked_shl(log2.into())
            .map_or(self.shape.vectors, |used| used.min(self.shape.vectors))
    }

    fn take_pending(self, registers: &mut RegisterFile, vector: u8) -> bool {
        if !self.shape.per_vector_masking {
            return false;
        }
        let Some(pending) = registers.register_mut(self.pending()) else {
            return false;
        };
        let was_pending = pending.value >> vector & 1 != 0;
        pending.value &= !(1 << vector);
        was_pending
    }

    fn control(self, registers: &RegisterFile) -> u16 {
        registers.read_u16(self.offset + 2)
    }

    fn address(self) -> u16 {
        self.offset + 4
    }

    fn data(self) -> u16 {
        self.offset + if self.shape.address_64 { 12 } else { 8 }
    }

    fn mask(self) -> u16 {
        self.data() + 4
    }

    fn pending(self) -> u16 {
        self.data() + 8
    }
}
