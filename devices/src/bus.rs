//! Address decoding: which device answers at a port or at a guest-physical address.
//!
//! The type of the address keeps port I/O and MMIO apart. Lock order: the bus lock is innermost
//! and never held while a device runs; a lookup clones the device's `Arc` and lets go, so that an
//! access on one vCPU does not hold up a relocation asked for by another. A device that is removed
//! may therefore still finish an access that had begun.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::access::{BusDevice, Effect};

/// An address in one of the guest's address spaces.
pub trait Address: Copy + fmt::Debug + fmt::LowerHex + Send + Sync + 'static {
    /// Last address of the space.
    const LAST: u64;

    /// The address as a plain number.
    fn to_u64(self) -> u64;
}

/// A port number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pio(pub u16);

/// A guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mmio(pub u64);

impl Address for Pio {
    const LAST: u64 = u16::MAX as u64;

    fn to_u64(self) -> u64 {
        u64::from(self.0)
    }
}

impl Address for Mmio {
    const LAST: u64 = u64::MAX;

    fn to_u64(self) -> u64 {
        self.0
    }
}

impl fmt::LowerHex for Pio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

impl fmt::LowerHex for Mmio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

/// Why a range cannot be placed, moved or removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Another device answers in part of the range.
    #[error(
        "cannot place {len:#x} bytes at {base:#x}: {other_len:#x} bytes at {other_base:#x} are taken"
    )]
    Overlap {
        /// First address that was asked for.
        base: u64,
        /// Length that was asked for.
        len: u64,
        /// First address of the range in the way.
        other_base: u64,
        /// Length of the range in the way.
        other_len: u64,
    },
    /// The range ends beyond the address space.
    #[error("cannot place {len:#x} bytes at {base:#x}: the address space ends at {last:#x}")]
    Overflow {
        /// First address that was asked for.
        base: u64,
        /// Length that was asked for.
        len: u64,
        /// Last address of the space.
        last: u64,
    },
    /// The range holds no address.
    #[error("cannot place an empty range at {base:#x}")]
    Empty {
        /// First address that was asked for.
        base: u64,
    },
    /// No range begins at the address.
    #[error("no device's range begins at {base:#x}")]
    NotFound {
        /// The address in question.
        base: u64,
    },
}

struct Slot {
    len: u64,
    device: Arc<dyn BusDevice>,
}

/// The devices of one address space, by address.
pub struct Bus<A> {
    ranges: RwLock<BTreeMap<u64, Slot>>,
    space: std::marker::PhantomData<A>,
}

/// The port I/O space.
pub type PioBus = Bus<Pio>;
/// The memory-mapped I/O space.
pub type MmioBus = Bus<Mmio>;

impl<A: Address> Bus<A> {
    /// A bus without devices.
    pub fn new() -> Self {
        Self {
            ranges: RwLock::new(BTreeMap::new()),
            space: std::marker::PhantomData,
        }
    }

    /// Lets `device` answer for `len` addresses from `base` on.
    pub fn insert(&self, base: A, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let base = base.to_u64();
        let mut ranges = self.ranges_mut();
        check_free::<A>(&ranges, base, len)?;
        ranges.insert(base, Slot { len, device });
        Ok(())
    }

    /// Takes the device off whose range begins at `base`.
    pub fn remove(&self, base: A) -> Result<(), BusError> {
        let base = base.to_u64();
        match self.ranges_mut().remove(&base) {
            Some(_) => Ok(()),
            None => Err(BusError::NotFound { base }),
        }
    }

    /// Moves the range that begins at `old` to `new`, at once or not at all.
    ///
    /// The new range may overlap the old one, but no other.
    pub fn relocate(&self, old: A, new: A) -> Result<(), BusError> {
        let (old, new) = (old.to_u64(), new.to_u64());
        let mut ranges = self.ranges_mut();
        let Some(slot) = ranges.remove(&old) else {
            return Err(BusError::NotFound { base: old });
        };
        let checked = check_free::<A>(&ranges, new, slot.len);
        let base = if checked.is_ok() { new } else { old };
        ranges.insert(base, slot);
        checked
    }

    /// Reads at `addr`. `false` if no device answers for all of the access; it then reads all-ones.
    pub fn read(&self, addr: A, data: &mut [u8]) -> bool {
        match self.find(addr, data.len()) {
            Some((device, offset)) => {
                device.read(offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// Writes at `addr`. `None` if no device answers for all of the access.
    pub fn write(&self, addr: A, data: &[u8]) -> Option<Effect> {
        let (device, offset) = self.find(addr, data.len())?;
        Some(device.write(offset, data))
    }

    fn find(&self, addr: A, len: usize) -> Option<(Arc<dyn BusDevice>, u64)> {
        let addr = addr.to_u64();
        let len = u64::try_from(len).ok()?;
        let ranges = self.ranges();
        let (base, slot) = ranges.range(..=addr).next_back()?;
        let offset = addr - base;
        let room = slot.len.checked_sub(offset)?;
        (len > 0 && len <= room).then(|| (Arc::clone(&slot.device), offset))
    }

    // No code panics while it holds the lock, so that a poisoned map is still a whole one.
    fn ranges(&self) -> RwLockReadGuard<'_, BTreeMap<u64, Slot>> {
        self.ranges.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn ranges_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<u64, Slot>> {
        self.ranges.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A: Address> Default for Bus<A> {
    fn default() -> Self {
        Self::new()
    }
}

impl<A: Address> fmt::Debug for Bus<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = self.ranges();
        f.debug_map()
            .entries(ranges.iter().map(|(base, slot)| (base, slot.len)))
            .finish()
    }
}

fn check_free<A: Address>(
    ranges: &BTreeMap<u64, Slot>,
    base: u64,
    len: u64,
) -> Result<(), BusError> {
    if len == 0 {
        return Err(BusError::Empty { base });
    }
    let last = base
        .checked_add(len - 1)
        .filter(|&last| last <= A::LAST)
        .ok_or(BusError::Overflow {
            base,
            len,
            last: A::LAST,
        })?;
    // Ranges do not overlap, so that of those which begin at or before `last` only the highest
    // one can reach into the new range.
    if let Some((&other_base, other)) = ranges.range(..=last).next_back()
        && other_base + (other.len - 1) >= base
    {
        return Err(BusError::Overlap {
            base,
            len,
            other_base,
            other_len: other.len,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
