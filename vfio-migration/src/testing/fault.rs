//! What can go wrong with a scripted device.

use crate::state::MigState;

/// For [`super::ScriptedDevice::inject_times`]: a fault that never goes away.
pub const FOREVER: u32 = u32::MAX;

/// A fault that waits for its moment. Byte positions count from the start of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// A SET that asks for `to` fails after `hops` hops and leaves the device there. With as many
    /// hops as the way has, the device arrives and only the descriptor is missing.
    Set {
        /// The state asked for.
        to: MigState,
        /// Hops that succeed.
        hops: usize,
        /// The answer.
        errno: i32,
    },
    /// As [`Fault::Set`], and the device falls into ERROR.
    SetBreaks {
        /// The state asked for.
        to: MigState,
        /// The answer.
        errno: i32,
    },
    /// A SET that asks for `to` succeeds without a descriptor.
    SetWithoutFd {
        /// The state asked for.
        to: MigState,
    },
    /// A GET fails.
    Get {
        /// The answer.
        errno: i32,
    },
    /// A read at this position fails; earlier reads end there.
    Read {
        /// The position.
        at: u64,
        /// The answer.
        errno: i32,
    },
    /// The device is reset from outside when a read arrives at this position.
    ResetAtRead {
        /// The position.
        at: u64,
    },
    /// A write that holds this position fails, all of it consumed.
    Write {
        /// The position.
        at: u64,
        /// The answer.
        errno: i32,
    },
    /// A write that holds this position is cut short there.
    ShortWrite {
        /// The position.
        at: u64,
    },
    /// A reset fails.
    Reset {
        /// The answer.
        errno: i32,
    },
    /// A reset succeeds and changes nothing.
    IdleReset,
    /// A DMA logging request fails.
    Logging {
        /// "start", "report" or "stop".
        verb: &'static str,
        /// The answer.
        errno: i32,
    },
}
