//! BAR areas in the guest: an mmap of the device, a KVM memory slot on it, and a DMA mapping for the VM's other devices.
//!
//! The host address is as far from a huge page boundary as the area is from the BAR's start, so that the kernel can map the device
//! with huge pages on both sides. Everything is undone in reverse: DMA, slot, mmap, and the device's reference last.

use std::any::Any;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::Arc;

use dormouse_devices::vfio::host::MappedArea;

use super::dma::{DmaDomain, DmaMapping};
use super::iommu::OpenDevice;
use crate::kvm::{READ_ONLY_SLOT, Vm};
use crate::memory::SlotAllocator;

/// The largest page of the processor: aligning further gains nothing.
const MAX_ALIGN: usize = 1 << 30;

/// Part of a region as the device's descriptor has it. All numbers are multiples of the page size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Area {
    /// Offset in the region.
    pub(super) start: u64,
    /// Offset in the descriptor.
    pub(super) file_offset: u64,
    /// Bytes.
    pub(super) len: usize,
    pub(super) readable: bool,
    pub(super) writable: bool,
}

/// An mmap of part of a region.
#[derive(Debug)]
pub(super) struct RegionMapping {
    address: usize,
    len: usize,
}

impl RegionMapping {
    pub(super) fn new(device: BorrowedFd<'_>, area: &Area) -> io::Result<Self> {
        let align = area
            .len
            .checked_next_power_of_two()
            .unwrap_or(MAX_ALIGN)
            .min(MAX_ALIGN);
        let reserved = Reservation::new(
            area.len
                .checked_add(align)
                .ok_or(io::ErrorKind::InvalidInput)?,
        )?;
        let skew = (area.start as usize).wrapping_sub(reserved.0.start) & (align - 1);
        let address = reserved.0.start + skew;
        let mut protection = libc::PROT_NONE;
        if area.readable {
            protection |= libc::PROT_READ;
        }
        if area.writable {
            protection |= libc::PROT_WRITE;
        }
        let offset =
            libc::off_t::try_from(area.file_offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let target = ptr::with_exposed_provenance_mut(address);
        // SAFETY: the range lies inside of the reservation (skew < align), which nobody uses; the kernel checks the rest.
        let mapped = unsafe {
            libc::mmap(
                target,
                area.len,
                protection,
                libc::MAP_SHARED | libc::MAP_FIXED,
                device.as_raw_fd(),
                offset,
            )
        };
        // A failed mmap may have unmapped the range already, and another thread may have got it: it is no longer ours to unmap.
        let result = if mapped == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        };
        reserved.keep(address..address + area.len);
        result?;
        Ok(Self {
            address,
            len: area.len,
        })
    }

    pub(super) fn address(&self) -> u64 {
        self.address as u64
    }
}

impl Drop for RegionMapping {
    fn drop(&mut self) {
        unmap(self.address..self.address + self.len);
    }
}

/// Address space that nothing is mapped in, given back when dropped.
struct Reservation(Range<usize>);

impl Reservation {
    fn new(len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = start.expose_provenance();
        Ok(Self(start..start + len))
    }

    /// Gives back all but `used`.
    fn keep(self, used: Range<usize>) {
        unmap(self.0.start..used.start);
        unmap(used.end..self.0.end);
        std::mem::forget(self);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        unmap(self.0.clone());
    }
}

/// Unmaps a range that belongs to the caller.
fn unmap(range: Range<usize>) {
    if range.is_empty() {
        return;
    }
    let start = ptr::with_exposed_provenance_mut(range.start);
    // SAFETY: only the owner of a range calls this, and uses it no more.
    let result = unsafe { libc::munmap(start, range.end - range.start) };
    if result != 0 {
        tracing::warn!(
            "cannot unmap a device's memory: {}",
            io::Error::last_os_error()
        );
    }
}

/// A KVM memory slot, removed when dropped.
struct Slot {
    vm: Arc<Vm>,
    slots: Arc<SlotAllocator>,
    number: u32,
    /// Kept for ever if KVM does not let go of the slot: its host range must not be used for anything else then.
    mapping: Arc<RegionMapping>,
}

impl Slot {
    fn new(
        vm: &Arc<Vm>,
        slots: &Arc<SlotAllocator>,
        guest: u64,
        mapping: &Arc<RegionMapping>,
        writable: bool,
    ) -> io::Result<Self> {
        let number = slots
            .allocate()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))?;
        let flags = if writable { 0 } else { READ_ONLY_SLOT };
        // SAFETY: the slot keeps the mapping until KVM has removed the slot.
        let result = unsafe {
            vm.set_memory_slot(number, flags, guest, mapping.address(), mapping.len as u64)
        };
        if let Err(error) = result {
            slots.free(number);
            return Err(io::Error::other(error));
        }
        Ok(Self {
            vm: Arc::clone(vm),
            slots: Arc::clone(slots),
            number,
            mapping: Arc::clone(mapping),
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: length 0 removes the slot; no host address is involved.
        match unsafe { self.vm.set_memory_slot(self.number, 0, 0, 0, 0) } {
            Ok(()) => self.slots.free(self.number),
            Err(error) => {
                tracing::error!("KVM keeps a memory slot of a device: {error}");
                std::mem::forget(Arc::clone(&self.mapping));
            }
        }
    }
}

/// An area of a BAR in the guest. The fields are dropped in order.
pub(super) struct PlacedArea {
    dma: Option<DmaMapping>,
    _slot: Slot,
    mapping: Arc<RegionMapping>,
    _device: Arc<OpenDevice>,
    guest: u64,
}

impl PlacedArea {
    /// Maps an area of a device and gives it to the guest at `guest`, a multiple of the page size.
    pub(super) fn new(
        device: &Arc<OpenDevice>,
        area: &Area,
        vm: &Arc<Vm>,
        slots: &Arc<SlotAllocator>,
        guest: u64,
    ) -> io::Result<Self> {
        let mapping = Arc::new(RegionMapping::new(device.as_fd(), area)?);
        let slot = Slot::new(vm, slots, guest, &mapping, area.writable)?;
        Ok(Self {
            dma: None,
            _slot: slot,
            mapping,
            _device: Arc::clone(device),
            guest,
        })
    }

    /// Lets the VM's other devices reach the area where the guest has it.
    pub(super) fn map_for_peers(&mut self, domain: &Arc<DmaDomain>) -> io::Result<()> {
        let backing: Arc<dyn Any + Send + Sync> = Arc::clone(&self.mapping) as _;
        let (host, len) = (self.mapping.address(), self.mapping.len as u64);
        // SAFETY: the mapping of the device lives as long as `backing`; nobody has a reference into it.
        self.dma = Some(unsafe { DmaMapping::new(domain, self.guest, host, len, backing) }?);
        Ok(())
    }
}

impl MappedArea for PlacedArea {
    fn guest_range(&self) -> Range<u64> {
        self.guest..self.guest + self.mapping.len as u64
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::{Area, RegionMapping};

    fn is_mapped(mapping: &RegionMapping) -> bool {
        let start = format!("{:x}-{:x} ", mapping.address, mapping.address + mapping.len);
        fs::read_to_string("/proc/self/maps")
            .unwrap()
            .lines()
            .any(|line| line.starts_with(&start))
    }

    #[test]
    fn an_area_is_aligned_like_its_place_in_the_bar() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(b"BAR", 3 << 20).unwrap();
        for (start, file_offset, len) in [
            (0x1000, 3 << 20, 0x3000),
            (0x20_0000, 0, 4 << 20),
            (0x30_0000, 3 << 20, 1 << 20),
            (0, 3 << 20, 0x1000),
        ] {
            let area = Area {
                start,
                file_offset,
                len,
                readable: true,
                writable: true,
            };
            let mapping = RegionMapping::new(file.as_fd(), &area).unwrap();
            let align = (len as u64).next_power_of_two();
            assert_eq!(mapping.address() % align, start % align, "{area:?}");
            assert!(
                is_mapped(&mapping),
                "no more and no less than the area: {area:?}"
            );
            let (address, len) = (mapping.address, mapping.len);
            drop(mapping);
            assert!(!is_mapped(&std::mem::ManuallyDrop::new(RegionMapping {
                address,
                len
            })));
        }
    }

    #[test]
    fn what_the_kernel_refuses_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        for file_offset in [u64::MAX, 0x800] {
            let area = Area {
                start: 0,
                file_offset,
                len: 0x1000,
                readable: true,
                writable: false,
            };
            assert!(
                RegionMapping::new(file.as_fd(), &area).is_err(),
                "{file_offset:#x}"
            );
        }
    }
}
