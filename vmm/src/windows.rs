//! The address windows that BARs are placed in: 32-bit memory, 64-bit memory and I/O ports, as `layout` fixes them.
//!
//! Places that are given (recorded in a snapshot, or chosen by the guest) are reserved; only then are new places allocated, so
//! that a restored BAR never finds its place taken. Everything asked here is checked against the window, because a guest may
//! program a BAR to any address. The PCI bus of the machine is the caller; what the windows are is told to the guest in `_CRS`.
//!
//! vm-allocator is not used: version 0.1.4 gives out an exact range inside of one that is taken, and forgets the latter.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use dormouse_arch::x86_64::layout;
use dormouse_devices::vfio::host::AddressWindows;
use dormouse_pci::BarKind;
use thiserror::Error as ThisError;

/// The ports for I/O BARs.
const IO: Range<u64> = layout::PCI_IO_FIRST_PORT as u64..layout::PCI_IO_LAST_PORT as u64 + 1;
/// The addresses for 32-bit BARs.
const MMIO32: Range<u64> = layout::MMIO32..layout::MMIO32_END;

/// One of the windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Mmio32,
    /// Memory above RAM.
    Mmio64,
}

impl Window {
    /// The window for new BARs of a kind.
    #[must_use]
    pub fn of(kind: BarKind) -> Self {
        match kind {
            BarKind::Io { .. } => Self::Io,
            BarKind::Mem32 { .. } => Self::Mmio32,
            BarKind::Mem64 { .. } => Self::Mmio64,
        }
    }

    /// Smallest place and alignment: a BAR shorter than a page gets the page for itself, so that it can be mapped into the guest.
    fn granule(self) -> u64 {
        match self {
            Self::Io => 4,
            Self::Mmio32 | Self::Mmio64 => layout::PAGE_SIZE,
        }
    }
}

impl std::fmt::Display for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Io => "I/O port",
            Self::Mmio32 => "32-bit memory",
            Self::Mmio64 => "64-bit memory",
        })
    }
}

/// A place that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
pub enum Error {
    /// The window has no hole of this size.
    #[error(
        "the {window} window for PCI devices has no room for {size:#x} bytes; give the VM fewer or smaller devices"
    )]
    Full {
        /// The window.
        window: Window,
        /// Bytes, or ports.
        size: u64,
    },
    /// The range is empty or not all inside of the window.
    #[error("the range {:#x}-{:#x} is not inside of the {window} window for PCI devices", range.start, range.end)]
    Outside {
        /// The window.
        window: Window,
        /// The range asked for.
        range: Range<u64>,
    },
    /// The range touches another BAR's.
    #[error("the range {:#x}-{:#x} of the {window} window is taken by another BAR", range.start, range.end)]
    Taken {
        /// The window.
        window: Window,
        /// The range asked for.
        range: Range<u64>,
    },
    /// The size is no power of two.
    #[error("no BAR decodes {size:#x} bytes")]
    Size {
        /// Bytes, or ports.
        size: u64,
    },
}

/// What is taken of one window.
#[derive(Debug)]
struct Space {
    bounds: Range<u64>,
    /// Ends of the places taken, by their starts. They do not overlap.
    taken: BTreeMap<u64, u64>,
}

impl Space {
    fn new(bounds: Range<u64>) -> Self {
        Self {
            bounds,
            taken: BTreeMap::new(),
        }
    }

    /// Whether nothing in `range`, which is not empty, is taken.
    fn is_free(&self, range: &Range<u64>) -> bool {
        // Of the places that start before the end, the last one ends last.
        let last = self.taken.range(..range.end).next_back();
        last.is_none_or(|(_, &end)| end <= range.start)
    }

    /// The lowest free place of `size` bytes, a power of two, aligned to its size.
    fn first_fit(&self, size: u64) -> Option<Range<u64>> {
        let place_from = |start: u64| {
            let start = start.checked_next_multiple_of(size)?;
            let end = start.checked_add(size)?;
            (end <= self.bounds.end).then_some(start..end)
        };
        // The lowest place starts at the window's start or behind a taken one.
        std::iter::once(self.bounds.start)
            .chain(self.taken.values().copied())
            .filter_map(place_from)
            .find(|place| self.is_free(place))
    }
}

#[derive(Debug)]
struct Spaces {
    io: Space,
    mmio32: Space,
    mmio64: Space,
}

impl Spaces {
    fn get(&mut self, window: Window) -> &mut Space {
        match window {
            Window::Io => &mut self.io,
            Window::Mmio32 => &mut self.mmio32,
            Window::Mmio64 => &mut self.mmio64,
        }
    }
}

/// The windows of one VM.
#[derive(Debug)]
pub struct Windows {
    mmio64: Range<u64>,
    spaces: Mutex<Spaces>,
}

impl Windows {
    /// The windows of a VM with `ram_size` bytes of RAM and vCPUs with `phys_bits` physical address bits.
    #[must_use]
    pub fn new(ram_size: u64, phys_bits: u8) -> Self {
        let mmio64 = layout::mmio64_window(ram_size, phys_bits);
        let spaces = Spaces {
            io: Space::new(IO),
            mmio32: Space::new(MMIO32),
            mmio64: Space::new(mmio64.clone()),
        };
        Self {
            mmio64,
            spaces: Mutex::new(spaces),
        }
    }

    /// The addresses of a window; empty where the VM has none.
    #[must_use]
    pub fn range(&self, window: Window) -> Range<u64> {
        match window {
            Window::Io => IO,
            Window::Mmio32 => MMIO32,
            Window::Mmio64 => self.mmio64.clone(),
        }
    }

    /// The window that all of a memory range lies in: a guest may place a 64-bit BAR below 4 GiB.
    #[must_use]
    pub fn memory_window(&self, range: &Range<u64>) -> Option<Window> {
        [Window::Mmio32, Window::Mmio64]
            .into_iter()
            .find(|&window| self.contains(window, range))
    }

    /// Whether all of a range, which is not empty, lies in a window.
    #[must_use]
    pub fn contains(&self, window: Window, range: &Range<u64>) -> bool {
        let bounds = self.range(window);
        bounds.start <= range.start && range.start < range.end && range.end <= bounds.end
    }

    /// Takes a given place.
    ///
    /// # Errors
    /// When it is not inside of the window or overlaps a place that is taken.
    pub fn reserve(&self, window: Window, range: &Range<u64>) -> Result<(), Error> {
        if !self.contains(window, range) {
            return Err(Error::Outside {
                window,
                range: range.clone(),
            });
        }
        let mut spaces = self.lock();
        let space = spaces.get(window);
        if !space.is_free(range) {
            return Err(Error::Taken {
                window,
                range: range.clone(),
            });
        }
        space.taken.insert(range.start, range.end);
        tracing::trace!("reserved {window} {:#x}-{:#x}", range.start, range.end);
        Ok(())
    }

    /// Takes the first free place for a BAR of `size` bytes, aligned to its size, at least a page of memory. The answer is the
    /// place taken, which [`Self::free`] wants back.
    ///
    /// # Errors
    /// When the size is not that of a BAR or the window has no room.
    pub fn allocate(&self, window: Window, size: u64) -> Result<Range<u64>, Error> {
        if !size.is_power_of_two() {
            return Err(Error::Size { size });
        }
        let size = size.max(window.granule());
        let mut spaces = self.lock();
        let space = spaces.get(window);
        let place = space.first_fit(size).ok_or(Error::Full { window, size })?;
        space.taken.insert(place.start, place.end);
        Ok(place)
    }

    /// Gives a place back that was reserved or allocated exactly so. Any other range is ignored.
    pub fn free(&self, window: Window, range: &Range<u64>) {
        let mut spaces = self.lock();
        let taken = &mut spaces.get(window).taken;
        if taken.get(&range.start) == Some(&range.end) {
            taken.remove(&range.start);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Spaces> {
        self.spaces
            .lock()
            .expect("no code panics while it holds this lock")
    }
}

impl AddressWindows for Windows {
    fn contains(&self, kind: BarKind, range: &Range<u64>) -> bool {
        match kind {
            BarKind::Io { .. } => self.contains(Window::Io, range),
            BarKind::Mem32 { .. } => self.contains(Window::Mmio32, range),
            // The guest may place a 64-bit BAR below 4 GiB.
            BarKind::Mem64 { .. } => self.memory_window(range).is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use dormouse_arch::x86_64::layout;
    use dormouse_pci::BarKind;
    use proptest::prelude::{Strategy, prop_assert, prop_assert_eq, prop_oneof, proptest};

    use super::{AddressWindows, Error, Window, Windows};

    const GIB: u64 = 1 << 30;

    #[test]
    fn reserved_places_are_never_allocated() {
        let windows = Windows::new(GIB, 40);
        let recorded = layout::MMIO32..layout::MMIO32 + 0x4000;
        windows.reserve(Window::Mmio32, &recorded).unwrap();
        assert!(matches!(
            windows.reserve(Window::Mmio32, &recorded),
            Err(Error::Taken { .. })
        ));
        let new = windows.allocate(Window::Mmio32, 0x1000).unwrap();
        assert_eq!(new.start, recorded.end);
        windows.free(Window::Mmio32, &recorded);
        assert_eq!(windows.allocate(Window::Mmio32, 0x4000).unwrap(), recorded);
    }

    #[test]
    fn small_memory_bars_get_a_page_and_ports_do_not() {
        let windows = Windows::new(GIB, 40);
        assert_eq!(
            windows.allocate(Window::Mmio64, 16).unwrap(),
            4 * GIB..4 * GIB + 0x1000
        );
        assert_eq!(windows.allocate(Window::Io, 8).unwrap(), 0x1000..0x1008);
        assert_eq!(windows.allocate(Window::Io, 256).unwrap(), 0x1100..0x1200);
        assert_eq!(
            windows.allocate(Window::Io, 0),
            Err(Error::Size { size: 0 })
        );
        assert_eq!(
            windows.allocate(Window::Io, 24),
            Err(Error::Size { size: 24 })
        );
    }

    #[test]
    fn ranges_that_leave_the_window_are_refused() {
        let windows = Windows::new(GIB, 40);
        for range in [
            0..0x1000,
            layout::LOW_RAM_END - 1..layout::MMIO32 + 1,
            layout::MMIO32_END - 0x1000..layout::MMIO32_END + 1,
            layout::MMIO32..layout::MMIO32,
            u64::MAX - 0x1000..u64::MAX,
            Range {
                start: layout::MMIO32 + 1,
                end: layout::MMIO32,
            },
        ] {
            assert!(
                matches!(
                    windows.reserve(Window::Mmio32, &range),
                    Err(Error::Outside { .. })
                ),
                "{range:x?}"
            );
            assert_eq!(windows.memory_window(&range), None);
        }
        assert_eq!(
            windows.memory_window(&(layout::MMIO32..layout::MMIO32 + 16)),
            Some(Window::Mmio32)
        );
    }

    #[test]
    fn a_vm_whose_ram_fills_the_address_space_has_no_64_bit_window() {
        let windows = Windows::new(63 * GIB, 36);
        assert!(windows.range(Window::Mmio64).is_empty());
        assert!(matches!(
            windows.allocate(Window::Mmio64, 0x1000),
            Err(Error::Full { .. })
        ));
    }

    #[test]
    fn only_a_64_bit_bar_may_go_to_either_memory_window() {
        let windows = Windows::new(GIB, 40);
        let windows: &dyn AddressWindows = &windows;
        let size = 0x1000;
        let mem32 = BarKind::Mem32 {
            size,
            prefetchable: false,
        };
        let mem64 = BarKind::Mem64 {
            size,
            prefetchable: true,
        };
        let low = layout::MMIO32..layout::MMIO32 + size;
        let high = 4 * GIB..4 * GIB + size;
        assert!(windows.contains(mem32, &low) && !windows.contains(mem32, &high));
        assert!(windows.contains(mem64, &low) && windows.contains(mem64, &high));
        assert!(windows.contains(BarKind::Io { size: 8 }, &(0x1000..0x1008)));
        assert!(!windows.contains(BarKind::Io { size: 8 }, &(0xff8..0x1000)));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Allocate(u32),
        Reserve(u64, u64),
        Free(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (2u32..17).prop_map(Step::Allocate),
            (0xf00u64..0x1_0100, 0u64..0x2000).prop_map(|(start, len)| Step::Reserve(start, len)),
            (0usize..20).prop_map(Step::Free),
        ]
    }

    proptest! {
        /// Whatever is asked, what is taken never overlaps, never leaves the window, and is the lowest that is free.
        #[test]
        fn places_never_overlap(steps in proptest::collection::vec(step(), 0..60)) {
            let windows = Windows::new(GIB, 40);
            let mut taken: Vec<Range<u64>> = Vec::new();
            for step in steps {
                let new = match step {
                    Step::Allocate(bits) => {
                        let size = 1u64 << bits;
                        let lowest = (0..=0xffff / size).map(|n| n * size..(n + 1) * size).find(|place| {
                            windows.contains(Window::Io, place)
                                && taken.iter().all(|other| other.end <= place.start || place.end <= other.start)
                        });
                        let answer = windows.allocate(Window::Io, size).ok();
                        prop_assert_eq!(&answer, &lowest);
                        answer
                    }
                    Step::Reserve(start, len) => {
                        let range = start..start + len;
                        let inside = windows.contains(Window::Io, &range);
                        let free = taken.iter().all(|other| other.end <= range.start || range.end <= other.start);
                        let answer = windows.reserve(Window::Io, &range);
                        prop_assert_eq!(answer.is_ok(), inside && free);
                        answer.ok().map(|()| range)
                    }
                    Step::Free(index) if index < taken.len() => {
                        windows.free(Window::Io, &taken.swap_remove(index));
                        None
                    }
                    Step::Free(_) => None,
                };
                if let Some(new) = new {
                    prop_assert!(windows.contains(Window::Io, &new));
                    prop_assert!(taken.iter().all(|other| other.end <= new.start || new.end <= other.start));
                    taken.push(new);
                }
            }
        }
    }
}
