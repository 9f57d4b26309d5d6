//! KVM's VFIO pseudo device (`Documentation/virt/kvm/devices/vfio.rst`): tells KVM which VFIO groups and devices a VM owns, so that
//! KVM knows about DMA that bypasses caches and gives drivers a reference to the VM.
//!
//! A VM has at most one, and older kernels keep it until the VM ends, so the machine makes it once and shares it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use kvm_bindings::{
    KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL, KVM_MEM_READONLY,
    kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_VFIO,
};
use kvm_ioctls::DeviceFd;

use super::{Error, Vm};

/// Flag of a memory slot that the guest can only read; a write exits as MMIO.
pub const READ_ONLY_SLOT: u32 = KVM_MEM_READONLY;

/// The VFIO pseudo device of one VM.
#[derive(Debug)]
pub struct VfioKvmDevice {
    fd: DeviceFd,
}

impl VfioKvmDevice {
    /// Creates the device.
    ///
    /// # Errors
    /// When the kernel refuses it, for instance because the VM has one already.
    pub fn create(vm: &Vm) -> Result<Self, Error> {
        let mut request = kvm_create_device {
            type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
            fd: 0,
            flags: 0,
        };
        let fd = vm
            .fd()
            .create_device(&mut request)
            .map_err(Error::ioctl("create KVM's VFIO device"))?;
        Ok(Self { fd })
    }

    /// Tells KVM that the VM owns a VFIO group or an opened VFIO device. KVM keeps a reference to the file until it is removed.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn add(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.set(KVM_DEV_VFIO_FILE_ADD, file)
    }

    /// Takes back [`Self::add`].
    ///
    /// # Errors
    /// When the kernel does not know the file.
    pub fn remove(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.set(KVM_DEV_VFIO_FILE_DEL, file)
    }

    fn set(&self, attribute: u32, file: BorrowedFd<'_>) -> io::Result<()> {
        // The kernel reads the number through this address during the call.
        let number: RawFd = file.as_raw_fd();
        let attribute = kvm_device_attr {
            flags: 0,
            group: KVM_DEV_VFIO_FILE,
            attr: u64::from(attribute),
            addr: std::ptr::from_ref(&number).expose_provenance() as u64,
        };
        self.fd
            .set_device_attr(&attribute)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }
}
