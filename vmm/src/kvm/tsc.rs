//! The time stamp counter of a vCPU, put back by what it counted while the guest stood still.
//!
//! A guest that was promised an invariant counter takes every tick of it for time. Moving the counter of every vCPU by the same
//! amount keeps them in step, which writing the register does not: KVM guesses what such a write is meant to do, and takes a
//! value less than a second away from the one it expects for an attempt to synchronise (`Documentation/virt/kvm/devices/vcpu.rst`,
//! section 4).

use std::io;
use std::os::fd::AsRawFd;

use dormouse_arch::x86_64::msr::IA32_TSC;
use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, Msrs, kvm_device_attr, kvm_msr_entry,
};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::{Error, Vcpu};

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
ioctl_iow_nr!(KVM_HAS_DEVICE_ATTR, KVMIO, 0xe3, kvm_device_attr);

/// A counter that is this close to where it was moved to has been moved: a second or so at any frequency.
const NEAR: u64 = 1 << 33;

impl Vcpu {
    /// The guest's counter now.
    ///
    /// # Errors
    /// When the kernel refuses to read it.
    pub fn tsc(&self) -> Result<u64, Error> {
        let cannot = |source| Error::VcpuIoctl {
            what: "read the time stamp counter",
            vcpu: self.index(),
            source,
        };
        let entry = kvm_msr_entry {
            index: IA32_TSC,
            ..Default::default()
        };
        let mut msrs = Msrs::from_entries(&[entry])
            .map_err(|_| cannot(io::Error::from_raw_os_error(libc::E2BIG)))?;
        match self.fd().get_msrs(&mut msrs) {
            Ok(1) => Ok(msrs.as_slice()[0].data),
            Ok(_) => Err(cannot(io::Error::from_raw_os_error(libc::EINVAL))),
            Err(error) => Err(cannot(io::Error::from_raw_os_error(error.errno()))),
        }
    }

    /// Moves the counter back by `ticks`, or forward when they are negative as a two's complement. Says whether it moved: some
    /// KVMs know the attribute and cannot do it.
    ///
    /// # Errors
    /// When the kernel has the attribute and refuses it.
    pub fn move_tsc_back(&self, ticks: u64) -> Result<bool, Error> {
        if !self.capabilities().tsc_offset {
            return Ok(false);
        }
        let cannot = |what| {
            move |source| Error::VcpuIoctl {
                what,
                vcpu: self.index(),
                source,
            }
        };
        let mut offset = 0;
        // SAFETY: KVM_HAS_DEVICE_ATTR reads the structure and leaves the address in it alone.
        let has = unsafe { self.tsc_offset_ioctl(KVM_HAS_DEVICE_ATTR(), &mut offset) };
        if has.is_err() {
            return Ok(false);
        }
        let before = self.tsc()?;
        // SAFETY: `offset` is the u64 that this attribute writes.
        unsafe { self.tsc_offset_ioctl(KVM_GET_DEVICE_ATTR(), &mut offset) }
            .map_err(cannot("read the offset of the time stamp counter"))?;
        offset = offset.wrapping_sub(ticks);
        // SAFETY: `offset` is the u64 that this attribute reads.
        unsafe { self.tsc_offset_ioctl(KVM_SET_DEVICE_ATTR(), &mut offset) }
            .map_err(cannot("set the offset of the time stamp counter"))?;
        let passed = self.tsc()?.wrapping_sub(before.wrapping_sub(ticks));
        Ok(passed < NEAR)
    }

    /// # Safety
    /// `request` must be one of the device attribute calls: for this attribute they touch at most the u64 at `offset`.
    unsafe fn tsc_offset_ioctl(&self, request: libc::c_ulong, offset: &mut u64) -> io::Result<()> {
        let mut attribute = kvm_device_attr {
            group: KVM_VCPU_TSC_CTRL,
            attr: u64::from(KVM_VCPU_TSC_OFFSET),
            addr: std::ptr::from_mut(offset) as u64,
            flags: 0,
        };
        // SAFETY: the descriptor is a vCPU's; the structure and the u64 that it points to outlive the call.
        let answer = unsafe { ioctl_with_mut_ref(&self.fd().as_raw_fd(), request, &mut attribute) };
        if answer == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}
