//! Why a device cannot be passed through, each with what to do about it. All of them come before the guest starts.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error as ThisError;

use super::sysfs::{Bus, Member};
use crate::kvm;

/// What is being done when a device's node is bound to an iommufd.
pub(super) const BIND: &str = "bind to an iommufd";
/// What is being done when the device's DMA gets an address space from an iommufd.
pub(super) const ATTACH: &str = "give guest memory to";
/// What is being done when a container gets its IOMMU.
pub(super) const SET_IOMMU: &str = "use a type1 IOMMU with";

/// A device that cannot be passed through.
#[derive(Debug, ThisError)]
pub enum Error {
    /// The path does not lead to a device.
    #[error(
        "cannot find the device {}; give its sysfs directory, for instance /sys/bus/pci/devices/0000:41:00.3 or /sys/bus/mdev/devices/UUID",
        path.display()
    )]
    NotFound {
        /// The path in the config.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The path leads to something that VFIO cannot pass through.
    #[error("{} is no PCI function and no mediated device, so it cannot be passed through", path.display())]
    NotPassable {
        /// The path in the config.
        path: PathBuf,
    },
    /// The same device twice.
    #[error("devices \"{first}\" and \"{second}\" are the same device {}; remove one of them", path.display())]
    Duplicate {
        /// Id of the one.
        first: String,
        /// Id of the other.
        second: String,
        /// The device.
        path: PathBuf,
    },
    /// Bound to no driver, or to one that is not for VFIO.
    #[error("device {name} {}; {}", bound_to(driver.as_deref()), rebind(name, *bus, driver.is_some()))]
    NotBound {
        /// Address or UUID of the device.
        name: String,
        /// Its bus.
        bus: Bus,
        /// The driver that it is bound to.
        driver: Option<String>,
    },
    /// No IOMMU stands between the device and memory.
    #[error(
        "device {name} has no IOMMU group, so its DMA cannot be confined; switch the IOMMU on in the firmware (VT-d, AMD-Vi) and on the kernel's command line (intel_iommu=on)"
    )]
    NoIommu {
        /// Address of the device.
        name: String,
    },
    /// Other members of the group are in the host's hands.
    #[error(
        "device {name} shares IOMMU group {group} with devices that the host uses: {}; bind them to vfio-pci too, or unbind them from their drivers",
        Member::list(blockers)
    )]
    GroupNotViable {
        /// Address of the device.
        name: String,
        /// Number of the group.
        group: u32,
        /// The members that keep it from being used.
        blockers: Vec<Member>,
    },
    /// iommufd was asked for and cannot serve the device.
    #[error(
        "device {name} cannot be opened through iommufd: {} does not exist; use a kernel with CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV, or remove platform.iommufd from the config",
        node.display()
    )]
    NoIommufd {
        /// Address or UUID of the device.
        name: String,
        /// The device node that is missing.
        node: PathBuf,
    },
    /// A device node cannot be opened, or the device behind it not be taken.
    #[error("cannot {what} {} for device {name}{}", node.display(), hint(what, source, node))]
    Open {
        /// Address or UUID of the device.
        name: String,
        /// What was being done.
        what: &'static str,
        /// The device node.
        node: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// An opened device does not say what it is, or is of another kind.
    #[error("cannot {what} of device {name}")]
    Describe {
        /// Address or UUID of the device.
        name: String,
        /// What was being asked.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// KVM does not take the device.
    #[error("cannot tell KVM about passed-through devices")]
    Kvm(#[source] kvm::Error),
    /// Guest RAM cannot be mapped for DMA.
    #[error("cannot map guest RAM at {guest:#x} ({len} bytes) for the devices' DMA{}", memlock_hint(source, *ram, *limit))]
    MapRam {
        /// Guest-physical address of the region.
        guest: u64,
        /// Bytes of the region.
        len: u64,
        /// Bytes of all RAM, which is locked while devices can reach it.
        ram: u64,
        /// How much this process may lock (`RLIMIT_MEMLOCK`), where that is limited.
        limit: Option<u64>,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The thread that listens to the devices could not be started.
    #[error("cannot listen to errors of the devices")]
    Alarms {
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The thread that unmasks the legacy interrupt could not be started.
    #[error("cannot serve the legacy interrupt of device {name}")]
    IntxRelay {
        /// Address or UUID of the device.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

fn bound_to(driver: Option<&str>) -> String {
    match driver {
        Some(driver) => format!("is bound to the host's driver {driver}, not to a VFIO driver"),
        None => "is bound to no driver".to_owned(),
    }
}

fn rebind(name: &str, bus: Bus, bound: bool) -> String {
    match bus {
        Bus::Mdev => "load the driver of its parent device".to_owned(),
        Bus::Pci => {
            let device = format!("/sys/bus/pci/devices/{name}");
            let unbind = if bound {
                format!("echo {name} > {device}/driver/unbind; ")
            } else {
                String::new()
            };
            format!(
                "bind it: modprobe vfio-pci; echo vfio-pci > {device}/driver_override; {unbind}echo {name} > /sys/bus/pci/drivers_probe"
            )
        }
    }
}

fn hint(what: &str, source: &io::Error, node: &Path) -> String {
    match source.raw_os_error() {
        // The kernel's answer for a device that is open already (`vfio_df_open`).
        Some(libc::EINVAL) if what == BIND => "; does another process use the device?".to_owned(),
        Some(libc::ENOENT) => "; load the VFIO modules (modprobe vfio-pci)".to_owned(),
        // Not a matter of who asks: the kernel does so for a device that could harm the host (`iommufd_device_bind`,
        // `vfio_iommu_type1_attach_group`, `intel_iommu_attach_device`).
        Some(libc::EPERM) if matches!(what, BIND | ATTACH | SET_IOMMU) => {
            let module = if what == SET_IOMMU {
                "vfio_iommu_type1"
            } else {
                "iommufd"
            };
            format!(
                "; either the host has no interrupt remapping (switch it on in the firmware, or trust the guest with {module}.allow_unsafe_interrupts=1), or the firmware reserves memory for the device (RMRR), and it cannot be passed through: dmesg says which"
            )
        }
        Some(libc::EACCES | libc::EPERM) => {
            format!(
                "; run as root, or give this user read and write access to {}",
                node.display()
            )
        }
        Some(libc::EBUSY) => {
            "; another process uses the device or another device of its group".to_owned()
        }
        _ => String::new(),
    }
}

fn memlock_hint(source: &io::Error, ram: u64, limit: Option<u64>) -> String {
    match (source.raw_os_error(), limit) {
        (Some(libc::ENOMEM), Some(limit)) if limit < ram => format!(
            "; this process may lock {limit} bytes of memory, but all {ram} bytes of RAM must be locked: raise the limit (ulimit -l, or LimitMEMLOCK= of the service)"
        ),
        _ => String::new(),
    }
}
