//! The MSI-X vector table and pending bit array, as they lie in a function's BARs.
//!
//! PCI Local Bus Specification 3.0, section 6.8.2. The enable and function-mask bits belong to the
//! capability's control register; [`ConfigSpace`](crate::ConfigSpace) passes them in, and they are
//! not part of this table's saved state, so a snapshot holds them once.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::message::{MessageChange, MsiMessage, VectorChange, VectorState};

/// Most vectors that the control register can count.
pub const MAX_MSIX_VECTORS: u16 = 2048;
/// Bytes of one table entry: address, upper address, data, vector control.
const ENTRY_LEN: u64 = 16;
/// Bits of each dword of an entry that a guest can write.
const ENTRY_WRITABLE: [u32; 4] = [0xffff_fffc, u32::MAX, u32::MAX, VECTOR_MASKED];
/// Mask bit of the vector control dword.
const VECTOR_MASKED: u32 = 0x1;
/// Vectors per element of the pending bit array.
const PENDING_BITS: usize = 64;

/// Why a table could not be made or restored.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MsixStateError {
    /// No table has that many vectors.
    #[error("an MSI-X table has 1 to 2048 vectors, not {vectors}")]
    VectorCount {
        /// The number asked for.
        vectors: usize,
    },
    /// The saved table is not of this device.
    #[error("the saved MSI-X table has {saved} vectors and this device has {model}")]
    VectorMismatch {
        /// Vectors in the state.
        saved: usize,
        /// Vectors of the device.
        model: usize,
    },
    /// A message address has bits that the table cannot hold.
    #[error("saved MSI-X vector {vector} has the unaligned message address {address:#x}")]
    Address {
        /// The vector.
        vector: usize,
        /// Its saved address.
        address: u64,
    },
    /// A pending vector does not exist.
    #[error("saved pending MSI-X vector {vector} does not exist")]
    Pending {
        /// The vector.
        vector: u16,
    },
    /// A vector is pending and not masked, which no table ever is.
    #[error("saved MSI-X vector {vector} is pending although it is not masked")]
    PendingUnmasked {
        /// The vector.
        vector: u16,
    },
}

/// One vector's saved table entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsixEntryState {
    /// The message, whether or not it is masked.
    pub message: MsiMessage,
    /// The vector's own mask bit.
    pub masked: bool,
}

/// The saved table and pending bits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsixTableState {
    /// Every entry, vector 0 first.
    pub entries: Vec<MsixEntryState>,
    /// Pending vectors.
    pub pending: Vec<u16>,
}

/// A table entry as the dwords the guest sees.
#[derive(Debug, Clone, Copy)]
struct Entry([u32; 4]);

impl Entry {
    const RESET: Self = Self([0, 0, 0, VECTOR_MASKED]);

    fn message(self) -> MsiMessage {
        let [low, high, data, _] = self.0;
        MsiMessage {
            address: u64::from(high) << 32 | u64::from(low),
            data,
        }
    }

    fn is_masked(self) -> bool {
        self.0[3] & VECTOR_MASKED != 0
    }
}

/// Vector table, pending bits, and the control bits that gate them.
#[derive(Debug, Clone)]
pub struct MsixTable {
    entries: Box<[Entry]>,
    pending: Box<[u64]>,
    enabled: bool,
    function_masked: bool,
}

impl MsixTable {
    /// A table of `vectors` entries as after a reset: disabled, all masked, none pending.
    pub fn new(vectors: u16) -> Result<Self, MsixStateError> {
        if vectors == 0 || vectors > MAX_MSIX_VECTORS {
            return Err(MsixStateError::VectorCount {
                vectors: usize::from(vectors),
            });
        }
        let vectors = usize::from(vectors);
        Ok(Self {
            entries: vec![Entry::RESET; vectors].into_boxed_slice(),
            pending: vec![0; vectors.div_ceil(PENDING_BITS)].into_boxed_slice(),
            enabled: false,
            function_masked: false,
        })
    }

    /// Number of vectors, 1 to 2048.
    pub fn vectors(&self) -> u16 {
        u16::try_from(self.entries.len()).expect("the constructor admits at most 2048 entries")
    }

    /// Bytes that the table occupies in its BAR.
    pub fn table_len(&self) -> u64 {
        u64::from(self.vectors()) * ENTRY_LEN
    }

    /// Bytes that the pending bit array occupies in its BAR.
    pub fn pba_len(&self) -> u64 {
        u64::from(self.vectors()).div_ceil(64) * 8
    }

    /// Whether MSI-X is the function's interrupt mode.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// What happens when the device raises `vector`; `None` beyond the table.
    pub fn vector(&self, vector: u16) -> Option<VectorState> {
        let entry = self.entries.get(usize::from(vector))?;
        let open = self.enabled && !self.function_masked && !entry.is_masked();
        Some(if open {
            VectorState::Unmasked(entry.message())
        } else {
            VectorState::Masked
        })
    }

    /// A guest read at `offset` bytes into the table. Only aligned accesses of 4 and 8 bytes have
    /// a meaning; others read as all-ones.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        read_dwords(offset, data, |index| {
            Some(self.entries.get(index / 4)?.0[index % 4])
        });
    }

    /// A guest read at `offset` bytes into the pending bit array, with the same rules.
    pub fn read_pba(&self, offset: u64, data: &mut [u8]) {
        read_dwords(offset, data, |index| {
            Some(halves(*self.pending.get(index / 2)?)[index % 2])
        });
    }

    /// A guest write at `offset` bytes into the table; malformed ones are ignored. Writes to the
    /// pending bit array have no meaning at all and need not be passed on.
    #[must_use = "changes that are dropped leave interrupt routes out of step with the guest"]
    pub fn write_table(&mut self, offset: u64, data: &[u8]) -> Option<VectorChange> {
        let first = dword_index(offset, data.len())?;
        let position = first / 4;
        let vector = u16::try_from(position).ok()?;
        let before = self.vector(vector)?;
        let entry = self.entries.get_mut(position)?;
        for (index, bytes) in (first % 4..).zip(data.chunks_exact(4)) {
            // An aligned access of at most 8 bytes stays inside one 16-byte entry.
            if let (Some(word), Ok(bytes)) = (entry.0.get_mut(index), bytes.try_into()) {
                *word = u32::from_le_bytes(bytes) & ENTRY_WRITABLE[index];
            }
        }
        self.change(vector, before)
    }

    /// The device raises `vector`: returns the message to send now, or records the vector as
    /// pending when it is masked. While MSI-X is disabled nothing happens.
    #[must_use = "a message that is not sent is a lost interrupt"]
    pub fn raise(&mut self, vector: u16) -> Option<MsiMessage> {
        match self.vector(vector)? {
            VectorState::Unmasked(message) => Some(message),
            VectorState::Masked => {
                if self.enabled {
                    self.set_pending(vector);
                }
                None
            }
        }
    }

    /// Whether `vector` is pending.
    pub fn is_pending(&self, vector: u16) -> bool {
        let position = usize::from(vector);
        self.pending
            .get(position / PENDING_BITS)
            .is_some_and(|bits| bits >> (position % PENDING_BITS) & 1 != 0)
    }

    /// Takes over the control register's enable and function-mask bits.
    pub(crate) fn set_control(&mut self, enabled: bool, function_masked: bool) -> MessageChange {
        self.changing_all(|table| {
            table.enabled = enabled;
            table.function_masked = function_masked;
        })
    }

    /// Puts the table back to its state after a reset.
    pub(crate) fn reset(&mut self) -> MessageChange {
        self.changing_all(|table| {
            table.entries.fill(Entry::RESET);
            table.pending.fill(0);
            table.enabled = false;
            table.function_masked = false;
        })
    }

    /// The state to put into a snapshot.
    pub fn save(&self) -> MsixTableState {
        let Self {
            entries,
            pending: _,
            enabled: _,
            function_masked: _,
        } = self;
        MsixTableState {
            entries: entries
                .iter()
                .map(|entry| MsixEntryState {
                    message: entry.message(),
                    masked: entry.is_masked(),
                })
                .collect(),
            pending: (0..self.vectors())
                .filter(|v| self.is_pending(*v))
                .collect(),
        }
    }

    /// This table, just made, with `state` and the control bits that were saved with it.
    pub(crate) fn restored(
        mut self,
        state: &MsixTableState,
        enabled: bool,
        function_masked: bool,
    ) -> Result<Self, MsixStateError> {
        self.enabled = enabled;
        self.function_masked = function_masked;
        let MsixTableState { entries, pending } = state;
        if entries.len() != self.entries.len() {
            return Err(MsixStateError::VectorMismatch {
                saved: entries.len(),
                model: self.entries.len(),
            });
        }
        for (vector, MsixEntryState { message, .. }) in entries.iter().enumerate() {
            if message.address & 0x3 != 0 {
                return Err(MsixStateError::Address {
                    vector,
                    address: message.address,
                });
            }
        }
        for (entry, saved) in self.entries.iter_mut().zip(entries) {
            let MsixEntryState { message, masked } = saved;
            let MsiMessage { address, data } = message;
            let [low, high] = halves(*address);
            *entry = Entry([low, high, *data, u32::from(*masked)]);
        }
        for &vector in pending {
            match self.vector(vector) {
                Some(VectorState::Masked) => self.set_pending(vector),
                Some(VectorState::Unmasked(_)) => {
                    return Err(MsixStateError::PendingUnmasked { vector });
                }
                None => return Err(MsixStateError::Pending { vector }),
            }
        }
        Ok(self)
    }

    fn set_pending(&mut self, vector: u16) {
        let position = usize::from(vector);
        if let Some(bits) = self.pending.get_mut(position / PENDING_BITS) {
            *bits |= 1 << (position % PENDING_BITS);
        }
    }

    /// How `vector` differs from `before`. A pending vector that was just unmasked stops being
    /// pending here and fires at the owner.
    fn change(&mut self, vector: u16, before: VectorState) -> Option<VectorChange> {
        let after = self.vector(vector)?;
        if after == before {
            return None;
        }
        let fire = after != VectorState::Masked && self.is_pending(vector);
        if fire {
            let position = usize::from(vector);
            self.pending[position / PENDING_BITS] &= !(1 << (position % PENDING_BITS));
        }
        Some(VectorChange {
            vector,
            before,
            after,
            fire,
        })
    }

    fn changing_all(&mut self, change: impl FnOnce(&mut Self)) -> MessageChange {
        let was_enabled = self.enabled;
        let before: Vec<_> = (0..self.vectors()).filter_map(|v| self.vector(v)).collect();
        change(self);
        let vectors = (0..self.vectors())
            .zip(before)
            .filter_map(|(vector, before)| self.change(vector, before))
            .collect();
        MessageChange {
            enabled: self.enabled,
            was_enabled,
            vectors,
        }
    }
}

/// Index of the first dword of a well-formed access: 4 or 8 bytes, aligned (section 6.8.2).
fn dword_index(offset: u64, len: usize) -> Option<usize> {
    let aligned = match len {
        4 => offset.is_multiple_of(4),
        8 => offset.is_multiple_of(8),
        _ => false,
    };
    if !aligned {
        return None;
    }
    usize::try_from(offset / 4).ok()
}

/// Fills `data` with the dwords that `dword` gives by index; all-ones where the access is malformed
/// or leaves the structure.
fn read_dwords(offset: u64, data: &mut [u8], dword: impl Fn(usize) -> Option<u32>) {
    let first = dword_index(offset, data.len());
    data.fill(0xff);
    if let Some(first) = first {
        for (index, bytes) in (first..).zip(data.chunks_exact_mut(4)) {
            if let Some(value) = dword(index) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        }
    }
}

/// Low and high dword.
fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [[a, b, c, d], [e, f, g, h]].map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests;
