//! Base address registers: kinds, sizes, and the addresses the guest programmed.
//!
//! A BAR's size is nothing but its write mask: the low bits of the address are read-only zero, so
//! a guest that probes reads back the size without the model knowing that it probes (PCI Local
//! Bus Specification 3.0, section 6.2.5.1). The two registers of a 64-bit BAR are decoded as one
//! value. Addresses live in the register file; this file says how to read them.

use thiserror::Error;

use crate::access::DwordWrite;
use crate::address::BarIndex;
use crate::register_file::{RegisterFile, Role};
use crate::regs::{self, Command};

const IO_SPACE: u32 = 0x1;
const MEMORY_64: u32 = 0x4;
const PREFETCHABLE: u32 = 0x8;

/// Smallest memory BAR: the low four bits of its register are flags.
const MIN_MEMORY_LEN: u64 = 16;
/// Smallest I/O BAR: the low two bits of its register are flags.
const MIN_IO_LEN: u64 = 4;
/// Largest I/O BAR. Section 6.2.5.1 allows 256 ports, which not every real device keeps to.
const MAX_IO_LEN: u64 = 1 << 16;
/// Smallest expansion ROM: the low eleven bits of its register are flags or reserved.
const MIN_ROM_LEN: u64 = 2048;
/// Largest BAR in a 32-bit register, one bit of which has to remain writable.
const MAX_MEMORY_32_LEN: u64 = 1 << 31;
/// Largest BAR in a 64-bit register.
const MAX_MEMORY_64_LEN: u64 = 1 << 63;
/// Largest expansion ROM, section 6.2.5.2.
const MAX_ROM_LEN: u64 = 1 << 24;

/// What a BAR decodes. Sizes are in bytes and powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io {
        /// Number of ports.
        size: u64,
    },
    /// Memory below 4 GiB; also the expansion ROM.
    Mem32 {
        /// Length in bytes.
        size: u64,
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// Memory anywhere; occupies two registers.
    Mem64 {
        /// Length in bytes.
        size: u64,
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

impl BarKind {
    /// The kind of a real device's BAR: its `register`, or the lower of two, says what it decodes,
    /// and the host says how long it is.
    pub const fn from_register(register: u32, size: u64) -> Self {
        if register & IO_SPACE != 0 {
            return Self::Io { size };
        }
        let prefetchable = register & PREFETCHABLE != 0;
        if register & MEMORY_64 != 0 {
            Self::Mem64 { size, prefetchable }
        } else {
            Self::Mem32 { size, prefetchable }
        }
    }

    /// Length in bytes, or number of ports.
    pub const fn size(self) -> u64 {
        match self {
            Self::Io { size } | Self::Mem32 { size, .. } | Self::Mem64 { size, .. } => size,
        }
    }

    /// Bit of the command register that switches this kind of BAR on.
    const fn decode_bit(self) -> Command {
        match self {
            Self::Io { .. } => Command::IO_DECODE,
            Self::Mem32 { .. } | Self::Mem64 { .. } => Command::MEMORY_DECODE,
        }
    }

    /// The read-only low bits of the register.
    fn flags(self) -> u32 {
        let prefetch = |on| if on { PREFETCHABLE } else { 0 };
        match self {
            Self::Io { .. } => IO_SPACE,
            Self::Mem32 { prefetchable, .. } => prefetch(prefetchable),
            Self::Mem64 { prefetchable, .. } => MEMORY_64 | prefetch(prefetchable),
        }
    }
}

/// Why a BAR could not be added to a function.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BarError {
    /// The size cannot be expressed in the register.
    #[error("{index} cannot decode {size:#x} bytes: a power of two from {min:#x} to {max:#x} fits")]
    Size {
        /// The BAR.
        index: BarIndex,
        /// The size asked for, in bytes.
        size: u64,
        /// Smallest size of this kind.
        min: u64,
        /// Largest size of this kind.
        max: u64,
    },
    /// The register is taken, by another BAR or by the high half of a 64-bit one.
    #[error("cannot add {index}: its register is in use")]
    Occupied {
        /// The BAR.
        index: BarIndex,
    },
    /// A 64-bit BAR has no second register.
    #[error("{index} cannot be 64 bits wide: no register follows it")]
    NoUpperHalf {
        /// The BAR.
        index: BarIndex,
    },
    /// The ROM's decoder is plain 32-bit memory.
    #[error("the expansion ROM can only be 32-bit memory that is not prefetchable")]
    RomKind,
}

/// One BAR as the guest has programmed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarPlacement {
    /// Which BAR.
    pub index: BarIndex,
    /// What it decodes, and how long it is.
    pub kind: BarKind,
    /// The address in its register, aligned to the size.
    pub address: u64,
    /// Whether the function answers there now: the decode bit of the command register, for the
    /// ROM together with its own enable bit.
    pub decoded: bool,
}

/// What a decoder's register holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Bar(BarKind),
    UpperHalf,
}

/// The kinds of a function's BARs.
#[derive(Debug, Clone, Default)]
pub(crate) struct BarSet {
    slots: [Option<Slot>; BarIndex::COUNT],
}

impl BarSet {
    /// Adds a BAR and defines its registers.
    pub fn add(
        &mut self,
        registers: &mut RegisterFile,
        index: BarIndex,
        kind: BarKind,
    ) -> Result<(), BarError> {
        check_kind(index, kind)?;
        if self.slots[index.position()].is_some() {
            return Err(BarError::Occupied { index });
        }
        if let BarKind::Mem64 { .. } = kind {
            let upper = index.upper_half().ok_or(BarError::NoUpperHalf { index })?;
            if self.slots[upper.position()].is_some() {
                return Err(BarError::Occupied { index: upper });
            }
            self.slots[upper.position()] = Some(Slot::UpperHalf);
            define(registers, upper, halves(address_mask(kind)).1, 0);
        }
        self.slots[index.position()] = Some(Slot::Bar(kind));
        let enable = if index.is_rom() { regs::ROM_ENABLE } else { 0 };
        let (low_mask, _) = halves(address_mask(kind));
        define(registers, index, low_mask | enable, kind.flags());
        Ok(())
    }

    /// Kind of one BAR.
    pub fn kind(&self, index: BarIndex) -> Option<BarKind> {
        match self.slots[index.position()] {
            Some(Slot::Bar(kind)) => Some(kind),
            Some(Slot::UpperHalf) | None => None,
        }
    }

    /// Every BAR as programmed, in register order.
    pub fn placements(&self, registers: &RegisterFile) -> Vec<BarPlacement> {
        let command = Command::from_bits_truncate(registers.read_u16(regs::COMMAND));
        BarIndex::all()
            .filter_map(|index| {
                let kind = self.kind(index)?;
                let enabled =
                    !index.is_rom() || registers.read(regs::ROM_ADDRESS) & regs::ROM_ENABLE != 0;
                Some(BarPlacement {
                    index,
                    kind,
                    address: address(registers, index, kind),
                    decoded: enabled && command.contains(kind.decode_bit()),
                })
            })
            .collect()
    }

    /// Puts `previous` back into a BAR's registers if they still hold `refused`.
    pub fn roll_back(
        &self,
        registers: &mut RegisterFile,
        index: BarIndex,
        refused: u64,
        previous: u64,
    ) -> bool {
        let Some(kind) = self.kind(index) else {
            return false;
        };
        if address(registers, index, kind) != refused {
            return false;
        }
        let mask = address_mask(kind);
        let (low_mask, high_mask) = halves(mask);
        let (low, high) = halves(previous & mask);
        let mut store = |index, value, enable| {
            registers.write(DwordWrite {
                register: register_offset(index),
                value,
                enable,
            });
        };
        store(index, low, low_mask);
        if let (BarKind::Mem64 { .. }, Some(upper)) = (kind, index.upper_half()) {
            store(upper, high, high_mask);
        }
        true
    }
}

/// Offset of the register of a BAR.
fn register_offset(index: BarIndex) -> u16 {
    const OFFSETS: [u16; BarIndex::COUNT] = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, regs::ROM_ADDRESS];
    OFFSETS[index.position()]
}

/// The address in a BAR's register or pair of registers.
fn address(registers: &RegisterFile, index: BarIndex, kind: BarKind) -> u64 {
    let low = u64::from(registers.read(register_offset(index)));
    let high = match (kind, index.upper_half()) {
        (BarKind::Mem64 { .. }, Some(upper)) => u64::from(registers.read(register_offset(upper))),
        _ => 0,
    };
    (high << 32 | low) & address_mask(kind)
}

/// The address bits that a guest can write; what remains reads as the size.
const fn address_mask(kind: BarKind) -> u64 {
    let width = match kind {
        BarKind::Io { .. } | BarKind::Mem32 { .. } => 0xffff_ffff,
        BarKind::Mem64 { .. } => u64::MAX,
    };
    !(kind.size() - 1) & width
}

/// Low and high dword.
fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    )
}

fn define(registers: &mut RegisterFile, index: BarIndex, writable: u32, flags: u32) {
    if let Some(register) = registers.register_mut(register_offset(index)) {
        register.reset = flags;
        register.writable = writable;
        register.role = Role::Bar;
    }
}

fn check_kind(index: BarIndex, kind: BarKind) -> Result<(), BarError> {
    let (min, max) = match (index.is_rom(), kind) {
        (
            true,
            BarKind::Mem32 {
                prefetchable: false,
                ..
            },
        ) => (MIN_ROM_LEN, MAX_ROM_LEN),
        (true, _) => return Err(BarError::RomKind),
        (false, BarKind::Io { .. }) => (MIN_IO_LEN, MAX_IO_LEN),
        (false, BarKind::Mem32 { .. }) => (MIN_MEMORY_LEN, MAX_MEMORY_32_LEN),
        (false, BarKind::Mem64 { .. }) => (MIN_MEMORY_LEN, MAX_MEMORY_64_LEN),
    };
    let size = kind.size();
    if !size.is_power_of_two() || size < min || size > max {
        return Err(BarError::Size {
            index,
            size,
            min,
            max,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(bars: &[(u8, BarKind)]) -> Result<(), BarError> {
        let mut registers = RegisterFile::new(256);
        let mut set = BarSet::default();
        for (position, kind) in bars {
            let index = BarIndex::all().nth(usize::from(*position)).unwrap();
            set.add(&mut registers, index, *kind)?;
        }
        Ok(())
    }

    fn mem32(size: u64) -> BarKind {
        BarKind::Mem32 {
            size,
            prefetchable: false,
        }
    }

    fn mem64(size: u64) -> BarKind {
        BarKind::Mem64 {
            size,
            prefetchable: true,
        }
    }

    #[test]
    fn sizes_that_no_register_can_express_are_refused() {
        let io = |size| BarKind::Io { size };
        for (index, kind) in [
            (0, io(2)),
            (0, io(1 << 17)),
            (0, mem32(0)),
            (0, mem32(8)),
            (0, mem32(0x1800)),
            (0, mem32(1 << 32)),
            (0, mem64(3 << 40)),
            (6, mem32(1024)),
            (6, mem32(1 << 25)),
        ] {
            let refused = add(&[(index, kind)]);
            assert!(matches!(refused, Err(BarError::Size { .. })), "{kind:?}");
        }
        for (index, kind) in [
            (0, io(4)),
            (5, io(256)),
            (5, mem32(16)),
            (0, mem32(1 << 31)),
            (4, mem64(1 << 63)),
            (6, mem32(2048)),
        ] {
            assert_eq!(add(&[(index, kind)]), Ok(()), "{kind:?}");
        }
    }

    #[test]
    fn flags_of_a_register_name_its_kind() {
        let size = 0x1000;
        for kind in [
            BarKind::Io { size },
            mem32(size),
            mem64(size),
            BarKind::Mem32 {
                size,
                prefetchable: true,
            },
        ] {
            let register = 0xe000_0000 | kind.flags();
            assert_eq!(BarKind::from_register(register, size), kind);
        }
        assert_eq!(BarKind::from_register(0xe000_000c, size), mem64(size));
    }

    #[test]
    fn registers_are_used_once() {
        let upper = BarIndex::new(1).unwrap();
        let taken = Err(BarError::Occupied { index: upper });
        assert_eq!(add(&[(0, mem64(16)), (1, mem32(16))]), taken);
        assert_eq!(add(&[(1, mem32(16)), (0, mem64(16))]), taken);
        assert_eq!(add(&[(1, mem32(16)), (1, mem32(16))]), taken);
        let last = BarIndex::new(5).unwrap();
        let no_half = Err(BarError::NoUpperHalf { index: last });
        assert_eq!(add(&[(5, mem64(16))]), no_half);
        assert_eq!(add(&[(6, mem64(4096))]), Err(BarError::RomKind));
    }
}
