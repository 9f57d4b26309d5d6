//! What a guest write to configuration space asks of the owner of the function.
//!
//! Effects are plain values. The owner applies them after it has released every lock of the
//! device, so that moving a BAR or re-routing an interrupt cannot deadlock with another access.

use crate::address::Bdf;
use crate::message::MessageChange;

/// A consequence of a configuration write that the model cannot bring about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigEffect {
    /// The set of decoded BARs differs from before. The owner compares
    /// [`PciFunction::desired_bars`](crate::PciFunction::desired_bars) with what it has placed and moves what
    /// differs; the effect carries no addresses because a later write may have changed them again.
    LayoutChanged,
    /// Bus mastering was switched.
    BusMasterChanged {
        /// True when the function may now issue DMA and messages.
        enabled: bool,
    },
    /// The INTx disable bit was switched.
    InterruptDisableChanged {
        /// True when the function may no longer assert INTx.
        disabled: bool,
    },
    /// MSI was switched, or vectors of it changed.
    Msi(MessageChange),
    /// MSI-X was switched, or vectors of it changed.
    Msix(MessageChange),
    /// The guest started a function-level reset. The owner resets the device and then calls
    /// [`ConfigSpace::reset`](crate::ConfigSpace::reset).
    FunctionReset,
}

/// An effect and the function it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionEffect {
    /// The function that the guest wrote to.
    pub bdf: Bdf,
    /// What it asks for.
    pub effect: ConfigEffect,
}
