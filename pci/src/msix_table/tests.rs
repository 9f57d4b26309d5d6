//! The table against a reference model that keeps one plain record per vector.

use proptest::collection::vec;
use proptest::prelude::{Strategy, any};
use proptest::{prop_assert_eq, prop_oneof, proptest};

use super::*;

const VECTORS: u16 = 70;

fn table() -> MsixTable {
    MsixTable::new(VECTORS).unwrap()
}

fn open(table: &mut MsixTable, vector: u16, data: u32) -> Option<VectorChange> {
    let base = u64::from(vector) * ENTRY_LEN;
    let _ = table.write_table(base, &0xfee0_1000_u64.to_le_bytes());
    let _ = table.write_table(base + 8, &data.to_le_bytes());
    table.write_table(base + 12, &0_u32.to_le_bytes())
}

fn message(data: u32) -> MsiMessage {
    MsiMessage {
        address: 0xfee0_1000,
        data,
    }
}

#[test]
fn vector_counts_of_the_specification() {
    for vectors in [0, MAX_MSIX_VECTORS + 1, u16::MAX] {
        assert!(MsixTable::new(vectors).is_err());
    }
    let largest = MsixTable::new(MAX_MSIX_VECTORS).unwrap();
    assert_eq!((largest.table_len(), largest.pba_len()), (32768, 256));
    let smallest = MsixTable::new(1).unwrap();
    assert_eq!((smallest.table_len(), smallest.pba_len()), (16, 8));
}

#[test]
fn masked_vector_becomes_pending_and_fires_when_unmasked() {
    let mut table = table();
    let _ = table.set_control(true, false);
    assert_eq!(table.raise(65), None);
    let mut pending = [0; 8];
    table.read_pba(8, &mut pending);
    assert_eq!(u64::from_le_bytes(pending), 1 << 1);
    let change = open(&mut table, 65, 7).unwrap();
    assert_eq!(change.before, VectorState::Masked);
    assert_eq!(change.after, VectorState::Unmasked(message(7)));
    assert!(change.fire);
    assert!(!table.is_pending(65));
    assert_eq!(table.raise(65), Some(message(7)));
}

#[test]
fn function_mask_holds_every_vector_back() {
    let mut table = table();
    let _ = open(&mut table, 0, 1);
    let _ = open(&mut table, 3, 2);
    let enabled = table.set_control(true, true);
    assert!(enabled.enabled && !enabled.was_enabled);
    assert_eq!(enabled.vectors, []);
    assert_eq!(table.raise(3), None);
    let unmasked = table.set_control(true, false).vectors;
    let seen: Vec<_> = unmasked.iter().map(|c| (c.vector, c.fire)).collect();
    assert_eq!(seen, [(0, false), (3, true)]);
}

#[test]
fn message_change_of_an_open_vector_is_reported_and_does_not_fire() {
    let mut table = table();
    let _ = table.set_control(true, false);
    let _ = open(&mut table, 2, 1);
    let change = table.write_table(2 * 16 + 8, &9_u32.to_le_bytes()).unwrap();
    assert_eq!(change.before, VectorState::Unmasked(message(1)));
    assert_eq!(change.after, VectorState::Unmasked(message(9)));
    assert!(!change.fire);
    assert_eq!(table.write_table(2 * 16 + 8, &9_u32.to_le_bytes()), None);
}

#[test]
fn malformed_accesses_read_all_ones_and_write_nothing() {
    let mut table = table();
    let saved = table.save();
    let end = table.table_len();
    for (offset, len) in [
        (0, 0),
        (0, 1),
        (0, 2),
        (2, 4),
        (4, 8),
        (0, 16),
        (end, 4),
        (u64::MAX - 3, 4),
    ] {
        let mut data = vec![0; len];
        assert_eq!(table.write_table(offset, &data), None);
        table.read_table(offset, &mut data);
        assert!(data.iter().all(|byte| *byte == 0xff), "{offset} {len}");
        data.fill(0);
        table.read_pba(offset + u64::from(offset == 0 && len > 8), &mut data);
    }
    assert_eq!(table.save(), saved);
}

#[test]
fn hostile_state_is_refused() {
    let good = table().save();
    let restore = |state: &MsixTableState, enabled| table().restored(state, enabled, false);
    assert!(restore(&good, true).is_ok());
    let mut state = good.clone();
    state.entries.pop();
    assert!(matches!(
        restore(&state, true),
        Err(MsixStateError::VectorMismatch { saved: 69, .. })
    ));
    let mut state = good.clone();
    state.entries[4].message.address = 0xfee0_0001;
    assert!(matches!(
        restore(&state, true),
        Err(MsixStateError::Address { vector: 4, .. })
    ));
    let mut state = good.clone();
    state.pending.push(VECTORS);
    assert!(matches!(
        restore(&state, true),
        Err(MsixStateError::Pending { vector: VECTORS })
    ));
    let mut state = good;
    state.entries[5].masked = false;
    state.pending.push(5);
    assert!(matches!(
        restore(&state, true),
        Err(MsixStateError::PendingUnmasked { vector: 5 })
    ));
    assert!(restore(&state, false).is_ok());
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64, Vec<u8>),
    Control(bool, bool),
    Raise(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let aligned = (0..4 * u64::from(VECTORS), any::<u32>(), any::<bool>()).prop_map(
        |(dword, value, wide)| {
            let bytes = u64::from(value) << 32 | u64::from(value);
            let len = if wide { 8 } else { 4 };
            Step::Write(dword * 4, bytes.to_le_bytes()[..len].to_vec())
        },
    );
    let any_write =
        (0..1500_u64, vec(any::<u8>(), 0..17)).prop_map(|(at, data)| Step::Write(at, data));
    let control = (any::<bool>(), any::<bool>()).prop_map(|(on, mask)| Step::Control(on, mask));
    let raise = (0..VECTORS + 2).prop_map(Step::Raise);
    vec(
        prop_oneof![4 => aligned, 1 => any_write, 1 => control, 3 => raise],
        0..200,
    )
}

/// The table as a naive reading of the specification has it.
#[derive(Clone)]
struct Reference {
    bytes: Vec<u8>,
    pending: Vec<bool>,
    enabled: bool,
    masked: bool,
}

impl Reference {
    fn new() -> Self {
        let entry = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        Self {
            bytes: entry.repeat(VECTORS.into()),
            pending: vec![false; VECTORS.into()],
            enabled: false,
            masked: false,
        }
    }

    fn state(&self, vector: usize) -> VectorState {
        let entry = &self.bytes[vector * 16..][..16];
        if !self.enabled || self.masked || entry[12] & 1 == 1 {
            return VectorState::Masked;
        }
        VectorState::Unmasked(MsiMessage {
            address: u64::from_le_bytes(entry[..8].try_into().unwrap()),
            data: u32::from_le_bytes(entry[8..12].try_into().unwrap()),
        })
    }

    /// Applies the step; returns vectors that changed and those that fire.
    fn apply(&mut self, step: &Step) -> Vec<VectorChange> {
        let before = self.clone();
        match step {
            Step::Write(offset, data) => {
                let at = usize::try_from(*offset).unwrap();
                let fits = at + data.len() <= self.bytes.len();
                if matches!(data.len(), 4 | 8) && at % data.len() == 0 && fits {
                    for (at, byte) in (at..).zip(data) {
                        self.bytes[at] = match at % 16 {
                            0 => byte & 0xfc,
                            12 => byte & 1,
                            13..16 => 0,
                            _ => *byte,
                        };
                    }
                }
            }
            Step::Control(enabled, masked) => (self.enabled, self.masked) = (*enabled, *masked),
            Step::Raise(vector) => {
                let vector = usize::from(*vector);
                if vector < self.pending.len()
                    && self.enabled
                    && self.state(vector) == VectorState::Masked
                {
                    self.pending[vector] = true;
                }
            }
        }
        let mut changes = Vec::new();
        for vector in 0..VECTORS {
            let at = usize::from(vector);
            let (before, after) = (before.state(at), self.state(at));
            if before != after {
                let fire = after != VectorState::Masked && std::mem::take(&mut self.pending[at]);
                changes.push(VectorChange {
                    vector,
                    before,
                    after,
                    fire,
                });
            }
        }
        changes
    }
}

proptest! {
    #[test]
    fn behaves_like_the_reference(steps in steps()) {
        let mut table = table();
        let mut reference = Reference::new();
        for step in &steps {
            let sent = match step {
                Step::Raise(vector) if *vector < VECTORS => reference.state((*vector).into()),
                _ => VectorState::Masked,
            };
            let expected = reference.apply(step);
            let changes = match step {
                Step::Write(offset, data) => Vec::from_iter(table.write_table(*offset, data)),
                Step::Control(enabled, masked) => table.set_control(*enabled, *masked).vectors,
                Step::Raise(vector) => {
                    let message = table.raise(*vector);
                    prop_assert_eq!(message.map_or(VectorState::Masked, VectorState::Unmasked), sent);
                    Vec::new()
                }
            };
            prop_assert_eq!(changes, expected);
        }
        for (vector, pending) in (0..VECTORS).zip(&reference.pending) {
            prop_assert_eq!(table.is_pending(vector), *pending);
        }
        for (at, expected) in (0..).step_by(4).zip(reference.bytes.chunks(4)) {
            let mut data = [0; 4];
            table.read_table(at, &mut data);
            prop_assert_eq!(&data, expected);
        }
        let state = table.save();
        let restored = MsixTable::new(VECTORS).unwrap()
            .restored(&state, table.enabled, table.function_masked).unwrap();
        prop_assert_eq!(restored.save(), state);
    }
}
