//! Builds the configuration space of a function: identity, BARs, capabilities.
//!
//! The builder is the one way to a [`ConfigSpace`]: a fresh function and a restored one are
//! described by the same calls and differ in the last, so state can only fill in what the
//! described function lets a guest change.

use crate::address::BarIndex;
use crate::bar::{BarError, BarKind, BarSet};
use crate::config_space::{ConfigSpace, ConfigSpaceState};
use crate::header::{self, Identity};
use crate::register_file::{RegisterFile, StateError};

/// A function that is being described.
#[derive(Debug, Clone)]
pub struct ConfigSpaceBuilder {
    registers: RegisterFile,
    bars: BarSet,
}

impl ConfigSpaceBuilder {
    /// A function with a type-0 header and nothing else.
    pub fn new(identity: &Identity) -> Self {
        let mut registers = RegisterFile::new();
        header::apply_rules(&mut registers);
        header::apply_identity(&mut registers, identity);
        Self {
            registers,
            bars: BarSet::default(),
        }
    }

    /// Adds a BAR, or the expansion ROM as [`BarIndex::ROM`].
    pub fn bar(&mut self, index: BarIndex, kind: BarKind) -> Result<&mut Self, BarError> {
        self.bars.add(&mut self.registers, index, kind)?;
        Ok(self)
    }

    /// The function as it is after a reset.
    pub fn build(self) -> ConfigSpace {
        let Self {
            mut registers,
            bars,
        } = self;
        registers.reset();
        ConfigSpace { registers, bars }
    }

    /// The function as `state` has it; refused when the state is not of this function.
    pub fn restore(self, state: &ConfigSpaceState) -> Result<ConfigSpace, StateError> {
        self.build().restored(state)
    }
}
