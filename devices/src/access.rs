//! One guest access to one device, and what may come of it.
//!
//! The bus calls [`BusDevice`] with an offset into the device's window after it has released its
//! own lock. Both directions are total: a guest cannot make an access fail, only read all-ones or
//! be ignored. Whatever an access asks of the machine comes back as an [`Effect`], which the
//! machine applies once the device's lock is free too.

use dormouse_pci::{Bdf, ConfigEffect};

/// A device on a [`Bus`](crate::Bus).
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` bytes at `offset` into the window. Total: a bad access reads all-ones.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Writes `data` at `offset` into the window. Total: a bad access is ignored.
    fn write(&self, offset: u64, data: &[u8]) -> Effect;
}

/// What a write asks of the machine.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Nothing beyond the device itself.
    None,
    /// The guest resets its machine.
    Reset,
    /// The guest powers its machine off.
    Shutdown,
    /// The guest reprogrammed a PCI function.
    Pci {
        /// The function.
        bdf: Bdf,
        /// What to do about it, in this order. Never empty.
        changes: Vec<ConfigEffect>,
    },
}
