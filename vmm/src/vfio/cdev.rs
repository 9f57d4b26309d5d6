//! A device opened through its own node, `/dev/vfio/devices/vfioN`, and bound to an iommufd.
//!
//! KVM hears of the file before it is bound, because drivers take their reference to the VM when the device opens. Dropping it
//! undoes in reverse whatever was done.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use vfio_ioctls::VfioIommufd;

use super::error::{ATTACH, BIND, Error};
use super::group::open_error;
use super::ioctl;
use super::sysfs::HostDevice;
use crate::kvm::VfioKvmDevice;

/// See the module.
pub(super) struct Cdev {
    pub(super) file: File,
    kvm: Option<Arc<VfioKvmDevice>>,
    attached: bool,
    /// The iommufd outlives what is bound to it.
    _iommufd: Arc<VfioIommufd>,
}

impl Cdev {
    pub(super) fn open(
        node: &Path,
        device: &HostDevice,
        iommufd: &Arc<VfioIommufd>,
        kvm: Option<&Arc<VfioKvmDevice>>,
    ) -> Result<Self, Error> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(node)
            .map_err(open_error(device, "open", node))?;
        let mut cdev = Self {
            file,
            kvm: None,
            attached: false,
            _iommufd: Arc::clone(iommufd),
        };
        if let Some(kvm) = kvm {
            kvm.add(cdev.file.as_fd())
                .map_err(open_error(device, "tell KVM about", node))?;
            cdev.kvm = Some(Arc::clone(kvm));
        }
        ioctl::bind_iommufd(cdev.file.as_fd(), iommufd.iommufd().as_ref())
            .map_err(open_error(device, BIND, node))?;
        ioctl::attach_ioas(cdev.file.as_fd(), iommufd.ioas().id())
            .map_err(open_error(device, ATTACH, node))?;
        cdev.attached = true;
        Ok(cdev)
    }
}

impl Drop for Cdev {
    fn drop(&mut self) {
        if self.attached
            && let Err(error) = ioctl::detach_ioas(self.file.as_fd())
        {
            tracing::warn!("a removed device keeps its address space until it is closed: {error}");
        }
        if let Some(Err(error)) = self.kvm.as_ref().map(|kvm| kvm.remove(self.file.as_fd())) {
            tracing::warn!("KVM keeps a removed VFIO device: {error}");
        }
    }
}
