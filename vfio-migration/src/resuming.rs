//! The session that loads a saved state: RUNNING → RESUMING → stream, and there the device stays.
//!
//! One SET leads from RUNNING to RESUMING: an explicit stay in STOP has been seen to wedge mlx5
//! queues. After the stream the owner repeats its fix-ups while the device is in RESUMING, then
//! lets it run. A driver may accept a broken stream without a word, so after any failure the
//! device is reset; likewise when a session is dropped unfinished.

use std::fmt;
use std::io::Read;

use crate::device::DataFd;
use crate::error::{Error, Failure, Outcome};
use crate::migratable::MigratableDevice;
use crate::state::MigState;
use crate::stream::{StreamControl, fill};

/// A device in RESUMING with nothing loaded; it cannot be run.
///
/// ```compile_fail,E0599
/// # use dormouse_vfio_migration::MigratableDevice;
/// fn run_empty(device: &mut MigratableDevice) {
///     device.begin_resuming().unwrap().run().unwrap();
/// }
/// ```
#[must_use = "a dropped session resets the device"]
pub struct Resuming<'a> {
    device: Guard<'a>,
    data: Box<dyn DataFd>,
}

/// A device in RESUMING with its state loaded: repeat the fix-ups, then [`Loaded::keep`] it for
/// [`crate::group::resume`] or [`Loaded::run`] it.
///
/// ```compile_fail,E0382
/// # use dormouse_vfio_migration::Loaded;
/// fn twice(loaded: Loaded<'_>) {
///     loaded.keep();
///     loaded.run().unwrap();
/// }
/// ```
#[must_use = "a dropped session resets the device"]
pub struct Loaded<'a> {
    device: Guard<'a>,
}

/// Resets the device when dropped, unless it was told that all is well.
struct Guard<'a> {
    device: &'a mut MigratableDevice,
    ended: bool,
}

impl Guard<'_> {
    fn fail(mut self, error: Error) -> Failure {
        self.ended = true;
        let outcome = self.device.recover_load();
        self.device.failure(error, outcome)
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let outcome = self.device.recover_load();
            self.device.note_dropped(outcome);
        }
    }
}

impl fmt::Debug for Resuming<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Resuming")
            .field(&self.device.device)
            .finish()
    }
}

impl fmt::Debug for Loaded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Loaded").field(&self.device.device).finish()
    }
}

impl MigratableDevice {
    /// Starts to load a state into a device that is RUNNING.
    ///
    /// # Errors
    /// When the device is in another state, or refuses; it is then reset unless it never left
    /// RUNNING.
    pub fn begin_resuming(&mut self) -> Result<Resuming<'_>, Failure> {
        self.expect_state("loading", &[MigState::Running])?;
        match self.open_session(MigState::Resuming) {
            Ok(data) => Ok(Resuming {
                device: Guard {
                    device: self,
                    ended: false,
                },
                data,
            }),
            Err(error) => {
                let outcome = self.recover_load();
                Err(self.failure(error, outcome))
            }
        }
    }
}

impl<'a> Resuming<'a> {
    /// Writes exactly `length` bytes of `source` to the device and closes its data file.
    ///
    /// `source` is not read beyond that, but for an empty state, whose source is asked for its end. Whether it holds the right bytes is for the caller to
    /// verify beforehand: some drivers accept anything.
    ///
    /// # Errors
    /// When either side fails or the caller cancels: the device was then reset.
    pub fn load(
        self,
        source: &mut dyn Read,
        length: u64,
        control: &mut StreamControl<'_>,
    ) -> Result<Loaded<'a>, Failure> {
        let Self { device, mut data } = self;
        if let Err(error) = fill(data.as_mut(), source, length, control) {
            drop(data);
            return Err(device.fail(Error::Load(error)));
        }
        drop(data);
        Ok(Loaded { device })
    }
}

impl Loaded<'_> {
    /// Leaves the device in RESUMING, for [`crate::group::resume`].
    ///
    /// If the restore fails before that, call [`MigratableDevice::abandon`].
    pub fn keep(mut self) {
        self.device.ended = true;
    }

    /// Lets the device run, in one SET; for a VM whose only device this is.
    ///
    /// # Errors
    /// When the device refuses the state or was reset meanwhile: it is then reset.
    pub fn run(mut self) -> Result<(), Failure> {
        let checked = self
            .device
            .device
            .expect_state("running", &[MigState::Resuming]);
        if let Err(failure) = checked {
            if failure.outcome == Outcome::WasReset {
                self.device.ended = true;
                return Err(failure);
            }
            return Err(self.device.fail(failure.error));
        }
        match self.device.device.set(MigState::Running) {
            Ok(_) => {
                self.device.ended = true;
                Ok(())
            }
            Err(error) => Err(self.device.fail(error)),
        }
    }
}

#[cfg(test)]
mod tests;
