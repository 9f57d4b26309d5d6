//! The KVM side of the machine: the only module that names the KVM crates' file descriptors.
//!
//! `Kvm` opens `/dev/kvm` and records what this host can do; `vm` and `vcpu` wrap the VM and vCPU descriptors; `kick` gets a
//! thread out of `KVM_RUN`. Reference: `Documentation/virt/kvm/api.rst`.

mod irq_routes;
mod kick;
mod state;
mod tsc;
mod vcpu;
mod vfio_device;
mod vm;

use std::io;
use std::path::Path;

use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_VCPU_ATTRIBUTES, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::Cap;
use thiserror::Error;

pub use irq_routes::borrow_eventfd;
pub use kick::{Kicker, install_kick_handler};
pub use state::{VcpuState, VmState};
pub use vcpu::{Exit, StopReason, Vcpu};
pub use vfio_device::{READ_ONLY_SLOT, VfioKvmDevice};
pub use vm::{IrqFd, Vm};

/// The device node of KVM.
const DEV_KVM: &str = "/dev/kvm";

/// What was asked of KVM and refused.
#[derive(Debug, Error)]
pub enum Error {
    /// `/dev/kvm` could not be opened.
    #[error(
        "cannot open {DEV_KVM}: {}",
        match .0.kind() {
            io::ErrorKind::NotFound => "it does not exist; enable virtualization in the firmware and load kvm-intel or kvm-amd",
            io::ErrorKind::PermissionDenied => "permission denied; add this user to the group that owns it (usually kvm)",
            _ => "the kernel refused it",
        }
    )]
    Open(#[source] io::Error),
    /// The kernel speaks another KVM API.
    #[error("{DEV_KVM} speaks KVM API version {found}, Dormouse needs {KVM_API_VERSION}")]
    ApiVersion {
        /// What `KVM_GET_API_VERSION` answered.
        found: i32,
    },
    /// A capability that Dormouse cannot do without is missing.
    #[error("this host's KVM lacks {0}, which Dormouse needs")]
    MissingCapability(&'static str),
    /// An ioctl failed.
    #[error("cannot {what}")]
    Ioctl {
        /// What was being done, as the end of a sentence that starts with "cannot".
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The guest's counter would run at another speed.
    #[error(
        "vCPU {vcpu} counted time at {saved_khz} kHz and would count at {host_khz} kHz here, and this host's KVM cannot scale a counter; restore on a host with the same TSC frequency, or one that has TSC scaling"
    )]
    TscFrequency {
        /// Index of the vCPU.
        vcpu: u32,
        /// Frequency of the TSC where the snapshot was taken.
        saved_khz: u32,
        /// And on this host.
        host_khz: u32,
    },
    /// KVM does not take back a register's value.
    #[error(
        "this host's KVM refuses to set MSR {msr:#x} of vCPU {vcpu} to its saved value {value:#x}; restore on a host with a CPU and a kernel like those that the snapshot was taken on"
    )]
    RefusedMsr {
        /// Index of the vCPU.
        vcpu: u32,
        /// The register.
        msr: u32,
        /// Its saved value.
        value: u64,
    },
    /// An ioctl on one vCPU failed.
    #[error("cannot {what} of vCPU {vcpu}")]
    VcpuIoctl {
        /// What was being done.
        what: &'static str,
        /// Index of the vCPU.
        vcpu: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn ioctl(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self::Ioctl {
            what,
            source: io::Error::from_raw_os_error(error.errno()),
        }
    }

    pub(crate) fn vcpu_ioctl(
        vcpu: u32,
        what: &'static str,
    ) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self::VcpuIoctl {
            what,
            vcpu,
            source: io::Error::from_raw_os_error(error.errno()),
        }
    }
}

/// What this host's KVM can do, asked once: hosts differ (nested, paravirtual), so nothing optional is used without asking.
#[derive(Debug, Clone, Copy)]
pub struct Capabilities {
    /// Most vCPUs of a VM.
    pub max_vcpus: u32,
    /// Highest vCPU id plus one.
    pub max_vcpu_ids: u32,
    /// Memory slots of a VM.
    pub memory_slots: u32,
    /// Entries of a VM's interrupt routing table (`KVM_CAP_IRQ_ROUTING`).
    pub irq_routes: u32,
    /// The TSC frequency can be read.
    pub tsc_khz: bool,
    /// The TSC frequency can be chosen per vCPU (`KVM_CAP_TSC_CONTROL`).
    pub tsc_control: bool,
    /// The TSC of a vCPU can be moved (`KVM_CAP_VCPU_ATTRIBUTES`; each vCPU is asked again).
    pub tsc_offset: bool,
    /// The local APIC has a TSC deadline timer.
    pub tsc_deadline_timer: bool,
    /// Bytes of nested virtualization state, 0 where there is none.
    pub nested_state_bytes: u32,
    /// Bytes of `KVM_GET_XSAVE2`, 0 or 4096 where the old call is enough.
    pub xsave2_bytes: u32,
    /// Extended control registers can be read and written.
    pub xcrs: bool,
    /// Debug registers can be read and written.
    pub debug_regs: bool,
    /// Pending events can be read and written.
    pub vcpu_events: bool,
    /// The guest can be told that it was paused (`KVM_KVMCLOCK_CTRL`).
    pub kvmclock_ctrl: bool,
    /// Flags that `KVM_SET_CLOCK` understands.
    pub clock_flags: u32,
    /// The kernel knows 32-bit APIC ids in routes (`KVM_CAP_X2APIC_API`).
    pub x2apic_api: bool,
}

/// An open `/dev/kvm`.
#[derive(Debug)]
pub struct Kvm {
    fd: kvm_ioctls::Kvm,
    capabilities: Capabilities,
}

impl Kvm {
    /// Opens `/dev/kvm` and asks what it can do.
    ///
    /// # Errors
    /// When it is absent, not permitted, of another API version, or lacks what every Dormouse machine needs.
    pub fn open() -> Result<Self, Error> {
        // kvm-ioctls reports a failed open without its cause on some paths; ask the file system first for a clear one.
        rustix::fs::access(
            Path::new(DEV_KVM),
            rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK,
        )
        .map_err(|errno| Error::Open(errno.into()))?;
        let fd = kvm_ioctls::Kvm::new()
            .map_err(|error| Error::Open(io::Error::from_raw_os_error(error.errno())))?;
        let found = fd.get_api_version();
        if found != KVM_API_VERSION as i32 {
            return Err(Error::ApiVersion { found });
        }
        for (cap, name) in [
            (
                Cap::Irqchip,
                "an in-kernel interrupt controller (KVM_CAP_IRQCHIP)",
            ),
            (Cap::Irqfd, "interrupts by file descriptor (KVM_CAP_IRQFD)"),
            (Cap::IrqRouting, "interrupt routing (KVM_CAP_IRQ_ROUTING)"),
            (Cap::UserMemory, "user memory regions (KVM_CAP_USER_MEMORY)"),
            (Cap::SetTssAddr, "KVM_SET_TSS_ADDR"),
            (Cap::ExtCpuid, "KVM_SET_CPUID2"),
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
            (Cap::MpState, "KVM_CAP_MP_STATE"),
        ] {
            if !fd.check_extension(cap) {
                return Err(Error::MissingCapability(name));
            }
        }
        let count = |cap: Cap| u32::try_from(fd.check_extension_int(cap)).unwrap_or(0);
        let capabilities = Capabilities {
            max_vcpus: u32::try_from(fd.get_max_vcpus()).unwrap_or(u32::MAX),
            max_vcpu_ids: u32::try_from(fd.get_max_vcpu_id()).unwrap_or(u32::MAX),
            memory_slots: u32::try_from(fd.get_nr_memslots()).unwrap_or(u32::MAX),
            irq_routes: count(Cap::IrqRouting),
            tsc_khz: fd.check_extension(Cap::GetTscKhz),
            tsc_control: fd.check_extension(Cap::TscControl),
            tsc_offset: fd.check_extension_raw(u64::from(KVM_CAP_VCPU_ATTRIBUTES)) > 0,
            tsc_deadline_timer: fd.check_extension(Cap::TscDeadlineTimer),
            nested_state_bytes: count(Cap::NestedState),
            xsave2_bytes: count(Cap::Xsave2),
            xcrs: fd.check_extension(Cap::Xcrs),
            debug_regs: fd.check_extension(Cap::Debugregs),
            vcpu_events: fd.check_extension(Cap::VcpuEvents),
            kvmclock_ctrl: fd.check_extension(Cap::KvmclockCtrl),
            clock_flags: count(Cap::AdjustClock),
            x2apic_api: fd.check_extension(Cap::X2ApicApi),
        };
        Ok(Self { fd, capabilities })
    }

    /// What this host can do.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The CPUID leaves that this host can give a guest.
    ///
    /// # Errors
    /// When the kernel refuses to list them.
    pub fn supported_cpuid(&self) -> Result<Vec<kvm_cpuid_entry2>, Error> {
        let cpuid = self
            .fd
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::ioctl("read the CPUID leaves that KVM supports"))?;
        Ok(cpuid.as_slice().to_vec())
    }

    /// Indices of the MSRs that make up guest state on this host.
    ///
    /// # Errors
    /// When the kernel refuses to list them.
    pub fn msr_indices(&self) -> Result<Vec<u32>, Error> {
        let list = self
            .fd
            .get_msr_index_list()
            .map_err(Error::ioctl("list the MSRs that KVM saves"))?;
        Ok(list.as_slice().to_vec())
    }

    /// Creates an empty VM.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn create_vm(&self) -> Result<Vm, Error> {
        // KVM_CREATE_VM is interrupted by a signal that arrives while it runs; nothing was created then, so it is asked again.
        let fd = loop {
            match self.fd.create_vm() {
                Err(error) if error.errno() == libc::EINTR => {}
                other => break other.map_err(Error::ioctl("create a KVM virtual machine"))?,
            }
        };
        Vm::new(fd, self.capabilities)
    }
}
