//! `vm.snapshot` and `vm.restore`: between requests, directories and machines.

use std::sync::Arc;

use dormouse_api::config::{ConfigError, VmConfig};
use dormouse_api::request::{
    DevicePath, MemoryRestoreMode, RestoreRequest, SnapshotRequest, UrlError,
};
use dormouse_api::response::{Operation, Timeline};
use dormouse_api::{ApiError, ErrorStatus};
use thiserror::Error;

use super::requests::{WrongState, failed, refused};
use super::slot::{Slot, Vm};
use super::{Controller, Error as ControllerError};
use crate::machine::{
    Machine, PauseError, RestoreError, RestoreOptions, Stopwatch, VerifiedSnapshot,
};
use crate::memory::{Observer, RestoreMode};
use crate::progress::ActionProgress;
use crate::snapshot::{ReadError, Snapshot};

/// Why a snapshot could not be restored.
#[derive(Debug, Error)]
pub enum Error {
    /// A VM is there already.
    #[error("VM is already created")]
    AlreadyCreated,
    /// The request names no directory.
    #[error("cannot use the snapshot's URL")]
    Url(#[source] UrlError),
    /// The request makes no sense.
    #[error("cannot use the request")]
    Request(#[source] ConfigError),
    /// The directory holds no usable snapshot.
    #[error("cannot use the snapshot")]
    Snapshot(#[source] ReadError),
    /// A new path for a device that the snapshot does not have.
    #[error("the snapshot has no device {id}; its devices are: {known}")]
    UnknownDevice {
        /// The device.
        id: String,
        /// Ids of its devices.
        known: String,
    },
    /// The snapshot's config cannot run here.
    #[error("cannot use the snapshot's config")]
    Config(#[source] ConfigError),
    /// Somebody did not want it any more.
    #[error("it was cancelled while it waited")]
    Cancelled,
    /// The console could not be opened.
    #[error("cannot open the console")]
    Console(#[source] Box<ControllerError>),
    /// The machine could not be restored.
    #[error("cannot restore the VM")]
    Restore(#[source] Box<RestoreError>),
    /// It was restored and did not start.
    #[error("cannot resume the restored VM")]
    Resume(#[source] PauseError),
}

impl Controller {
    pub(super) fn snapshot(&mut self, request: &SnapshotRequest) -> Result<(), ApiError> {
        let attempt = "The VM could not be snapshotted";
        let directory = request
            .directory()
            .map_err(|error| ApiError::action(ErrorStatus::Failed, attempt, &error))?;
        let Some(vm) = &mut self.vm else {
            return Err(refused(attempt, &WrongState::NotRunning));
        };
        let Slot::Paused(paused) = &vm.slot else {
            return Err(refused(attempt, &WrongState::NotPaused));
        };
        let progress = ActionProgress::begin(self.calls.shared(), Operation::Snapshot);
        if progress.is_cancelled() {
            return Err(refused(attempt, &WrongState::Cancelled));
        }
        let timeline = paused
            .snapshot(&directory, &vm.config, &progress)
            .map_err(|error| failed(attempt, &error))?;
        log_timeline(&timeline);
        vm.timeline = Some(timeline);
        self.publish();
        Ok(())
    }

    pub(super) fn restore_request(&mut self, request: &RestoreRequest) -> Result<(), ApiError> {
        let attempt = "The VM could not be restored";
        if request.vfio_fds.is_some() {
            return Err(refused(attempt, &WrongState::VfioDescriptors));
        }
        self.restore(request).map_err(|error| match &error {
            Error::Request(_) | Error::Url(_) => {
                ApiError::action(ErrorStatus::BadRequest, attempt, &error)
            }
            error => failed(attempt, error),
        })
    }

    /// Restores the VM of a snapshot directory; it is paused afterwards, or runs if the request says so.
    ///
    /// # Errors
    /// When there is a VM already, the snapshot cannot be used, or its machine not be built; no VM is left behind then.
    pub fn restore(&mut self, request: &RestoreRequest) -> Result<(), Error> {
        if self.vm.is_some() {
            return Err(Error::AlreadyCreated);
        }
        request.validate().map_err(Error::Request)?;
        let directory = request.directory().map_err(Error::Url)?;
        let stopwatch = Stopwatch::default();
        let snapshot = stopwatch
            .phase("open snapshot", None, |_| 0, || Snapshot::open(&directory))
            .map_err(Error::Snapshot)?;
        let mut config = snapshot.config().clone();
        replace_paths(&mut config, &request.device_paths)?;
        config.memory.prefault |= request.prefault;
        config.validate().map_err(Error::Config)?;

        let outcome = self.restore_machine(snapshot, config, request, stopwatch);
        if outcome.is_err() {
            self.end_machine(Slot::Down);
            self.close_console();
            self.vm = None;
            self.publish();
        }
        outcome
    }

    fn restore_machine(
        &mut self,
        snapshot: Snapshot,
        config: VmConfig,
        request: &RestoreRequest,
        stopwatch: Stopwatch,
    ) -> Result<(), Error> {
        let progress = ActionProgress::begin(self.calls.shared(), Operation::Restore);
        if progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let mode = match request.memory_restore_mode {
            MemoryRestoreMode::Copy => RestoreMode::Eager,
            MemoryRestoreMode::OnDemand => RestoreMode::OnDemand,
        };
        let options = RestoreOptions {
            mode,
            verify: request.verify,
        };
        let failed = |error| Error::Restore(Box::new(error));
        let verified =
            VerifiedSnapshot::check(snapshot, &config, options, &self.host, &progress, stopwatch)
                .map_err(failed)?;
        self.open_console(&config.serial)
            .map_err(|error| Error::Console(Box::new(error)))?;
        let console = self.console.as_ref().map(|open| &open.console);
        let (paused, mut timeline) =
            Machine::restore(verified, &config, &self.host, console, &progress).map_err(failed)?;
        drop(progress);
        let slot = if request.resume {
            match paused.resume() {
                Ok((machine, whole)) => {
                    timeline = whole.unwrap_or(timeline);
                    Slot::Running(machine)
                }
                Err(refusal) => return Err(Error::Resume(refusal.1)),
            }
        } else {
            Slot::Paused(paused)
        };
        log_timeline(&timeline);
        self.vm = Some(Vm {
            config: Arc::new(config),
            slot,
            timeline: Some(timeline),
        });
        self.publish();
        Ok(())
    }
}

/// Gives devices their places on this host.
fn replace_paths(config: &mut VmConfig, paths: &[DevicePath]) -> Result<(), Error> {
    for DevicePath { id, path } in paths {
        let known = || {
            let ids: Vec<_> = config
                .devices
                .iter()
                .filter_map(|device| device.id.as_deref())
                .collect();
            if ids.is_empty() {
                "none".to_owned()
            } else {
                ids.join(", ")
            }
        };
        let known = known();
        let mut devices = config.devices.iter_mut();
        let device = devices
            .find(|device| device.id.as_ref() == Some(id))
            .ok_or_else(|| Error::UnknownDevice {
                id: id.clone(),
                known,
            })?;
        device.path = Some(path.clone());
    }
    Ok(())
}

fn log_timeline(timeline: &Timeline) {
    tracing::info!(
        operation = ?timeline.operation,
        us = timeline.duration_us,
        phases = timeline.phases.len(),
        "done"
    );
}
