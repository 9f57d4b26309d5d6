//! Putting a paused machine into a snapshot directory.
//!
//! Order: what cannot be saved is refused; device streams, because reading them may still write RAM; KVM and device state; RAM; then
//! everything is synced and the manifest renamed into place. The machine stays paused and can be resumed, whatever happens.

use std::path::Path;
use std::time::Instant;

use dormouse_api::config::{SnapshotPolicy, VmConfig};
use dormouse_api::response::{Operation, Timeline};
use dormouse_arch::x86_64::msr;
use dormouse_devices::vfio::{self, SnapshotBlock};
use dormouse_devices::{Quiesced, Save};
use dormouse_vfio_migration::StreamControl;
use thiserror::Error;

use super::on_each::on_each;
use super::passthrough::Attached;
use super::paused::PausedMachine;
use super::state::{FunctionPlaceState, HostBridgeState, ONLY};
use super::timeline::Stopwatch;
use crate::kvm;
use crate::progress::ActionProgress;
use crate::snapshot::{SnapshotWriter, WriteError};
use crate::vcpu_thread;

/// Why a machine could not be saved. It is as it was before.
#[derive(Debug, Error)]
pub enum Error {
    /// A device cannot save its state.
    #[error("nothing was written")]
    Blocked(#[source] SnapshotBlock),
    /// A device whose state is discarded could not be kept from writing RAM.
    #[error("cannot keep device {id} from writing guest RAM")]
    HoldDma {
        /// The device.
        id: String,
        /// Why.
        #[source]
        source: vfio::Error,
    },
    /// A device stream.
    #[error("cannot save the state of device {id}")]
    Stream {
        /// The device.
        id: String,
        /// Why.
        #[source]
        source: vfio::Error,
    },
    /// The directory.
    #[error("cannot write the snapshot")]
    Write(#[source] WriteError),
    /// KVM's state.
    #[error("cannot read the state of the VM")]
    Kvm(#[source] kvm::Error),
    /// A vCPU thread died.
    #[error("cannot reach the vCPUs")]
    Vcpu(#[source] vcpu_thread::Error),
}

/// Devices that must not write RAM while it is saved; they may again when this is dropped.
struct HeldDma<'a> {
    held: Vec<&'a Attached>,
}

impl Drop for HeldDma<'_> {
    fn drop(&mut self) {
        for attached in &self.held {
            if let Err(error) = attached.function.release_dma() {
                tracing::error!("{}: its bus mastering stays off: {error}", attached.id);
            }
        }
    }
}

impl PausedMachine {
    /// Saves the machine, whose config is `config`, into the directory `dir`.
    ///
    /// # Errors
    /// When a device cannot be saved, something cannot be read or written, or the action is cancelled. The directory then holds
    /// no snapshot.
    pub fn snapshot(
        &self,
        dir: &Path,
        config: &VmConfig,
        progress: &ActionProgress,
    ) -> Result<Timeline, Error> {
        self.refuse_blocked()?;
        let stopwatch = &self.machine.stopwatch;
        stopwatch.continue_from(&self.pause_phases);
        let quiesced = Quiesced::declare();
        let mut writer = SnapshotWriter::begin(dir).map_err(Error::Write)?;
        let _held = self.hold_dma()?;

        progress.begin_phase("device state", self.estimated_stream_bytes());
        self.save_streams(&writer, progress)?;
        progress.begin_phase("state", 0);
        stopwatch.phase(
            "save state",
            None,
            |_| 0,
            || self.save_state(&mut writer, &quiesced),
        )?;
        progress.begin_phase("memory", self.machine.ram_bytes());
        let ram = &self.machine.frame.ram;
        stopwatch
            .phase(
                "write memory",
                None,
                |written: &Result<u64, WriteError>| *written.as_ref().unwrap_or(&0),
                || writer.memory(ram, &quiesced, progress),
            )
            .map_err(Error::Write)?;
        progress.begin_phase("sync", 0);
        stopwatch
            .phase("sync", None, |_| 0, || writer.sync())
            .map_err(Error::Write)?;
        let timeline = stopwatch.timeline(Operation::Snapshot);
        writer.finish(config, &timeline).map_err(Error::Write)?;
        Ok(timeline)
    }

    /// Refuses what cannot be saved before anything is written.
    fn refuse_blocked(&self) -> Result<(), Error> {
        let functions = self.machine.functions().iter();
        let mut blocks = functions.filter_map(Attached::snapshot_block);
        blocks
            .next()
            .map_or(Ok(()), |block| Err(Error::Blocked(block)))
    }

    fn hold_dma(&self) -> Result<HeldDma<'_>, Error> {
        let mut held = HeldDma { held: Vec::new() };
        for attached in self.machine.functions() {
            if is_discarded(attached) {
                attached
                    .function
                    .hold_dma()
                    .map_err(|source| Error::HoldDma {
                        id: attached.id.clone(),
                        source,
                    })?;
                held.held.push(attached);
            }
        }
        Ok(held)
    }

    fn estimated_stream_bytes(&self) -> u64 {
        let functions = self.machine.functions().iter();
        functions
            .filter_map(|attached| attached.function.estimated_size())
            .sum()
    }

    /// Streams all devices to their files at once, one thread each.
    fn save_streams(
        &self,
        writer: &SnapshotWriter,
        progress: &ActionProgress,
    ) -> Result<(), Error> {
        let saved = self
            .machine
            .functions()
            .iter()
            .filter(|attached| !is_discarded(attached));
        let stopwatch = &self.machine.stopwatch;
        on_each(saved, |attached| {
            save_stream(attached, writer, progress, stopwatch)
        })
    }

    /// KVM's state is read here, after the last device has stopped, so that no interrupt falls between.
    fn save_state(&self, writer: &mut SnapshotWriter, quiesced: &Quiesced) -> Result<(), Error> {
        let frame = &self.machine.frame;
        let indices = msr::save_list(&frame.kvm.msr_indices().map_err(Error::Kvm)?);
        let vcpus = self
            .machine
            .on_all_vcpus(move |vcpu| vcpu.save(&indices))
            .map_err(Error::Vcpu)?;
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let mut state = vcpu.map_err(Error::Kvm)?;
            if let Some(&tsc) = self.time.tsc.get(index) {
                state.set_tsc(tsc);
            }
            writer
                .state(&index.to_string(), &state)
                .map_err(Error::Write)?;
        }
        let vm = frame.vm.save(self.time.clock_ns).map_err(Error::Kvm)?;
        writer.state(ONLY, &vm).map_err(Error::Write)?;

        let platform = self.machine.platform.save(quiesced);
        if let Some(serial) = &platform.serial {
            writer.state(ONLY, serial).map_err(Error::Write)?;
        }
        writer.state(ONLY, &platform.rtc).map_err(Error::Write)?;
        writer
            .state(ONLY, &platform.acpi_pm)
            .map_err(Error::Write)?;

        writer
            .state(ONLY, &frame.pci.root().save())
            .map_err(Error::Write)?;
        let bridge = HostBridgeState {
            config: frame.pci.bridge().save(),
        };
        writer.state(ONLY, &bridge).map_err(Error::Write)?;
        for attached in self.machine.functions() {
            let place = FunctionPlaceState {
                bdf: attached.bdf,
                discarded: is_discarded(attached),
            };
            writer.state(&attached.id, &place).map_err(Error::Write)?;
            writer
                .state(&attached.id, &attached.function.save(quiesced))
                .map_err(Error::Write)?;
        }
        Ok(())
    }
}

fn save_stream(
    attached: &Attached,
    writer: &SnapshotWriter,
    progress: &ActionProgress,
    stopwatch: &Stopwatch,
) -> Result<(), Error> {
    let start = Instant::now();
    let mut stream = writer.device_stream(&attached.id).map_err(Error::Write)?;
    let total = attached.function.estimated_size();
    let mut report = |bytes| progress.device(&attached.id, "save", bytes, total);
    let mut control = StreamControl {
        cancel: Some(progress.cancelled()),
        progress: Some(&mut report),
        ..StreamControl::default()
    };
    let bytes = attached
        .function
        .save_stream(&mut stream, &mut control)
        .map_err(|source| Error::Stream {
            id: attached.id.clone(),
            source,
        })?;
    stream.finish().map_err(Error::Write)?;
    stopwatch.record("save device", Some(&attached.id), start, bytes);
    Ok(())
}

/// Whether the device's own state is lost: the user allows it, and there is no way to keep it.
fn is_discarded(attached: &Attached) -> bool {
    attached.policy == SnapshotPolicy::DiscardState && attached.function.blocks_snapshot().is_some()
}
