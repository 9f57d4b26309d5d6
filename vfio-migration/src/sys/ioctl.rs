//! The ioctls of the migration protocol, safe from outside.
//!
//! `linux/vfio.h`: VFIO_DEVICE_FEATURE, VFIO_DEVICE_RESET and, on a data descriptor,
//! VFIO_MIG_GET_PRECOPY_INFO. They work on a device descriptor of a group as on a cdev. The
//! kernel reads and writes at most `argsz` bytes of each request.

use std::fs::File;
use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
    VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, VFIO_DEVICE_FEATURE_GET,
    VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
    VFIO_DEVICE_FEATURE_MIGRATION, VFIO_DEVICE_FEATURE_PROBE, VFIO_DEVICE_FEATURE_SET, VFIO_TYPE,
    vfio_device_feature_dma_logging_control, vfio_device_feature_dma_logging_range,
    vfio_device_feature_dma_logging_report, vfio_device_feature_mig_data_size,
    vfio_device_feature_mig_state, vfio_device_feature_migration, vfio_precopy_info,
};
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref};
use vmm_sys_util::ioctl_io_nr;

use super::uapi::{Feature, PRECOPY_INFO_ARGSZ};
use crate::device::{IovaRange, PrecopyInfo};

ioctl_io_nr!(VFIO_DEVICE_RESET, VFIO_TYPE as u32, VFIO_BASE + 11);
ioctl_io_nr!(VFIO_DEVICE_FEATURE, VFIO_TYPE as u32, VFIO_BASE + 17);
ioctl_io_nr!(VFIO_MIG_GET_PRECOPY_INFO, VFIO_TYPE as u32, VFIO_BASE + 21);

/// Plain integers that the kernel may overwrite with anything.
///
/// # Safety
/// Every bit pattern must be a valid value, and any address inside must be good for what the
/// kernel does with it.
unsafe trait Payload {}

// SAFETY: no payload at all.
unsafe impl Payload for () {}
// SAFETY: one integer.
unsafe impl Payload for vfio_device_feature_migration {}
// SAFETY: two integers; the descriptor in it is checked before it is owned.
unsafe impl Payload for vfio_device_feature_mig_state {}
// SAFETY: one integer.
unsafe impl Payload for vfio_device_feature_mig_data_size {}
// SAFETY: integers; built only in `dma_logging_start`, whose range list outlives the call.
unsafe impl Payload for vfio_device_feature_dma_logging_control {}
// SAFETY: integers; built only in `dma_logging_report`, which checks the bitmap's length.
unsafe impl Payload for vfio_device_feature_dma_logging_report {}

fn feature<T: Payload>(device: &impl AsRawFd, flags: u32, payload: T) -> io::Result<T> {
    let mut request = Feature::new(flags, payload);
    // SAFETY: `argsz` is the size of `request`, and `Payload` allows the kernel to fill it.
    let result = unsafe { ioctl_with_mut_ref(device, VFIO_DEVICE_FEATURE(), &mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(request.payload)
}

/// The capability bits of MIGRATION.
pub(crate) fn migration_flags(device: &impl AsRawFd) -> io::Result<u64> {
    let flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIGRATION;
    feature(device, flags, vfio_device_feature_migration::default()).map(|answer| answer.flags)
}

/// The state number of MIG_DEVICE_STATE.
pub(crate) fn get_state(device: &impl AsRawFd) -> io::Result<u32> {
    let flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE;
    let answer = feature(device, flags, vfio_device_feature_mig_state::default())?;
    Ok(answer.device_state)
}

/// Sets MIG_DEVICE_STATE; the data descriptor if the kernel opened one.
pub(crate) fn set_state(device: &impl AsRawFd, target: u32) -> io::Result<Option<File>> {
    let flags = VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE;
    let request = vfio_device_feature_mig_state {
        device_state: target,
        data_fd: -1,
    };
    let answer = feature(device, flags, request)?;
    if answer.data_fd < 0 {
        return Ok(None);
    }
    // SAFETY: the kernel installed this descriptor for this request; nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(answer.data_fd) };
    Ok(Some(File::from(fd)))
}

/// The bytes of MIG_DATA_SIZE.
pub(crate) fn data_size(device: &impl AsRawFd) -> io::Result<u64> {
    let flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DATA_SIZE;
    let answer = feature(device, flags, vfio_device_feature_mig_data_size::default())?;
    Ok(answer.stop_copy_length)
}

/// VFIO_DEVICE_RESET, issued whether or not the device advertises it (mtty does not).
pub(crate) fn reset(device: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    let result = unsafe { ioctl(device, VFIO_DEVICE_RESET()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether DMA_LOGGING_START could be set; ENOTTY means no.
pub(crate) fn probe_dma_logging(device: &impl AsRawFd) -> io::Result<()> {
    let flags =
        VFIO_DEVICE_FEATURE_PROBE | VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_START;
    feature(device, flags, ())
}

/// DMA_LOGGING_START; the page size the device chose.
pub(crate) fn dma_logging_start(
    device: &impl AsRawFd,
    page_size: u64,
    ranges: &[IovaRange],
) -> io::Result<u64> {
    let list: Vec<_> = ranges
        .iter()
        .map(|range| vfio_device_feature_dma_logging_range {
            iova: range.iova,
            length: range.length,
        })
        .collect();
    let control = vfio_device_feature_dma_logging_control {
        page_size,
        num_ranges: u32::try_from(list.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        __reserved: 0,
        ranges: list.as_ptr().expose_provenance() as u64,
    };
    let flags = VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_START;
    let answer = feature(device, flags, control)?;
    drop(list);
    Ok(answer.page_size)
}

/// DMA_LOGGING_REPORT into `bitmap`, which must have a bit for each page of the range.
pub(crate) fn dma_logging_report(
    device: &impl AsRawFd,
    range: IovaRange,
    page_size: u64,
    bitmap: &mut [u64],
) -> io::Result<()> {
    if page_size == 0 || !range.iova.is_multiple_of(page_size) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let room = (size_of_val(bitmap) as u64).saturating_mul(8);
    if range.length == 0 || range.length.div_ceil(page_size) > room {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let report = vfio_device_feature_dma_logging_report {
        iova: range.iova,
        length: range.length,
        page_size,
        bitmap: bitmap.as_mut_ptr().expose_provenance() as u64,
    };
    let flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT;
    feature(device, flags, report).map(drop)
}

/// DMA_LOGGING_STOP.
pub(crate) fn dma_logging_stop(device: &impl AsRawFd) -> io::Result<()> {
    let flags = VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP;
    feature(device, flags, ())
}

/// VFIO_MIG_GET_PRECOPY_INFO on a data descriptor.
pub(crate) fn precopy_info(data: &impl AsRawFd) -> io::Result<PrecopyInfo> {
    // Zeroed each time: mlx5 fills in one counter and copies the other back from the request.
    let mut info = vfio_precopy_info {
        argsz: PRECOPY_INFO_ARGSZ,
        ..Default::default()
    };
    // SAFETY: `argsz` is the size of `info`, which is plain integers.
    let result = unsafe { ioctl_with_mut_ref(data, VFIO_MIG_GET_PRECOPY_INFO(), &mut info) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(PrecopyInfo {
        initial_bytes: info.initial_bytes,
        dirty_bytes: info.dirty_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_numbers_are_the_kernels() {
        assert_eq!(VFIO_DEVICE_RESET(), 0x3b6f);
        assert_eq!(VFIO_DEVICE_FEATURE(), 0x3b75);
        assert_eq!(VFIO_MIG_GET_PRECOPY_INFO(), 0x3b79);
    }

    #[test]
    fn a_report_needs_a_bit_for_every_page() {
        let null = File::open("/dev/null").unwrap();
        let mut bitmap = [0u64; 1];
        let report = |length, page_size, bitmap: &mut [u64]| {
            let range = IovaRange { iova: 0, length };
            dma_logging_report(&null, range, page_size, bitmap).unwrap_err()
        };
        let fits = report(64 * 4096, 4096, &mut bitmap);
        assert_eq!(fits.raw_os_error(), Some(libc::ENOTTY));
        for (length, page_size) in [(65 * 4096, 4096), (0, 4096), (4096, 0), (u64::MAX, 1)] {
            let refused = report(length, page_size, &mut bitmap);
            assert_eq!(
                refused.kind(),
                io::ErrorKind::InvalidInput,
                "{length} {page_size}"
            );
        }
    }
}
