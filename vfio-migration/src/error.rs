//! What went wrong, and in what condition that left the device.
//!
//! A [`Failure`] carries the first error; recovery never replaces it. Its [`Outcome`] tells the
//! owner what recovery achieved, above all whether the device was reset: then PCI_COMMAND and the
//! interrupts are to be set up again before the guest uses the device.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;

use crate::state::MigState;
use crate::stream::StreamError;

/// An operation on one device that did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// VFIO_DEVICE_FEATURE_MIGRATION could not be asked.
    #[error("cannot ask the kernel whether it supports migration")]
    Probe {
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A GET failed.
    #[error("cannot ask the kernel for its migration state")]
    QueryState {
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A SET failed.
    #[error("cannot move it from {from} to {to}")]
    Transition {
        /// Where it was.
        from: MigState,
        /// Where it should have gone.
        to: MigState,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A SET succeeded and gave no data descriptor.
    #[error("the kernel moved it to {to} without giving a data file")]
    NoDataFile {
        /// Where it should have gone.
        to: MigState,
    },
    /// The device is in a state from which the operation does not start.
    #[error("{operation} is not possible while it is in {found}")]
    WrongState {
        /// What was attempted.
        operation: &'static str,
        /// The state the kernel named.
        found: MigState,
    },
    /// The device left a state that this process had put it in.
    #[error("it was reset from outside this process while it was in {expected}")]
    ResetFromOutside {
        /// The state it was left in.
        expected: MigState,
    },
    /// The stream of a save broke off.
    #[error("cannot save its state")]
    Save(#[source] StreamError),
    /// The stream of a load broke off.
    #[error("cannot load its state")]
    Load(#[source] StreamError),
}

/// The condition a failed operation left a device in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// Nothing was changed.
    Untouched,
    /// The device is intact, in this state.
    Recovered {
        /// The state it is in.
        state: MigState,
    },
    /// The device was reset: RUNNING, its state lost, PCI_COMMAND and interrupts to be restored.
    WasReset,
    /// Nothing helped; the device must not be used.
    Lost(LostCause),
}

/// Why a device could not be brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LostCause {
    /// VFIO_DEVICE_RESET failed.
    #[error("its reset failed: {}", io::Error::from_raw_os_error(*errno))]
    ResetFailed {
        /// The kernel's answer.
        errno: i32,
    },
    /// The reset succeeded and the device is still not RUNNING.
    #[error("it is in {state} after a reset")]
    StillIn {
        /// The state it is in.
        state: MigState,
    },
    /// The reset succeeded and the device does not tell its state.
    #[error("it does not tell its state after a reset: {}", io::Error::from_raw_os_error(*errno))]
    Silent {
        /// The kernel's answer.
        errno: i32,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untouched => f.write_str("nothing was changed"),
            Self::Recovered { state } => write!(f, "it is intact in {state}"),
            Self::WasReset => f.write_str(
                "it was reset and lost its state: restore its PCI command and interrupts",
            ),
            Self::Lost(cause) => write!(
                f,
                "{cause}: remove it from the VM and bind its driver anew before using it again"
            ),
        }
    }
}

/// An operation on one device failed; what failed first, and how the device is now.
#[derive(Debug)]
pub struct Failure {
    /// The id of the device.
    pub device: Arc<str>,
    /// What failed first.
    pub error: Error,
    /// What recovery made of it.
    pub outcome: Outcome,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "device {}: {} ({})",
            self.device, self.error, self.outcome
        )
    }
}

impl StdError for Failure {
    // The message already holds the text of `error`, so the chain goes on below it.
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.source()
    }
}
