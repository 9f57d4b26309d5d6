//! A machine out of a snapshot, paused.
//!
//! Order: the snapshot is verified and everything that can be refused is refused; RAM; the skeleton; vCPUs with their local APICs and the
//! other interrupt controllers, before anything can raise an interrupt; platform devices; then every recorded BAR is reserved, the
//! devices come back to their places on the bus, and their streams are loaded, each with one step into RESUMING and the fix-ups there.
//! A failure drops what was built and leaves the devices usable by the next attempt.

mod check;
mod sections;
mod streams;

use std::collections::BTreeMap;
use std::time::Instant;

use dormouse_api::config::{ConsoleMode, VmConfig};
use dormouse_api::response::{Operation, Timeline};
use dormouse_arch::x86_64::cpuid::MissingFeature;
use dormouse_devices::console::Console;
use dormouse_devices::vfio::{self, VfioFunction, VfioFunctionState};
use thiserror::Error;

pub use check::Verified;
use streams::load_streams;

use super::Machine;
use super::build::{Error as BuildError, Host};
use super::frame::Frame;
use super::guest_time::GuestTime;
use super::passthrough::{self, Passthrough};
use super::paused::PausedMachine;
use super::platform::Platform;
use super::state::FunctionPlaceState;
use super::timeline::Stopwatch;
use super::topology::Processors;
use crate::kvm::{self, Vcpu, VcpuState};
use crate::memory::{LoadError, Ram, RestoreMode};
use crate::progress::ActionProgress;
use crate::snapshot::ReadError;
use crate::vcpu_thread::{VcpuContext, VcpuThread};
use crate::windows::{self, Window};

/// Why a snapshot could not be restored.
#[derive(Debug, Error)]
pub enum Error {
    /// The snapshot is damaged or not for this Dormouse.
    #[error("cannot use the snapshot")]
    Snapshot(#[source] ReadError),
    /// The machine cannot be built on this host.
    #[error("cannot build the VM")]
    Build(#[source] BuildError),
    /// The host's CPU cannot do what the guest was promised.
    #[error(
        "this host's CPU lacks {count} features that the guest uses, the first of them {first}; restore on a host with a CPU like the one that the snapshot was taken on"
    )]
    MissingFeatures {
        /// How many.
        count: usize,
        /// The first.
        first: MissingFeature,
    },
    /// Not the vCPUs of the config.
    #[error("the snapshot holds {found} vCPUs, but its config has {wanted}")]
    VcpuCount {
        /// vCPU states in the snapshot.
        found: usize,
        /// vCPUs in the config.
        wanted: u32,
    },
    /// Not the devices of the config.
    #[error(
        "the snapshot and its config do not name the same devices: {id} is only in one of them"
    )]
    DeviceSet {
        /// The device.
        id: String,
    },
    /// A device without its stream, or a stream for a device that needs none.
    #[error("the snapshot has {} stream for device {id}, although its state was {}", if *.found { "a" } else { "no" }, if *.found { "discarded" } else { "saved" })]
    StreamSet {
        /// The device.
        id: String,
        /// Whether there is a stream.
        found: bool,
    },
    /// The host would run out of memory.
    #[error(
        "{needed_mib} MiB of RAM have to be there at once and this host has {available_mib} MiB available; make room, or restore on another host"
    )]
    TooLittleMemory {
        /// What is needed, in MiB.
        needed_mib: u64,
        /// What is there, in MiB.
        available_mib: u64,
    },
    /// Another model of device.
    #[error(
        "the state of device {id} is of a {saved} and {path} is a {found}; give it a device of the same model",
        path = .path.display()
    )]
    Model {
        /// The device.
        id: String,
        /// Where it is on the host.
        path: std::path::PathBuf,
        /// Vendor and device id in the snapshot.
        saved: String,
        /// Vendor and device id on the host.
        found: String,
    },
    /// RAM.
    #[error("cannot restore guest RAM")]
    Memory(#[source] LoadError),
    /// A BAR's place is not to be had.
    #[error("cannot reserve the recorded place of a BAR of device {id}")]
    ReserveBar {
        /// The device.
        id: String,
        /// Why.
        #[source]
        source: windows::Error,
    },
    /// The host's device cannot take the state.
    #[error("cannot load the state of device {id} into {path}; bind it to a driver with migration support", path = .path.display())]
    NotMigratable {
        /// The device.
        id: String,
        /// Where it is on the host.
        path: std::path::PathBuf,
    },
    /// The device refused its state.
    #[error("cannot load the state of device {id}")]
    Load {
        /// The device.
        id: String,
        /// Why.
        #[source]
        source: vfio::Error,
    },
}

/// How a snapshot is restored.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// When RAM is read.
    pub mode: RestoreMode,
    /// Check all of RAM first.
    pub verify: bool,
}

impl Machine {
    /// Restores the machine of a snapshot that was checked with the same `config`.
    ///
    /// # Errors
    /// When the content of memory is damaged or something cannot be built; everything built is gone.
    pub fn restore(
        verified: Verified,
        config: &VmConfig,
        host: &Host,
        console: Option<&Console>,
        progress: &ActionProgress,
    ) -> Result<(PausedMachine, Timeline), Error> {
        let Verified {
            snapshot,
            sections,
            processors,
            mode,
            stopwatch,
        } = verified;
        progress.begin_phase("memory", config.memory.size);
        let resident = if mode == RestoreMode::Eager {
            config.memory.size
        } else {
            0
        };
        let ram = stopwatch
            .phase(
                "load memory",
                None,
                |_| resident,
                || Ram::restore(&config.memory, &snapshot, mode, progress),
            )
            .map_err(Error::Memory)?;

        progress.begin_phase("devices", 0);
        let build = Instant::now();
        let frame =
            Frame::new(&host.kvm, ram, &processors, Some(&sections.bus)).map_err(Error::Build)?;
        let context = VcpuContext::new(&frame, host);
        let vcpus =
            restore_vcpus(&frame, &processors, &sections.vcpus, &context).map_err(Error::Build)?;
        frame
            .vm
            .restore(&sections.vm)
            .map_err(|error| Error::Build(BuildError::Kvm(error)))?;
        let console = console.filter(|_| config.serial.mode != ConsoleMode::Off);
        let platform = Platform::restore(sections.platform, &frame.vm, &frame.buses, console)
            .map_err(|error| Error::Build(BuildError::Platform(error)))?;
        stopwatch.record("build", None, build, 0);
        let passthrough = restore_functions(config, &frame, host, &sections.functions, &stopwatch)?;
        load_streams(
            &passthrough,
            &sections.functions,
            &snapshot,
            progress,
            &stopwatch,
        )?;
        snapshot.finish().map_err(Error::Snapshot)?;

        let machine = Self {
            vcpus,
            passthrough,
            platform,
            counters: context.counters,
            stopwatch,
            frame,
        };
        let timeline = machine.stopwatch.timeline(Operation::Restore);
        let time = GuestTime::saved(sections.vm.clock_ns, &sections.vcpus);
        Ok((PausedMachine::restored(machine, time), timeline))
    }
}

fn restore_vcpus(
    frame: &Frame,
    processors: &Processors,
    states: &[VcpuState],
    context: &VcpuContext,
) -> Result<Vec<VcpuThread>, BuildError> {
    let mut vcpus = Vec::new();
    for (index, apic_id) in (0..).zip(processors.apic_ids()) {
        vcpus.push(
            frame
                .vm
                .create_vcpu(index, apic_id)
                .map_err(BuildError::Kvm)?,
        );
    }
    for (vcpu, state) in std::iter::zip(&mut vcpus, states) {
        vcpu.prepare(state).map_err(BuildError::Kvm)?;
    }
    let tsc_is_set = set_counters(&vcpus, states).map_err(BuildError::Kvm)?;
    for (vcpu, state) in std::iter::zip(&mut vcpus, states) {
        vcpu.restore(state, tsc_is_set).map_err(BuildError::Kvm)?;
        vcpu.announce_pause();
    }
    vcpus
        .into_iter()
        .map(|vcpu| {
            let cpus = processors.host_cpus(vcpu.index());
            VcpuThread::spawn(vcpu, context.clone(), cpus).map_err(BuildError::Vcpu)
        })
        .collect()
}

/// Moves the counters of new vCPUs, which are in step, to the saved ones, all by as much. Says whether the host could.
///
/// Before the other registers: the APIC's timer is armed against the counter.
fn set_counters(vcpus: &[Vcpu], states: &[VcpuState]) -> Result<bool, kvm::Error> {
    let (Some(first), Some(saved)) = (vcpus.first(), states.first().and_then(VcpuState::tsc))
    else {
        return Ok(false);
    };
    let ticks = first.tsc()?.wrapping_sub(saved);
    for vcpu in vcpus {
        if !vcpu.move_tsc_back(ticks)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Opens the devices and describes them as they were. All recorded BARs are reserved before the first device comes.
fn restore_functions(
    config: &VmConfig,
    frame: &Frame,
    host: &Host,
    saved: &BTreeMap<String, (FunctionPlaceState, VfioFunctionState)>,
    stopwatch: &Stopwatch,
) -> Result<Passthrough, Error> {
    for (id, (_, state)) in saved {
        reserve_bars(state, &frame.windows).map_err(|source| Error::ReserveBar {
            id: id.clone(),
            source,
        })?;
    }
    for (_, state) in saved.values() {
        reserve_assigned_bars(state, &frame.windows);
    }
    let open = Instant::now();
    let passthrough = Passthrough::new(
        config,
        frame,
        host,
        |id| saved.get(id).map(|(place, _)| place.bdf),
        |candidate| {
            let (_, state) =
                saved
                    .get(candidate.id())
                    .ok_or_else(|| passthrough::Error::Unknown {
                        id: candidate.id().to_owned(),
                    })?;
            candidate.function(frame, stopwatch, |spec, deps| {
                VfioFunction::restore(state, spec, deps)
            })
        },
    )
    .map_err(|error| Error::Build(BuildError::Passthrough(error)))?;
    stopwatch.record("open devices", None, open, 0);
    for attached in passthrough.functions() {
        let discarded = saved
            .get(&attached.id)
            .is_some_and(|(place, _)| place.discarded);
        if !discarded && attached.function.blocks_snapshot().is_some() {
            return Err(Error::NotMigratable {
                id: attached.id.clone(),
                path: attached.path.clone(),
            });
        }
        if discarded {
            let blank = attached.function.check_blank();
            blank.map_err(|source| Error::Load {
                id: attached.id.clone(),
                source,
            })?;
        }
    }
    Ok(passthrough)
}

/// Takes the places where BARs answered.
fn reserve_bars(
    state: &VfioFunctionState,
    windows: &windows::Windows,
) -> Result<(), windows::Error> {
    let mut bars = state.bars.iter();
    bars.try_for_each(|bar| reserve_bar(bar, windows))
}

fn reserve_bar(
    bar: &vfio::BarAddressState,
    windows: &windows::Windows,
) -> Result<(), windows::Error> {
    let range = bar.address..bar.address.saturating_add(bar.size);
    let window = if bar.io {
        Window::Io
    } else {
        windows.memory_window(&range).unwrap_or(Window::Mmio32)
    };
    windows.reserve(window, &range)
}

/// Takes the places where BARs go after a reset of the machine, as far as no BAR answers there now.
fn reserve_assigned_bars(state: &VfioFunctionState, windows: &windows::Windows) {
    for bar in &state.assigned_bars {
        if let Err(error) = reserve_bar(bar, windows) {
            tracing::debug!("the place of {} after a reset is taken: {error}", bar.bar);
        }
    }
}
