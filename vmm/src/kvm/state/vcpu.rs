//! The state of one vCPU.
//!
//! Order matters in both directions; every line that depends on another says so. What this host's KVM does not have is not
//! asked for and is absent in the saved state (`Documentation/virt/kvm/api.rst`).

use dormouse_arch::x86_64::msr;
use kvm_bindings::nested::KvmNestedStateBuffer;
use kvm_bindings::{
    Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use serde::{Deserialize, Serialize};

use super::super::{Error, Vcpu};

/// As much as a guest's clock may run too fast or too slow; KVM's own default (`tsc_tolerance_ppm`).
const TSC_TOLERANCE_PPM: u64 = 250;

/// Everything that a vCPU remembers.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    /// CPUID leaves that the guest sees.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// Running, halted, or waiting for a start-up interrupt.
    pub mp_state: kvm_mp_state,
    /// General registers.
    pub regs: kvm_regs,
    /// Segment, control and descriptor table registers, and the APIC base.
    pub sregs: kvm_sregs,
    /// Floating point, vector and other extended state.
    pub xsave: kvm_xsave,
    /// Extended control registers.
    pub xcrs: Option<kvm_xcrs>,
    /// Debug registers.
    pub debug_regs: Option<kvm_debugregs>,
    /// The local APIC's registers.
    pub lapic: kvm_lapic_state,
    /// Model specific registers in the order in which they are set again.
    pub msrs: Vec<kvm_msr_entry>,
    /// Pending exceptions, interrupts, NMIs.
    pub events: Option<kvm_vcpu_events>,
    /// TSC frequency in kHz.
    pub tsc_khz: Option<u32>,
    /// State of a guest that is itself a hypervisor.
    pub nested: Option<KvmNestedStateBuffer>,
}

impl VcpuState {
    /// The time stamp counter.
    #[must_use]
    pub fn tsc(&self) -> Option<u64> {
        let counter = self.msrs.iter().find(|entry| entry.index == msr::IA32_TSC);
        counter.map(|entry| entry.data)
    }

    /// Sets the time stamp counter, which runs on while a state is read, to what it was at the pause.
    pub fn set_tsc(&mut self, tsc: u64) {
        let counter = self.msrs.iter_mut();
        for entry in counter.filter(|entry| entry.index == msr::IA32_TSC) {
            entry.data = tsc;
        }
    }
}

impl Vcpu {
    /// Reads the whole state. The vCPU is parked; so are all others, because pending events of one are changed by another.
    ///
    /// # Errors
    /// When the kernel refuses a part; the message names it.
    pub fn save(&self, msr_indices: &[u32]) -> Result<VcpuState, Error> {
        tracing::trace!("the state of vCPU {} is read", self.index());
        let fd = self.fd();
        let cannot = |what| Error::vcpu_ioctl(self.index(), what);
        // First: reading it makes KVM act on pending INIT and start-up interrupts, which changes everything below.
        let mp_state = fd.get_mp_state().map_err(cannot("read the run state"))?;
        let regs = fd
            .get_regs()
            .map_err(cannot("read the general registers"))?;
        let sregs = fd
            .get_sregs()
            .map_err(cannot("read the system registers"))?;
        let xsave = fd.get_xsave().map_err(cannot("read the extended state"))?;
        let xcrs = self
            .capabilities()
            .xcrs
            .then(|| {
                fd.get_xcrs()
                    .map_err(cannot("read the extended control registers"))
            })
            .transpose()?;
        let debug_regs = self
            .capabilities()
            .debug_regs
            .then(|| {
                fd.get_debug_regs()
                    .map_err(cannot("read the debug registers"))
            })
            .transpose()?;
        let lapic = fd.get_lapic().map_err(cannot("read the local APIC"))?;
        let msrs = self.read_msrs(msr_indices)?;
        let nested = self.read_nested_state()?;
        // Last: the calls above may turn a pending event into an injected one.
        let events = self
            .capabilities()
            .vcpu_events
            .then(|| {
                fd.get_vcpu_events()
                    .map_err(cannot("read the pending events"))
            })
            .transpose()?;
        Ok(VcpuState {
            // What the guest was promised: a paravirtual KVM answers KVM_GET_CPUID2 with the host's own leaves.
            cpuid: self.cpuid().to_vec(),
            mp_state,
            regs,
            sregs,
            xsave,
            xcrs,
            debug_regs,
            lapic,
            msrs,
            events,
            tsc_khz: self.tsc_khz(),
            nested,
        })
    }

    /// Makes a new vCPU the one that a state is of: what it can do, and how fast it counts.
    ///
    /// # Errors
    /// When the kernel refuses it, or the host counts at another speed.
    pub fn prepare(&mut self, state: &VcpuState) -> Result<(), Error> {
        // First: it decides which registers and MSRs exist.
        self.set_cpuid(&state.cpuid)?;
        let (Some(saved_khz), Some(host_khz)) = (state.tsc_khz, self.tsc_khz()) else {
            return Ok(());
        };
        if saved_khz == host_khz {
            return Ok(());
        }
        if self.capabilities().tsc_control {
            return self
                .fd()
                .set_tsc_khz(saved_khz)
                .map_err(Error::vcpu_ioctl(self.index(), "set the TSC frequency"));
        }
        // Hosts of one model measure their frequency anew at each boot.
        if u64::from(saved_khz.abs_diff(host_khz)) * 1_000_000
            > u64::from(host_khz) * TSC_TOLERANCE_PPM
        {
            return Err(Error::TscFrequency {
                vcpu: self.index(),
                saved_khz,
                host_khz,
            });
        }
        Ok(())
    }

    /// Writes a whole state into a vCPU that was prepared for it. `tsc_is_set` when its counter was moved already.
    ///
    /// # Errors
    /// When the kernel refuses a part; the message names it.
    pub fn restore(&mut self, state: &VcpuState, tsc_is_set: bool) -> Result<(), Error> {
        tracing::trace!("the state of vCPU {} is set", self.index());
        let fd = self.fd();
        let cannot = |what| Error::vcpu_ioctl(self.index(), what);
        fd.set_mp_state(state.mp_state)
            .map_err(cannot("set the run state"))?;
        fd.set_regs(&state.regs)
            .map_err(cannot("set the general registers"))?;
        // Before the events: it sets a pending interrupt vector, which the events refine. Before the APIC: it holds its base.
        fd.set_sregs(&state.sregs)
            .map_err(cannot("set the system registers"))?;
        if let Some(xcrs) = &state.xcrs {
            // Before the extended state: XCR0 decides which parts of it are live.
            fd.set_xcrs(xcrs)
                .map_err(cannot("set the extended control registers"))?;
        }
        self.write_xsave(&state.xsave)?;
        if let Some(debug_regs) = &state.debug_regs {
            fd.set_debug_regs(debug_regs)
                .map_err(cannot("set the debug registers"))?;
        }
        // Before the MSRs: the TSC deadline is only accepted while the APIC timer is in that mode.
        fd.set_lapic(&state.lapic)
            .map_err(cannot("set the local APIC"))?;
        let mut msrs = state.msrs.clone();
        msrs.retain(|entry| !(tsc_is_set && entry.index == msr::IA32_TSC));
        msr::restore_order(&mut msrs);
        for refused in self.set_msrs(&msrs)? {
            self.tolerate(refused)?;
        }
        if let Some(nested) = &state.nested {
            // After the MSRs: EFER and the VMX capability MSRs must allow nested virtualization already.
            fd.set_nested_state(nested)
                .map_err(cannot("set the nested virtualization state"))?;
        }
        if let Some(events) = &state.events {
            fd.set_vcpu_events(events)
                .map_err(cannot("set the pending events"))?;
        }
        Ok(())
    }

    /// Tells the guest's kvm-clock that it was stopped, so that its watchdogs do not bark. A guest without one refuses; fine.
    pub fn announce_pause(&self) {
        if self.capabilities().kvmclock_ctrl {
            let _ = self.fd().kvmclock_ctrl();
        }
    }

    /// A register that cannot be written is fine as long as it holds the saved value.
    fn tolerate(&self, refused: kvm_msr_entry) -> Result<(), Error> {
        let held = self.read_msrs(&[refused.index])?;
        if held.first().is_some_and(|held| held.data == refused.data) {
            return Ok(());
        }
        Err(Error::RefusedMsr {
            vcpu: self.index(),
            msr: refused.index,
            value: refused.data,
        })
    }

    fn read_msrs(&self, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, Error> {
        let mut entries: Vec<kvm_msr_entry> = indices
            .iter()
            .map(|&index| kvm_msr_entry {
                index,
                ..Default::default()
            })
            .collect();
        let mut read = Vec::with_capacity(entries.len());
        while !entries.is_empty() {
            let part = entries.len().min(msr::MAX_PER_CALL);
            let mut msrs = Msrs::from_entries(&entries[..part]).map_err(|_| Error::VcpuIoctl {
                what: "build the MSR list: too many entries",
                vcpu: self.index(),
                source: std::io::Error::from_raw_os_error(libc::E2BIG),
            })?;
            let done = self
                .fd()
                .get_msrs(&mut msrs)
                .map_err(Error::vcpu_ioctl(self.index(), "read the MSRs"))?
                .min(part);
            read.extend_from_slice(&msrs.as_slice()[..done]);
            // KVM stops at the first MSR that this vCPU does not have: its feature is off. The rest is still wanted.
            let skip = usize::from(done < part);
            entries.drain(..done + skip);
        }
        Ok(read)
    }

    fn read_nested_state(&self) -> Result<Option<KvmNestedStateBuffer>, Error> {
        if self.capabilities().nested_state_bytes == 0 {
            return Ok(None);
        }
        let mut buffer = KvmNestedStateBuffer::empty();
        self.fd()
            .nested_state(&mut buffer)
            .map_err(Error::vcpu_ioctl(
                self.index(),
                "read the nested virtualization state",
            ))?;
        // Even when the guest runs no guest of its own: the header then says so, and on AMD holds the global interrupt flag.
        Ok(Some(buffer))
    }

    fn write_xsave(&self, xsave: &kvm_xsave) -> Result<(), Error> {
        // SAFETY: the structure is as long as KVM reads while no feature with dynamic state is enabled, and Dormouse enables none.
        unsafe { self.fd().set_xsave(xsave) }
            .map_err(Error::vcpu_ioctl(self.index(), "set the extended state"))
    }
}
