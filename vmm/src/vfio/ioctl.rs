//! The VFIO ioctls that Dormouse issues itself, safe from outside (`include/uapi/linux/vfio.h`).
//!
//! Each takes borrowed descriptors, so they are open during the call, and every structure carries its own size, beyond which the
//! kernel neither reads nor writes.

use std::ffi::CStr;
use std::io;
use std::mem::{size_of, size_of_val};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_TYPE, VFIO_TYPE1v2_IOMMU, vfio_device_attach_iommufd_pt,
    vfio_device_bind_iommufd, vfio_device_detach_iommufd_pt, vfio_device_info, vfio_group_status,
    vfio_irq_info,
};
use vmm_sys_util::ioctl::{
    ioctl, ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref, ioctl_with_val,
};
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(VFIO_SET_IOMMU, VFIO_TYPE as u32, VFIO_BASE + 2);
ioctl_io_nr!(VFIO_GROUP_GET_STATUS, VFIO_TYPE as u32, VFIO_BASE + 3);
ioctl_io_nr!(VFIO_GROUP_SET_CONTAINER, VFIO_TYPE as u32, VFIO_BASE + 4);
ioctl_io_nr!(VFIO_GROUP_UNSET_CONTAINER, VFIO_TYPE as u32, VFIO_BASE + 5);
ioctl_io_nr!(VFIO_GROUP_GET_DEVICE_FD, VFIO_TYPE as u32, VFIO_BASE + 6);
ioctl_io_nr!(VFIO_DEVICE_GET_INFO, VFIO_TYPE as u32, VFIO_BASE + 7);
ioctl_io_nr!(VFIO_DEVICE_GET_REGION_INFO, VFIO_TYPE as u32, VFIO_BASE + 8);
ioctl_io_nr!(VFIO_DEVICE_GET_IRQ_INFO, VFIO_TYPE as u32, VFIO_BASE + 9);
ioctl_io_nr!(VFIO_DEVICE_SET_IRQS, VFIO_TYPE as u32, VFIO_BASE + 10);
ioctl_io_nr!(VFIO_DEVICE_RESET, VFIO_TYPE as u32, VFIO_BASE + 11);
ioctl_io_nr!(VFIO_DEVICE_BIND_IOMMUFD, VFIO_TYPE as u32, VFIO_BASE + 18);
ioctl_io_nr!(
    VFIO_DEVICE_ATTACH_IOMMUFD_PT,
    VFIO_TYPE as u32,
    VFIO_BASE + 19
);
ioctl_io_nr!(
    VFIO_DEVICE_DETACH_IOMMUFD_PT,
    VFIO_TYPE as u32,
    VFIO_BASE + 20
);

/// Words of `struct vfio_irq_set` before its data: argsz, flags, index, start, count.
const IRQ_SET_WORDS: usize = 5;

fn checked(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

const fn argsz<T>() -> u32 {
    size_of::<T>() as u32
}

/// The flags of a group (`VFIO_GROUP_FLAGS_VIABLE`, …).
pub(super) fn group_status(group: BorrowedFd<'_>) -> io::Result<u32> {
    let mut status = vfio_group_status {
        argsz: argsz::<vfio_group_status>(),
        flags: 0,
    };
    // SAFETY: the structure is plain integers and says its size.
    checked(unsafe { ioctl_with_mut_ref(&group, VFIO_GROUP_GET_STATUS(), &mut status) })?;
    Ok(status.flags)
}

/// Puts a group into a container.
pub(super) fn set_container(group: BorrowedFd<'_>, container: &impl AsRawFd) -> io::Result<()> {
    let container: RawFd = container.as_raw_fd();
    // SAFETY: the kernel reads one descriptor number.
    checked(unsafe { ioctl_with_ref(&group, VFIO_GROUP_SET_CONTAINER(), &container) }).map(drop)
}

/// Takes a group out of its container.
pub(super) fn unset_container(group: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    checked(unsafe { ioctl(&group, VFIO_GROUP_UNSET_CONTAINER()) }).map(drop)
}

/// Makes a container, which has a group, a type1 IOMMU.
pub(super) fn set_type1_iommu(container: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: the argument is a number.
    checked(unsafe { ioctl_with_val(container, VFIO_SET_IOMMU(), VFIO_TYPE1v2_IOMMU.into()) })
        .map(drop)
}

/// Opens a device of a group by its name.
pub(super) fn group_device(group: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads up to the terminator of the name.
    let fd = checked(unsafe { ioctl_with_ptr(&group, VFIO_GROUP_GET_DEVICE_FD(), name.as_ptr()) })?;
    // SAFETY: the kernel installed this descriptor for this request; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Binds the node of a device to an iommufd, after which it can be used.
pub(super) fn bind_iommufd(device: BorrowedFd<'_>, iommufd: &impl AsRawFd) -> io::Result<()> {
    let mut request = vfio_device_bind_iommufd {
        argsz: argsz::<vfio_device_bind_iommufd>(),
        iommufd: iommufd.as_raw_fd(),
        ..Default::default()
    };
    // SAFETY: the structure is integers and says its size; no flag asks the kernel to follow its address member.
    checked(unsafe { ioctl_with_mut_ref(&device, VFIO_DEVICE_BIND_IOMMUFD(), &mut request) })
        .map(drop)
}

/// Gives a bound device the address space `ioas`.
pub(super) fn attach_ioas(device: BorrowedFd<'_>, ioas: u32) -> io::Result<()> {
    let mut request = vfio_device_attach_iommufd_pt {
        argsz: argsz::<vfio_device_attach_iommufd_pt>(),
        pt_id: ioas,
        ..Default::default()
    };
    // SAFETY: the structure is plain integers and says its size.
    checked(unsafe { ioctl_with_mut_ref(&device, VFIO_DEVICE_ATTACH_IOMMUFD_PT(), &mut request) })
        .map(drop)
}

/// Takes the address space from a device.
pub(super) fn detach_ioas(device: BorrowedFd<'_>) -> io::Result<()> {
    let request = vfio_device_detach_iommufd_pt {
        argsz: argsz::<vfio_device_detach_iommufd_pt>(),
        ..Default::default()
    };
    // SAFETY: the structure is plain integers and says its size.
    checked(unsafe { ioctl_with_ref(&device, VFIO_DEVICE_DETACH_IOMMUFD_PT(), &request) }).map(drop)
}

/// Flags and counts of a device.
pub(super) fn device_info(device: BorrowedFd<'_>) -> io::Result<vfio_device_info> {
    let mut info = vfio_device_info {
        argsz: argsz::<vfio_device_info>(),
        ..Default::default()
    };
    // SAFETY: the structure is plain integers and says its size.
    checked(unsafe { ioctl_with_mut_ref(&device, VFIO_DEVICE_GET_INFO(), &mut info) })?;
    Ok(info)
}

/// Fills `reply` with the `struct vfio_region_info` of a region and as many of its capabilities as fit; its first word says
/// how many bytes all of them need. `reply` is in 8-byte words, at least 4 of them.
pub(super) fn region_info(device: BorrowedFd<'_>, index: u32, reply: &mut [u64]) -> io::Result<()> {
    let bytes = u32::try_from(size_of_val(reply)).map_err(|_| io::ErrorKind::InvalidInput)?;
    let [sizes, place, ..] = reply else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    *sizes = u64::from(bytes);
    *place = u64::from(index);
    // SAFETY: the kernel writes at most as many bytes as the first member says, which is the length of `reply`.
    checked(unsafe {
        ioctl_with_mut_ptr(&device, VFIO_DEVICE_GET_REGION_INFO(), reply.as_mut_ptr())
    })
    .map(drop)
}

/// Flags and vectors of an interrupt index.
pub(super) fn irq_info(device: BorrowedFd<'_>, index: u32) -> io::Result<vfio_irq_info> {
    let mut info = vfio_irq_info {
        argsz: argsz::<vfio_irq_info>(),
        index,
        ..Default::default()
    };
    // SAFETY: the structure is plain integers and says its size.
    checked(unsafe { ioctl_with_mut_ref(&device, VFIO_DEVICE_GET_IRQ_INFO(), &mut info) })?;
    Ok(info)
}

/// `VFIO_DEVICE_SET_IRQS` for vectors `start..start + count`. `fds` is empty, or has a descriptor or -1 for each of them.
pub(super) fn set_irqs(
    device: BorrowedFd<'_>,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
    fds: &[Option<BorrowedFd<'_>>],
) -> io::Result<()> {
    let request = irq_set(flags, index, start, count, fds)?;
    // SAFETY: the first member is the length of the request; the kernel only reads it.
    match checked(unsafe { ioctl_with_ptr(&device, VFIO_DEVICE_SET_IRQS(), request.as_ptr()) })? {
        0 => Ok(()),
        // `vfio_msi_enable` answers how many vectors it could have had, and enables none of them.
        _fewer_vectors => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
    }
}

fn irq_set(
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
    fds: &[Option<BorrowedFd<'_>>],
) -> io::Result<Vec<u32>> {
    if !fds.is_empty() && u32::try_from(fds.len()) != Ok(count) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let bytes = u32::try_from(size_of::<u32>() * (IRQ_SET_WORDS + fds.len()))
        .map_err(|_| io::ErrorKind::InvalidInput)?;
    let numbers = fds
        .iter()
        .map(|fd| fd.map_or(-1, |fd| fd.as_raw_fd()).cast_unsigned());
    Ok([bytes, flags, index, start, count]
        .into_iter()
        .chain(numbers)
        .collect())
}

/// Resets a device.
pub(super) fn reset(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    checked(unsafe { ioctl(&device, VFIO_DEVICE_RESET()) }).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{AsFd, AsRawFd};

    use super::{VFIO_DEVICE_BIND_IOMMUFD, VFIO_DEVICE_SET_IRQS, irq_set, region_info, reset};

    #[test]
    fn request_numbers_are_the_kernels() {
        assert_eq!(
            (VFIO_DEVICE_SET_IRQS(), VFIO_DEVICE_BIND_IOMMUFD()),
            (0x3b6e, 0x3b76)
        );
    }

    #[test]
    fn an_irq_set_has_a_number_for_each_vector() {
        let file = File::open("/dev/null").unwrap();
        let number = file.as_raw_fd().cast_unsigned();
        let set = irq_set(0x24, 2, 5, 2, &[None, Some(file.as_fd())]).unwrap();
        assert_eq!(set, [28, 0x24, 2, 5, 2, u32::MAX, number]);
        assert_eq!(irq_set(0x21, 0, 0, 0, &[]).unwrap(), [20, 0x21, 0, 0, 0]);
        assert!(irq_set(0x24, 2, 0, 3, &[None]).is_err());
    }

    #[test]
    fn errno_is_kept() {
        let null = File::open("/dev/null").unwrap();
        assert_eq!(
            reset(null.as_fd()).unwrap_err().raw_os_error(),
            Some(libc::ENOTTY)
        );
        let answer = region_info(null.as_fd(), 0, &mut [0; 4]);
        assert_eq!(answer.unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        assert!(region_info(null.as_fd(), 0, &mut [0; 1]).is_err());
    }
}
