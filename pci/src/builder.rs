//! Builds the configuration space of a function: identity, BARs, capabilities.
//!
//! The builder is the one way to a [`ConfigSpace`]: a fresh function and a restored one are
//! described by the same calls and differ in the last, so state can only fill in what the
//! described function lets a guest change. The shadow of a real device starts from the device's
//! own bytes: everything is read-only until the owner says which parts the model takes over and
//! which the hardware answers.

use thiserror::Error;

use crate::address::BarIndex;
use crate::bar::{BarError, BarKind, BarSet};
use crate::cap::msi::{Msi, MsiCapability};
use crate::cap::msix::{self, Msix, MsixCapability};
use crate::cap::reset::define_reset_bits;
use crate::cap::walk::{
    CapabilityHeader, ExtendedCapabilityHeader, WalkError, walk_capabilities,
    walk_extended_capabilities,
};
use crate::cap::{Capability, CapabilityError, CapabilityLists};
use crate::config_space::{ConfigSpace, ConfigSpaceState};
use crate::header::{self, Identity, InterruptPin};
use crate::register_file::{RegisterFile, StateError};
use crate::regs::{
    CONFIG_SPACE_LEN, CapabilityId, HEADER_TYPE, HEADER_TYPE_MULTIFUNCTION, LEGACY_SPACE_LEN,
};

/// Why a function cannot be modelled.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BuildError {
    /// A BAR was refused.
    #[error(transparent)]
    Bar(#[from] BarError),
    /// A capability was refused.
    #[error(transparent)]
    Capability(#[from] CapabilityError),
    /// The device's capability lists are malformed.
    #[error("cannot follow the device's capability lists")]
    Walk(#[from] WalkError),
    /// The device's bytes are not a configuration space.
    #[error("the device has {len} bytes of configuration space: 256 or 4096 are possible")]
    DeviceLen {
        /// How many there are.
        len: usize,
    },
    /// The device is a bridge or not there.
    #[error("the device has header type {header_type:#04x}: only type 0 can be given to a guest")]
    HeaderType {
        /// Its header type without the multifunction bit.
        header_type: u8,
    },
}

/// A function that is being described.
#[derive(Debug, Clone)]
pub struct ConfigSpaceBuilder {
    registers: RegisterFile,
    bars: BarSet,
    capabilities: CapabilityLists,
    msi: Option<Msi>,
    msix: Option<Msix>,
}

impl ConfigSpaceBuilder {
    /// An emulated function with a type-0 header and nothing else. It is a conventional one, whose
    /// extended space reads as all-ones.
    pub fn new(identity: &Identity) -> Self {
        let mut registers = RegisterFile::new(LEGACY_SPACE_LEN);
        header::apply_rules(&mut registers);
        header::apply_identity(&mut registers, identity);
        Self::with(registers, CapabilityLists::default())
    }

    /// The shadow of a device with these bytes of configuration space, 256 or 4096.
    ///
    /// Its identity and capabilities are taken over read-only; its BARs and what the host's driver
    /// programmed are not. The owner then adds the BARs and adopts, hides or passes through
    /// capabilities.
    pub fn from_device(config: &[u8]) -> Result<Self, BuildError> {
        if config.len() != LEGACY_SPACE_LEN && config.len() != CONFIG_SPACE_LEN {
            return Err(BuildError::DeviceLen { len: config.len() });
        }
        let header_type = config[usize::from(HEADER_TYPE)] & !HEADER_TYPE_MULTIFUNCTION;
        if header_type != 0 {
            return Err(BuildError::HeaderType { header_type });
        }
        let capabilities = CapabilityLists::of_device(
            walk_capabilities(config)?,
            walk_extended_capabilities(config)?,
        );
        let mut registers = RegisterFile::new(config.len());
        registers.define_reset_values(config);
        header::apply_rules(&mut registers);
        header::forget_host_programming(&mut registers);
        capabilities.link(&mut registers);
        Ok(Self::with(registers, capabilities))
    }

    fn with(registers: RegisterFile, capabilities: CapabilityLists) -> Self {
        Self {
            registers,
            bars: BarSet::default(),
            capabilities,
            msi: None,
            msix: None,
        }
    }

    /// Adds a BAR, or the expansion ROM as [`BarIndex::ROM`].
    pub fn bar(&mut self, index: BarIndex, kind: BarKind) -> Result<&mut Self, BarError> {
        self.bars.add(&mut self.registers, index, kind)?;
        Ok(self)
    }

    /// Replaces the pin of INTx mode; `None` for a device whose host cannot deliver INTx.
    pub fn interrupt_pin(&mut self, pin: Option<InterruptPin>) -> &mut Self {
        header::apply_interrupt_pin(&mut self.registers, pin);
        self
    }

    /// Adds a capability where there is room and returns its offset.
    pub fn capability(&mut self, capability: &Capability) -> Result<u8, CapabilityError> {
        self.place_capability(capability, None)
    }

    /// Adds a capability at `offset`, for guests that know it from a real device.
    pub fn capability_at(
        &mut self,
        offset: u8,
        capability: &Capability,
    ) -> Result<(), CapabilityError> {
        self.place_capability(capability, Some(offset))?;
        Ok(())
    }

    /// Adds an MSI capability and returns its offset.
    pub fn msi(&mut self, shape: MsiCapability) -> Result<u8, CapabilityError> {
        let offset = self.append(CapabilityId::MSI, shape.len_bytes().into(), None)?;
        self.model_msi(offset, shape)?;
        Ok(offset)
    }

    /// Adds an MSI-X capability, whose BARs are there already, and returns its offset.
    pub fn msix(&mut self, shape: MsixCapability) -> Result<u8, CapabilityError> {
        let offset = self.append(CapabilityId::MSIX, msix::LEN.into(), None)?;
        self.model_msix(offset, shape)?;
        Ok(offset)
    }

    /// Lets the model take over the device's own MSI capability; `None` if it has none.
    pub fn adopt_msi(&mut self) -> Result<Option<MsiCapability>, CapabilityError> {
        let Some(offset) = self.find(CapabilityId::MSI) else {
            return Ok(None);
        };
        let [_, _, low, high] = self.registers.reset_value(offset.into()).to_le_bytes();
        let control = u16::from_le_bytes([low, high]);
        let shape = MsiCapability::from_control(offset.into(), control)?;
        self.model_msi(offset, shape)?;
        Ok(Some(shape))
    }

    /// Lets the model take over the device's own MSI-X capability, whose BARs have been added;
    /// `None` if it has none.
    pub fn adopt_msix(&mut self) -> Result<Option<MsixCapability>, CapabilityError> {
        let Some(offset) = self.find(CapabilityId::MSIX) else {
            return Ok(None);
        };
        let base = u16::from(offset);
        let dwords = [base, base + 4, base + 8].map(|at| self.registers.reset_value(at));
        let shape = MsixCapability::from_registers(base, dwords)?;
        self.model_msix(offset, shape)?;
        Ok(Some(shape))
    }

    /// The conventional capabilities so far, in the order of their list.
    pub fn capabilities(&self) -> &[CapabilityHeader] {
        self.capabilities.legacy()
    }

    /// The extended capabilities, in the order of their list.
    pub fn extended_capabilities(&self) -> &[ExtendedCapabilityHeader] {
        self.capabilities.extended()
    }

    /// Unlinks the conventional capability at `offset`; to be called instead of adopting it.
    pub fn hide_capability(&mut self, offset: u8) -> Result<&mut Self, CapabilityError> {
        self.capabilities.hide(&mut self.registers, offset)?;
        Ok(self)
    }

    /// Unlinks the extended capability at `offset`.
    pub fn hide_extended_capability(&mut self, offset: u16) -> Result<&mut Self, CapabilityError> {
        self.capabilities
            .hide_extended(&mut self.registers, offset)?;
        Ok(self)
    }

    /// Declares that hardware answers `len` bytes at `offset`: the model records what is written
    /// and read there with [`ConfigSpace::mirror_write`] and [`ConfigSpace::mirror_read`], and a
    /// restore accepts any value. Registers that the model owns stay its own.
    pub fn pass_through(&mut self, offset: u16, len: u16) -> &mut Self {
        for at in offset..offset.saturating_add(len) {
            if let Some(register) = self.registers.register_mut(at) {
                register.passed_through |= 0xff << (at % 4 * 8);
            }
        }
        self
    }

    /// The function as it is after a reset.
    pub fn build(self) -> ConfigSpace {
        let Self {
            mut registers,
            bars,
            capabilities,
            msi,
            msix,
        } = self;
        let reset_bits = define_reset_bits(&mut registers, capabilities.legacy());
        registers.keep_owned_registers();
        capabilities.keep_links(&mut registers);
        registers.reset();
        ConfigSpace {
            registers,
            bars,
            msi,
            msix,
            reset_bits,
        }
    }

    /// The function as `state` has it; refused when the state is not of this function.
    pub fn restore(self, state: &ConfigSpaceState) -> Result<ConfigSpace, StateError> {
        self.build().restored(state)
    }

    fn find(&self, id: CapabilityId) -> Option<u8> {
        let cap = self.capabilities().iter().find(|cap| cap.id == id)?;
        Some(cap.offset)
    }

    fn append(
        &mut self,
        id: CapabilityId,
        len: usize,
        place: Option<u8>,
    ) -> Result<u8, CapabilityError> {
        self.capabilities
            .append(&mut self.registers, id, len, place)
    }

    fn place_capability(
        &mut self,
        capability: &Capability,
        place: Option<u8>,
    ) -> Result<u8, CapabilityError> {
        let Capability { id, body, writable } = capability;
        let offset = self.append(*id, body.len() + 2, place)?;
        let writable = writable.iter().copied().chain(std::iter::repeat(0));
        for ((at, value), mask) in (u16::from(offset) + 2..).zip(body).zip(writable) {
            if let Some(register) = self.registers.register_mut(at) {
                register.reset |= u32::from(*value) << (at % 4 * 8);
                register.writable |= u32::from(mask) << (at % 4 * 8);
            }
        }
        Ok(offset)
    }

    fn model_msi(&mut self, offset: u8, shape: MsiCapability) -> Result<(), CapabilityError> {
        if self.msi.is_some() {
            return Err(CapabilityError::Duplicate {
                id: CapabilityId::MSI.0,
            });
        }
        self.msi = Some(Msi::define(&mut self.registers, offset.into(), shape)?);
        Ok(())
    }

    fn model_msix(&mut self, offset: u8, shape: MsixCapability) -> Result<(), CapabilityError> {
        if self.msix.is_some() {
            return Err(CapabilityError::Duplicate {
                id: CapabilityId::MSIX.0,
            });
        }
        let msix = Msix::define(&mut self.registers, &self.bars, offset.into(), shape)?;
        self.msix = Some(msix);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
