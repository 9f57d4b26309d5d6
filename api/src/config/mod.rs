//! The VM config: what a user writes in a file or sends to `vm.create`.
//!
//! Names, defaults and enum texts are Cloud Hypervisor's (`openapi.json` lists them). The structs hold what was written,
//! with defaults filled in; [`VmConfig::validate`] checks whether it can boot. Settings that Cloud Hypervisor knows and
//! Dormouse does not build are accepted at their default and refused by name otherwise, when the config is read.

mod console;
mod cpus;
mod device;
mod error;
mod fields;
mod memory;
mod object;
mod parse;
mod payload;
mod platform;
mod refuse;
mod unknown;
mod validate;

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

pub use console::{
    ConsoleConfig, ConsoleMode, DEBUG_CONSOLE_PORT, DebugConsoleConfig, SerialConfig,
};
pub use cpus::{
    CoreScheduling, CpuAffinity, CpuFeatures, CpuProfile, CpuTopology, CpusConfig,
    DEFAULT_MAX_PHYS_BITS,
};
pub use device::{DeviceConfig, MAX_BAR_INDEX, MAX_DEVICES, SnapshotPolicy};
pub use error::{ConfigError, JsonFault, Violation};
pub use memory::{DEFAULT_MEMORY_SIZE_BYTES, HotplugMethod, MemoryConfig};
pub use parse::CONFIG_LIMIT_BYTES;
pub use payload::PayloadConfig;
pub use platform::{PlatformConfig, RngConfig};
pub use unknown::Warning;
pub use validate::{MAX_ID_LEN, MAX_VCPUS, is_valid_id};

use object::{bounded_objects, object_or_default, optional_object};
pub(crate) use object::{null_is_default, objects};
pub(crate) use parse::from_json;
use refuse::Unbuilt;

/// Everything that describes a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct VmConfig {
    /// vCPUs.
    #[serde(default, deserialize_with = "object_or_default")]
    pub cpus: CpusConfig,
    /// RAM.
    #[serde(default, deserialize_with = "object_or_default")]
    pub memory: MemoryConfig,
    /// What the guest boots.
    #[serde(
        default,
        deserialize_with = "optional_object",
        skip_serializing_if = "Option::is_none"
    )]
    pub payload: Option<PayloadConfig>,
    /// Rate limit groups; not implemented, must be absent or empty.
    #[serde(default, skip_serializing)]
    rate_limit_groups: Option<Vec<Unbuilt>>,
    /// virtio-blk disks; not implemented, must be absent or empty.
    #[serde(default, skip_serializing)]
    disks: Option<Vec<Unbuilt>>,
    /// virtio-net interfaces; not implemented, must be absent or empty.
    #[serde(default, skip_serializing)]
    net: Option<Vec<Unbuilt>>,
    /// virtio-rng; only the default is accepted.
    #[serde(default, deserialize_with = "object_or_default")]
    pub rng: RngConfig,
    /// virtio-balloon; not implemented, must be absent.
    #[serde(default, skip_serializing)]
    balloon: Option<Unbuilt>,
    /// virtio-fs; not implemented, must be absent or empty.
    #[serde(default, skip_serializing)]
    fs: Option<Vec<Unbuilt>>,
    /// Generic vhost-user devices; not implemented, must be absent or empty.
    #[serde(default, skip_serializing)]
    generic_vhost_user: Option<Vec<Unbuilt>>,
    /// virtio-pmem; not implemented, must be absent or empty.
    #[serde(default, skip_serializing)]
    pmem: Option<Vec<Unbuilt>>,
    /// The serial port.
    #[serde(default, deserialize_with = "object_or_default")]
    pub serial: SerialConfig,
    /// virtio-console; only `Off`, `Null` and `Tty` are accepted, and mean that there is none.
    #[serde(default, deserialize_with = "object_or_default")]
    pub console: ConsoleConfig,
    /// The debug console; only `Off` is accepted.
    #[serde(default, deserialize_with = "object_or_default")]
    pub debug_console: DebugConsoleConfig,
    /// Passed-through devices; as many as the PCI bus has slots for.
    #[serde(
        default,
        deserialize_with = "bounded_objects::<MAX_DEVICES, _, _>",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub devices: Vec<DeviceConfig>,
    /// vfio-user devices; not implemented, must be absent or empty.
    #[serde(default, skip_serializing)]
    user_devices: Option<Vec<Unbuilt>>,
    /// vDPA devices; not implemented, must be absent or empty.
    #[serde(default, skip_serializing)]
    vdpa: Option<Vec<Unbuilt>>,
    /// virtio-vsock; not implemented, must be absent.
    #[serde(default, skip_serializing)]
    vsock: Option<Unbuilt>,
    /// The pvpanic device; not implemented, must be false.
    #[serde(default, deserialize_with = "null_is_default")]
    pub pvpanic: bool,
    /// A virtual IOMMU; not implemented, must be false.
    #[serde(default, deserialize_with = "null_is_default")]
    pub iommu: bool,
    /// NUMA nodes; not implemented, must be absent or empty.
    #[serde(default, skip_serializing)]
    numa: Option<Vec<Unbuilt>>,
    /// virtio-watchdog; not implemented, must be false.
    #[serde(default, deserialize_with = "null_is_default")]
    pub watchdog: bool,
    /// Settings of the real-time clock; not implemented, must be absent.
    #[serde(default, skip_serializing)]
    rtc: Option<Unbuilt>,
    /// PCI segments; not implemented, must be absent or empty.
    #[serde(default, skip_serializing)]
    pci_segments: Option<Vec<Unbuilt>>,
    /// Properties of the machine.
    #[serde(
        default,
        deserialize_with = "optional_object",
        skip_serializing_if = "Option::is_none"
    )]
    pub platform: Option<PlatformConfig>,
    /// A TPM; not implemented, must be absent.
    #[serde(default, skip_serializing)]
    tpm: Option<Unbuilt>,
    /// Landlock for the VMM; not implemented, must be false.
    #[serde(default, deserialize_with = "null_is_default")]
    pub landlock_enable: bool,
    /// Landlock rules; not implemented, must be absent or empty.
    #[serde(default, skip_serializing)]
    landlock_rules: Option<Vec<Unbuilt>>,
}

impl VmConfig {
    /// Gives every device without an id the first free name of the form `_vfioN`, as Cloud Hypervisor does.
    pub fn assign_device_ids(&mut self) {
        let taken: HashSet<String> = self
            .devices
            .iter()
            .filter_map(|device| device.id.clone())
            .collect();
        let mut free = (0..)
            .map(|n: u64| format!("_vfio{n}"))
            .filter(|id| !taken.contains(id));
        for device in &mut self.devices {
            if device.id.is_none() {
                device.id = free.next();
            }
        }
    }

    /// The machine's properties, the defaults where the config has none.
    pub fn platform_or_default(&self) -> PlatformConfig {
        self.platform.clone().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
