//! Pauses and resumes all devices of a VM together, in two phases.
//!
//! In RUNNING_P2P a device answers peer-to-peer DMA and starts none. So on pause every device goes
//! to RUNNING_P2P, and only when all are there any goes to STOP; on resume the same backwards
//! (`linux/vfio.h`, "peer to peer"). The phases never interleave. When a device fails, those that
//! moved go back, through RUNNING_P2P again, and the VM is left as it was.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Failure, Outcome};
use crate::migratable::MigratableDevice;
use crate::state::{MigFlags, MigState};

/// Whether devices can reach each other's BARs by DMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerDma {
    /// BARs are mapped into an IOMMU domain: several devices all need RUNNING_P2P.
    Possible,
    /// No BAR is mapped for DMA: devices may be stopped one after another.
    Impossible,
}

/// Why a group could not be paused or resumed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// A device cannot be stopped safely beside others. Nothing was changed.
    #[error(
        "device {device} has no RUNNING_P2P state and cannot be stopped safely beside {others} \
         other device(s) that may access it: pass it through alone, or turn off peer-to-peer DMA"
    )]
    NoPeerToPeer {
        /// The id of the device.
        device: Arc<str>,
        /// How many other devices there are.
        others: usize,
    },
    /// A device failed; those that had moved were brought back.
    #[error(transparent)]
    Device(Box<GroupFailure>),
}

/// One device failed while a group was moved.
#[derive(Debug)]
pub struct GroupFailure {
    /// "pausing" or "resuming".
    pub operation: &'static str,
    /// The step of it.
    pub phase: Phase,
    /// What failed first, on which device, and how that device is now.
    pub failure: Failure,
    /// The other devices that had moved, and how they are now.
    pub others: Vec<(Arc<str>, Outcome)>,
}

/// A step of a group operation; each is complete for all devices before the next begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Every device is asked where it is; nothing moves, but one that cannot go on is reset.
    Check,
    /// Every device that can goes to RUNNING_P2P.
    Quiesce,
    /// Every device goes to STOP, or to RUNNING.
    Settle,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Check => "check",
            Self::Quiesce => "RUNNING_P2P",
            Self::Settle => "last",
        })
    }
}

impl fmt::Display for GroupFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            operation,
            phase,
            failure,
            others,
        } = self;
        write!(
            f,
            "{operation} the devices failed in the {phase} phase: {failure}"
        )?;
        for (device, outcome) in others {
            write!(f, "; device {device}: {outcome}")?;
        }
        Ok(())
    }
}

impl StdError for GroupFailure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.failure.source()
    }
}

/// A direction of travel.
struct Journey {
    operation: &'static str,
    starts: &'static [MigState],
    goal: MigState,
    home: MigState,
    /// A device that is found elsewhere is reset, since nothing else would ever let the VM run.
    resets_strays: bool,
}

const PAUSE: Journey = Journey {
    operation: "pausing",
    starts: &[MigState::Running, MigState::Stop],
    goal: MigState::Stop,
    home: MigState::Running,
    resets_strays: false,
};

/// A device that was reset meanwhile is RUNNING already; one that was restored is in RESUMING.
const RESUME: Journey = Journey {
    operation: "resuming",
    starts: &[MigState::Stop, MigState::Resuming, MigState::Running],
    goal: MigState::Running,
    home: MigState::Stop,
    resets_strays: true,
};

/// Refuses a group in which a device lacks RUNNING_P2P although others could access it.
///
/// # Errors
/// [`GroupError::NoPeerToPeer`].
pub fn check_peer_dma(
    devices: &[&mut MigratableDevice],
    peer_dma: PeerDma,
) -> Result<(), GroupError> {
    if devices.len() < 2 || peer_dma == PeerDma::Impossible {
        return Ok(());
    }
    let lacking = devices.iter().find(|device| !has_p2p(device));
    lacking.map_or(Ok(()), |device| {
        Err(GroupError::NoPeerToPeer {
            device: Arc::clone(device.id()),
            others: devices.len() - 1,
        })
    })
}

/// Brings every device to STOP. The vCPUs are parked and nothing on the host touches BARs.
///
/// # Errors
/// When the group cannot be stopped safely, or a device fails: all are then RUNNING again, except
/// those whose outcome says otherwise.
pub fn pause(devices: &mut [&mut MigratableDevice], peer_dma: PeerDma) -> Result<(), GroupError> {
    travel(&PAUSE, devices, peer_dma)
}

/// Brings every device from STOP, or loaded in RESUMING, to RUNNING. The fix-ups are done.
///
/// # Errors
/// When a device fails: all that moved are then in STOP again, except those whose outcome says
/// otherwise. A device that is in ERROR, silent or astray is reset, so that the next attempt can
/// succeed; nothing else moves then. One that was reset needs its fix-ups before that attempt.
pub fn resume(devices: &mut [&mut MigratableDevice], peer_dma: PeerDma) -> Result<(), GroupError> {
    travel(&RESUME, devices, peer_dma)
}

fn has_p2p(device: &MigratableDevice) -> bool {
    device.flags().contains(MigFlags::P2P)
}

fn travel(
    journey: &Journey,
    devices: &mut [&mut MigratableDevice],
    peer_dma: PeerDma,
) -> Result<(), GroupError> {
    check_peer_dma(devices, peer_dma)?;
    check(journey, devices)?;
    let mut moved = vec![false; devices.len()];
    for phase in [Phase::Quiesce, Phase::Settle] {
        for index in 0..devices.len() {
            let device = &mut devices[index];
            let target = match phase {
                _ if device.last_known() == journey.goal => continue,
                Phase::Settle => journey.goal,
                _ if has_p2p(device) => MigState::RunningP2p,
                _ => continue,
            };
            moved[index] = true;
            if let Err(error) = device.set(target) {
                return Err(roll_back(journey, devices, &moved, index, phase, error));
            }
        }
    }
    Ok(())
}

/// Asks every device where it is. On resume all are asked, so that one attempt resets all strays.
fn check(journey: &Journey, devices: &mut [&mut MigratableDevice]) -> Result<(), GroupError> {
    let mut first = None;
    let mut others = Vec::new();
    for device in devices.iter_mut() {
        let Err(mut failure) = device.expect_state(journey.operation, journey.starts) else {
            continue;
        };
        if journey.resets_strays && failure.outcome == Outcome::Untouched {
            failure.outcome = device.reset();
        }
        match &first {
            None => first = Some(failure),
            Some(_) => others.push((failure.device, failure.outcome)),
        }
        if !journey.resets_strays {
            break;
        }
    }
    first.map_or(Ok(()), |failure| {
        Err(group_error(journey, Phase::Check, failure, others))
    })
}

/// Brings the devices that moved back to where the journey began, in phases as well.
fn roll_back(
    journey: &Journey,
    devices: &mut [&mut MigratableDevice],
    moved: &[bool],
    failed: usize,
    phase: Phase,
    error: Error,
) -> GroupError {
    let mut outcomes: Vec<Option<Outcome>> = vec![None; devices.len()];
    if phase == Phase::Settle {
        for (index, device) in devices.iter_mut().enumerate() {
            let may_be_past = index == failed || device.last_known() == journey.goal;
            if moved[index] && may_be_past && has_p2p(device) {
                outcomes[index] = Some(device.recover(MigState::RunningP2p));
            }
        }
    }
    for (index, device) in devices.iter_mut().enumerate() {
        let beyond_help = matches!(outcomes[index], Some(Outcome::WasReset | Outcome::Lost(_)));
        if moved[index] && !beyond_help {
            outcomes[index] = Some(device.recover(journey.home));
        }
    }
    let outcome = outcomes[failed].unwrap_or(Outcome::Untouched);
    let failure = devices[failed].failure(error, outcome);
    let others = devices
        .iter()
        .zip(outcomes)
        .enumerate()
        .filter(|(index, _)| *index != failed)
        .filter_map(|(_, (device, outcome))| Some((Arc::clone(device.id()), outcome?)))
        .collect();
    group_error(journey, phase, failure, others)
}

fn group_error(
    journey: &Journey,
    phase: Phase,
    failure: Failure,
    others: Vec<(Arc<str>, Outcome)>,
) -> GroupError {
    GroupError::Device(Box::new(GroupFailure {
        operation: journey.operation,
        phase,
        failure,
        others,
    }))
}

#[cfg(test)]
mod tests;
