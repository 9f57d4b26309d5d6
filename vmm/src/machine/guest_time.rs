//! The clocks of a guest that stands still: where they stopped, and how they go on from there.
//!
//! kvm-clock and the time stamp counter run on in KVM while no vCPU does. Both are read when the last vCPU has parked, and put
//! back just before the first one runs again, so that for the guest no time has passed, whichever of them it goes by.

use super::Machine;
use super::paused::Error;
use crate::kvm::VcpuState;

/// Where a guest's clocks stopped.
#[derive(Debug, Clone)]
pub struct GuestTime {
    /// kvm-clock, in nanoseconds since the guest's start.
    pub(super) clock_ns: u64,
    /// Time stamp counters, by vCPU.
    pub(super) tsc: Vec<u64>,
}

impl GuestTime {
    /// The time in a snapshot.
    pub(super) fn saved(clock_ns: u64, vcpus: &[VcpuState]) -> Self {
        Self {
            clock_ns,
            tsc: vcpus.iter().filter_map(VcpuState::tsc).collect(),
        }
    }
}

impl Machine {
    /// Reads the clocks of parked vCPUs, and tells the guest that it was stopped.
    pub(super) fn stop_time(&self) -> Result<GuestTime, Error> {
        let clock_ns = self.frame.vm.clock_ns().map_err(Error::Clock)?;
        let tsc = self
            .on_all_vcpus(|vcpu| {
                vcpu.announce_pause();
                vcpu.tsc()
            })
            .map_err(Error::Vcpu)?;
        let tsc = tsc.into_iter().collect::<Result<_, _>>();
        Ok(GuestTime {
            clock_ns,
            tsc: tsc.map_err(Error::Clock)?,
        })
    }

    /// Lets the clocks go on from `time`. The vCPUs are parked.
    pub(super) fn continue_time(&self, time: &GuestTime) -> Result<(), Error> {
        if let (Some(first), Some(&stopped)) = (self.vcpus.first(), time.tsc.first()) {
            let now = first.begin_call(|vcpu| vcpu.tsc()).map_err(Error::Vcpu)?;
            let now = now.recv().map_err(|_| Error::Vcpu(first.gone()))?;
            let ticks = now.map_err(Error::Clock)?.wrapping_sub(stopped);
            // The same for all, so that they stay in step.
            let moved = self
                .on_all_vcpus(move |vcpu| vcpu.move_tsc_back(ticks))
                .map_err(Error::Vcpu)?;
            for moved in moved {
                if !moved.map_err(Error::Clock)? {
                    tracing::debug!("this host's KVM cannot put a time stamp counter back");
                    break;
                }
            }
        }
        self.frame
            .vm
            .set_clock_ns(time.clock_ns)
            .map_err(Error::Clock)
    }
}
