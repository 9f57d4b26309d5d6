//! From a device's configuration space to what the guest gets of it: which registers the model answers, which the device, and
//! which nobody.
//!
//! Pure: bytes and sizes in, a [`Plan`] out. Capability lists are walked once, bounded, by the `pci` crate; a malformed one
//! refuses the device. The plan knows for every dword who is read and who is written, so that an access later is a look-up and
//! never a decision; `config` executes it.

use dormouse_pci::regs::{self, CapabilityId};
use dormouse_pci::{
    BarIndex, BarKind, BuildError, CapabilityError, ConfigSpaceBuilder, InterruptPin, MsiCapability,
};

use super::capabilities::{self, Treatment};
use super::write_back::{self, WriteBack};

/// Bytes of an MSI-X capability (PCI Local Bus Specification 3.0, section 6.8.2).
const MSIX_CAPABILITY_LEN: u16 = 12;
/// Offset of the control and status register in a power management capability.
const POWER_CONTROL: u16 = 4;
/// "The function has a capability list", in the dword of command and status.
const CAPABILITY_LIST_BIT: u32 = (regs::Status::CAPABILITY_LIST.bits() as u32) << 16;
const COMMAND_BITS: u32 = 0x0000_ffff;
/// Smallest sizes that registers can express (PCI Local Bus Specification 3.0, section 6.2.5).
const MIN_IO_LEN: u64 = 4;
const MIN_MEMORY_LEN: u64 = 16;
const MIN_ROM_LEN: u64 = 2048;

/// What the host says of a device beside its configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct DeviceShape {
    /// Bytes of BAR 0 to 5 and of the ROM, 0 where there is none.
    pub region_len: [u64; BarIndex::COUNT],
    /// The host can deliver INTx.
    pub has_intx: bool,
    /// The host can deliver MSI.
    pub has_msi: bool,
    /// The host can deliver MSI-X.
    pub has_msix: bool,
}

/// Who takes a guest's write to a dword.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteTarget {
    /// The device, and the model records it.
    Device,
    /// The model alone.
    Model,
    /// Nobody.
    Nobody,
}

/// Who answers for a dword. Bits in neither mask read as zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RegisterPlan {
    /// Bits that the device answers.
    pub from_device: u32,
    /// Bits that the model answers.
    pub from_model: u32,
    pub write: WriteTarget,
}

impl RegisterPlan {
    const DEVICE: Self = Self {
        from_device: u32::MAX,
        from_model: 0,
        write: WriteTarget::Device,
    };
    const MODEL: Self = Self {
        from_device: 0,
        from_model: u32::MAX,
        write: WriteTarget::Model,
    };
    const HIDDEN: Self = Self {
        from_device: 0,
        from_model: 0,
        write: WriteTarget::Nobody,
    };

    /// As before, but the model answers for `bits`.
    const fn modelling(self, bits: u32) -> Self {
        Self {
            from_device: self.from_device & !bits,
            from_model: self.from_model | bits,
            write: self.write,
        }
    }
}

/// Where the MSI capability is and what of it the model has to keep up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MsiPlan {
    /// Offset of the capability.
    pub offset: u16,
    /// Vectors of the device.
    pub vectors: u8,
    /// Offset of its pending bits, if it has them.
    pub pending: Option<u16>,
}

/// What the guest gets of a device.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    registers: Box<[RegisterPlan]>,
    /// The device's model, ready to be built fresh or restored.
    pub builder: ConfigSpaceBuilder,
    pub msi: Option<MsiPlan>,
    /// Vectors of its MSI-X table.
    pub msix_vectors: Option<u16>,
    /// Offset of the power management control register.
    pub power_control: Option<u16>,
    /// The pin of INTx mode.
    pub pin: Option<InterruptPin>,
    /// What is written from the shadow when the device is set up.
    pub write_back: Vec<WriteBack>,
}

impl Plan {
    /// Plans for a device with these bytes of configuration space, 256 or 4096.
    ///
    /// # Errors
    /// When it is no endpoint or its capability lists, BARs or MSI structures make no sense.
    pub fn new(config: &[u8], shape: &DeviceShape) -> Result<Self, BuildError> {
        let mut builder = ConfigSpaceBuilder::from_device(config)?;
        let length =
            u16::try_from(config.len()).map_err(|_| BuildError::DeviceLen { len: config.len() })?;
        builder.pass_through(regs::FIRST_CAPABILITY, length - regs::FIRST_CAPABILITY);
        for index in BarIndex::all() {
            if let Some(kind) = bar_kind(config, index, shape.region_len[index.position()]) {
                builder.bar(index, kind)?;
            }
        }
        let pin = InterruptPin::from_register(config[usize::from(regs::INTERRUPT_LINE) + 1])
            .filter(|_| shape.has_intx);
        builder.interrupt_pin(pin);

        let mut plan = Self {
            registers: vec![RegisterPlan::DEVICE; config.len() / 4].into_boxed_slice(),
            builder,
            msi: None,
            msix_vectors: None,
            power_control: None,
            pin,
            write_back: Vec::new(),
        };
        plan.header();
        plan.conventional_capabilities(config, shape)?;
        plan.extended_capabilities()?;
        let (caps, extended) = (
            plan.builder.capabilities(),
            plan.builder.extended_capabilities(),
        );
        let mut write_back = write_back::registers(config, caps, extended);
        write_back.retain(|register| plan.register(register.offset).write == WriteTarget::Device);
        plan.write_back = write_back;
        Ok(plan)
    }

    /// Who answers at `offset`; beyond the device's space the model, with all-ones.
    pub fn register(&self, offset: u16) -> RegisterPlan {
        let register = self.registers.get(usize::from(offset / 4));
        register.copied().unwrap_or(RegisterPlan::MODEL)
    }

    /// The header's identity is the device's own; what the host programmed into it is not shown.
    fn header(&mut self) {
        let command = RegisterPlan::DEVICE.modelling(COMMAND_BITS | CAPABILITY_LIST_BIT);
        self.set(regs::COMMAND, 4, command);
        self.set(
            regs::CACHE_LINE_SIZE,
            4,
            RegisterPlan::DEVICE.modelling(u32::MAX),
        );
        self.set(regs::BAR0, regs::BAR5 + 4 - regs::BAR0, RegisterPlan::MODEL);
        self.set(regs::ROM_ADDRESS, 4, RegisterPlan::MODEL);
        self.set(regs::CAPABILITIES_POINTER, 4, RegisterPlan::MODEL);
        self.set(regs::INTERRUPT_LINE, 4, RegisterPlan::MODEL);
    }

    fn conventional_capabilities(
        &mut self,
        config: &[u8],
        shape: &DeviceShape,
    ) -> Result<(), CapabilityError> {
        const LINKS: u32 = 0x0000_ffff;
        let found = self.builder.capabilities().to_vec();
        let ends: Vec<u16> = found.iter().map(|cap| cap.offset.into()).collect();
        for cap in found {
            let offset = u16::from(cap.offset);
            match (capabilities::conventional(cap.id), cap.id) {
                (Treatment::Emulate, CapabilityId::MSI) if shape.has_msi && self.msi.is_none() => {
                    self.msi(config, offset)?;
                }
                (Treatment::Emulate, CapabilityId::MSIX)
                    if shape.has_msix && self.msix_vectors.is_none() =>
                {
                    let adopted = self.builder.adopt_msix()?;
                    self.msix_vectors = adopted.map(|msix| msix.vectors);
                    self.set(offset, MSIX_CAPABILITY_LEN, RegisterPlan::MODEL);
                }
                (Treatment::PassThrough, id) => {
                    self.set(offset, 4, RegisterPlan::DEVICE.modelling(LINKS));
                    if id == CapabilityId::POWER_MANAGEMENT {
                        self.power_control = Some(offset + POWER_CONTROL);
                    }
                }
                // An interrupt capability that the host cannot serve, or a second one.
                (Treatment::Emulate, CapabilityId::MSI) => {
                    let shape = MsiCapability::from_control(offset, halfword(config, offset + 2))?;
                    self.hide(cap.offset, shape.len_bytes(), &ends)?;
                }
                (Treatment::Emulate, _) => self.hide(cap.offset, MSIX_CAPABILITY_LEN, &ends)?,
                (Treatment::Hide(len), _) => self.hide(cap.offset, len, &ends)?,
            }
        }
        Ok(())
    }

    fn msi(&mut self, config: &[u8], offset: u16) -> Result<(), CapabilityError> {
        let shape = MsiCapability::from_control(offset, halfword(config, offset + 2))?;
        self.builder.adopt_msi()?;
        let last = offset + shape.len_bytes() - 4;
        self.msi = Some(MsiPlan {
            offset,
            vectors: shape.vectors,
            pending: shape.per_vector_masking.then_some(last),
        });
        self.set(offset, shape.len_bytes(), RegisterPlan::MODEL);
        Ok(())
    }

    fn hide(&mut self, offset: u8, len: u16, others: &[u16]) -> Result<(), CapabilityError> {
        self.builder.hide_capability(offset)?;
        self.set_until_next(offset.into(), len, others);
        Ok(())
    }

    fn extended_capabilities(&mut self) -> Result<(), CapabilityError> {
        let found = self.builder.extended_capabilities().to_vec();
        let ends: Vec<u16> = found.iter().map(|cap| cap.offset).collect();
        for cap in found {
            match capabilities::extended(cap.id) {
                Treatment::Hide(len) => {
                    self.builder.hide_extended_capability(cap.offset)?;
                    self.set_until_next(cap.offset, len, &ends);
                }
                Treatment::PassThrough | Treatment::Emulate => {
                    self.set(cap.offset, 4, RegisterPlan::DEVICE.modelling(u32::MAX));
                }
            }
        }
        if !ends.is_empty() {
            // The list's anchor keeps its link when the capability in it is hidden.
            let anchor = self
                .register(regs::FIRST_EXTENDED_CAPABILITY)
                .modelling(u32::MAX);
            self.set(regs::FIRST_EXTENDED_CAPABILITY, 4, anchor);
        }
        Ok(())
    }

    /// Hides `len` bytes, or as many as there are before the next capability.
    fn set_until_next(&mut self, offset: u16, len: u16, others: &[u16]) {
        let next = others.iter().filter(|other| **other > offset).min();
        let len = next.map_or(len, |next| len.min(next - offset));
        self.set(offset, len, RegisterPlan::HIDDEN);
    }

    fn set(&mut self, offset: u16, len: u16, plan: RegisterPlan) {
        for at in (offset..offset.saturating_add(len)).step_by(4) {
            if let Some(register) = self.registers.get_mut(usize::from(at / 4)) {
                *register = plan;
            }
        }
    }
}

/// The BAR behind a region. A region that is no power of two is the beginning of one.
fn bar_kind(config: &[u8], index: BarIndex, region_len: u64) -> Option<BarKind> {
    if region_len == 0 {
        return None;
    }
    let size = region_len.checked_next_power_of_two().unwrap_or(region_len);
    if index.is_rom() {
        let size = size.max(MIN_ROM_LEN);
        return Some(BarKind::Mem32 {
            size,
            prefetchable: false,
        });
    }
    let at = usize::from(regs::BAR0) + 4 * index.position();
    let bytes = config.get(at..at + 4)?.try_into().ok()?;
    let register = u32::from_le_bytes(bytes);
    let min = match BarKind::from_register(register, size) {
        BarKind::Io { .. } => MIN_IO_LEN,
        BarKind::Mem32 { .. } | BarKind::Mem64 { .. } => MIN_MEMORY_LEN,
    };
    Some(BarKind::from_register(register, size.max(min)))
}

fn halfword(config: &[u8], offset: u16) -> u16 {
    let byte = |at: u16| config.get(usize::from(at)).copied().unwrap_or(0);
    u16::from_le_bytes([byte(offset), byte(offset + 1)])
}

#[cfg(test)]
mod tests;
