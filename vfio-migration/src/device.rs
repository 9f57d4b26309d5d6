//! What the protocol needs of a device: the seam between the sessions and the kernel.
//!
//! [`KernelDevice`](crate::KernelDevice) implements it over a VFIO device descriptor; the scripted
//! device of the `testing` feature over a model that fails where a test wants. Errors are
//! [`io::Error`] with the kernel's errno kept, since recovery depends on it. There are no default
//! bodies: an implementation decides about every call.

use std::io;
use std::time::Duration;

use crate::state::{MigFlags, MigState};

/// Requests to one device, each one ioctl.
///
/// Every method may be called in any state. None of them may be called from a thread that must
/// stay responsive: drivers wait for firmware inside.
pub trait MigrationIo: Send + Sync {
    /// Asks what the device can do; `None` when it has no migration v2 (ENOTTY or EINVAL).
    ///
    /// # Errors
    /// Any other errno.
    fn probe(&self) -> io::Result<Option<MigFlags>>;

    /// Asks for the present state.
    ///
    /// # Errors
    /// The errno, or `InvalidData` for a state number that is not known.
    fn get_state(&self) -> io::Result<MigState>;

    /// Moves the device to `target`; returns the data descriptor if the last hop opened one.
    ///
    /// # Errors
    /// The errno. The device may then be in the old state, in any state on the way, in `target`
    /// without a reachable descriptor, or in ERROR: ask with [`MigrationIo::get_state`].
    fn set_state(&self, target: MigState) -> io::Result<Option<Box<dyn DataFd>>>;

    /// Estimates the length in bytes of a STOP_COPY stream; may be wrong in both directions.
    ///
    /// # Errors
    /// The errno; ENOTTY where the kernel has no estimate.
    fn data_size(&self) -> io::Result<u64>;

    /// Resets the device: it is RUNNING afterwards and its state is gone.
    ///
    /// # Errors
    /// The errno; EAGAIN while someone else holds the device's lock, EINVAL if it cannot reset.
    fn reset(&self) -> io::Result<()>;

    /// Whether the device itself can log the pages it writes by DMA.
    ///
    /// # Errors
    /// Any errno but ENOTTY and EINVAL, which mean no.
    fn has_dma_logging(&self) -> io::Result<bool>;

    /// Starts to log writes to `ranges`; returns the page size in bytes that the device uses.
    ///
    /// # Errors
    /// The errno.
    fn dma_logging_start(&self, page_size: u64, ranges: &[IovaRange]) -> io::Result<u64>;

    /// Sets a bit for each page of `range` written since the last report, and clears the log.
    ///
    /// Bits are only ever set: clear `bitmap` first. Bit n of word n / 64 is page n from
    /// `range.iova`.
    ///
    /// # Errors
    /// The errno, or `InvalidInput` when `bitmap` is too short for the range.
    fn dma_logging_report(
        &self,
        range: IovaRange,
        page_size: u64,
        bitmap: &mut [u64],
    ) -> io::Result<()>;

    /// Stops the log.
    ///
    /// # Errors
    /// The errno.
    fn dma_logging_stop(&self) -> io::Result<()>;
}

/// The data descriptor of a session: one direction, a stream, dead once the session is over.
///
/// Dropping it closes it, which does not end the session.
pub trait DataFd: Send {
    /// Reads device state. In STOP_COPY 0 means the end; less than asked for is normal.
    ///
    /// # Errors
    /// The errno. EINTR, EAGAIN and ENOMSG lose nothing; any other ends the session.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize>;

    /// Writes saved state; returns how much was taken.
    ///
    /// # Errors
    /// The errno. The driver may have consumed bytes before it failed: never try again.
    fn write(&mut self, buf: &[u8]) -> io::Result<usize>;

    /// Waits until a read could make progress; false when `timeout` passed. Most drivers do not
    /// implement poll and are always ready.
    ///
    /// # Errors
    /// The errno of poll.
    fn wait_readable(&self, timeout: Duration) -> io::Result<bool>;

    /// Asks what is left to read in PRE_COPY; on mlx5 this also triggers the next increment.
    ///
    /// # Errors
    /// The errno; EINVAL outside PRE_COPY and PRE_COPY_P2P.
    fn precopy_info(&self) -> io::Result<PrecopyInfo>;
}

/// What a device still has to offer before it is stopped; neither number bounds STOP_COPY.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrecopyInfo {
    /// Bytes of the first part that should be read before the device is stopped.
    pub initial_bytes: u64,
    /// Bytes that changed since they were read; rises and falls.
    pub dirty_bytes: u64,
}

/// A range of addresses as the device sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IovaRange {
    /// First address.
    pub iova: u64,
    /// Length in bytes.
    pub length: u64,
}

impl IovaRange {
    /// The address after the last one, or `None` if the range wraps around.
    #[must_use]
    pub fn end(&self) -> Option<u64> {
        self.iova.checked_add(self.length)
    }
}
