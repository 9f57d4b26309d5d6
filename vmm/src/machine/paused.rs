//! A machine that stands still.
//!
//! Only `Machine::pause` makes a `PausedMachine`, and only `PausedMachine` can be saved: what stands still cannot be forged.

use super::Machine;
use crate::kvm;
use crate::vcpu_thread;
use thiserror::Error;

/// Why a machine could not be stopped or started.
#[derive(Debug, Error)]
pub enum Error {
    /// A vCPU thread died.
    #[error("cannot reach the vCPUs")]
    Vcpu(#[source] vcpu_thread::Error),
    /// The guest's clock could not be read or set.
    #[error("cannot keep the guest's clock")]
    Clock(#[source] kvm::Error),
}

/// A machine whose vCPUs are parked and whose devices are stopped.
pub struct PausedMachine {
    machine: Machine,
    /// The guest's clock when the vCPUs stopped; it goes on from here.
    clock_ns: u64,
}

/// A step that failed, and the machine as it was before.
pub type Refused<M> = Box<(M, Error)>;

impl Machine {
    /// Stops the vCPUs, then the devices. When that fails the machine runs on.
    ///
    /// # Errors
    /// The running machine and what could not be stopped.
    pub fn pause(self) -> Result<PausedMachine, Refused<Self>> {
        match self.stop_vcpus() {
            Ok(clock_ns) => Ok(PausedMachine {
                machine: self,
                clock_ns,
            }),
            Err(error) => {
                // A thread that has died is reported by the error; the others go on.
                let _ = self.start();
                Err(Box::new((self, error)))
            }
        }
    }

    fn stop_vcpus(&self) -> Result<u64, Error> {
        self.park_vcpus().map_err(Error::Vcpu)?;
        let clock_ns = self.vm.clock_ns().map_err(Error::Clock)?;
        self.on_all_vcpus(|vcpu| vcpu.announce_pause())
            .map_err(Error::Vcpu)?;
        Ok(clock_ns)
    }
}

impl PausedMachine {
    /// Starts the devices, then the vCPUs. For the guest's clock no time has passed.
    ///
    /// # Errors
    /// The machine, still paused, and what could not be started.
    pub fn resume(self) -> Result<Machine, Refused<Self>> {
        let started = self
            .machine
            .vm
            .set_clock_ns(self.clock_ns)
            .map_err(Error::Clock)
            .and_then(|()| self.machine.start().map_err(Error::Vcpu));
        match started {
            Ok(()) => Ok(self.machine),
            Err(error) => Err(Box::new((self, error))),
        }
    }

    /// The machine, to look at.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }
}
