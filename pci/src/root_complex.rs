//! The root complex: routes configuration accesses to the functions of bus 0.
//!
//! A guest reaches configuration space through the ports 0xCF8 to 0xCFF (PCI Local Bus
//! Specification 3.0, section 3.2.2.3.2) or through ECAM memory (PCI Express Base Specification,
//! section 7.2.2). The machine's buses call in here with offsets into those ranges. The lock on
//! the table of functions is released before a function is called, so functions may lock what
//! they like.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::address::{Bdf, DEVICES_PER_BUS, FUNCTIONS_PER_DEVICE};
use crate::effect::FunctionEffect;
use crate::function::PciFunction;
use crate::register_file::StateError;
use crate::regs::{self, HEADER_TYPE_MULTIFUNCTION};

/// First port of the configuration mechanism.
pub const CONFIG_PORTS: u16 = 0xcf8;
/// Number of ports of the configuration mechanism: four of address, four of data.
pub const CONFIG_PORTS_LEN: u16 = 8;
/// Length in bytes of the ECAM range of one bus.
pub const ECAM_LEN: u64 = 1 << 20;

/// Bits of the address port that can be set: enable, bus, device, function, register.
const CONFIG_ADDRESS_BITS: u32 = 0x80ff_fffc;
const CONFIG_ENABLE: u32 = 0x8000_0000;
/// Offset of the data port from the address port.
const DATA_PORT: u16 = 4;

/// Why no device number could be handed out.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SlotError {
    /// The number does not exist.
    #[error("PCI device number {device} is out of range: bus 0 has devices 0 to 31")]
    OutOfRange {
        /// The number asked for.
        device: u8,
    },
    /// The number is taken.
    #[error("PCI device number {device} is taken")]
    Taken {
        /// The number asked for.
        device: u8,
    },
    /// Every number is taken.
    #[error("bus 0 is full: all 32 PCI device numbers are taken")]
    Full,
}

/// Why a function could not be attached.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AttachError {
    /// Only bus 0 exists.
    #[error("cannot attach a function at {bdf}: the machine has only bus 0")]
    NoSuchBus {
        /// The address asked for.
        bdf: Bdf,
    },
    /// Another function is there.
    #[error("cannot attach a function at {bdf}: the address is taken")]
    Taken {
        /// The address asked for.
        bdf: Bdf,
    },
}

/// What of the root complex itself goes into a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootComplexState {
    /// The latch behind port 0xCF8.
    pub config_address: u32,
}

/// Bus 0 and the ways into its configuration space.
pub struct RootComplex {
    config_address: AtomicU32,
    slots: Mutex<Slots>,
}

impl RootComplex {
    /// A bus without functions.
    pub fn new() -> Self {
        Self {
            config_address: AtomicU32::new(0),
            slots: Mutex::new(Slots::default()),
        }
    }

    /// A bus without functions, its address port as `state` has it.
    pub fn restore(state: &RootComplexState) -> Result<Self, StateError> {
        let RootComplexState { config_address } = *state;
        if config_address & !CONFIG_ADDRESS_BITS != 0 {
            return Err(StateError::ConfigAddress {
                saved: config_address,
            });
        }
        let root = Self::new();
        root.config_address.store(config_address, Ordering::Relaxed);
        Ok(root)
    }

    /// The state to put into a snapshot; functions are saved by their owners.
    pub fn save(&self) -> RootComplexState {
        RootComplexState {
            config_address: self.config_address.load(Ordering::Relaxed),
        }
    }

    /// Clears the address port, as a machine reset does. Functions are reset by their owners.
    pub fn reset(&self) {
        self.config_address.store(0, Ordering::Relaxed);
    }

    /// Takes a device number for a new device, `requested` or the lowest free one, and returns the
    /// address of its function 0. The number is free again after [`RootComplex::detach`] of the
    /// device's last function, or [`RootComplex::release_slot`] if none was attached.
    pub fn allocate_slot(&self, requested: Option<u8>) -> Result<Bdf, SlotError> {
        let mut slots = self.slots();
        let device = match requested {
            Some(device) if device >= DEVICES_PER_BUS => {
                return Err(SlotError::OutOfRange { device });
            }
            Some(device) if slots.is_taken(device) => return Err(SlotError::Taken { device }),
            Some(device) => device,
            None => (0..DEVICES_PER_BUS)
                .find(|device| !slots.is_taken(*device))
                .ok_or(SlotError::Full)?,
        };
        slots.reserved |= 1 << device;
        Ok(Bdf::from_devfn(0, device << 3))
    }

    /// Gives back a device number that [`RootComplex::allocate_slot`] handed out. Functions that
    /// are attached there keep it until they are detached.
    pub fn release_slot(&self, bdf: Bdf) {
        self.slots().reserved &= !(1 << bdf.device());
    }

    /// Makes `function` answer at `bdf`. Functions 1 to 7 of a device are visible while the device
    /// has a function 0, which software looks for first; they may be attached in any order.
    pub fn attach(&self, bdf: Bdf, function: Arc<dyn PciFunction>) -> Result<(), AttachError> {
        if bdf.bus() != 0 {
            return Err(AttachError::NoSuchBus { bdf });
        }
        let mut slots = self.slots();
        let place = slots.place(bdf);
        if place.is_some() {
            return Err(AttachError::Taken { bdf });
        }
        *place = Some(function);
        Ok(())
    }

    /// Takes the function at `bdf` off the bus and returns it.
    pub fn detach(&self, bdf: Bdf) -> Option<Arc<dyn PciFunction>> {
        if bdf.bus() != 0 {
            return None;
        }
        let mut slots = self.slots();
        let function = slots.place(bdf).take();
        if function.is_some() && !slots.has_functions(bdf.device()) {
            slots.reserved &= !(1 << bdf.device());
        }
        function
    }

    /// The function attached at `bdf`.
    pub fn function(&self, bdf: Bdf) -> Option<Arc<dyn PciFunction>> {
        if bdf.bus() != 0 {
            return None;
        }
        self.slots().place(bdf).clone()
    }

    /// A guest read of the ports, `offset` from 0xCF8.
    pub fn port_read(&self, offset: u16, data: &mut [u8]) {
        match self.port_target(offset) {
            Some((bdf, register)) => self.config_read(bdf, register, data),
            None if offset == 0 && data.len() == 4 => {
                data.copy_from_slice(&self.config_address.load(Ordering::Relaxed).to_le_bytes());
            }
            None => data.fill(0xff),
        }
    }

    /// A guest write of the ports, `offset` from 0xCF8.
    ///
    /// Only a dword latches the address. Narrower accesses belong to other devices, such as the
    /// reset register at 0xCF9, for which the port bus has to give way.
    #[must_use = "effects that are dropped leave the machine out of step with the guest"]
    pub fn port_write(&self, offset: u16, data: &[u8]) -> Vec<FunctionEffect> {
        if let Some((bdf, register)) = self.port_target(offset) {
            return self.config_write(bdf, register, data);
        }
        if let (0, Ok(bytes)) = (offset, <[u8; 4]>::try_from(data)) {
            let address = u32::from_le_bytes(bytes) & CONFIG_ADDRESS_BITS;
            self.config_address.store(address, Ordering::Relaxed);
        }
        Vec::new()
    }

    /// A guest read of ECAM memory, `offset` bytes from its base.
    pub fn ecam_read(&self, offset: u64, data: &mut [u8]) {
        match ecam_target(offset) {
            Some((bdf, register)) => self.config_read(bdf, register, data),
            None => data.fill(0xff),
        }
    }

    /// A guest write of ECAM memory, `offset` bytes from its base.
    #[must_use = "effects that are dropped leave the machine out of step with the guest"]
    pub fn ecam_write(&self, offset: u64, data: &[u8]) -> Vec<FunctionEffect> {
        match ecam_target(offset) {
            Some((bdf, register)) => self.config_write(bdf, register, data),
            None => Vec::new(),
        }
    }

    /// Function and register that an access to the data port means, if it means one.
    fn port_target(&self, offset: u16) -> Option<(Bdf, u16)> {
        let lane = offset.checked_sub(DATA_PORT).filter(|lane| *lane < 4)?;
        let address = self.config_address.load(Ordering::Relaxed);
        if address & CONFIG_ENABLE == 0 {
            return None;
        }
        let [register, devfn, bus, _] = address.to_le_bytes();
        Some((Bdf::from_devfn(bus, devfn), u16::from(register) + lane))
    }

    fn config_read(&self, bdf: Bdf, register: u16, data: &mut [u8]) {
        let Some((function, multifunction)) = self.visible(bdf) else {
            data.fill(0xff);
            return;
        };
        function.config_read(register, data);
        if multifunction {
            show_multifunction(register, data);
        }
    }

    fn config_write(&self, bdf: Bdf, register: u16, data: &[u8]) -> Vec<FunctionEffect> {
        let Some((function, _)) = self.visible(bdf) else {
            return Vec::new();
        };
        let effects = function.config_write(register, data);
        effects
            .into_iter()
            .map(|effect| FunctionEffect { bdf, effect })
            .collect()
    }

    /// The function that answers at `bdf`, and whether its device has several.
    fn visible(&self, bdf: Bdf) -> Option<(Arc<dyn PciFunction>, bool)> {
        if bdf.bus() != 0 {
            return None;
        }
        self.slots().visible(bdf)
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        // The table is changed by single stores only, so it is whole even after a panic.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for RootComplex {
    fn default() -> Self {
        Self::new()
    }
}

/// The table of functions of bus 0.
struct Slots {
    /// Indexed by device and function.
    functions: [Option<Arc<dyn PciFunction>>; 256],
    /// Device numbers that are allocated, one bit each.
    reserved: u32,
}

impl Default for Slots {
    fn default() -> Self {
        Self {
            functions: [const { None }; 256],
            reserved: 0,
        }
    }
}

impl Slots {
    fn place(&mut self, bdf: Bdf) -> &mut Option<Arc<dyn PciFunction>> {
        &mut self.functions[usize::from(bdf.devfn())]
    }

    /// The functions of one device.
    fn device(&self, device: u8) -> &[Option<Arc<dyn PciFunction>>] {
        let first = usize::from(device) * usize::from(FUNCTIONS_PER_DEVICE);
        &self.functions[first..first + usize::from(FUNCTIONS_PER_DEVICE)]
    }

    fn has_functions(&self, device: u8) -> bool {
        self.device(device).iter().any(Option::is_some)
    }

    fn is_taken(&self, device: u8) -> bool {
        self.reserved & 1 << device != 0 || self.has_functions(device)
    }

    fn visible(&self, bdf: Bdf) -> Option<(Arc<dyn PciFunction>, bool)> {
        let (first, others) = self.device(bdf.device()).split_first()?;
        first.as_ref()?;
        let function = self.functions[usize::from(bdf.devfn())].clone()?;
        Some((function, others.iter().any(Option::is_some)))
    }
}

/// Function and register at an offset into ECAM memory.
fn ecam_target(offset: u64) -> Option<(Bdf, u16)> {
    let offset = u32::try_from(offset)
        .ok()
        .filter(|offset| u64::from(*offset) < ECAM_LEN)?;
    let devfn = u8::try_from(offset >> 12).ok()?;
    let register = u16::try_from(offset & 0xfff).ok()?;
    Some((Bdf::from_devfn(0, devfn), register))
}

/// Sets the multifunction bit in what was read at `register`. Whether a device has several
/// functions is known only here, where they are attached.
fn show_multifunction(register: u16, data: &mut [u8]) {
    let lane = regs::HEADER_TYPE.checked_sub(register).map(usize::from);
    if let Some(byte) = lane.and_then(|lane| data.get_mut(lane)) {
        *byte |= HEADER_TYPE_MULTIFUNCTION;
    }
}

#[cfg(test)]
mod tests;
