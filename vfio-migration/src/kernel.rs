//! [`MigrationIo`] over a VFIO device descriptor of the running kernel.
//!
//! Works with a device of a group and with a cdev. It holds whatever owns the descriptor (for
//! example an `Arc<VfioDevice>`), so the descriptor lives as long as this does. The migration calls
//! of vfio-ioctls are not used: they close the data descriptor on any error and hide the result of
//! a reset.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::device::{DataFd, IovaRange, MigrationIo, PrecopyInfo};
use crate::state::{MigFlags, MigState};
use crate::sys::ioctl;

/// A device of the running kernel.
#[derive(Debug)]
pub struct KernelDevice<D> {
    device: D,
}

impl<D: AsRawFd> KernelDevice<D> {
    /// Wraps the owner of a VFIO device descriptor.
    pub fn new(device: D) -> Self {
        Self { device }
    }
}

/// Turns the answers for "no such feature" into `None`.
fn absent_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => Ok(None),
        Err(error) => Err(error),
    }
}

impl<D: AsRawFd + Send + Sync> MigrationIo for KernelDevice<D> {
    fn probe(&self) -> io::Result<Option<MigFlags>> {
        let bits = absent_is_none(ioctl::migration_flags(&self.device))?;
        Ok(bits.map(MigFlags::from_bits_truncate))
    }

    fn get_state(&self) -> io::Result<MigState> {
        let number = ioctl::get_state(&self.device)?;
        MigState::try_from(number)
            .map_err(|unknown| io::Error::new(io::ErrorKind::InvalidData, unknown))
    }

    fn set_state(&self, target: MigState) -> io::Result<Option<Box<dyn DataFd>>> {
        let file = ioctl::set_state(&self.device, target.into())?;
        Ok(file.map(|file| Box::new(KernelData::new(file)) as Box<dyn DataFd>))
    }

    fn data_size(&self) -> io::Result<u64> {
        ioctl::data_size(&self.device)
    }

    fn reset(&self) -> io::Result<()> {
        ioctl::reset(&self.device)
    }

    fn has_dma_logging(&self) -> io::Result<bool> {
        let answer = absent_is_none(ioctl::probe_dma_logging(&self.device))?;
        Ok(answer.is_some())
    }

    fn dma_logging_start(&self, page_size: u64, ranges: &[IovaRange]) -> io::Result<u64> {
        ioctl::dma_logging_start(&self.device, page_size, ranges)
    }

    fn dma_logging_report(
        &self,
        range: IovaRange,
        page_size: u64,
        bitmap: &mut [u64],
    ) -> io::Result<()> {
        ioctl::dma_logging_report(&self.device, range, page_size, bitmap)
    }

    fn dma_logging_stop(&self) -> io::Result<()> {
        ioctl::dma_logging_stop(&self.device)
    }
}

/// A data descriptor of the running kernel.
#[derive(Debug)]
pub struct KernelData {
    file: File,
}

impl KernelData {
    /// Wraps a data descriptor.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self { file }
    }
}

impl DataFd for KernelData {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read(buf)
    }

    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.write(buf)
    }

    fn wait_readable(&self, timeout: Duration) -> io::Result<bool> {
        let timeout = Timespec::try_from(timeout).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn precopy_info(&self) -> io::Result<PrecopyInfo> {
        ioctl::precopy_info(&self.file)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_descriptor_without_the_feature_is_not_an_error() {
        let device = KernelDevice::new(File::open("/dev/null").unwrap());
        assert_eq!(device.probe().unwrap(), None);
        assert!(!device.has_dma_logging().unwrap());
    }

    #[test]
    fn errno_is_kept() {
        let device = KernelDevice::new(File::open("/dev/null").unwrap());
        let errno = |error: io::Error| error.raw_os_error();
        assert_eq!(errno(device.get_state().unwrap_err()), Some(libc::ENOTTY));
        assert_eq!(errno(device.reset().unwrap_err()), Some(libc::ENOTTY));
        assert_eq!(errno(device.data_size().unwrap_err()), Some(libc::ENOTTY));
        let refused = device.set_state(MigState::Stop).err().unwrap();
        assert_eq!(errno(refused), Some(libc::ENOTTY));
        assert_eq!(
            errno(device.dma_logging_stop().unwrap_err()),
            Some(libc::ENOTTY)
        );
        let gone = KernelDevice::new(-1);
        assert_eq!(errno(gone.probe().unwrap_err()), Some(libc::EBADF));
    }

    #[test]
    fn waiting_for_data_ends_with_the_timeout_or_the_data() {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut data = KernelData::new(File::from(std::os::fd::OwnedFd::from(reader)));
        let start = Instant::now();
        assert!(!data.wait_readable(Duration::from_millis(20)).unwrap());
        assert!(start.elapsed() >= Duration::from_millis(20));
        writer.write_all(b"state").unwrap();
        assert!(data.wait_readable(Duration::from_secs(60)).unwrap());
        let mut buf = [0; 8];
        assert_eq!(data.read(&mut buf).unwrap(), 5);
        let refused = data.precopy_info().unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENOTTY));
    }
}
