//! Message signalled interrupts as values: the message itself and how a vector changed.
//!
//! MSI and MSI-X differ in registers but not in what the interrupt router has to know, so both
//! report the same [`MessageChange`].

use serde::{Deserialize, Serialize};

/// The memory write that raises an interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsiMessage {
    /// Address of the write, dword-aligned.
    pub address: u64,
    /// The dword written.
    pub data: u32,
}

/// What happens when the device raises a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VectorState {
    /// Nothing is sent; the vector becomes pending. Covers the vector's own mask, the function
    /// mask and the capability being disabled.
    Masked,
    /// The message is sent.
    Unmasked(MsiMessage),
}

/// A vector whose state differs from before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VectorChange {
    /// Number of the vector.
    pub vector: u16,
    /// State before the write.
    pub before: VectorState,
    /// State now.
    pub after: VectorState,
    /// The vector was pending and is unmasked now: the owner sends the message once. Its pending
    /// bit is clear already.
    pub fire: bool,
}

/// What one guest write did to a function's message interrupts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageChange {
    /// Whether the capability is enabled now; while it is, the function does not use INTx.
    pub enabled: bool,
    /// Whether it was enabled before.
    pub was_enabled: bool,
    /// The vectors that changed, in ascending order.
    pub vectors: Vec<VectorChange>,
}

impl MessageChange {
    /// True when the write changed nothing that the owner has to act on.
    pub fn is_empty(&self) -> bool {
        self.enabled == self.was_enabled && self.vectors.is_empty()
    }
}
