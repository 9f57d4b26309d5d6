//! A machine that stands still.
//!
//! Only `Machine::pause` and `Machine::restore` make a `PausedMachine`, and only a `PausedMachine` can be saved: what stands still
//! cannot be forged. On the way down the vCPUs stop first and the devices last, on the way up it is the other way round.

use dormouse_api::response::{Operation, Phase, Timeline};
use dormouse_devices::vfio::migration;
use dormouse_vfio_migration::group::GroupError;
use thiserror::Error;

use super::Machine;
use super::guest_time::GuestTime;
use crate::kvm;
use crate::vcpu_thread;

/// Why a machine could not be stopped or started.
#[derive(Debug, Error)]
pub enum Error {
    /// A vCPU thread died.
    #[error("cannot reach the vCPUs")]
    Vcpu(#[source] vcpu_thread::Error),
    /// The guest's clocks could not be read or set.
    #[error("cannot keep the guest's clocks")]
    Clock(#[source] kvm::Error),
    /// A device did not stop.
    #[error("cannot stop the passed-through devices")]
    StopDevices(#[source] GroupError),
    /// A device did not start.
    #[error("cannot start the passed-through devices")]
    StartDevices(#[source] GroupError),
}

/// A machine whose vCPUs are parked and whose migratable devices are stopped.
pub struct PausedMachine {
    pub(super) machine: Machine,
    /// The guest's clocks when the vCPUs stopped; they go on from here.
    pub(super) time: GuestTime,
    /// How the machine was paused, for the timeline of a snapshot.
    pub(super) pause_phases: Vec<Phase>,
    /// How the machine was restored, if it was and has not run since: waking is the end of that story.
    restore_phases: Option<Vec<Phase>>,
}

/// A step that failed, and the machine as it was before.
pub type Refused<M> = Box<(M, Error)>;

impl Machine {
    /// Stops the vCPUs, then the devices. When that fails the machine runs on.
    ///
    /// # Errors
    /// The running machine and what could not be stopped.
    pub fn pause(self) -> Result<PausedMachine, Refused<Self>> {
        self.stopwatch.continue_from(&[]);
        match self.stop() {
            Ok(time) => Ok(PausedMachine {
                pause_phases: self.stopwatch.phases(),
                machine: self,
                time,
                restore_phases: None,
            }),
            Err(error) => {
                // A thread that has died is reported by the error; the others go on.
                let _ = self.start();
                Err(Box::new((self, error)))
            }
        }
    }

    fn stop(&self) -> Result<GuestTime, Error> {
        let functions = self.passthrough.group();
        let peer_dma = self.passthrough.peer_dma();
        migration::check_pausable(&functions, peer_dma).map_err(Error::StopDevices)?;
        let time = self.stopwatch.phase(
            "stop vCPUs",
            None,
            |_| 0,
            || {
                self.park_vcpus().map_err(Error::Vcpu)?;
                self.stop_time()
            },
        )?;
        // Rolls back by itself when a device fails.
        migration::pause(&functions, peer_dma).map_err(Error::StopDevices)?;
        Ok(time)
    }
}

impl PausedMachine {
    /// A machine that was restored; nothing of it has run yet.
    pub(super) fn restored(machine: Machine, time: GuestTime) -> Self {
        Self {
            restore_phases: Some(machine.stopwatch.phases()),
            machine,
            time,
            pause_phases: Vec::new(),
        }
    }

    /// Starts the devices, then the vCPUs. For the guest's clocks no time has passed.
    ///
    /// A machine that was restored also tells the whole timeline of that, waking included.
    ///
    /// # Errors
    /// The machine, still paused, and what could not be started.
    pub fn resume(self) -> Result<(Machine, Option<Timeline>), Refused<Self>> {
        let stopwatch = &self.machine.stopwatch;
        stopwatch.continue_from(self.restore_phases.as_deref().unwrap_or_default());
        match stopwatch.phase("resume", None, |_| 0, || self.start()) {
            Ok(()) => {
                let restored = self.restore_phases.is_some();
                let timeline = restored.then(|| stopwatch.timeline(Operation::Restore));
                Ok((self.machine, timeline))
            }
            Err(error) => Err(Box::new((self, error))),
        }
    }

    fn start(&self) -> Result<(), Error> {
        let machine = &self.machine;
        migration::resume(&machine.passthrough.group(), machine.passthrough.peer_dma())
            .map_err(Error::StartDevices)?;
        machine.continue_time(&self.time)?;
        machine.start().map_err(Error::Vcpu)
    }

    /// The machine, to look at.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }
}
