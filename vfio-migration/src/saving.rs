//! The session that reads a stopped device's state: STOP → STOP_COPY → stream → STOP.
//!
//! It borrows the device, so nothing else can be done to it meanwhile, and it is consumed by
//! streaming: a second read of one session does not compile. Whatever goes wrong, and if it is
//! dropped unfinished, the device is brought back to STOP, or reset where that fails.

use std::fmt;
use std::io::Write;

use crate::device::DataFd;
use crate::error::{Error, Failure, Outcome};
use crate::migratable::MigratableDevice;
use crate::state::MigState;
use crate::stream::{StreamControl, drain};

/// A device in STOP_COPY with its state unread.
///
/// ```compile_fail,E0382
/// # use dormouse_vfio_migration::{MigratableDevice, StreamControl};
/// fn twice(device: &mut MigratableDevice, file: &mut Vec<u8>) {
///     let saving = device.begin_saving().unwrap();
///     saving.stream_to(file, &mut StreamControl::default()).unwrap();
///     saving.stream_to(file, &mut StreamControl::default()).unwrap();
/// }
/// ```
#[must_use = "a dropped session returns the device to STOP and saves nothing"]
pub struct Saving<'a> {
    device: &'a mut MigratableDevice,
    data: Box<dyn DataFd>,
    ended: bool,
}

impl fmt::Debug for Saving<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Saving")
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

impl MigratableDevice {
    /// Starts to save a device that is in STOP, or loaded and kept in RESUMING.
    ///
    /// # Errors
    /// When the device is in another state, or refuses; it is then in STOP again unless the
    /// outcome says otherwise.
    pub fn begin_saving(&mut self) -> Result<Saving<'_>, Failure> {
        self.expect_state("saving", &[MigState::Stop, MigState::Resuming])?;
        match self.open_session(MigState::StopCopy) {
            Ok(data) => Ok(Saving {
                device: self,
                data,
                ended: false,
            }),
            Err(error) => {
                let outcome = self.recover_save();
                Err(self.failure(error, outcome))
            }
        }
    }
}

impl Saving<'_> {
    /// The kernel's estimate of the stream's length; see [`MigratableDevice::estimated_size`].
    #[must_use]
    pub fn estimated_size(&self) -> Option<u64> {
        self.device.estimated_size()
    }

    /// Copies the whole state to `sink`, flushes it and returns the device to STOP.
    ///
    /// Returns the length in bytes. At most [`crate::BUFFER_BYTES`] are held in memory.
    ///
    /// # Errors
    /// When either side fails, a limit is passed, or the caller cancels: what `sink` got is then
    /// worthless.
    pub fn stream_to(
        mut self,
        sink: &mut dyn Write,
        control: &mut StreamControl<'_>,
    ) -> Result<u64, Failure> {
        match self.copy_and_stop(sink, control) {
            Ok(bytes) => {
                self.ended = true;
                Ok(bytes)
            }
            Err(error) => {
                let outcome = self.end();
                Err(self.device.failure(error, outcome))
            }
        }
    }

    fn copy_and_stop(
        &mut self,
        sink: &mut dyn Write,
        control: &mut StreamControl<'_>,
    ) -> Result<u64, Error> {
        let bytes = drain(self.data.as_mut(), sink, control).map_err(Error::Save)?;
        // After a reset from outside the SET below would walk a blank device from RUNNING to STOP.
        self.device
            .expect_state("ending the save", &[MigState::StopCopy])
            .map_err(|failure| failure.error)?;
        self.device.set(MigState::Stop)?;
        Ok(bytes)
    }

    fn end(&mut self) -> Outcome {
        self.ended = true;
        self.device.recover_save()
    }
}

impl Drop for Saving<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let outcome = self.end();
            self.device.note_dropped(outcome);
        }
    }
}

#[cfg(test)]
mod tests;
