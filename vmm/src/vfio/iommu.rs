//! The IOMMU of a VM: its container or iommufd, guest RAM mapped in it, and the devices opened through it.
//!
//! Every device holds it, so it goes with the last one; the next device then gets a new one with RAM mapped again.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use iommufd_ioctls::IommuFd;
use vfio_bindings::bindings::vfio::{VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET};
use vfio_ioctls::VfioIommufd;

use super::cdev::Cdev;
use super::dma::{DmaDomain, DmaMapping, io_error};
use super::error::Error;
use super::group::{Container, GroupDevice};
use super::ioctl;
use super::sysfs::{HostDevice, Roots};
use crate::kvm::VfioKvmDevice;
use crate::memory::Ram;

/// How the devices of a VM are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Groups and a type1 container.
    Groups,
    /// Nodes of the devices and an iommufd.
    Iommufd,
}

impl Way {
    /// The way for these devices: `wanted` says whether iommufd must be used, must not, or is used where all devices can.
    pub(super) fn choose(
        roots: &Roots,
        devices: &[HostDevice],
        wanted: Option<bool>,
    ) -> Result<Self, Error> {
        if wanted == Some(false) {
            return Ok(Self::Groups);
        }
        let missing = devices
            .iter()
            .find_map(|device| Some((device, missing_node(roots, device)?)));
        match missing {
            None => Ok(Self::Iommufd),
            Some((device, node)) if wanted == Some(true) => Err(Error::NoIommufd {
                name: device.name.clone(),
                node,
            }),
            Some(_) => Ok(Self::Groups),
        }
    }
}

/// The node that is missing to open a device through iommufd.
fn missing_node(roots: &Roots, device: &HostDevice) -> Option<PathBuf> {
    if !roots.iommufd().exists() {
        return Some(roots.iommufd());
    }
    match device.cdev(roots) {
        Some(_) => None,
        None => Some(roots.cdev(device.vfio_name.as_deref().unwrap_or("vfioN"))),
    }
}

enum Backend {
    Container(Container),
    Iommufd(Arc<VfioIommufd>),
}

/// See the module.
pub(super) struct Iommu {
    ram: OnceLock<Vec<DmaMapping>>,
    domain: Arc<DmaDomain>,
    backend: Backend,
    kvm: Option<Arc<VfioKvmDevice>>,
}

impl Iommu {
    /// An IOMMU without devices; `first` is the device that it is wanted for.
    pub(super) fn new(
        roots: &Roots,
        way: Way,
        first: &HostDevice,
        kvm: Option<Arc<VfioKvmDevice>>,
    ) -> Result<Arc<Self>, Error> {
        let (backend, domain) = match way {
            Way::Groups => {
                let container = Container::new(roots, &first.name, kvm.clone())?;
                let domain = DmaDomain::new(Arc::clone(container.vfio()) as _);
                (Backend::Container(container), domain)
            }
            Way::Iommufd => {
                let iommufd = open_iommufd(roots).map_err(|source| Error::Open {
                    name: first.name.clone(),
                    what: "use iommufd",
                    node: roots.iommufd(),
                    source,
                })?;
                (
                    Backend::Iommufd(Arc::clone(&iommufd)),
                    DmaDomain::new(iommufd as _),
                )
            }
        };
        Ok(Arc::new(Self {
            ram: OnceLock::new(),
            domain,
            backend,
            kvm,
        }))
    }

    /// Opens a device.
    pub(super) fn open(
        self: &Arc<Self>,
        roots: &Roots,
        device: &HostDevice,
    ) -> Result<OpenDevice, Error> {
        let access = match &self.backend {
            Backend::Container(container) => Access::Group(container.open(roots, device)?),
            Backend::Iommufd(iommufd) => {
                let node = device.cdev(roots).ok_or_else(|| Error::NoIommufd {
                    name: device.name.clone(),
                    node: roots.cdev(device.vfio_name.as_deref().unwrap_or("vfioN")),
                })?;
                Access::Cdev(Cdev::open(&node, device, iommufd, self.kvm.as_ref())?)
            }
        };
        OpenDevice::new(access, Arc::clone(self)).map_err(|source| Error::Describe {
            name: device.name.clone(),
            what: "read the description",
            source,
        })
    }

    /// Maps guest RAM, once. A container needs a device in it first.
    pub(super) fn map_ram(&self, ram: &Ram) -> Result<(), Error> {
        if self.ram.get().is_none() {
            // Only `HostDevices` calls this, with its lock held, so nobody else has set it meanwhile.
            let _ = self.ram.set(self.domain.map_ram(ram)?);
        }
        Ok(())
    }

    /// The address space of the devices.
    pub(super) fn domain(&self) -> &Arc<DmaDomain> {
        &self.domain
    }
}

impl Drop for Iommu {
    fn drop(&mut self) {
        // The last device is gone. A container drops all mappings when its last group leaves and refuses to unmap them after.
        if let (Backend::Container(_), Some(mappings)) = (&self.backend, self.ram.take()) {
            mappings.into_iter().for_each(DmaMapping::forget_mapping);
        }
    }
}

fn open_iommufd(roots: &Roots) -> io::Result<Arc<VfioIommufd>> {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(roots.iommufd())?;
    let iommufd = Arc::new(IommuFd::new_from_fd(file));
    VfioIommufd::new(iommufd, None, None)
        .map(Arc::new)
        .map_err(io_error)
}

enum Access {
    Group(GroupDevice),
    Cdev(Cdev),
}

/// An opened device, whichever way. Closes when dropped; its descriptor is good for the migration protocol too.
pub struct OpenDevice {
    access: Access,
    flags: u32,
    regions: u32,
    irqs: u32,
    /// Dropped after the device is closed.
    iommu: Arc<Iommu>,
}

impl OpenDevice {
    fn new(access: Access, iommu: Arc<Iommu>) -> io::Result<Self> {
        let mut device = Self {
            access,
            flags: 0,
            regions: 0,
            irqs: 0,
            iommu,
        };
        let info = ioctl::device_info(device.as_fd())?;
        if info.flags & VFIO_DEVICE_FLAGS_PCI == 0 {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "it is not a PCI function",
            ));
        }
        device.flags = info.flags;
        device.regions = info.num_regions;
        device.irqs = info.num_irqs;
        Ok(device)
    }

    /// The kernel says that the device can be reset. Some that can do not say so.
    #[must_use]
    pub fn advertises_reset(&self) -> bool {
        self.flags & VFIO_DEVICE_FLAGS_RESET != 0
    }

    /// Regions of the device.
    pub(super) fn region_count(&self) -> u32 {
        self.regions
    }

    /// Interrupt indices of the device.
    pub(super) fn irq_index_count(&self) -> u32 {
        self.irqs
    }

    /// The address space that the device's DMA uses.
    pub(super) fn domain(&self) -> &Arc<DmaDomain> {
        self.iommu.domain()
    }
}

impl AsFd for OpenDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.access {
            Access::Group(device) => device.fd.as_fd(),
            Access::Cdev(device) => device.file.as_fd(),
        }
    }
}

impl AsRawFd for OpenDevice {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
