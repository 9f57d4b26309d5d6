//! `HostFunction` over an opened VFIO device of the running kernel.
//!
//! Reads and writes go to the device's descriptor at the region's offset and either move all bytes or fail: a device that is gone
//! must not look like one that answers zeros. Accesses are bounded by the region, because the next region follows in the
//! descriptor's offsets.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dormouse_arch::x86_64::layout::PAGE_SIZE;
use dormouse_devices::vfio::host::{Alarms, HostFunction, IrqIndex, MappedArea, Region};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
};

use super::alarms::{DeviceAlarms, Watch};
use super::error::Error;
use super::intx_relay::IntxRelay;
use super::ioctl;
use super::iommu::OpenDevice;
use super::mapping::{Area, PlacedArea};
use super::region::{self, PlacedRegion};
use super::sysfs::{Bus, HostDevice};
use crate::kvm::Vm;
use crate::memory::SlotAllocator;

/// Regions that a PCI function has: BARs, ROM and configuration space. Vendor regions behind them are not passed through.
const REGIONS: u32 = 8;
/// The interrupt indices, in their order.
const IRQ_INDICES: [IrqIndex; 5] = [
    IrqIndex::Intx,
    IrqIndex::Msi,
    IrqIndex::Msix,
    IrqIndex::Error,
    IrqIndex::Request,
];
/// What an index beyond those answers.
static NO_REGION: Region = Region {
    size: 0,
    readable: false,
    writable: false,
    mappable: Vec::new(),
    msix_mappable: false,
};

/// Where BARs of a function go.
pub(super) struct GuestSide {
    pub(super) vm: Arc<Vm>,
    pub(super) slots: Arc<SlotAllocator>,
    /// BARs are mapped for DMA of the VM's other devices.
    pub(super) peer_to_peer: bool,
}

/// A passed-through function. See [`HostFunction`]; its descriptor is good for the migration protocol too.
pub struct KernelFunction {
    /// First, so that its thread has ended when the device closes.
    intx_relay: Option<IntxRelay>,
    id: String,
    host: HostDevice,
    regions: Vec<PlacedRegion>,
    irq_counts: [u32; IRQ_INDICES.len()],
    guest: GuestSide,
    peer_failure_told: AtomicBool,
    /// An area was once mapped for peers.
    peers_mapped: AtomicBool,
    alarms: Arc<DeviceAlarms>,
    device: Arc<OpenDevice>,
    /// Looks at the alarms of this device and others.
    _watch: Arc<Watch>,
}

impl KernelFunction {
    /// Reads the description of an opened device.
    pub(super) fn new(
        id: &str,
        host: HostDevice,
        device: OpenDevice,
        guest: GuestSide,
        watch: &Arc<Watch>,
    ) -> Result<Self, Error> {
        let device = Arc::new(device);
        let describe = |what| {
            let name = host.name.clone();
            move |source| Error::Describe { name, what, source }
        };
        let regions = (0..REGIONS.min(device.region_count()))
            .map(|index| region::query(device.as_fd(), index))
            .collect::<io::Result<Vec<_>>>()
            .map_err(describe("read the regions"))?;
        let mut irq_counts = [0; IRQ_INDICES.len()];
        for (index, count) in IRQ_INDICES.into_iter().zip(&mut irq_counts) {
            *count = query_irq_count(&device, index).map_err(describe("read the interrupts"))?;
        }
        let has_intx = irq_counts[IrqIndex::Intx as usize] > 0;
        let intx_relay = match host.bus {
            Bus::Mdev if has_intx => Some(start_relay(&device, &host.name)?),
            Bus::Mdev | Bus::Pci => None,
        };
        let alarms = watch
            .listen_to(format!("{id} ({})", host.path.display()))
            .map_err(describe("listen to the alarms"))?;
        let function = Self {
            intx_relay,
            id: id.to_owned(),
            host,
            regions,
            irq_counts,
            guest,
            peer_failure_told: AtomicBool::new(false),
            peers_mapped: AtomicBool::new(false),
            alarms,
            device,
            _watch: Arc::clone(watch),
        };
        function.arm_alarms();
        Ok(function)
    }

    /// Not every driver serves these, and a device works without.
    fn arm_alarms(&self) {
        for (index, eventfd) in self.alarms.eventfds() {
            if self.irq_count(index) > 0
                && let Err(error) = self.arm(index, 0, &[Some(eventfd)])
            {
                tracing::debug!("{}: {index:?} cannot be listened to: {error}", self.id);
            }
        }
    }

    /// Id of the device in the VM.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What sysfs said about the device when it was opened.
    #[must_use]
    pub fn host(&self) -> &HostDevice {
        &self.host
    }

    /// The opened device, for the migration protocol, which may outlive this.
    #[must_use]
    pub fn device(&self) -> &Arc<OpenDevice> {
        &self.device
    }

    /// The offset in the descriptor of `len` bytes at `offset` of a region.
    fn locate(&self, region: u32, offset: u64, len: usize) -> io::Result<u64> {
        let outside = || {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "the access is not inside of the region",
            )
        };
        let placed = self.regions.get(region as usize).ok_or_else(outside)?;
        match offset.checked_add(len as u64) {
            Some(end) if end <= placed.region.size => Ok(placed.offset + offset),
            _ => Err(outside()),
        }
    }

    fn set_irqs(
        &self,
        flags: u32,
        index: IrqIndex,
        start: u32,
        count: u32,
        fds: &[Option<BorrowedFd<'_>>],
    ) -> io::Result<()> {
        ioctl::set_irqs(self.device.as_fd(), flags, index as u32, start, count, fds)
    }
}

fn query_irq_count(device: &OpenDevice, index: IrqIndex) -> io::Result<u32> {
    if index as u32 >= device.irq_index_count() {
        return Ok(0);
    }
    match ioctl::irq_info(device.as_fd(), index as u32) {
        Ok(info) => Ok(info.count),
        // The kernel's way to say that the device lacks this kind of interrupt.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(0),
        Err(error) => Err(error),
    }
}

fn unmask_intx(device: &OpenDevice) -> io::Result<()> {
    let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK;
    ioctl::set_irqs(device.as_fd(), flags, IrqIndex::Intx as u32, 0, 1, &[])
}

fn start_relay(device: &Arc<OpenDevice>, name: &str) -> Result<IntxRelay, Error> {
    let device = Arc::clone(device);
    IntxRelay::start(move || unmask_intx(&device)).map_err(|source| Error::IntxRelay {
        name: name.to_owned(),
        source,
    })
}

/// The whole pages of the descriptor that hold `range` of a region. The last page of a region counts as a whole one: the kernel
/// lets no other device have the rest of it.
fn whole_pages(placed: &PlacedRegion, range: &Range<u64>) -> io::Result<Area> {
    let refused = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    let region = &placed.region;
    let mappable = |area: &Range<u64>| area.start <= range.start && range.end <= area.end;
    if range.is_empty() || !region.mappable.iter().any(mappable) {
        return refused("the device does not let this area be mapped");
    }
    if !region.readable {
        return refused("an area that cannot be read cannot be mapped");
    }
    let end = if range.end == region.size {
        range.end.next_multiple_of(PAGE_SIZE)
    } else {
        range.end
    };
    if !range.start.is_multiple_of(PAGE_SIZE) || !end.is_multiple_of(PAGE_SIZE) {
        return refused("the area is not made of whole pages");
    }
    Ok(Area {
        start: range.start,
        file_offset: placed.offset + range.start,
        len: usize::try_from(end - range.start).map_err(|_| io::ErrorKind::InvalidInput)?,
        readable: region.readable,
        writable: region.writable,
    })
}

impl HostFunction for KernelFunction {
    fn is_mediated(&self) -> bool {
        self.host.bus == Bus::Mdev
    }

    fn is_reachable_by_peers(&self) -> bool {
        self.peers_mapped.load(Ordering::Relaxed)
    }

    fn alarms(&self) -> Alarms {
        self.alarms.state()
    }

    fn region(&self, index: u32) -> &Region {
        self.regions
            .get(index as usize)
            .map_or(&NO_REGION, |placed| &placed.region)
    }

    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let mut at = self.locate(region, offset, data.len())?;
        let mut rest = data;
        while !rest.is_empty() {
            match rustix::io::pread(self.device.as_fd(), &mut *rest, at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(done) => {
                    at += done as u64;
                    rest = &mut rest[done..];
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut at = self.locate(region, offset, data.len())?;
        let mut rest = data;
        while !rest.is_empty() {
            match rustix::io::pwrite(self.device.as_fd(), rest, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(done) => {
                    at += done as u64;
                    rest = &rest[done..];
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn irq_count(&self, index: IrqIndex) -> u32 {
        self.irq_counts[index as usize]
    }

    fn arm(
        &self,
        index: IrqIndex,
        start: u32,
        triggers: &[Option<BorrowedFd<'_>>],
    ) -> io::Result<()> {
        let count = u32::try_from(triggers.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        if count == 0 {
            // A count of 0 would disable the index.
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "no vector to arm",
            ));
        }
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        self.set_irqs(flags, index, start, count, triggers)
    }

    fn disarm(&self, index: IrqIndex) -> io::Result<()> {
        if let (IrqIndex::Intx, Some(relay)) = (index, &self.intx_relay) {
            relay.disconnect()?;
        }
        self.set_irqs(
            VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER,
            index,
            0,
            0,
            &[],
        )
    }

    fn unmask_intx_on(&self, trigger: BorrowedFd<'_>, resample: BorrowedFd<'_>) -> io::Result<()> {
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_UNMASK;
        match (
            self.set_irqs(flags, IrqIndex::Intx, 0, 1, &[Some(resample)]),
            &self.intx_relay,
        ) {
            (Err(error), Some(relay)) if error.raw_os_error() == Some(libc::ENOTTY) => {
                relay.connect(trigger, resample)?;
                self.arm(IrqIndex::Intx, 0, &[Some(relay.device())])
            }
            (answer, _) => answer,
        }
    }

    fn mask_intx(&self, masked: bool) -> io::Result<()> {
        if !masked {
            return unmask_intx(&self.device);
        }
        self.set_irqs(
            VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_MASK,
            IrqIndex::Intx,
            0,
            1,
            &[],
        )
    }

    fn reset(&self) -> io::Result<()> {
        ioctl::reset(self.device.as_fd())?;
        self.alarms.was_reset();
        Ok(())
    }

    fn map(&self, region: u32, area: Range<u64>, guest: u64) -> io::Result<Box<dyn MappedArea>> {
        let placed = self
            .regions
            .get(region as usize)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let pages = whole_pages(placed, &area)?;
        if !guest.is_multiple_of(PAGE_SIZE) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the guest's address is inside of a page",
            ));
        }
        let GuestSide {
            vm,
            slots,
            peer_to_peer,
        } = &self.guest;
        let mut placed = PlacedArea::new(&self.device, &pages, vm, slots, guest)?;
        if *peer_to_peer {
            match placed.map_for_peers(self.device.domain()) {
                Ok(()) => self.peers_mapped.store(true, Ordering::Relaxed),
                // Once per device: the guest may move BARs as often as it likes.
                Err(error) if !self.peer_failure_told.swap(true, Ordering::Relaxed) => {
                    tracing::warn!(
                        device = self.id,
                        "other devices of the VM cannot reach this device's memory by DMA: {error}"
                    );
                }
                Err(_) => {}
            }
        }
        Ok(Box::new(placed))
    }
}

impl AsFd for KernelFunction {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl AsRawFd for KernelFunction {
    fn as_raw_fd(&self) -> RawFd {
        self.device.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use dormouse_devices::vfio::host::Region;

    use super::{PlacedRegion, whole_pages};

    fn region(size: u64, mappable: &[(u64, u64)]) -> PlacedRegion {
        let mappable = mappable.iter().map(|&(start, end)| start..end).collect();
        let region = Region {
            size,
            readable: true,
            writable: true,
            mappable,
            msix_mappable: false,
        };
        PlacedRegion {
            region,
            offset: 2 << 40,
        }
    }

    #[test]
    fn only_whole_pages_that_the_device_offers_are_mapped() {
        let bar = region(0x4000, &[(0, 0x1000), (0x2000, 0x4000)]);
        let area = whole_pages(&bar, &(0x2000..0x4000)).unwrap();
        assert_eq!(
            (area.start, area.file_offset, area.len),
            (0x2000, (2 << 40) + 0x2000, 0x2000)
        );
        for refused in [
            0..0x2000,
            0x1000..0x2000,
            0x2000..0x2800,
            0x2800..0x4000,
            0x3000..0x5000,
            0x3000..0x3000,
        ] {
            assert!(whole_pages(&bar, &refused).is_err(), "{refused:x?}");
        }
    }

    #[test]
    fn the_end_of_a_small_bar_grows_to_a_page() {
        assert_eq!(
            whole_pages(&region(0x100, &[(0, 0x100)]), &(0..0x100))
                .unwrap()
                .len,
            0x1000
        );
        assert!(whole_pages(&region(0x100, &[(0, 0x100)]), &(0..0x80)).is_err());
    }

    #[test]
    fn an_area_that_cannot_be_read_is_not_mapped() {
        let mut bar = region(0x1000, &[(0, 0x1000)]);
        bar.region.readable = false;
        assert!(whole_pages(&bar, &(0..0x1000)).is_err());
    }
}
