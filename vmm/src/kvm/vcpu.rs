//! One vCPU: its registers at boot, `KVM_RUN`, and the exits that the machine must act on.

use std::io;

use dormouse_arch::x86_64::loader::BootEntry;
use dormouse_arch::x86_64::{boot_regs, msr};
use kvm_bindings::{CpuId, Msrs, kvm_cpuid_entry2, kvm_msr_entry, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::{Capabilities, Error, Kicker};

/// One vCPU descriptor with its `kvm_run` page.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    index: u32,
    capabilities: Capabilities,
    cpuid: Vec<kvm_cpuid_entry2>,
}

/// What `KVM_RUN` came back with.
#[derive(Debug)]
pub enum Exit<'a> {
    /// The guest reads a port, once for each piece of so many bytes; the answers go into the slice.
    PortRead(u16, usize, &'a mut [u8]),
    /// The guest writes a port, once for each piece of so many bytes.
    PortWrite(u16, usize, &'a [u8]),
    /// The guest reads an address that no memory slot covers.
    MmioRead(u64, &'a mut [u8]),
    /// The guest writes an address that no memory slot covers.
    MmioWrite(u64, &'a [u8]),
    /// A signal or `immediate_exit`: look at what is asked of the thread.
    Interrupted,
    /// Nothing to do; run again.
    Again,
    /// The vCPU cannot go on.
    Stopped(StopReason),
}

/// Why a vCPU cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// The guest caused a triple fault.
    TripleFault,
    /// KVM could not emulate an instruction or met an inconsistency (`KVM_EXIT_INTERNAL_ERROR`).
    InternalError {
        /// `kvm_run.internal.suberror`; 1 is an instruction that cannot be emulated.
        suberror: u32,
    },
    /// The processor refused to enter the guest (`KVM_EXIT_FAIL_ENTRY`).
    FailedEntry {
        /// The processor's reason code.
        reason: u64,
    },
    /// A guest access to a mapping that the host cannot provide, for instance a BAR that stopped responding.
    MemoryFault {
        /// Guest-physical address, where the kernel told it.
        address: u64,
    },
    /// An exit that this machine never asked for.
    Unexpected(String),
    /// `KVM_RUN` itself failed.
    RunFailed {
        /// The errno of `KVM_RUN`.
        errno: i32,
    },
}

impl std::fmt::Display for StopReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TripleFault => write!(
                f,
                "the guest caused a triple fault (no handler for an exception while handling another)"
            ),
            Self::InternalError { suberror: 1 } => write!(
                f,
                "KVM cannot emulate a guest instruction (internal error 1); this host's KVM may not run this guest at all"
            ),
            Self::InternalError { suberror } => write!(f, "KVM internal error {suberror}"),
            Self::FailedEntry { reason } => {
                write!(
                    f,
                    "the processor refused to enter the guest, reason {reason:#x}"
                )
            }
            Self::MemoryFault { address } => write!(
                f,
                "the host could not provide the memory behind guest address {address:#x}"
            ),
            Self::Unexpected(exit) => write!(f, "KVM returned the unexpected exit {exit}"),
            Self::RunFailed { errno } => {
                write!(
                    f,
                    "KVM_RUN failed: {}",
                    io::Error::from_raw_os_error(*errno)
                )
            }
        }
    }
}

impl Vcpu {
    pub(super) fn new(fd: VcpuFd, index: u32, capabilities: Capabilities) -> Self {
        Self {
            fd,
            index,
            capabilities,
            cpuid: Vec::new(),
        }
    }

    /// Index of the vCPU, from 0.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// What the host can do.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The descriptor, for the state calls of this module's children.
    pub(super) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// TSC frequency in kHz, where the kernel tells it.
    #[must_use]
    pub fn tsc_khz(&self) -> Option<u32> {
        self.capabilities
            .tsc_khz
            .then(|| self.fd.get_tsc_khz().ok())
            .flatten()
    }

    /// What gets the thread that runs this vCPU out of `KVM_RUN`.
    pub fn kicker(&mut self) -> Kicker {
        Kicker::new(&raw mut self.fd.get_kvm_run().immediate_exit)
    }

    /// Sets the CPUID leaves that the guest sees.
    ///
    /// # Errors
    /// When the kernel refuses them.
    pub fn set_cpuid(&mut self, entries: &[kvm_cpuid_entry2]) -> Result<(), Error> {
        let cpuid = CpuId::from_entries(entries).map_err(|_| Error::VcpuIoctl {
            what: "build the CPUID leaves: too many entries",
            vcpu: self.index,
            source: io::Error::from_raw_os_error(libc::E2BIG),
        })?;
        self.fd
            .set_cpuid2(&cpuid)
            .map_err(Error::vcpu_ioctl(self.index, "set the CPUID leaves"))?;
        self.cpuid = entries.to_vec();
        Ok(())
    }

    /// The CPUID leaves that were set.
    #[must_use]
    pub fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }

    /// Sets model specific registers in the given order. Those that KVM refuses are skipped, named in the log, and returned.
    ///
    /// # Errors
    /// When the kernel refuses the call.
    pub fn set_msrs(&self, entries: &[kvm_msr_entry]) -> Result<Vec<kvm_msr_entry>, Error> {
        let mut rest = entries;
        let mut all_refused = Vec::new();
        while !rest.is_empty() {
            let part = rest.len().min(msr::MAX_PER_CALL);
            let msrs = Msrs::from_entries(&rest[..part]).map_err(|_| Error::VcpuIoctl {
                what: "build the MSR list: too many entries",
                vcpu: self.index,
                source: io::Error::from_raw_os_error(libc::E2BIG),
            })?;
            let done = self
                .fd
                .set_msrs(&msrs)
                .map_err(Error::vcpu_ioctl(self.index, "set the MSRs"))?
                .min(part);
            // KVM stops at the first one that it refuses; those behind it still have to be set.
            if let Some(refused) = rest[done..part].first() {
                let (vcpu, msr) = (self.index, format!("{:#x}", refused.index));
                tracing::debug!(vcpu, msr, value = refused.data, "KVM refused an MSR");
                all_refused.push(*refused);
            }
            rest = &rest[(done + usize::from(done < part))..];
        }
        Ok(all_refused)
    }

    /// Puts the boot processor at the kernel's entry point; the others wait for the guest's start-up interrupt.
    ///
    /// # Errors
    /// When the kernel refuses a register.
    pub fn set_boot_state(&self, entry: &BootEntry) -> Result<(), Error> {
        self.set_msrs(&msr::boot_msrs())?;
        if self.index != 0 {
            return Ok(());
        }
        let mut sregs = self
            .fd
            .get_sregs()
            .map_err(Error::vcpu_ioctl(0, "read the system registers"))?;
        boot_regs::set_sregs(&mut sregs, entry.protocol);
        self.fd
            .set_sregs(&sregs)
            .map_err(Error::vcpu_ioctl(0, "set the system registers"))?;
        self.fd
            .set_regs(&boot_regs::regs(entry))
            .map_err(Error::vcpu_ioctl(0, "set the general registers"))
    }

    /// Enters the guest until something needs the VMM.
    pub fn run(&mut self) -> Exit<'_> {
        // What kvm-ioctls leaves out of an exit sits in the kvm_run page, which the exit borrows.
        let run = std::ptr::from_mut(self.fd.get_kvm_run());
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => Exit::PortRead(port, io_bytes(run), data),
            Ok(VcpuExit::IoOut(port, data)) => Exit::PortWrite(port, io_bytes(run), data),
            Ok(VcpuExit::MmioRead(address, data)) => Exit::MmioRead(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => Exit::MmioWrite(address, data),
            Ok(VcpuExit::Intr) => Exit::Interrupted,
            Ok(VcpuExit::Hlt | VcpuExit::IrqWindowOpen | VcpuExit::SetTpr) => Exit::Again,
            Ok(VcpuExit::Shutdown) => Exit::Stopped(StopReason::TripleFault),
            Ok(VcpuExit::InternalError) => {
                // SAFETY: the page stays mapped as long as `self.fd`; nothing else borrows it in this arm.
                let run = unsafe { &*run };
                // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, for which the kernel fills this member of the union.
                let internal = unsafe { run.__bindgen_anon_1.internal };
                Exit::Stopped(StopReason::InternalError {
                    suberror: internal.suberror,
                })
            }
            Ok(VcpuExit::FailEntry(reason, _)) => Exit::Stopped(StopReason::FailedEntry { reason }),
            Ok(VcpuExit::MemoryFault { gpa, .. }) => {
                Exit::Stopped(StopReason::MemoryFault { address: gpa })
            }
            Ok(other) => Exit::Stopped(StopReason::Unexpected(format!("{other:?}"))),
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => Exit::Interrupted,
                errno => Exit::Stopped(StopReason::RunFailed { errno }),
            },
        }
    }

    /// Forgets an earlier kick. Called before the thread looks at what is asked of it (see `kick`).
    pub fn clear_kick(&mut self) {
        self.fd.set_kvm_immediate_exit(0);
    }

    /// Makes the next `run` complete the access that the last exit left half done and return before any guest code.
    pub fn return_before_guest_code(&mut self) {
        self.fd.set_kvm_immediate_exit(1);
    }

    /// Writes the registers to the log at debug level, for a vCPU that cannot go on.
    pub fn log_registers(&self) {
        match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(regs), Ok(sregs)) => tracing::debug!(vcpu = self.index, "{regs:#x?} {sregs:#x?}"),
            _ => tracing::debug!(vcpu = self.index, "the registers cannot be read"),
        }
    }
}

/// Bytes of one access of the port exit that `run` has just made: string instructions bring several at once.
fn io_bytes(run: *const kvm_run) -> usize {
    // SAFETY: the page stays mapped as long as the vCPU that has just exited; the data that the exit borrows lies behind it.
    let run = unsafe { &*run };
    // SAFETY: the exit reason is KVM_EXIT_IO, for which the kernel fills this member of the union.
    let io = unsafe { run.__bindgen_anon_1.io };
    usize::from(io.size).max(1)
}
