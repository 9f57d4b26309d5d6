//! What the root complex and the machine need of a PCI function.
//!
//! A function locks its own small state inside these methods and releases it before it returns;
//! whatever the write asks of the rest of the machine comes back as values.

use crate::address::BarIndex;
use crate::bar::BarPlacement;
use crate::effect::ConfigEffect;

/// A function that can be attached to a [`RootComplex`](crate::RootComplex).
///
/// Accesses are total: any offset and length is legal to pass, and what the bus could not carry
/// reads as all-ones or is ignored.
pub trait PciFunction: Send + Sync {
    /// Reads configuration space at `offset` bytes.
    fn config_read(&self, offset: u16, data: &mut [u8]);

    /// Writes configuration space at `offset` bytes and returns what the owner has to do.
    #[must_use = "effects that are dropped leave the machine out of step with the guest"]
    fn config_write(&self, offset: u16, data: &[u8]) -> Vec<ConfigEffect>;

    /// Every BAR as the guest has programmed it now.
    ///
    /// The owner reconciles: on each [`ConfigEffect::LayoutChanged`], on attach and on restore it
    /// makes the placed ranges equal to the decoded ones listed here. A BAR that was written while
    /// decoding was off is simply found at its new place once decoding is on.
    fn desired_bars(&self) -> Vec<BarPlacement>;

    /// Takes back a move that the host could not make: if BAR `index` still holds `refused`, its
    /// registers get `previous` again. Returns whether they did.
    ///
    /// Meant for failures of the host. An address outside of every window is no failure: the BAR
    /// stays unplaced and the register keeps it, as behind a real bridge. Rolling those back would
    /// break guests that probe sizes, or write the halves of a 64-bit BAR, with decoding on.
    fn refuse_bar(&self, index: BarIndex, refused: u64, previous: u64) -> bool;
}
