//! The trapped part of a BAR: guest accesses that reach no mapping come here.
//!
//! Covers the whole BAR on its bus; what is mapped into the guest never exits to it. The MSI-X table and its pending bits are
//! answered by the model, everything else by the device.

use std::ops::Range;
use std::sync::Arc;

use super::hardware::Hardware;
use super::interrupts::Interrupts;
use crate::access::{BusDevice, Effect};

/// One BAR, or the ROM.
pub(super) struct BarWindow {
    pub hardware: Arc<Hardware>,
    pub interrupts: Arc<Interrupts>,
    /// The region behind it.
    pub region: u32,
    /// Bytes of the region that hold the MSI-X table.
    pub table: Option<Range<u64>>,
    /// Bytes of the region that hold the pending bits of MSI-X.
    pub pending: Option<Range<u64>>,
}

/// What an access meets.
enum Target {
    Device,
    Table(u64),
    Pending(u64),
    /// It straddles a border, which no well-formed access of these structures does.
    Nothing,
}

impl BarWindow {
    fn target(&self, offset: u64, len: usize) -> Target {
        let end = offset.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
        let meets = |part: &Range<u64>| offset < part.end && part.start < end;
        let inside = |part: &Range<u64>| part.start <= offset && end <= part.end;
        match (&self.table, &self.pending) {
            (Some(table), _) if inside(table) => Target::Table(offset - table.start),
            (_, Some(pending)) if inside(pending) => Target::Pending(offset - pending.start),
            (table, pending) if table.iter().chain(pending).any(meets) => Target::Nothing,
            _ => Target::Device,
        }
    }
}

impl BusDevice for BarWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.target(offset, data.len()) {
            Target::Device => self.hardware.read_region(self.region, offset, data),
            Target::Table(offset) => self.interrupts.read_table(offset, data),
            Target::Pending(offset) => self.interrupts.read_pending(offset, data),
            Target::Nothing => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Effect {
        match self.target(offset, data.len()) {
            Target::Device => self.hardware.write_region(self.region, offset, data),
            Target::Table(offset) => self.interrupts.write_table(offset, data),
            Target::Pending(_) | Target::Nothing => {}
        }
        Effect::None
    }
}
