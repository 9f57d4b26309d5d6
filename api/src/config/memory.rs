//! `memory`: how much RAM the guest has and how the host backs it.
//!
//! The names and defaults are Cloud Hypervisor's. `vmm` reads this when it lays out and maps guest RAM.

use serde::{Deserialize, Serialize};

use super::object::{null_is_default, null_is_true};
use super::refuse::Unbuilt;

/// RAM size when the config has no `memory` object, in bytes.
pub const DEFAULT_MEMORY_SIZE_BYTES: u64 = 512 << 20;

/// The RAM of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MemoryConfig {
    /// RAM size in bytes.
    pub size: u64,
    /// Same-page merging; not implemented (the kernel merges private memory only), must be false.
    #[serde(default, deserialize_with = "null_is_default")]
    pub mergeable: bool,
    /// How memory would be plugged in later; not implemented, must be the default.
    #[serde(default, deserialize_with = "null_is_default")]
    pub hotplug_method: HotplugMethod,
    /// Room for memory plugged in later, in bytes; not implemented, must be absent or 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hotplug_size: Option<u64>,
    /// Memory plugged in already, in bytes; not implemented, must be absent or 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hotplugged_size: Option<u64>,
    /// Maps RAM shared, so that another process can map it too.
    #[serde(default, deserialize_with = "null_is_default")]
    pub shared: bool,
    /// Backs RAM with huge pages from the host's pool.
    #[serde(default, deserialize_with = "null_is_default")]
    pub hugepages: bool,
    /// Huge page size in bytes, 2 MiB or 1 GiB; without it the host's default size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugepage_size: Option<u64>,
    /// Makes all of RAM resident before the guest starts.
    #[serde(default, deserialize_with = "null_is_default")]
    pub prefault: bool,
    /// Reserves swap space or huge pages for all of RAM at start.
    #[serde(default, deserialize_with = "null_is_default")]
    pub reserve: bool,
    /// Asks the host for transparent huge pages.
    #[serde(default = "default_thp", deserialize_with = "null_is_true")]
    pub thp: bool,
    /// Memory zones; not implemented, must be absent or empty.
    #[serde(default, skip_serializing)]
    pub(super) zones: Option<Vec<Unbuilt>>,
}

impl MemoryConfig {
    /// RAM of `size` bytes with every other setting at its default.
    pub fn of_size(size: u64) -> Self {
        Self {
            size,
            mergeable: false,
            hotplug_method: HotplugMethod::default(),
            hotplug_size: None,
            hotplugged_size: None,
            shared: false,
            hugepages: false,
            hugepage_size: None,
            prefault: false,
            reserve: false,
            thp: true,
            zones: None,
        }
    }
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self::of_size(DEFAULT_MEMORY_SIZE_BYTES)
    }
}

fn default_thp() -> bool {
    true
}

/// How memory is plugged in while the guest runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum HotplugMethod {
    /// ACPI memory devices.
    #[default]
    Acpi,
    /// A virtio-mem device.
    VirtioMem,
}
