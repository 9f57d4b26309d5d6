//! One KVM virtual machine: irqchip, memory slots, interrupt descriptors and routes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use dormouse_arch::x86_64::layout;
use dormouse_devices::IrqLine;
use kvm_bindings::{KvmIrqRouting, kvm_irq_routing_entry, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Capabilities, Error, Vcpu};

/// A VM. Shared by the machine, its interrupt router and its memory slots.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
    capabilities: Capabilities,
}

impl Vm {
    pub(super) fn new(fd: VmFd, capabilities: Capabilities) -> Result<Self, Error> {
        // Intel hosts without unrestricted guest mode need both, before the first vCPU; others ignore them.
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(Error::ioctl("place KVM's identity map page"))?;
        fd.set_tss_address(layout::KVM_TSS as usize)
            .map_err(Error::ioctl("place KVM's task state segment"))?;
        Ok(Self { fd, capabilities })
    }

    /// Creates the interrupt controllers, before the first vCPU.
    ///
    /// After RAM has its memory slots: newer kernels leave a grace period of the VM's SRCU under way when this returns, and a
    /// memory slot that is set then waits for its end, milliseconds on a busy machine.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn create_interrupt_controllers(&self) -> Result<(), Error> {
        // No PIT: hardware-reduced ACPI has none, and creating KVM's starts a kernel thread, which takes longer than all the rest.
        self.fd
            .create_irq_chip()
            .map_err(Error::ioctl("create the in-kernel interrupt controllers"))
    }

    /// What the host can do.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The descriptor, for the state calls of this module's children.
    pub(super) fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// The descriptor number, for the kernel's VFIO-KVM device.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        let raw: RawFd = self.fd.as_raw_fd();
        // SAFETY: the descriptor stays open as long as `self`, which the returned value borrows.
        unsafe { BorrowedFd::borrow_raw(raw) }
    }

    /// Creates vCPU `index`; its APIC id is `apic_id`.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn create_vcpu(&self, index: u32, apic_id: u32) -> Result<Vcpu, Error> {
        let fd = self
            .fd
            .create_vcpu(u64::from(apic_id))
            .map_err(Error::vcpu_ioctl(index, "create the descriptor"))?;
        Ok(Vcpu::new(fd, index, self.capabilities))
    }

    /// Adds, moves or (with `len` 0) removes memory slot `slot`.
    ///
    /// # Safety
    /// `host` must stay mapped for `len` bytes until the slot is removed or the VM is gone.
    ///
    /// # Errors
    /// When the kernel refuses it, for instance because slots overlap.
    pub unsafe fn set_memory_slot(
        &self,
        slot: u32,
        flags: u32,
        guest: u64,
        host: u64,
        len: u64,
    ) -> Result<(), Error> {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: guest,
            memory_size: len,
            userspace_addr: host,
        };
        // SAFETY: the caller keeps the host range mapped.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(Error::ioctl("change a memory slot of the VM"))
    }

    /// Replaces the whole interrupt routing table.
    ///
    /// # Errors
    /// When the kernel refuses a route or the number of routes.
    pub fn set_gsi_routing(&self, routes: &[kvm_irq_routing_entry]) -> Result<(), Error> {
        let table = KvmIrqRouting::from_entries(routes).map_err(|_| Error::Ioctl {
            what: "build the interrupt routing table: too many routes",
            source: io::Error::from_raw_os_error(libc::ENOSPC),
        })?;
        self.fd
            .set_gsi_routing(&table)
            .map_err(Error::ioctl("set the interrupt routing table"))
    }

    /// Connects an eventfd to `gsi`.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn register_irqfd(&self, fd: &EventFd, gsi: u32) -> Result<(), Error> {
        self.fd
            .register_irqfd(fd, gsi)
            .map_err(Error::ioctl("connect an interrupt eventfd"))
    }

    /// Connects an eventfd to level-triggered `gsi`; `resample` is signalled when the guest acknowledges it.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn register_resample_irqfd(
        &self,
        fd: &EventFd,
        resample: &EventFd,
        gsi: u32,
    ) -> Result<(), Error> {
        self.fd
            .register_irqfd_with_resample(fd, resample, gsi)
            .map_err(Error::ioctl("connect a level-triggered interrupt eventfd"))
    }

    /// Disconnects an eventfd from `gsi`.
    ///
    /// # Errors
    /// When it was not connected.
    pub fn unregister_irqfd(&self, fd: &EventFd, gsi: u32) -> Result<(), Error> {
        self.fd
            .unregister_irqfd(fd, gsi)
            .map_err(Error::ioctl("disconnect an interrupt eventfd"))
    }
}

/// An edge-triggered interrupt pin of the in-kernel IOAPIC, driven through an irqfd.
#[derive(Debug)]
pub struct IrqFd {
    eventfd: EventFd,
    _vm: Arc<Vm>,
}

impl IrqFd {
    /// Connects a new eventfd to `gsi`.
    ///
    /// # Errors
    /// When no eventfd can be made or the kernel refuses the connection.
    pub fn connect(vm: &Arc<Vm>, gsi: u32) -> Result<Self, Error> {
        let eventfd = EventFd::new(EFD_NONBLOCK).map_err(|source| Error::Ioctl {
            what: "create an interrupt eventfd",
            source,
        })?;
        vm.register_irqfd(&eventfd, gsi)?;
        Ok(Self {
            eventfd,
            _vm: Arc::clone(vm),
        })
    }
}

impl IrqLine for IrqFd {
    fn pulse(&self) {
        // The only failure is a counter at its maximum, and then an interrupt is pending anyway.
        let _ = self.eventfd.write(1);
    }
}
