//! Where the BARs of a function answer now, and how that is made to follow what the guest programmed.
//!
//! Level-triggered: [`Bars::reconcile`] is told every BAR as the registers have it and changes what differs, so that a move is
//! neither lost nor made twice whatever order vCPUs write in. A placed BAR is a window on its bus and, for memory, areas that
//! are mapped into the guest; it is placed wholly or not at all. All BARs that move are taken off their old places before any
//! is put to a new one, so that two may swap.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use dormouse_pci::{BarIndex, BarKind, BarPlacement};
use thiserror::Error as ThisError;

use super::areas::mappable_areas;
use super::hardware::Hardware;
use super::host::{AddressWindows, MappedArea};
use super::layout::Neighbours;
use super::window::BarWindow;
use crate::bus::{BusError, Mmio, MmioBus, Pio, PioBus};

/// The address spaces that BARs are placed in.
#[derive(Clone)]
pub struct BarSpaces {
    /// Ports.
    pub pio: Arc<PioBus>,
    /// Memory.
    pub mmio: Arc<MmioBus>,
    /// Which addresses are for BARs.
    pub windows: Arc<dyn AddressWindows>,
    pub(super) neighbours: Arc<Neighbours>,
}

impl BarSpaces {
    /// Spaces without BARs. All functions of a machine get clones of one.
    #[must_use]
    pub fn new(pio: Arc<PioBus>, mmio: Arc<MmioBus>, windows: Arc<dyn AddressWindows>) -> Self {
        Self {
            pio,
            mmio,
            windows,
            neighbours: Arc::default(),
        }
    }
}

/// A BAR that could not be placed.
#[derive(Debug, ThisError)]
pub enum PlaceError {
    /// Something else answers there.
    #[error("the place is taken")]
    Taken(#[source] BusError),
    /// A part of it could not be mapped into the guest.
    #[error("cannot map {:#x} bytes at {:#x} of it into the guest", area.end - area.start, area.start)]
    Map {
        /// The part.
        area: Range<u64>,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// The ports do not exist.
    #[error("there is no port {0:#x}")]
    NoSuchPort(u64),
}

/// A placement that failed and what can be put back.
#[derive(Debug)]
pub(super) struct Refusal {
    pub index: BarIndex,
    pub address: u64,
    /// Where the BAR answered last.
    pub previous: Option<u64>,
    pub error: PlaceError,
}

/// A BAR that answers.
struct Placed {
    address: u64,
    kind: BarKind,
    areas: Vec<Box<dyn MappedArea>>,
    /// The areas were taken away because the device stops answering.
    suspended: bool,
}

/// One BAR's parts that do not move.
struct Slot {
    window: Arc<BarWindow>,
    mappable: Vec<Range<u64>>,
    placed: Option<Placed>,
    /// Where it answered last.
    last: Option<u64>,
}

/// The BARs of one function.
pub(super) struct Bars {
    hardware: Arc<Hardware>,
    spaces: BarSpaces,
    slots: [Option<Slot>; BarIndex::COUNT],
    /// Nothing was placed since the function was restored: the places are still those that were saved.
    recorded: bool,
}

impl Bars {
    /// `recorded` for a function that is restored.
    pub fn new(hardware: Arc<Hardware>, spaces: BarSpaces, recorded: bool) -> Self {
        Self {
            hardware,
            spaces,
            slots: [const { None }; BarIndex::COUNT],
            recorded,
        }
    }

    /// Adds a BAR that does not answer yet. `last` is where it answered when its state was saved, if it did.
    pub fn add(&mut self, index: BarIndex, window: BarWindow, mapped: bool, last: Option<u64>) {
        let region = self.hardware.host().region(window.region);
        // Also where the kernel would let them be mapped: the vectors in the table are the guest's, and the device's are the
        // host's; and of pending bits the device knows only those of vectors that the host has masked.
        let trapped: Vec<_> = window
            .table
            .iter()
            .chain(&window.pending)
            .cloned()
            .collect();
        let mappable = if mapped {
            mappable_areas(region, &trapped)
        } else {
            Vec::new()
        };
        let window = Arc::new(window);
        self.slots[index.position()] = Some(Slot {
            window,
            mappable,
            placed: None,
            last,
        });
    }

    /// Whether nothing was placed since the function was restored.
    pub fn is_recorded(&self) -> bool {
        self.recorded
    }

    /// As [`Self::reconcile`], but the first time after a restore only for BARs that answered when their state was saved: another
    /// that claims the place of one of them must not get there first.
    pub fn set_up(&mut self, desired: &[BarPlacement]) -> Vec<Refusal> {
        if !std::mem::take(&mut self.recorded) {
            return self.reconcile(desired);
        }
        let answered = |bar: &&BarPlacement| {
            let slot = self.slots[bar.index.position()].as_ref();
            slot.and_then(|slot| slot.last) == Some(bar.address)
        };
        let answered: Vec<_> = desired.iter().filter(answered).copied().collect();
        self.reconcile(&answered)
    }

    /// Makes the BARs answer where `desired` says. What could not be placed does not answer, and is returned.
    pub fn reconcile(&mut self, desired: &[BarPlacement]) -> Vec<Refusal> {
        self.recorded = false;
        let target = |bar: &BarPlacement| {
            let end = bar.address.checked_add(bar.kind.size())?;
            let inside = self.spaces.windows.contains(bar.kind, &(bar.address..end));
            (bar.decoded && inside).then_some(bar.address)
        };
        let targets: Vec<Option<u64>> = desired.iter().map(target).collect();
        for (bar, target) in desired.iter().zip(&targets) {
            let Some(slot) = &mut self.slots[bar.index.position()] else {
                continue;
            };
            let stays = |placed: &Placed| Some(placed.address) == *target && !placed.suspended;
            if slot.placed.as_ref().is_some_and(|placed| !stays(placed)) {
                unplace(&self.spaces, &self.hardware, slot);
            }
        }
        let mut refused = Vec::new();
        for (bar, target) in desired.iter().zip(targets) {
            let (Some(slot), Some(address)) = (&mut self.slots[bar.index.position()], target)
            else {
                continue;
            };
            if slot.placed.is_some() {
                continue;
            }
            let previous = slot.last;
            if let Err(error) = place(&self.spaces, &self.hardware, slot, bar.kind, address) {
                refused.push(Refusal {
                    index: bar.index,
                    address,
                    previous,
                    error,
                });
            }
        }
        refused
    }

    /// Takes the mapped areas away before the device stops answering there. Accesses are trapped until the next
    /// [`Self::reconcile`].
    pub fn suspend(&mut self) {
        for placed in self
            .slots
            .iter_mut()
            .flatten()
            .filter_map(|slot| slot.placed.as_mut())
        {
            if !placed.areas.is_empty() {
                placed.areas.clear();
                placed.suspended = true;
            }
        }
    }

    /// Where each BAR answers, or answered when its state was saved if none was placed since.
    pub fn to_record(&self) -> impl Iterator<Item = (BarIndex, u64)> + '_ {
        let slots = BarIndex::all().zip(&self.slots);
        slots.filter_map(|(index, slot)| {
            let Slot { placed, last, .. } = slot.as_ref()?;
            let placed = placed.as_ref().map(|placed| placed.address);
            let address = if self.recorded { *last } else { placed };
            Some((index, address?))
        })
    }

    /// Where each BAR answers now, and how many bytes of it without an exit.
    pub fn placed(&self) -> impl Iterator<Item = (BarIndex, u64, u64)> + '_ {
        let slots = BarIndex::all().zip(&self.slots);
        slots.filter_map(|(index, slot)| {
            let placed = slot.as_ref()?.placed.as_ref()?;
            let ranges = placed.areas.iter().map(|area| area.guest_range());
            let mapped = ranges.map(|range| range.end - range.start).sum();
            Some((index, placed.address, mapped))
        })
    }

    /// Takes every BAR off its bus.
    pub fn unplace_all(&mut self) {
        self.recorded = false;
        for slot in self.slots.iter_mut().flatten() {
            unplace(&self.spaces, &self.hardware, slot);
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.unplace_all();
    }
}

/// All of it or nothing: what was done before a failure is undone.
fn place(
    spaces: &BarSpaces,
    hardware: &Hardware,
    slot: &mut Slot,
    kind: BarKind,
    address: u64,
) -> Result<(), PlaceError> {
    let window = Arc::clone(&slot.window);
    match kind {
        BarKind::Io { size } => {
            let port = u16::try_from(address).map_err(|_| PlaceError::NoSuchPort(address))?;
            spaces.pio.insert(Pio(port), size, window)
        }
        BarKind::Mem32 { size, .. } | BarKind::Mem64 { size, .. } => {
            spaces.mmio.insert(Mmio(address), size, window)
        }
    }
    .map_err(PlaceError::Taken)?;
    // From here on dropping `placed` would leave the window behind, so it goes into the slot first.
    let placed = slot.placed.insert(Placed {
        address,
        kind,
        areas: Vec::new(),
        suspended: false,
    });
    for area in &slot.mappable {
        let guest = address + area.start;
        match hardware.host().map(slot.window.region, area.clone(), guest) {
            Ok(mapped) => placed.areas.push(mapped),
            Err(source) => {
                let area = area.clone();
                unplace(spaces, hardware, slot);
                return Err(PlaceError::Map { area, source });
            }
        }
    }
    slot.last = Some(address);
    Ok(())
}

fn unplace(spaces: &BarSpaces, hardware: &Hardware, slot: &mut Slot) {
    let Some(Placed {
        address,
        kind,
        areas,
        suspended: _,
    }) = slot.placed.take()
    else {
        return;
    };
    drop(areas);
    let removed = match (kind, u16::try_from(address)) {
        (BarKind::Io { .. }, Ok(port)) => spaces.pio.remove(Pio(port)),
        _ => spaces.mmio.remove(Mmio(address)),
    };
    if let Err(error) = removed {
        hardware.report(&error);
    }
    spaces.neighbours.note_departure();
}
