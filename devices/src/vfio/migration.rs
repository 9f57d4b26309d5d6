//! Sleep and wake of passed-through functions, in terms of the migration protocol.
//!
//! The machine calls [`pause`] and [`resume`] with all of its functions while the vCPUs are parked. From before the first device
//! is quiesced until the last one runs again, nothing in this process touches a BAR. Whatever the protocol had to reset is set
//! up again here ([`VfioFunction::fix_up`]), so that callers need not know. Whether a device can migrate was asked of the kernel
//! when it was opened and is in no snapshot.

use std::io::{Read, Write};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

use dormouse_vfio_migration::group::{self, GroupError, PeerDma};
use dormouse_vfio_migration::{MigratableDevice, Outcome, StreamControl};
use thiserror::Error as ThisError;

use super::error::Error;
use super::function::VfioFunction;

/// Why a VM with this device cannot be saved.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
pub enum SnapshotBlock {
    /// Its state cannot be read, but may be discarded.
    #[error(
        "device {device} cannot save its state: its driver has no VFIO migration support; bind it to its vendor's VFIO driver (for instance mlx5_vfio_pci), or let its state be lost with \"snapshot\": \"discard-state\""
    )]
    NoMigration {
        /// The device.
        device: Arc<str>,
    },
    /// Its state can be neither read nor discarded: after waking it could go on where it was.
    #[error(
        "device {device} cannot save its state, since its driver has no VFIO migration support, and \"discard-state\" is not possible, since the kernel cannot reset it and it would go on writing guest RAM after waking; bind it to its vendor's VFIO driver (for instance mlx5_vfio_pci), or remove it from the VM"
    )]
    NoReset {
        /// The device.
        device: Arc<str>,
    },
    /// Its state can be neither read nor discarded: nothing keeps it from DMA while RAM is saved.
    #[error(
        "mediated device {device} cannot save its state, since its driver has no VFIO migration support, and \"discard-state\" is not possible, since nothing keeps a mediated device from writing guest RAM while it is saved; use a newer driver of its parent device, or remove it from the VM"
    )]
    Mediated {
        /// The device.
        device: Arc<str>,
    },
}

impl SnapshotBlock {
    /// Whether the VM can be saved if the device's state may be lost.
    #[must_use]
    pub fn allows_discarding(&self) -> bool {
        matches!(self, Self::NoMigration { .. })
    }
}

impl VfioFunction {
    /// Why the VM cannot be saved with this device, if that is so.
    #[must_use]
    pub fn blocks_snapshot(&self) -> Option<SnapshotBlock> {
        if self.migratable().is_some() {
            return None;
        }
        let device = Arc::clone(self.name());
        Some(if self.hardware.host().is_mediated() {
            SnapshotBlock::Mediated { device }
        } else if !self.was_reset {
            SnapshotBlock::NoReset { device }
        } else {
            SnapshotBlock::NoMigration { device }
        })
    }

    /// Refuses a device that shall be used without the state that it had when the VM was saved, and could not be reset. Its queues
    /// may be live, and must not get bus mastering.
    ///
    /// # Errors
    /// [`Error::NotBlank`].
    pub fn check_blank(&self) -> Result<(), Error> {
        if self.was_reset {
            return Ok(());
        }
        let device = Arc::clone(self.name());
        Err(Error::NotBlank { device })
    }

    /// The kernel's estimate of the state's length in bytes, for progress.
    #[must_use]
    pub fn estimated_size(&self) -> Option<u64> {
        self.migratable()
            .as_ref()
            .and_then(MigratableDevice::estimated_size)
    }

    /// Copies the state of the paused device to `sink`; returns its length in bytes. The device is stopped afterwards.
    ///
    /// # Errors
    /// When the device or the sink fails. The device can be resumed nevertheless, unless the error says that it is lost.
    pub fn save_stream(
        &self,
        sink: &mut dyn Write,
        control: &mut StreamControl<'_>,
    ) -> Result<u64, Error> {
        let mut migration = self.migratable();
        let device = migration.as_mut().ok_or_else(|| self.not_migratable())?;
        let saved = device
            .begin_saving()
            .and_then(|saving| saving.stream_to(sink, control));
        drop(migration);
        Ok(saved.inspect_err(|failure| self.settle(failure.outcome))?)
    }

    /// Loads a state of `length` bytes into the device and sets it up, all before it may run. It then waits for [`resume`].
    /// Returns when the fix-ups, which come last, began.
    ///
    /// # Errors
    /// When the device refuses the state or one of the fix-ups: it has then been reset.
    pub fn load(
        &self,
        source: &mut dyn Read,
        length: u64,
        control: &mut StreamControl<'_>,
    ) -> Result<Instant, Error> {
        let mut migration = self.migratable();
        let device = migration.as_mut().ok_or_else(|| self.not_migratable())?;
        let loaded = device.begin_resuming()?.load(source, length, control)?;
        let fix_up = Instant::now();
        // On failure `loaded` is dropped, which resets the device: it must not run half set up.
        self.fix_up()?;
        loaded.keep();
        self.state_lost.store(false, Ordering::Relaxed);
        Ok(fix_up)
    }

    /// Gives up a restore that failed elsewhere: the device runs again, for whoever opens it next.
    pub fn abandon(&self) {
        if let Some(device) = &mut *self.migratable() {
            let outcome = device.abandon();
            tracing::debug!("{}: abandoned: {outcome}", self.name());
        }
    }

    /// Lets the BARs be touched again after the device runs, and makes sure that no level interrupt was lost.
    fn resumed(&self) {
        self.hardware.set_quiet(false);
        let set_up_anew = self.set_up_anew.swap(false, Ordering::Relaxed);
        self.interrupts.resumed(set_up_anew);
        if self.has_lost_state() {
            tracing::warn!(
                "{}: runs after a reset, without the state that it had: the guest's driver has to recover from that",
                self.name()
            );
        }
    }

    fn not_migratable(&self) -> Error {
        Error::NotMigratable {
            device: Arc::clone(self.name()),
        }
    }

    /// Remembers what recovery made of the device, and sets up again one that was reset.
    fn settle(&self, outcome: Outcome) {
        match outcome {
            Outcome::Untouched | Outcome::Recovered { .. } => {}
            Outcome::Lost(_) => self.state_lost.store(true, Ordering::Relaxed),
            Outcome::WasReset => {
                self.state_lost.store(true, Ordering::Relaxed);
                self.set_up_again();
            }
        }
    }

    /// The failure that led here is what the caller is told; this one can only go to the log.
    fn set_up_again(&self) {
        if let Err(error) = self.fix_up() {
            self.hardware.report(&error);
        }
    }

    fn migratable(&self) -> MutexGuard<'_, Option<MigratableDevice>> {
        // No code panics while it holds the lock.
        self.migration
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refuses functions that cannot be paused together.
///
/// # Errors
/// [`GroupError::NoPeerToPeer`].
pub fn check_pausable(functions: &[&VfioFunction], peer_dma: PeerDma) -> Result<(), GroupError> {
    with_devices(functions, |devices| {
        group::check_peer_dma(devices, peer_dma)
    })
}

/// Stops all migratable functions of a VM, whose vCPUs are parked. Others keep running, untouched.
///
/// # Errors
/// When a device fails: all run again, and those that had to be reset are set up again.
pub fn pause(functions: &[&VfioFunction], peer_dma: PeerDma) -> Result<(), GroupError> {
    for function in functions {
        function.hardware.set_quiet(true);
    }
    let paused = with_devices(functions, |devices| group::pause(devices, peer_dma));
    paused.inspect_err(|error| {
        settle_all(functions, error);
        for function in functions {
            function.resumed();
        }
    })
}

/// Lets all functions of a VM run; the vCPUs may follow.
///
/// # Errors
/// When a device fails: those that can are stopped again, and those that had to be reset are set up again.
pub fn resume(functions: &[&VfioFunction], peer_dma: PeerDma) -> Result<(), GroupError> {
    with_devices(functions, |devices| group::resume(devices, peer_dma))
        .inspect_err(|error| settle_all(functions, error))?;
    for function in functions {
        function.resumed();
        // After a wake those BARs are left that did not answer when they were saved.
        function.layout.follow();
    }
    Ok(())
}

/// Runs `work` on the migratable ones. Only the machine's thread locks more than one.
fn with_devices<T>(
    functions: &[&VfioFunction],
    work: impl FnOnce(&mut [&mut MigratableDevice]) -> T,
) -> T {
    let mut guards: Vec<_> = functions
        .iter()
        .map(|function| function.migratable())
        .collect();
    let mut devices: Vec<_> = guards
        .iter_mut()
        .filter_map(|guard| guard.as_mut())
        .collect();
    work(&mut devices)
}

/// Settles the devices that a failed group operation names, above all those that were reset.
fn settle_all(functions: &[&VfioFunction], error: &GroupError) {
    let GroupError::Device(group) = error else {
        return;
    };
    let failed = std::iter::once((&group.failure.device, group.failure.outcome));
    let others = group
        .others
        .iter()
        .map(|(device, outcome)| (device, *outcome));
    for (device, outcome) in failed.chain(others) {
        let named = functions
            .iter()
            .filter(|function| function.name() == device);
        named.for_each(|function| function.settle(outcome));
    }
}
