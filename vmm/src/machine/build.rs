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
use dormouse_devices::vfio::VfioFunction;
use thiserror::Error;

use super::Machine;
use super::frame::Frame;
use super::function_source::FunctionHost;
use super::passthrough::{self, Passthrough, assign_bars};
use super::platform::{self, Platform};
use super::timeline::Stopwatch;
use super::topology::{self, Processors};
use crate::events::EventSender;
use crate::kvm::{self, Kvm, Vm};
use crate::memory::{self, Ram};
use crate::pci_bus;
use crate::seccomp;
use crate::vcpu_thread::{self, ExitCounters, VcpuContext, VcpuThread};
use crate::windows::Window;

/// What the process lends to each machine that it builds.
pub struct Host {
    /// KVM.
    pub kvm: Arc<Kvm>,
    /// Where the machine reports to.
    pub events: EventSender,
    /// The filter of the threads.
    pub seccomp: seccomp::Mode,
    /// Where passed-through functions come from.
    pub functions: Box<dyn FunctionHost>,
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
    /// A device could not be passed through.
    #[error("cannot pass the host's devices through")]
    Passthrough(#[source] passthrough::Error),
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
    /// A payload file is a directory, a device or a pipe, or has no content.
    #[error("cannot load payload.{field} {}: it is empty or no regular file", path.display())]
    UnusablePayload {
        /// Name of the field.
        field: &'static str,
        /// The file.
        path: PathBuf,
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
        let frame = Frame::new(&host.kvm, ram, &processors, None)?;
        let console = console.filter(|_| config.serial.mode != ConsoleMode::Off);
        let platform = Platform::new(&frame.vm, &frame.buses, console).map_err(Error::Platform)?;
        let stopwatch = Stopwatch::default();
        let passthrough = Passthrough::new(
            config,
            &frame,
            host,
            |_| None,
            |candidate| {
                let function = candidate.function(&frame, &stopwatch, VfioFunction::new)?;
                assign_bars(candidate.id(), &function, &frame.windows)?;
                Ok(function)
            },
        )
        .map_err(Error::Passthrough)?;

        let boot = load_payload(config.payload.as_ref(), &frame.ram)?;
        write_firmware(&boot, &frame, &processors, console.is_some())?;
        let context = VcpuContext::new(&frame, host);
        let vcpus = start_vcpus(&frame.vm, &processors, &boot, &context)?;
        Ok(Self {
            vcpus,
            passthrough,
            platform,
            counters: context.counters,
            stopwatch,
            frame,
        })
    }
}

impl VcpuContext {
    /// What the vCPU threads of the machine on `frame` share.
    pub(super) fn new(frame: &Frame, host: &Host) -> Self {
        Self {
            buses: Arc::clone(&frame.buses),
            layout: Arc::clone(&frame.pci) as _,
            events: host.events.clone(),
            counters: Arc::new(ExitCounters::default()),
            seccomp: host.seccomp,
        }
    }
}

fn load_payload(payload: Option<&PayloadConfig>, ram: &Ram) -> Result<BootEntry, Error> {
    let kernel_path = payload
        .and_then(|payload| payload.kernel.as_deref())
        .ok_or(Error::NoKernel)?;
    let initramfs_path = payload.and_then(|payload| payload.initramfs.as_deref());
    let cmdline = payload
        .and_then(|payload| payload.cmdline.as_deref())
        .unwrap_or_default();
    let mut kernel = open_payload("kernel", kernel_path)?;
    let mut initramfs = match initramfs_path {
        Some(path) => Some((open_payload("initramfs", path)?, path)),
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

/// Opens a file for the loader, which knows no names of config fields: what is no file at all is refused here.
fn open_payload(field: &'static str, path: &Path) -> Result<File, Error> {
    let open = || {
        // Without waiting for somebody who writes to a pipe.
        let mut options = File::options();
        let file = options
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        let metadata = file.metadata()?;
        Ok((file, metadata))
    };
    let (file, metadata) = open().map_err(|source| Error::OpenPayload {
        field,
        path: path.to_owned(),
        source,
    })?;
    if !metadata.is_file() || metadata.len() == 0 {
        return Err(Error::UnusablePayload {
            field,
            path: path.to_owned(),
        });
    }
    Ok(file)
}

/// Writes what firmware would leave in memory.
fn write_firmware(
    boot: &BootEntry,
    frame: &Frame,
    processors: &Processors,
    serial_port: bool,
) -> Result<(), Error> {
    let params = AcpiParams {
        apic_ids: &processors.apic_ids(),
        mmio64: frame.windows.range(Window::Mmio64),
        serial_port,
    };
    let memory = frame.ram.memory();
    let rsdp = acpi::write_acpi(memory, &params).map_err(Error::Acpi)?;
    boot_params::write(memory, boot, frame.ram.size(), rsdp).map_err(Error::BootParams)
}

fn start_vcpus(
    vm: &Vm,
    processors: &Processors,
    boot: &BootEntry,
    context: &VcpuContext,
) -> Result<Vec<VcpuThread>, Error> {
    let mut threads = Vec::new();
    for (index, apic_id) in (0..).zip(processors.apic_ids()) {
        let mut vcpu = vm.create_vcpu(index, apic_id).map_err(Error::Kvm)?;
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
