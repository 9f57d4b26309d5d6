//! A device that supports migration: how it changes state and how it gets out of trouble.
//!
//! Every SET goes through here. After a failed SET the kernel is asked where the device is, since
//! it may be anywhere on the way; then it is brought to the state the operation names for that
//! case, and if that fails it is reset. The state remembered here is only compared with the
//! kernel's answer, to notice a reset by somebody else (a guest FLR, a sibling's hot reset, AER).

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::device::{DataFd, MigrationIo};
use crate::error::{Error, Failure, LostCause, Outcome};
use crate::state::{MigFlags, MigState, path};
use crate::sys::signals::BlockedSignals;

/// How often a SET that was interrupted without effect is repeated.
const SET_RETRIES: u32 = 8;
/// How often a reset is tried while someone else holds the device's lock.
const RESET_ATTEMPTS: u32 = 20;
/// The pause between two of those.
const RESET_BACKOFF: Duration = Duration::from_millis(5);
/// The least that [`MigratableDevice::estimated_size`] answers, in bytes.
const SIZE_FLOOR: u64 = 4096;

/// A passed-through device whose state can be saved and loaded.
pub struct MigratableDevice {
    id: Arc<str>,
    io: Arc<dyn MigrationIo>,
    flags: MigFlags,
    last_known: MigState,
    reset_at_open: bool,
    dropped: Option<Outcome>,
}

impl fmt::Debug for MigratableDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MigratableDevice")
            .field("id", &self.id)
            .field("flags", &self.flags)
            .field("last_known", &self.last_known)
            .finish_non_exhaustive()
    }
}

impl MigratableDevice {
    /// Asks a device what it can do; `None` if it has no migration, which is normal.
    ///
    /// A device that is not RUNNING was left behind by a process that died, and is reset.
    ///
    /// # Errors
    /// When the kernel does not answer, or the device cannot be reset.
    pub fn open(id: &str, io: Arc<dyn MigrationIo>) -> Result<Option<Self>, Failure> {
        let fail = |error, outcome| Failure {
            device: Arc::from(id),
            error,
            outcome,
        };
        let flags = match io.probe() {
            Ok(Some(flags)) if flags.contains(MigFlags::STOP_COPY) => flags,
            Ok(_) => return Ok(None),
            Err(source) => return Err(fail(Error::Probe { source }, Outcome::Untouched)),
        };
        let found = io
            .get_state()
            .map_err(|source| fail(Error::QueryState { source }, Outcome::Untouched))?;
        let mut device = Self {
            id: Arc::from(id),
            io,
            flags,
            last_known: found,
            reset_at_open: false,
            dropped: None,
        };
        if found != MigState::Running {
            let outcome = device.reset();
            if outcome != Outcome::WasReset {
                let operation = "using it";
                return Err(fail(Error::WrongState { operation, found }, outcome));
            }
            device.reset_at_open = true;
        }
        Ok(Some(device))
    }

    /// The id that messages name.
    #[must_use]
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// What the device can do.
    #[must_use]
    pub fn flags(&self) -> MigFlags {
        self.flags
    }

    /// Whether [`MigratableDevice::open`] found it in use by nobody and reset it.
    #[must_use]
    pub fn was_reset_at_open(&self) -> bool {
        self.reset_at_open
    }

    /// Asks the kernel for the present state.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn state(&self) -> Result<MigState, Failure> {
        self.io
            .get_state()
            .map_err(|source| self.failure(Error::QueryState { source }, Outcome::Untouched))
    }

    /// The kernel's estimate of the stream's length in bytes, at least 4096; for progress only.
    ///
    /// `None` when there is no estimate or an absurd one.
    #[must_use]
    pub fn estimated_size(&self) -> Option<u64> {
        let size = self.io.data_size().ok()?;
        i64::try_from(size).ok()?;
        Some(size.max(SIZE_FLOOR))
    }

    /// What a session did to the device when it was dropped unfinished, once.
    #[must_use]
    pub fn take_dropped_outcome(&mut self) -> Option<Outcome> {
        self.dropped.take()
    }

    /// Gives up whatever state the device is in and makes it RUNNING: for a restore that failed
    /// after [`crate::Loaded::keep`], or a VM that is torn down.
    ///
    /// A device in STOP or RUNNING_P2P keeps its state; any other is reset.
    pub fn abandon(&mut self) -> Outcome {
        match self.io.get_state() {
            Ok(found @ (MigState::Running | MigState::RunningP2p | MigState::Stop)) => {
                self.recover_from(found, MigState::Running)
            }
            _ => self.reset(),
        }
    }

    /// The requests of this device, for those parts of the protocol that change no state.
    pub(crate) fn io(&self) -> &Arc<dyn MigrationIo> {
        &self.io
    }

    /// The state that this process put the device in.
    pub(crate) fn last_known(&self) -> MigState {
        self.last_known
    }

    pub(crate) fn failure(&self, error: Error, outcome: Outcome) -> Failure {
        Failure {
            device: Arc::clone(&self.id),
            error,
            outcome,
        }
    }

    /// Checks with the kernel that the device is where it was put and that `operation` may start
    /// there.
    pub(crate) fn expect_state(
        &mut self,
        operation: &'static str,
        allowed: &[MigState],
    ) -> Result<MigState, Failure> {
        let found = self.state()?;
        let expected = self.last_known;
        if found == MigState::Running && expected != MigState::Running {
            self.last_known = MigState::Running;
            let error = Error::ResetFromOutside { expected };
            return Err(self.failure(error, Outcome::WasReset));
        }
        if found != expected || !allowed.contains(&found) {
            let error = Error::WrongState { operation, found };
            return Err(self.failure(error, Outcome::Untouched));
        }
        Ok(found)
    }

    /// One SET, repeated only when it was interrupted before it did anything.
    pub(crate) fn set(&mut self, to: MigState) -> Result<Option<Box<dyn DataFd>>, Error> {
        let from = self.last_known;
        let _quiet = BlockedSignals::new();
        let mut retries = 0;
        loop {
            let source = match self.io.set_state(to) {
                Ok(data) => {
                    self.last_known = to;
                    return Ok(data);
                }
                Err(source) => source,
            };
            let interrupted = source.raw_os_error() == Some(libc::EINTR);
            let unchanged = || matches!(self.io.get_state(), Ok(now) if now == from);
            if !(interrupted && retries < SET_RETRIES && unchanged()) {
                return Err(Error::Transition { from, to, source });
            }
            retries += 1;
        }
    }

    /// As [`Self::set`] for a state that opens a session.
    pub(crate) fn open_session(&mut self, to: MigState) -> Result<Box<dyn DataFd>, Error> {
        self.set(to)?.ok_or(Error::NoDataFile { to })
    }

    /// Brings the device to `to` after something failed, or resets it.
    pub(crate) fn recover(&mut self, to: MigState) -> Outcome {
        match self.io.get_state() {
            Ok(found) => self.recover_from(found, to),
            Err(_) => self.reset(),
        }
    }

    /// As [`Self::recover`] for a save session, which no arc leads from to RUNNING: a device
    /// found there was reset by somebody else.
    pub(crate) fn recover_save(&mut self) -> Outcome {
        match self.io.get_state() {
            Ok(MigState::Running) => {
                self.last_known = MigState::Running;
                Outcome::WasReset
            }
            Ok(found) => self.recover_from(found, MigState::Stop),
            Err(_) => self.reset(),
        }
    }

    /// As [`Self::recover`] for a load session: a driver may wipe the device on the way to
    /// RESUMING, so only a device that never left RUNNING is kept.
    pub(crate) fn recover_load(&mut self) -> Outcome {
        match self.io.get_state() {
            Ok(MigState::Running) if self.last_known == MigState::Running => Outcome::Recovered {
                state: MigState::Running,
            },
            _ => self.reset(),
        }
    }

    fn recover_from(&mut self, found: MigState, to: MigState) -> Outcome {
        self.last_known = found;
        if found == to {
            return Outcome::Recovered { state: to };
        }
        // What was written in RESUMING is in doubt after a failure: only a reset leads out.
        if found == MigState::Resuming || path(found, to, self.flags).is_none() {
            return self.reset();
        }
        match self.set(to) {
            Ok(_) => Outcome::Recovered { state: to },
            Err(_) => self.reset(),
        }
    }

    pub(crate) fn reset(&mut self) -> Outcome {
        let outcome = match self.try_reset() {
            Ok(()) => {
                self.last_known = MigState::Running;
                Outcome::WasReset
            }
            Err(cause) => {
                self.last_known = MigState::Error;
                Outcome::Lost(cause)
            }
        };
        tracing::warn!("{}: {outcome}", self.id);
        outcome
    }

    fn try_reset(&self) -> Result<(), LostCause> {
        let mut attempt = 1;
        while let Err(source) = self.io.reset() {
            let errno = errno_of(&source);
            if !matches!(errno, libc::EAGAIN | libc::EINTR) || attempt == RESET_ATTEMPTS {
                return Err(LostCause::ResetFailed { errno });
            }
            attempt += 1;
            thread::sleep(RESET_BACKOFF);
        }
        match self.io.get_state() {
            Ok(MigState::Running) => Ok(()),
            Ok(state) => Err(LostCause::StillIn { state }),
            Err(source) => Err(LostCause::Silent {
                errno: errno_of(&source),
            }),
        }
    }

    /// Records what a session's drop did; nobody is there to return it to.
    pub(crate) fn note_dropped(&mut self, outcome: Outcome) {
        self.dropped = Some(outcome);
    }
}

/// The errno, or EIO for an error that did not come from the kernel.
fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

#[cfg(test)]
mod tests;
