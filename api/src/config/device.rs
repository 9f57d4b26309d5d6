//! `devices`: host PCI functions and mediated devices that are passed through to the guest with VFIO.
//!
//! The names are Cloud Hypervisor's, and one is Dormouse's own: `snapshot`, what a snapshot does with a device whose
//! state the host cannot save. `vmm` reads this when it opens the devices.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::object::null_is_default;

/// Most devices of a VM: slots 1 to 31 of the PCI bus. Slot 0 holds the host bridge.
pub const MAX_DEVICES: usize = 31;

/// Highest BAR index of a PCI function.
pub const MAX_BAR_INDEX: u8 = 5;

/// One passed-through device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeviceConfig {
    /// Name of the device, unique in the VM; also names its file in a snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Placement behind a virtual IOMMU; not implemented, must be false.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub iommu: bool,
    /// PCI segment; only 0 is implemented.
    #[serde(default, deserialize_with = "null_is_default")]
    pub pci_segment: u16,
    /// Slot on the guest's PCI bus, 1 to 31; without it the first free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_device_id: Option<u8>,
    /// sysfs directory of the device, for example `/sys/bus/pci/devices/0000:41:00.3`. Required to boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Descriptor of an opened device; it cannot travel in JSON, so it must be absent or -1.
    #[serde(default, skip_serializing)]
    pub(super) fd: Option<i64>,
    /// NVIDIA GPUDirect peer-to-peer clique; not implemented, must be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_nv_gpudirect_clique: Option<u8>,
    /// BARs, 0 to 5, that are not mapped into the guest but trapped.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub x_exclude_mmap_bars: Vec<u8>,
    /// What a snapshot does with the device.
    #[serde(default, deserialize_with = "null_is_default")]
    pub snapshot: SnapshotPolicy,
}

/// What a snapshot does with a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotPolicy {
    /// Save and load its state by VFIO migration; refuse the snapshot where the device cannot.
    #[default]
    Migrate,
    /// Do not save its state; the restored guest finds the device after a reset.
    DiscardState,
}
