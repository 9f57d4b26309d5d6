//! The dwords of a function's configuration space, each with what a write may do to it: 64 of a
//! conventional function, 1024 of one with extended space.
//!
//! The value and its masks lie side by side, so that reads, guest writes, reset and restore need
//! no knowledge of what a register means. Meaning is laid over it by `ConfigSpace`, which decodes
//! BARs, MSI and MSI-X control from here: no register is kept in two places.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::access::DwordWrite;
use crate::msix_table::MsixStateError;

/// Which part of the model decodes a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Role {
    /// Nobody: only its masks count.
    #[default]
    Plain,
    /// Command and status.
    Command,
    /// A base address register or the ROM's.
    Bar,
    /// A register of the MSI capability.
    Msi,
    /// A register of the MSI-X capability.
    Msix,
    /// A register with a bit that starts a function-level reset.
    ResetControl,
}

/// One dword and its rules. A bit in none of the masks is read-only; none is in both of `writable`
/// and `write_one_clears`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Register {
    pub value: u32,
    /// Value after a reset of the function.
    pub reset: u32,
    /// Bits a guest write stores.
    pub writable: u32,
    /// Bits a guest write of one clears.
    pub write_one_clears: u32,
    /// Bits that change without a guest write: not compared on restore.
    pub volatile: u32,
    /// Bits that live in hardware behind this model and are only recorded here.
    pub passed_through: u32,
    pub role: Role,
}

impl Register {
    /// Bits whose value may differ from the one after reset.
    fn changeable(&self) -> u32 {
        self.writable | self.write_one_clears | self.volatile | self.passed_through
    }

    fn write(&mut self, write: DwordWrite, stored: u32) {
        let stored = stored & write.enable;
        self.value = self.value & !stored | write.value & stored;
        self.value &= !(self.write_one_clears & write.value);
    }
}

/// A register's saved value; registers that are zero are not saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterState {
    /// Dword-aligned offset in configuration space.
    pub offset: u16,
    /// The dword, in the guest's byte order.
    pub value: u32,
}

/// Why saved configuration space was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StateError {
    /// The list of registers is malformed.
    #[error(
        "saved register {offset:#x} is misplaced: offsets are dword-aligned, ascending and inside of the function's space"
    )]
    RegisterOrder {
        /// The offending offset.
        offset: u16,
    },
    /// A bit that no guest can change differs: the state is of another device model.
    #[error(
        "saved register {offset:#x} is {saved:#010x} where this device has {model:#010x} in bits it cannot change: the state belongs to another device"
    )]
    ReadOnly {
        /// Offset of the register.
        offset: u16,
        /// Its saved value.
        saved: u32,
        /// Its value after a reset of the device at hand.
        model: u32,
    },
    /// An MSI vector is pending and not masked, which no function ever has.
    #[error("saved MSI vector {vector} is pending although it is not masked")]
    MsiPendingUnmasked {
        /// The vector.
        vector: u8,
    },
    /// Only one of state and device has MSI-X.
    #[error("the saved function and this device do not both have MSI-X")]
    MsixPresence,
    /// The MSI-X table was refused.
    #[error("cannot restore the MSI-X table")]
    Msix(#[from] MsixStateError),
    /// The configuration address port holds bits that it cannot hold.
    #[error("saved configuration address {saved:#010x} has reserved bits set")]
    ConfigAddress {
        /// The saved latch.
        saved: u32,
    },
}

/// All registers of a function.
#[derive(Debug, Clone)]
pub(crate) struct RegisterFile {
    registers: Box<[Register]>,
}

impl RegisterFile {
    /// `len` bytes of registers that are all zero and read-only.
    pub fn new(len: usize) -> Self {
        Self {
            registers: vec![Register::default(); len / 4].into_boxed_slice(),
        }
    }

    /// The dword at `offset`; all-ones beyond the space.
    pub fn read(&self, offset: u16) -> u32 {
        self.registers
            .get(usize::from(offset / 4))
            .map_or(u32::MAX, |register| register.value)
    }

    /// The 16 bits at the even `offset`.
    pub fn read_u16(&self, offset: u16) -> u16 {
        let bytes = self.read(offset).to_le_bytes();
        let lane = usize::from(offset & 0x2);
        u16::from_le_bytes([bytes[lane], bytes[lane + 1]])
    }

    /// The dword at `offset` after a reset.
    pub fn reset_value(&self, offset: u16) -> u32 {
        self.registers
            .get(usize::from(offset / 4))
            .map_or(0, |register| register.reset)
    }

    /// Takes the bytes of a configuration space as reset values.
    pub fn define_reset_values(&mut self, config: &[u8]) {
        for (register, bytes) in self.registers.iter_mut().zip(config.chunks_exact(4)) {
            register.reset = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
    }

    /// Withdraws registers that the model decodes from what is passed through.
    pub fn keep_owned_registers(&mut self) {
        for register in &mut self.registers {
            match register.role {
                Role::Plain | Role::ResetControl => {}
                Role::Command | Role::Bar | Role::Msi | Role::Msix => register.passed_through = 0,
            }
        }
    }

    /// What decodes the register at `offset`.
    pub fn role(&self, offset: u16) -> Role {
        self.registers
            .get(usize::from(offset / 4))
            .map_or(Role::Plain, |register| register.role)
    }

    /// Rules and value of the register at `offset`, for the builder and for bits that the device
    /// itself sets.
    pub fn register_mut(&mut self, offset: u16) -> Option<&mut Register> {
        self.registers.get_mut(usize::from(offset / 4))
    }

    /// A guest write: stores writable bits, clears written-one bits.
    pub fn write(&mut self, write: DwordWrite) {
        if let Some(register) = self.register_mut(write.register) {
            register.write(write, register.writable);
        }
    }

    /// A guest write that hardware behind this model took: passed-through bits are stored too.
    pub fn mirror_write(&mut self, write: DwordWrite) {
        if let Some(register) = self.register_mut(write.register) {
            register.write(write, register.writable | register.passed_through);
        }
    }

    /// What hardware behind this model returned: stored where hardware may change it by itself.
    pub fn mirror_read(&mut self, read: DwordWrite) {
        if let Some(register) = self.register_mut(read.register) {
            let by_hardware =
                register.volatile | register.passed_through | register.write_one_clears;
            let stored = by_hardware & read.enable;
            register.value = register.value & !stored | read.value & stored;
        }
    }

    /// Every register back to its value after a reset.
    pub fn reset(&mut self) {
        for register in &mut self.registers {
            register.value = register.reset;
        }
    }

    /// The MSI registers back to their values after a reset.
    pub fn reset_msi(&mut self) {
        for register in &mut self.registers {
            if register.role == Role::Msi {
                register.value = register.reset;
            }
        }
    }

    /// The registers that are not zero.
    pub fn save(&self) -> Vec<RegisterState> {
        (0u16..)
            .step_by(4)
            .zip(&self.registers)
            .filter(|(_, register)| register.value != 0)
            .map(|(offset, register)| RegisterState {
                offset,
                value: register.value,
            })
            .collect()
    }

    /// Takes over saved values after checking all of them; on error nothing has changed.
    pub fn restore(&mut self, state: &[RegisterState]) -> Result<(), StateError> {
        let mut values = vec![0; self.registers.len()];
        let mut lowest = 0;
        for &RegisterState { offset, value } in state {
            let slot = values.get_mut(usize::from(offset / 4));
            match slot {
                Some(slot) if offset % 4 == 0 && offset >= lowest => *slot = value,
                _ => return Err(StateError::RegisterOrder { offset }),
            }
            lowest = offset + 4;
        }
        for ((offset, register), &saved) in (0u16..).step_by(4).zip(&self.registers).zip(&values) {
            if (saved ^ register.reset) & !register.changeable() != 0 {
                return Err(StateError::ReadOnly {
                    offset,
                    saved,
                    model: register.reset,
                });
            }
        }
        for (register, saved) in self.registers.iter_mut().zip(values) {
            register.value = saved;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> RegisterFile {
        let mut file = RegisterFile::new(256);
        *file.register_mut(0x40).unwrap() = Register {
            value: 0xf000_0012,
            reset: 0xf000_0012,
            writable: 0x0000_ff00,
            write_one_clears: 0xf000_0000,
            volatile: 0x0080_0000,
            passed_through: 0x0070_0000,
            role: Role::Plain,
        };
        file
    }

    fn write(value: u32) -> DwordWrite {
        DwordWrite::decode(0x40, &value.to_le_bytes()).unwrap()
    }

    #[test]
    fn guest_writes_respect_each_mask() {
        let mut file = file();
        file.write(write(0x1fff_ffff));
        assert_eq!(file.read(0x40), 0xe000_ff12);
        file.mirror_write(write(0x0030_0000));
        assert_eq!(file.read(0x40), 0xe030_0012);
        file.mirror_read(write(0x3050_3434));
        assert_eq!(file.read(0x40), 0x3050_0012);
        file.reset();
        assert_eq!(file.read(0x40), 0xf000_0012);
    }

    #[test]
    fn bytes_outside_the_enabled_lanes_stay() {
        let mut file = file();
        file.write(DwordWrite::decode(0x42, &[0xff, 0x0f]).unwrap());
        assert_eq!(file.read(0x40), 0xf000_0012);
        file.write(DwordWrite::decode(0x41, &[0x77]).unwrap());
        assert_eq!(file.read(0x40), 0xf000_7712);
    }

    #[test]
    fn restore_refuses_malformed_and_foreign_state() {
        let state = |entries: &[(u16, u32)]| {
            let entries: Vec<_> = entries
                .iter()
                .map(|&(offset, value)| RegisterState { offset, value })
                .collect();
            file().restore(&entries)
        };
        assert_eq!(state(&[(0x40, 0x00f0_ab12)]), Ok(()));
        for (entries, offset) in [
            (&[(0x41, 0)][..], 0x41),
            (&[(0x100, 0)], 0x100),
            (&[(0xfffc, 0)], 0xfffc),
            (&[(0x40, 0x12), (0x40, 0x12)], 0x40),
            (&[(0x44, 0), (0x40, 0x12)], 0x40),
        ] {
            assert_eq!(state(entries), Err(StateError::RegisterOrder { offset }));
        }
        let foreign = StateError::ReadOnly {
            offset: 0x40,
            saved: 0x13,
            model: 0xf000_0012,
        };
        assert_eq!(state(&[(0x40, 0x13)]), Err(foreign));
        assert!(state(&[]).is_err(), "a missing register is zero");
    }
}
