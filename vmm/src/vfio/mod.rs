//! The host's side of device passthrough: VFIO descriptors of the running kernel behind the traits of `dormouse_devices::vfio::host`.
//!
//! `HostDevices` (`open`) checks what sysfs says (`sysfs`, `error`), opens devices through a group and a type1 container (`group`)
//! or through a cdev and iommufd (`cdev`), and maps guest RAM for their DMA (`dma`, `iommu`). Each becomes a `KernelFunction`
//! (`device`), whose BARs `mapping` maps into the guest and whose alarms `alarms` listens to. `inspect` is the read-only view for `dormouse doctor`.
//!
//! Release order: mapped BARs, then the device, then KVM's reference to its group, then the group's container, then the RAM
//! mappings. `unsafe` is confined to `ioctl`, `mapping` and `dma`. Of vfio-ioctls only the container and iommufd objects are
//! used: its group is private to a device type that panics when a device vanishes, hides region errors, and cannot leave
//! vectors unarmed. Reference: `include/uapi/linux/vfio.h`, `Documentation/driver-api/vfio.rst`.

mod alarms;
mod cdev;
mod device;
mod dma;
mod error;
mod group;
pub mod inspect;
mod intx_relay;
mod ioctl;
mod iommu;
mod mapping;
mod open;
mod region;
mod sysfs;

#[cfg(test)]
mod tests;

pub use device::KernelFunction;
pub use error::Error;
pub use iommu::OpenDevice;
pub use open::{HostDevices, Placement, Request, check_all};
pub use sysfs::{Bus, Group, HostDevice, Identity, Member, Roots};
