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
use crate::effect::ConfigEffect;
use crate::register_file::{RegisterFile, RegisterState, Role, StateError};
use crate::regs::{self, Command, Status};

/// The model of a function's configuration space.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    pub(crate) registers: RegisterFile,
    pub(crate) bars: BarSet,
}

/// Everything about a [`ConfigSpace`] that a guest can change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigSpaceState {
    /// Registers that are not zero, in ascending order.
    pub registers: Vec<RegisterState>,
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
            Role::Bar => Vec::new(),
        }
    }

    /// Records what the hardware behind this model answered to a read, in the bits that hardware
    /// may change by itself.
    pub fn mirror_read(&mut self, offset: u16, data: &[u8]) {
        if let Some(read) = DwordWrite::decode(offset, data) {
            self.registers.mirror_read(read);
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
        self.observing_header(|config| config.registers.reset())
    }

    /// The state to put into a snapshot.
    pub fn save(&self) -> ConfigSpaceState {
        let Self { registers, bars: _ } = self;
        ConfigSpaceState {
            registers: registers.save(),
        }
    }

    /// This function, just built, with the registers of `state`.
    pub(crate) fn restored(mut self, state: &ConfigSpaceState) -> Result<Self, StateError> {
        let ConfigSpaceState { registers } = state;
        self.registers.restore(registers)?;
        Ok(self)
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

#[cfg(test)]
mod tests;
