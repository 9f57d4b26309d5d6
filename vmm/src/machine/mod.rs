//! One machine: what the guest sees, from its creation to power-off. A guest reset drops the machine and builds a new one.
//!
//! Fields are dropped in order: vCPU threads first, so that nothing runs guest code or touches a device any more when the devices,
//! then the VM descriptor and last the RAM behind it go.

mod build;
mod frame;
mod function_source;
mod guest_time;
mod on_each;
mod passthrough;
mod paused;
mod platform;
mod restore;
mod save;
mod state;
mod timed_migration;
mod timeline;
mod topology;

use std::sync::Arc;

pub use build::{Error as BuildError, Host};
pub use frame::BusState;
pub use function_source::{FunctionHost, FunctionSource, KernelFunctions, OpenFunction};
pub use passthrough::Attached;
pub use paused::{Error as PauseError, PausedMachine, Refused};
pub use restore::{Error as RestoreError, Options as RestoreOptions, Verified as VerifiedSnapshot};
pub use save::Error as SaveError;
pub use timeline::Stopwatch;
pub use topology::Processors;

use platform::Platform;

use frame::Frame;
use passthrough::Passthrough;

use crate::kvm::Vcpu;
use crate::vcpu_thread::{Error as VcpuError, ExitCounters, VcpuThread};

/// A machine with its vCPU threads.
pub struct Machine {
    vcpus: Vec<VcpuThread>,
    passthrough: Passthrough,
    platform: Platform,
    counters: Arc<ExitCounters>,
    stopwatch: Stopwatch,
    frame: Frame,
}

impl Machine {
    /// Lets all vCPUs run.
    ///
    /// # Errors
    /// When a vCPU thread has died.
    pub fn start(&self) -> Result<(), VcpuError> {
        self.vcpus.iter().try_for_each(VcpuThread::run)
    }

    /// Gets all vCPUs out of the guest and waits until each is parked.
    fn park_vcpus(&self) -> Result<(), VcpuError> {
        self.vcpus.iter().for_each(VcpuThread::request_park);
        self.on_all_vcpus(|_| ()).map(drop)
    }

    /// Runs `work` on every vCPU in its own thread, all at once, and waits for the answers. The vCPUs are parked or about to be.
    fn on_all_vcpus<R: Send + 'static>(
        &self,
        work: impl Fn(&mut Vcpu) -> R + Clone + Send + 'static,
    ) -> Result<Vec<R>, VcpuError> {
        let begun = self
            .vcpus
            .iter()
            .map(|vcpu| Ok((vcpu, vcpu.begin_call(work.clone())?)))
            .collect::<Result<Vec<_>, _>>()?;
        begun
            .into_iter()
            .map(|(vcpu, answer)| answer.recv().map_err(|_| vcpu.gone()))
            .collect()
    }

    /// Presses the guest's power button.
    pub fn press_power_button(&self) {
        self.platform.acpi_pm.press_power_button();
    }

    /// The passed-through functions.
    #[must_use]
    pub fn functions(&self) -> &[Attached] {
        self.passthrough.functions()
    }

    /// Guest exits to the VMM so far.
    #[must_use]
    pub fn counters(&self) -> &Arc<ExitCounters> {
        &self.counters
    }

    /// Bytes of guest RAM.
    #[must_use]
    pub fn ram_bytes(&self) -> u64 {
        self.frame.ram.size()
    }
}
