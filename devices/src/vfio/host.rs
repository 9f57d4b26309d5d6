//! What a passed-through function needs of the host, as narrow traits.
//!
//! The machine implements them with the kernel's VFIO and KVM descriptors; the tests with fakes that record every call. Region
//! and interrupt indices are those of `include/uapi/linux/vfio.h` (`VFIO_PCI_BAR0_REGION_INDEX`, `VFIO_PCI_INTX_IRQ_INDEX`, …).

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use dormouse_pci::{BarKind, InterruptPin, MsiMessage, VectorChange};

/// Region of the expansion ROM; BARs are regions 0 to 5.
pub const ROM_REGION: u32 = 6;
/// Region of configuration space.
pub const CONFIG_REGION: u32 = 7;

/// A region of the device, as `VFIO_DEVICE_GET_REGION_INFO` tells it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Region {
    /// Bytes; 0 where the device has no such region.
    pub size: u64,
    /// The region can be read.
    pub readable: bool,
    /// The region can be written.
    pub writable: bool,
    /// Ranges of the region that user space may map; empty where it may not.
    pub mappable: Vec<Range<u64>>,
    /// The kernel allows mapping the pages that hold the MSI-X table (`VFIO_REGION_INFO_CAP_MSIX_MAPPABLE`).
    pub msix_mappable: bool,
}

/// The interrupt indices of a PCI function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum IrqIndex {
    /// The legacy pin.
    Intx = 0,
    /// Message signalled interrupts.
    Msi = 1,
    /// MSI-X.
    Msix = 2,
    /// Uncorrected PCIe errors.
    Error = 3,
    /// The host wants the device back.
    Request = 4,
}

/// What a device's driver tells by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Alarms {
    /// The host wants the device back ([`IrqIndex::Request`]).
    pub wanted_back: bool,
    /// The device had an error since its last reset ([`IrqIndex::Error`]).
    pub failed: bool,
}

/// The host's side of one passed-through function.
pub trait HostFunction: Send + Sync {
    /// Whether a driver of the host mediates each access (mdev): PCI_COMMAND does not stop DMA of such a device.
    fn is_mediated(&self) -> bool;

    /// Whether other devices of the VM may reach this one's BARs by DMA: a mapping for peers ever succeeded.
    fn is_reachable_by_peers(&self) -> bool;

    /// What the device's driver told by itself so far.
    fn alarms(&self) -> Alarms;

    /// Region `index`, or one of size 0.
    fn region(&self, index: u32) -> &Region;

    /// Reads from a region. Fails when the device is gone or answers short: never made-up bytes.
    ///
    /// # Errors
    /// The kernel's answer.
    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes to a region, all of it or an error.
    ///
    /// # Errors
    /// The kernel's answer.
    fn write(&self, region: u32, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Vectors that an index has, 0 where the function lacks it.
    fn irq_count(&self, index: IrqIndex) -> u32;

    /// Connects eventfds to vectors `start..` of an index; `None` leaves a vector enabled without one
    /// (`VFIO_DEVICE_SET_IRQS`, `DATA_EVENTFD`, `ACTION_TRIGGER`, fd -1).
    ///
    /// # Errors
    /// The kernel's answer. A positive one, which says that it could give only so many messages, is an error too: it has then
    /// enabled none.
    fn arm(
        &self,
        index: IrqIndex,
        start: u32,
        triggers: &[Option<BorrowedFd<'_>>],
    ) -> io::Result<()>;

    /// Disables an index with all its vectors.
    ///
    /// # Errors
    /// The kernel's answer.
    fn disarm(&self, index: IrqIndex) -> io::Result<()>;

    /// Unmasks INTx, which was armed with `trigger`, whenever `resample` is signalled. Called after each arming of INTx, also with
    /// the same eventfds.
    ///
    /// # Errors
    /// The kernel's answer.
    fn unmask_intx_on(&self, trigger: BorrowedFd<'_>, resample: BorrowedFd<'_>) -> io::Result<()>;

    /// Masks or unmasks INTx now.
    ///
    /// # Errors
    /// The kernel's answer.
    fn mask_intx(&self, masked: bool) -> io::Result<()>;

    /// Resets the function (`VFIO_DEVICE_RESET`), result checked.
    ///
    /// # Errors
    /// The kernel's answer; `EINVAL` where the device has no reset.
    fn reset(&self) -> io::Result<()>;

    /// Maps `area` of `region` into the guest at `guest`: a KVM memory slot and, where wanted, a DMA mapping for peers.
    /// Dropping the answer takes all of it back.
    ///
    /// # Errors
    /// When the kernel refuses the mapping or the slot. A refused peer mapping is only a warning.
    fn map(&self, region: u32, area: Range<u64>, guest: u64) -> io::Result<Box<dyn MappedArea>>;
}

/// A piece of a BAR that guest accesses reach without an exit. Dropping it unmaps it.
pub trait MappedArea: Send + Sync {
    /// The guest-physical range that it covers.
    fn guest_range(&self) -> Range<u64>;
}

/// The MSI or MSI-X vectors of one function: an eventfd each, which the machine routes into the guest while the vector is
/// unmasked. While it is masked, the eventfd counts, which is what keeps a masked interrupt pending.
pub trait MsiSink: Send + Sync {
    /// Number of vectors.
    fn len(&self) -> usize;

    /// Whether there is no vector.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Routes and detaches vectors, with one update of the routing table: on unmask the route before the irqfd, on mask the
    /// irqfd before the route.
    ///
    /// # Errors
    /// When the host has no interrupt route left or refuses one.
    fn apply(&self, changes: &[VectorChange]) -> io::Result<()>;

    /// The eventfd of a vector, for the device to signal.
    fn eventfd(&self, vector: u16) -> BorrowedFd<'_>;

    /// Whether a masked vector was signalled; takes the signal.
    fn take_pending(&self, vector: u16) -> bool;

    /// Signals a vector, as the device would.
    fn signal(&self, vector: u16);

    /// The message that a vector is routed to now, for tests and introspection.
    fn routed(&self, vector: u16) -> Option<MsiMessage>;
}

/// The legacy interrupt pin of one function: a level-triggered line of the in-kernel IOAPIC with a resample eventfd, so that
/// the kernel and not a trapped access knows when the guest has acknowledged it.
pub trait IntxLine: Send + Sync {
    /// The global system interrupt that the guest's `_PRT` names for the pin.
    fn gsi(&self) -> u32;

    /// Connects or disconnects the line.
    ///
    /// # Errors
    /// The kernel's answer.
    fn connect(&self, connected: bool) -> io::Result<()>;

    /// Signalled by the device to raise the line.
    fn trigger(&self) -> BorrowedFd<'_>;

    /// Signalled by KVM when the guest has acknowledged the interrupt.
    fn resample(&self) -> BorrowedFd<'_>;

    /// Raises the line once, as the device would.
    fn raise(&self);
}

/// Where the interrupts of a function come from. Asked while the function is built, when it is known what the device has.
pub trait InterruptSupply {
    /// Message vectors, all masked.
    ///
    /// # Errors
    /// When the host has no more eventfds.
    fn vectors(&self, count: u16) -> io::Result<Arc<dyn MsiSink>>;

    /// The line that the guest's `_PRT` names for a pin of this function; `None` where the machine routes none.
    ///
    /// # Errors
    /// When the host has no more eventfds.
    fn intx(&self, pin: InterruptPin) -> io::Result<Option<Arc<dyn IntxLine>>>;
}

/// Where a guest may place BARs.
pub trait AddressWindows: Send + Sync {
    /// Whether all of `range`, which is not empty, lies in a window for BARs of this kind.
    fn contains(&self, kind: BarKind, range: &Range<u64>) -> bool;
}
