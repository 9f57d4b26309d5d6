//! From a config to a machine, in the order that a PC is put together: RAM, bus, platform devices, kernel, firmware tables, vCPUs.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dormouse_api::config::{ConsoleMode, PayloadConfig, VmConfig};
use dormouse_arch::x86_64::acpi::{self, AcpiParams};
use dormouse_arch::x86_64::boot_params;
use dormouse_arch::x86_64::loader::{self, BootEntry, Payload};
use dormouse_devices::console::Console;
use thiserror::Error;

use super::Machine;
use super::platform::{self, Platform};
use super::topology::{self, Processors};
use crate::events::EventSender;
use crate::kvm::{self, Kvm, Vm};
use crate::memory::{self, Ram, SlotAllocator};
use crate::pci_bus::{self, PciBus};
use crate::seccomp;
use crate::vcpu_thread::{self, Buses, ExitCounters, VcpuContext, VcpuThread};

/// What the process lends to each machine that it builds.
pub struct Host {
    /// KVM.
    pub kvm: Kvm,
    /// Where the machine reports to.
    pub events: EventSender,
    /// The filter of the threads.
    pub seccomp: seccomp::Mode,
}

/// Why a machine could not be built.
#[derive(Debug, Error)]
pub enum Error {
    /// The host cannot have these vCPUs.
    #[error("cannot provide the vCPUs")]
    Processors(#[source] topology::Error),
    /// No RAM.
    #[error("cannot provide the guest's memory")]
    Memory(#[source] memory::Error),
    /// KVM refused something.
    #[error("cannot set up the virtual machine in KVM")]
    Kvm(#[source] kvm::Error),
    /// No memory slot left.
    #[error("this host's KVM has no memory slot left")]
    NoMemorySlot,
    /// Two devices want the same place.
    #[error("cannot place the platform devices")]
    Platform(#[source] platform::Error),
    /// No PCI bus.
    #[error("cannot set up the PCI bus")]
    Pci(#[source] pci_bus::Error),
    /// The config names no kernel.
    #[error("payload.kernel is missing")]
    NoKernel,
    /// A payload file could not be opened.
    #[error("cannot open payload.{field} {}", path.display())]
    OpenPayload {
        /// Name of the field.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel, its initramfs or command line could not be loaded.
    #[error("cannot load the guest's payload")]
    Load(#[source] loader::Error),
    /// The ACPI tables do not fit.
    #[error("cannot write the ACPI tables")]
    Acpi(#[source] acpi::Error),
    /// The boot structures do not fit.
    #[error("cannot write the boot parameters")]
    BootParams(#[source] boot_params::Error),
    /// A vCPU thread could not be started.
    #[error("cannot start the vCPUs")]
    Vcpu(#[source] vcpu_thread::Error),
}

impl Machine {
    /// Builds the machine that `config` describes, its vCPUs parked at the kernel's entry point. `console` gets the serial port.
    ///
    /// # Errors
    /// When a part cannot be made; everything made before is gone then.
    pub fn build(config: &VmConfig, host: &Host, console: Option<&Console>) -> Result<Self, Error> {
        let processors = Processors::new(&config.cpus, &host.kvm).map_err(Error::Processors)?;
        let ram = Ram::new(&config.memory).map_err(Error::Memory)?;
        let vm = Arc::new(host.kvm.create_vm().map_err(Error::Kvm)?);
        let slots = SlotAllocator::new(vm.capabilities().memory_slots);
        give_ram_to_guest(&vm, &ram, &slots)?;

        let buses = Arc::new(Buses::default());
        let pci = PciBus::new(&buses).map_err(Error::Pci)?;
        let console = console.filter(|_| config.serial.mode != ConsoleMode::Off);
        let platform = Platform::new(&vm, &buses, console).map_err(Error::Platform)?;

        let boot = load_payload(config.payload.as_ref(), &ram)?;
        write_firmware(&boot, &ram, &processors)?;

        let counters = Arc::new(ExitCounters::default());
        let context = VcpuContext {
            buses,
            layout: Arc::clone(&pci) as _,
            events: host.events.clone(),
            counters: Arc::clone(&counters),
            seccomp: host.seccomp,
        };
        let vcpus = start_vcpus(&vm, &processors, &boot, &context)?;
        Ok(Self {
            vcpus,
            platform,
            _pci: pci,
            counters,
            vm,
            ram,
        })
    }
}

/// Makes each RAM region a memory slot.
fn give_ram_to_guest(vm: &Vm, ram: &Ram, slots: &SlotAllocator) -> Result<(), Error> {
    for (guest, host) in ram.regions() {
        let slot = slots.allocate().ok_or(Error::NoMemorySlot)?;
        let len = guest.end - guest.start;
        // SAFETY: `Machine` drops the VM before the RAM, and an error here drops both without running a vCPU.
        unsafe { vm.set_memory_slot(slot, 0, guest.start, host, len) }.map_err(Error::Kvm)?;
    }
    Ok(())
}

fn load_payload(payload: Option<&PayloadConfig>, ram: &Ram) -> Result<BootEntry, Error> {
    let open = |field, path: &Path| {
        // Without waiting: a pipe that nobody writes to is refused by the loader, like everything that is no file.
        let mut options = File::options();
        let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path);
        file.map_err(|source| Error::OpenPayload {
            field,
            path: path.to_owned(),
            source,
        })
    };
    let kernel_path = payload
        .and_then(|payload| payload.kernel.as_deref())
        .ok_or(Error::NoKernel)?;
    let initramfs_path = payload.and_then(|payload| payload.initramfs.as_deref());
    let cmdline = payload
        .and_then(|payload| payload.cmdline.as_deref())
        .unwrap_or_default();
    let mut kernel = open("kernel", kernel_path)?;
    let mut initramfs = match initramfs_path {
        Some(path) => Some((open("initramfs", path)?, path)),
        None => None,
    };
    let payload = Payload {
        kernel: &mut kernel,
        kernel_path,
        initramfs: initramfs.as_mut().map(|(file, path)| (file, *path)),
        cmdline,
    };
    loader::load(ram.memory(), payload).map_err(Error::Load)
}

/// Writes what firmware would leave in memory.
fn write_firmware(boot: &BootEntry, ram: &Ram, processors: &Processors) -> Result<(), Error> {
    let params = AcpiParams {
        apic_ids: &processors.apic_ids(),
        mmio64: processors.mmio64_window(ram.size()),
    };
    let rsdp = acpi::write_acpi(ram.memory(), &params).map_err(Error::Acpi)?;
    boot_params::write(ram.memory(), boot, ram.size(), rsdp).map_err(Error::BootParams)
}

fn start_vcpus(
    vm: &Vm,
    processors: &Processors,
    boot: &BootEntry,
    context: &VcpuContext,
) -> Result<Vec<VcpuThread>, Error> {
    let mut threads = Vec::new();
    for (index, apic_id) in (0..).zip(processors.apic_ids()) {
        let vcpu = vm.create_vcpu(index, apic_id).map_err(Error::Kvm)?;
        vcpu.set_cpuid(&processors.cpuid(index))
            .map_err(Error::Kvm)?;
        vcpu.set_boot_state(boot).map_err(Error::Kvm)?;
        threads.push(
            VcpuThread::spawn(vcpu, context.clone(), processors.host_cpus(index))
                .map_err(Error::Vcpu)?,
        );
    }
    Ok(threads)
}
