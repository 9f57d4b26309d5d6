//! The host bridge at 00:00.0: the function that tells a guest where the PCI hierarchy begins.
//!
//! It has no BARs and no capabilities. Guests find devices through ACPI and ECAM; they only expect
//! that function 0 of device 0 exists and is of class "host bridge".

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::address::BarIndex;
use crate::bar::BarPlacement;
use crate::builder::ConfigSpaceBuilder;
use crate::config_space::{ConfigSpace, ConfigSpaceState};
use crate::effect::ConfigEffect;
use crate::function::PciFunction;
use crate::header::Identity;
use crate::register_file::StateError;

/// Intel's "virtual" host bridge: no guest has a driver or a quirk for it.
const IDENTITY: Identity = Identity {
    vendor_id: 0x8086,
    device_id: 0x0d57,
    subsystem_vendor_id: 0,
    subsystem_id: 0,
    class: 0x06_00_00,
    revision: 0,
    interrupt_pin: None,
};

/// A host bridge without registers of its own.
#[derive(Debug)]
pub struct HostBridge {
    config: Mutex<ConfigSpace>,
}

impl HostBridge {
    /// The bridge as it is after a reset.
    pub fn new() -> Self {
        Self {
            config: Mutex::new(ConfigSpaceBuilder::new(&IDENTITY).build()),
        }
    }

    /// The bridge as `state` has it.
    pub fn restore(state: &ConfigSpaceState) -> Result<Self, StateError> {
        Ok(Self {
            config: Mutex::new(ConfigSpaceBuilder::new(&IDENTITY).restore(state)?),
        })
    }

    /// The state to put into a snapshot.
    pub fn save(&self) -> ConfigSpaceState {
        self.config().save()
    }

    /// Puts the bridge back to its state after a reset. Nothing depends on its command register,
    /// so no effects leave it.
    pub fn reset(&self) {
        let _ = self.config().reset();
    }

    fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        // Register values are complete after every single store: a panic elsewhere cannot leave
        // them half written.
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl PciFunction for HostBridge {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Vec<ConfigEffect> {
        self.config().write(offset, data)
    }

    fn desired_bars(&self) -> Vec<BarPlacement> {
        Vec::new()
    }

    fn refuse_bar(&self, _index: BarIndex, _refused: u64, _previous: u64) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_finds_a_host_bridge_and_its_notes_survive_a_restore() {
        let bridge = HostBridge::new();
        let mut class = [0; 3];
        for (lane, byte) in (0x09..).zip(&mut class) {
            bridge.config_read(lane, std::slice::from_mut(byte));
        }
        assert_eq!(class, [0x00, 0x00, 0x06]);
        let _ = bridge.config_write(0x3c, &[0x0b]);
        let restored = HostBridge::restore(&bridge.save()).unwrap();
        let mut line = [0];
        restored.config_read(0x3c, &mut line);
        assert_eq!(line, [0x0b]);
        restored.reset();
        assert_eq!(restored.save(), HostBridge::new().save());
    }
}
