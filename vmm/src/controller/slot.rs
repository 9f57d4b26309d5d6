//! The VM as API clients see it: a config, and a machine in one of its states.

use std::sync::Arc;

use dormouse_api::config::VmConfig;
use dormouse_api::response::{Timeline, VmInfo, VmState};

use super::devices;
use crate::machine::{Machine, PausedMachine};

/// A created VM.
pub(super) struct Vm {
    /// Kept until `vm.delete`, so that the VM can be booted again.
    pub(super) config: Arc<VmConfig>,
    pub(super) slot: Slot,
    /// Of the last snapshot or restore.
    pub(super) timeline: Option<Timeline>,
}

/// Where the machine of a VM is.
pub(super) enum Slot {
    /// Not booted.
    Down,
    /// The guest powered itself off.
    PoweredOff,
    /// The vCPUs run.
    Running(Machine),
    /// Everything stands still.
    Paused(PausedMachine),
    /// Being paused or resumed; never seen outside of these actions.
    InTransit,
}

impl Vm {
    pub(super) fn new(mut config: VmConfig) -> Self {
        // From here on every device can be named.
        config.assign_device_ids();
        Self {
            config: Arc::new(config),
            slot: Slot::Down,
            timeline: None,
        }
    }

    pub(super) fn machine(&self) -> Option<&Machine> {
        match &self.slot {
            Slot::Down | Slot::PoweredOff | Slot::InTransit => None,
            Slot::Running(machine) => Some(machine),
            Slot::Paused(paused) => Some(paused.machine()),
        }
    }

    pub(super) fn state(&self) -> VmState {
        match self.slot {
            Slot::Down => VmState::Created,
            Slot::PoweredOff => VmState::Shutdown,
            Slot::Running(_) => VmState::Running,
            Slot::Paused(_) | Slot::InTransit => VmState::Paused,
        }
    }

    pub(super) fn info(&self) -> VmInfo {
        let machine = self.machine();
        VmInfo {
            config: VmConfig::clone(&self.config),
            state: self.state(),
            memory_actual_size: self.config.memory.size,
            device_tree: machine.map(devices::tree),
            devices_state: machine.map(devices::states).unwrap_or_default(),
            timeline: self.timeline.clone(),
        }
    }
}
