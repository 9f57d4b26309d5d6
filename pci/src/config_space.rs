//! Configuration space of one function: what a guest reads and writes, and what a write asks of
//! the machine.
//!
//! The register file holds every value once; this file decodes it. Which function it is, with
//! which BARs and capabilities, is settled by [`ConfigSpaceBuilder`](crate::ConfigSpaceBuilder).
//! A function that is emulated here answers with [`ConfigSpace::read`] and [`ConfigSpace::write`].
//! One that is passed through keeps a `ConfigSpace` as the shadow of its hardware and also calls
//! [`ConfigSpace::mirror_write`] and [`ConfigSpace::mirror_read`], so that the shadow stays true.

use serde::{Deserialize, Serialize};

use crate::access::{self, DwordWrite};
use crate::address::BarIndex;
use crate::bar::{BarPlacement, BarSet};
use crate::cap::msi::Msi;
use crate::cap::msix::{Msix, MsixCapability};
use crate::cap::reset::ResetBit;
use crate::effect::ConfigEffect;
use crate::message::{MessageChange, MsiMessage, VectorState};
use crate::msix_table::{MsixTable, MsixTableState};
use crate::register_file::{RegisterFile, RegisterState, Role, StateError};
use crate::regs::{self, Command, Status};

/// The model of a function's configuration space.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    pub(crate) registers: RegisterFile,
    pub(crate) bars: BarSet,
    pub(crate) msi: Option<Msi>,
    pub(crate) msix: Option<Msix>,
    pub(crate) reset_bits: Vec<ResetBit>,
}

/// Everything about a [`ConfigSpace`] that a guest can change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigSpaceState {
    /// Registers that are not zero, in ascending order.
    pub registers: Vec<RegisterState>,
    /// The MSI-X table of a function that has one.
    pub msix: Option<MsixTableState>,
}

/// How a function signals interrupts at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterruptMode {
    /// By its pin, if it has one and the command register does not disable it.
    Intx,
    /// By MSI.
    Msi,
    /// By MSI-X.
    Msix,
}

impl ConfigSpace {
    /// A guest read at `offset` bytes.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        access::read_part(offset, data, |register| self.registers.read(register));
    }

    /// A guest write at `offset` bytes.
    #[must_use = "effects that are dropped leave the machine out of step with the guest"]
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Vec<ConfigEffect> {
        let Some(write) = DwordWrite::decode(offset, data) else {
            return Vec::new();
        };
        match self.registers.role(write.register) {
            Role::Plain => {
                self.registers.write(write);
                Vec::new()
            }
            Role::Command | Role::Bar => {
                self.observing_header(|config| config.registers.write(write))
            }
            Role::Msi => self.write_msi(write),
            Role::Msix => self.write_msix(write),
            Role::ResetControl => {
                self.write_reset_control(write, |registers, write| registers.write(write))
            }
        }
    }

    /// Records a guest write that the owner passed to the hardware behind this model, and returns
    /// what else it asks for.
    ///
    /// Differs from [`ConfigSpace::write`] in two ways: registers that the hardware owns take the
    /// value too, and registers that the model owns (BARs and interrupt capabilities) are left
    /// alone, so that a move the guest has begun is neither lost nor made twice.
    #[must_use = "effects that are dropped leave the machine out of step with the guest"]
    pub fn mirror_write(&mut self, offset: u16, data: &[u8]) -> Vec<ConfigEffect> {
        let Some(write) = DwordWrite::decode(offset, data) else {
            return Vec::new();
        };
        match self.registers.role(write.register) {
            Role::Plain | Role::Command => {
                self.observing_header(|config| config.registers.mirror_write(write))
            }
            Role::ResetControl => {
                self.write_reset_control(write, |registers, write| registers.mirror_write(write))
            }
            Role::Bar | Role::Msi | Role::Msix => Vec::new(),
        }
    }

    /// Takes the bits that start a function-level reset out of a guest write, for an owner that
    /// resets the hardware by other means and passes the rest of the write on.
    pub fn strip_reset(&self, offset: u16, data: &mut [u8]) {
        let Some(write) = DwordWrite::decode(offset, data) else {
            return;
        };
        let resets = self.reset_bits.iter();
        let bits = resets
            .filter(|reset| reset.register == write.register)
            .fold(0, |bits, reset| bits | reset.bit);
        access::read_part(offset, data, |_| write.value & !bits);
    }

    /// Records what the hardware behind this model answered to a read, in the bits that hardware
    /// may change by itself.
    ///
    /// Registers that the model owns are left alone, as in [`ConfigSpace::mirror_write`]: a pending
    /// bit that only the hardware has would be one that no unmasking clears.
    pub fn mirror_read(&mut self, offset: u16, data: &[u8]) {
        let Some(read) = DwordWrite::decode(offset, data) else {
            return;
        };
        match self.registers.role(read.register) {
            Role::Plain | Role::Command | Role::ResetControl => self.registers.mirror_read(read),
            Role::Bar | Role::Msi | Role::Msix => {}
        }
    }

    /// The command register.
    pub fn command(&self) -> Command {
        Command::from_bits_truncate(self.registers.read_u16(regs::COMMAND))
    }

    /// Every BAR as the guest has programmed it now.
    pub fn desired_bars(&self) -> Vec<BarPlacement> {
        self.bars.placements(&self.registers)
    }

    /// Puts `previous` back into BAR `index` if it still holds `refused`, which the host could not
    /// place; see [`PciFunction::refuse_bar`](crate::PciFunction::refuse_bar).
    pub fn refuse_bar(&mut self, index: BarIndex, refused: u64, previous: u64) -> bool {
        self.bars
            .roll_back(&mut self.registers, index, refused, previous)
    }

    /// How the function signals interrupts now. Enabling both MSI and MSI-X is an error of the
    /// guest that the specification leaves open; MSI-X wins.
    pub fn interrupt_mode(&self) -> InterruptMode {
        if self.msix().is_some_and(MsixTable::is_enabled) {
            InterruptMode::Msix
        } else if self.msi.is_some_and(|msi| msi.is_enabled(&self.registers)) {
            InterruptMode::Msi
        } else {
            InterruptMode::Intx
        }
    }

    /// State of every MSI vector that the function has; empty without the capability.
    pub fn msi_vectors(&self) -> Vec<VectorState> {
        self.msi
            .map_or_else(Vec::new, |msi| msi.vectors(&self.registers))
    }

    /// The device raises MSI `vector`: returns the message to send now, or records the vector as
    /// pending when it is masked.
    #[must_use = "a message that is not sent is a lost interrupt"]
    pub fn raise_msi(&mut self, vector: u8) -> Option<MsiMessage> {
        self.msi?.raise(&mut self.registers, vector)
    }

    /// The MSI-X table, if the function has one.
    pub fn msix(&self) -> Option<&MsixTable> {
        self.msix.as_ref().map(|msix| &msix.table)
    }

    /// The MSI-X table, for guest accesses to the BAR it lies in and for the device's interrupts.
    pub fn msix_mut(&mut self) -> Option<&mut MsixTable> {
        self.msix.as_mut().map(|msix| &mut msix.table)
    }

    /// Where in the BARs the MSI-X structures lie.
    pub fn msix_capability(&self) -> Option<MsixCapability> {
        self.msix.as_ref().map(|msix| msix.shape)
    }

    /// Shows the guest whether the function asserts INTx.
    pub fn set_interrupt_status(&mut self, asserted: bool) {
        let bit = u32::from(Status::INTERRUPT.bits()) << 16;
        if let Some(register) = self.registers.register_mut(regs::STATUS) {
            if asserted {
                register.value |= bit;
            } else {
                register.value &= !bit;
            }
        }
    }

    /// Puts every register back to its value after a reset.
    #[must_use = "effects that are dropped leave the machine out of step with the guest"]
    pub fn reset(&mut self) -> Vec<ConfigEffect> {
        let mut effects = Vec::new();
        // Resetting the MSI registers first lets MSI observe its own change.
        if let Some(msi) = self.msi {
            let change = msi.observing(&mut self.registers, RegisterFile::reset_msi);
            effects.extend(message_effect(change, ConfigEffect::Msi));
        }
        if let Some(msix) = &mut self.msix {
            effects.extend(message_effect(msix.table.reset(), ConfigEffect::Msix));
        }
        effects.extend(self.observing_header(|config| config.registers.reset()));
        effects
    }

    /// The state to put into a snapshot.
    pub fn save(&self) -> ConfigSpaceState {
        let Self {
            registers,
            bars: _,
            msi: _,
            msix,
            reset_bits: _,
        } = self;
        ConfigSpaceState {
            registers: registers.save(),
            msix: msix.as_ref().map(|msix| msix.table.save()),
        }
    }

    /// This function, just built, with the registers of `state`.
    pub(crate) fn restored(mut self, state: &ConfigSpaceState) -> Result<Self, StateError> {
        let ConfigSpaceState { registers, msix } = state;
        self.registers.restore(registers)?;
        match (&mut self.msix, msix) {
            (Some(model), Some(saved)) => {
                let (enabled, masked) = model.control(&self.registers);
                model.table =
                    MsixTable::new(model.shape.vectors)?.restored(saved, enabled, masked)?;
            }
            (None, None) => {}
            (Some(_), None) | (None, Some(_)) => return Err(StateError::MsixPresence),
        }
        if let Some(vector) = self
            .msi
            .and_then(|msi| msi.pending_unmasked(&self.registers))
        {
            return Err(StateError::MsiPendingUnmasked { vector });
        }
        Ok(self)
    }

    fn write_msi(&mut self, write: DwordWrite) -> Vec<ConfigEffect> {
        let Some(msi) = self.msi else {
            return Vec::new();
        };
        let change = msi.write(&mut self.registers, write);
        Vec::from_iter(message_effect(change, ConfigEffect::Msi))
    }

    fn write_msix(&mut self, write: DwordWrite) -> Vec<ConfigEffect> {
        let Some(msix) = &mut self.msix else {
            return Vec::new();
        };
        self.registers.write(write);
        let (enabled, masked) = msix.control(&self.registers);
        let change = msix.table.set_control(enabled, masked);
        Vec::from_iter(message_effect(change, ConfigEffect::Msix))
    }

    /// A write to a register with a reset bit: the bit is taken out and becomes an effect.
    fn write_reset_control(
        &mut self,
        mut write: DwordWrite,
        store: impl FnOnce(&mut RegisterFile, DwordWrite),
    ) -> Vec<ConfigEffect> {
        let mut effects = Vec::new();
        for reset in &self.reset_bits {
            if reset.register == write.register && write.value & reset.bit != 0 {
                write.value &= !reset.bit;
                effects.push(ConfigEffect::FunctionReset);
            }
        }
        store(&mut self.registers, write);
        effects
    }

    /// Runs `change` and reports what it did to decoded BARs and to the command register.
    fn observing_header(&mut self, change: impl FnOnce(&mut Self)) -> Vec<ConfigEffect> {
        let observe = |config: &Self| {
            let decoded = config.desired_bars().into_iter().filter(|bar| bar.decoded);
            (config.command(), decoded.collect::<Vec<_>>())
        };
        let (command_before, decoded_before) = observe(self);
        change(self);
        let (command, decoded) = observe(self);

        let mut effects = Vec::new();
        if decoded != decoded_before {
            effects.push(ConfigEffect::LayoutChanged);
        }
        let switched = command ^ command_before;
        if switched.contains(Command::BUS_MASTER) {
            effects.push(ConfigEffect::BusMasterChanged {
                enabled: command.contains(Command::BUS_MASTER),
            });
        }
        if switched.contains(Command::INTX_DISABLE) {
            effects.push(ConfigEffect::InterruptDisableChanged {
                disabled: command.contains(Command::INTX_DISABLE),
            });
        }
        effects
    }
}

/// The effect of a change that is not empty.
fn message_effect(
    change: MessageChange,
    effect: impl FnOnce(MessageChange) -> ConfigEffect,
) -> Option<ConfigEffect> {
    (!change.is_empty()).then(|| effect(change))
}

#[cfg(test)]
mod tests;
