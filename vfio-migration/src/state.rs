//! The migration state machine as the kernel walks it, pure.
//!
//! Source: `enum vfio_device_mig_state` in `linux/vfio.h` and `vfio_mig_get_next_state()` in
//! `drivers/vfio/vfio_main.c`. A SET may name any state: the kernel takes one hop after another
//! until it arrives, skipping states that the device lacks. Recovery uses this to know whether a
//! target can be reached at all; the scripted device uses it to walk as the kernel would.

use std::fmt;

use vfio_bindings::bindings::vfio;

/// A migration state of a device, numbered as in the kernel header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum MigState {
    /// The device failed; only a reset leads out.
    Error = vfio::vfio_device_mig_state_VFIO_DEVICE_STATE_ERROR,
    /// The device does nothing and changes nothing.
    Stop = vfio::vfio_device_mig_state_VFIO_DEVICE_STATE_STOP,
    /// Normal operation.
    Running = vfio::vfio_device_mig_state_VFIO_DEVICE_STATE_RUNNING,
    /// Stopped; its state is being read.
    StopCopy = vfio::vfio_device_mig_state_VFIO_DEVICE_STATE_STOP_COPY,
    /// Stopped; a saved state is being written to it.
    Resuming = vfio::vfio_device_mig_state_VFIO_DEVICE_STATE_RESUMING,
    /// Answers peer-to-peer DMA and starts none.
    RunningP2p = vfio::vfio_device_mig_state_VFIO_DEVICE_STATE_RUNNING_P2P,
    /// Running; its state is being read in advance.
    PreCopy = vfio::vfio_device_mig_state_VFIO_DEVICE_STATE_PRE_COPY,
    /// As [`MigState::RunningP2p`], with the state being read in advance.
    PreCopyP2p = vfio::vfio_device_mig_state_VFIO_DEVICE_STATE_PRE_COPY_P2P,
}

impl MigState {
    /// Every state, in the order of the kernel's numbers.
    pub const ALL: [Self; 8] = [
        Self::Error,
        Self::Stop,
        Self::Running,
        Self::StopCopy,
        Self::Resuming,
        Self::RunningP2p,
        Self::PreCopy,
        Self::PreCopyP2p,
    ];

    /// The name in the kernel header, without its prefix.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Stop => "STOP",
            Self::Running => "RUNNING",
            Self::StopCopy => "STOP_COPY",
            Self::Resuming => "RESUMING",
            Self::RunningP2p => "RUNNING_P2P",
            Self::PreCopy => "PRE_COPY",
            Self::PreCopyP2p => "PRE_COPY_P2P",
        }
    }

    /// Position in [`NEXT_HOP`]; ERROR has no row and no column there.
    fn position(self) -> Option<usize> {
        match self {
            Self::Stop => Some(0),
            Self::Running => Some(1),
            Self::PreCopy => Some(2),
            Self::PreCopyP2p => Some(3),
            Self::StopCopy => Some(4),
            Self::Resuming => Some(5),
            Self::RunningP2p => Some(6),
            Self::Error => None,
        }
    }
}

impl fmt::Display for MigState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<MigState> for u32 {
    fn from(state: MigState) -> Self {
        state as Self
    }
}

/// A state number that this version of the protocol does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel names migration state {0}, which this version does not know")]
pub struct UnknownState(pub u32);

impl TryFrom<u32> for MigState {
    type Error = UnknownState;

    fn try_from(number: u32) -> Result<Self, UnknownState> {
        Self::ALL
            .into_iter()
            .find(|state| u32::from(*state) == number)
            .ok_or(UnknownState(number))
    }
}

bitflags::bitflags! {
    /// What a device can do, as VFIO_DEVICE_FEATURE_MIGRATION reports it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MigFlags: u64 {
        /// STOP, STOP_COPY and RESUMING exist; without it there is no migration.
        const STOP_COPY = vfio::VFIO_MIGRATION_STOP_COPY as u64;
        /// RUNNING_P2P exists.
        const P2P = vfio::VFIO_MIGRATION_P2P as u64;
        /// PRE_COPY exists, and with P2P also PRE_COPY_P2P.
        const PRE_COPY = vfio::VFIO_MIGRATION_PRE_COPY as u64;
    }
}

impl MigFlags {
    /// Whether a device with these flags has `state` (ERROR is no state anyone may name).
    #[must_use]
    pub fn supports(self, state: MigState) -> bool {
        let needed = match state {
            MigState::Error => return false,
            MigState::Stop | MigState::Running | MigState::StopCopy | MigState::Resuming => {
                Self::STOP_COPY
            }
            MigState::RunningP2p => Self::STOP_COPY | Self::P2P,
            MigState::PreCopy => Self::STOP_COPY | Self::PRE_COPY,
            MigState::PreCopyP2p => Self::all(),
        };
        self.contains(needed)
    }
}

const S: Option<MigState> = Some(MigState::Stop);
const R: Option<MigState> = Some(MigState::Running);
const PC: Option<MigState> = Some(MigState::PreCopy);
const PP: Option<MigState> = Some(MigState::PreCopyP2p);
const SC: Option<MigState> = Some(MigState::StopCopy);
const RS: Option<MigState> = Some(MigState::Resuming);
const RP: Option<MigState> = Some(MigState::RunningP2p);
const NO: Option<MigState> = None;

/// `vfio_from_fsm_table`: row is where the device is, column where it should go.
#[rustfmt::skip]
const NEXT_HOP: [[Option<MigState>; 7]; 7] = [
    //        S   R   PC  PP  SC  RS  RP
    /* S  */ [S,  RP, RP, RP, SC, RS, RP],
    /* R  */ [RP, R,  PC, RP, RP, RP, RP],
    /* PC */ [R,  R,  PC, PP, PP, R,  R ],
    /* PP */ [RP, RP, PC, PP, SC, RP, RP],
    /* SC */ [S,  S,  NO, NO, SC, S,  S ],
    /* RS */ [S,  S,  S,  S,  S,  RS, S ],
    /* RP */ [S,  R,  R,  PP, S,  S,  RP],
];

/// The next state on the way, or `None` where the kernel answers EINVAL and changes nothing.
///
/// From a state to itself the answer is that state: such a SET is a successful no-op.
#[must_use]
pub fn next_hop(from: MigState, to: MigState, flags: MigFlags) -> Option<MigState> {
    if !flags.supports(from) || !flags.supports(to) {
        return None;
    }
    let column = to.position()?;
    let mut hop = from;
    // Two optional states in a row is the most the table holds; the bound is for its readers.
    for _ in 0..NEXT_HOP.len() {
        hop = NEXT_HOP[hop.position()?][column]?;
        if flags.supports(hop) {
            return Some(hop);
        }
    }
    None
}

/// All states that one SET passes, the last being `to`; empty when already there.
///
/// `None` where the kernel refuses the request.
#[must_use]
pub fn path(from: MigState, to: MigState, flags: MigFlags) -> Option<Vec<MigState>> {
    let mut hops = Vec::new();
    let mut at = from;
    while hops.len() <= NEXT_HOP.len() {
        let hop = next_hop(at, to, flags)?;
        if hop == at {
            return Some(hops);
        }
        hops.push(hop);
        at = hop;
    }
    None
}

/// What one hop does to the data file descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdEffect {
    /// No session before and none after.
    None,
    /// A new descriptor to read the device's state from.
    NewReader,
    /// A new descriptor to write a saved state to.
    NewWriter,
    /// The descriptor of before goes on.
    Continues,
    /// The session is over: the descriptor answers ENODEV from now on.
    Ends,
}

impl FdEffect {
    /// The effect of the single hop `from` → `to`; [`FdEffect::None`] for what is no hop.
    #[must_use]
    pub fn of_hop(from: MigState, to: MigState) -> Self {
        use MigState::{PreCopy, PreCopyP2p, Resuming, Running, RunningP2p, Stop, StopCopy};
        match (from, to) {
            (Stop, StopCopy) | (Running, PreCopy) | (RunningP2p, PreCopyP2p) => Self::NewReader,
            (Stop, Resuming) => Self::NewWriter,
            (PreCopy, PreCopyP2p | StopCopy) | (PreCopyP2p, PreCopy | StopCopy) => Self::Continues,
            (StopCopy | Resuming, Stop) | (PreCopy, Running) | (PreCopyP2p, RunningP2p) => {
                Self::Ends
            }
            _ => Self::None,
        }
    }
}

#[cfg(test)]
mod tests;
