//! The MSI-X table against a second, plain model of it, and against tables from foreign snapshots.
#![no_main]

use arbitrary::Arbitrary;
use dormouse_pci::{
    BarIndex, BarKind, BarOffset, ConfigEffect, ConfigSpace, ConfigSpaceBuilder, Identity,
    MessageChange, MsiMessage, MsixCapability, MsixEntryState, MsixTable, MsixTableState,
    VectorChange, VectorState,
};
use libfuzzer_sys::fuzz_target;

const TABLE_LIMIT: u16 = 300;
const PBA_OFFSET: u32 = 0x8000;

#[derive(Arbitrary, Debug)]
enum Event {
    Write(u16, u8, [u8; 8]),
    Control(bool, bool),
    Raise(u16),
    Reset,
    Restore(Vec<(u64, u32, bool)>, Vec<u16>),
}

fuzz_target!(|input: (u16, Vec<Event>)| {
    let (vectors, events) = input;
    let vectors = vectors % TABLE_LIMIT + 1;
    let mut config = builder(vectors).build();
    let mut model = Model::new(vectors);
    for event in events {
        step(&mut config, &mut model, event);
        model.compare(config.msix().expect("it has MSI-X"));
    }
});

fn builder(vectors: u16) -> ConfigSpaceBuilder {
    let mut builder = ConfigSpaceBuilder::new(&Identity {
        vendor_id: 1,
        device_id: 2,
        subsystem_vendor_id: 3,
        subsystem_id: 4,
        class: 0x01_08_02,
        revision: 0,
        interrupt_pin: None,
    });
    let memory = BarKind::Mem32 {
        size: 0x1_0000,
        prefetchable: false,
    };
    builder.bar(BarIndex::BAR0, memory).expect("BAR 0 is free");
    let place = |offset| BarOffset {
        bar: BarIndex::BAR0,
        offset,
    };
    let shape = MsixCapability {
        vectors,
        table: place(0),
        pba: place(PBA_OFFSET),
    };
    assert_eq!(builder.msix(shape), Ok(0x40));
    builder
}

fn step(config: &mut ConfigSpace, model: &mut Model, event: Event) {
    let table = config.msix_mut().expect("it has MSI-X");
    match event {
        Event::Write(offset, len, bytes) => {
            let data = &bytes[..usize::from(len % 9)];
            let offset = u64::from(offset % (TABLE_LIMIT * 16 + 16));
            assert_eq!(table.write_table(offset, data), model.write(offset, data));
        }
        Event::Control(enabled, masked) => {
            let value = u16::from(enabled) << 15 | u16::from(masked) << 14;
            let effects = config.write(0x42, &value.to_le_bytes());
            assert_eq!(effects, model.control(enabled, masked));
        }
        Event::Raise(vector) => assert_eq!(table.raise(vector), model.raise(vector)),
        Event::Reset => {
            let effects = config.reset();
            let change = model.change_all(|model| *model = Model::new(model.vectors()));
            assert_eq!(effects, change);
        }
        Event::Restore(entries, pending) => {
            let entries = entries.into_iter().map(|(address, data, masked)| {
                let message = MsiMessage { address, data };
                MsixEntryState { message, masked }
            });
            let mut state = config.save();
            state.msix = Some(MsixTableState {
                entries: entries.collect(),
                pending,
            });
            if let Ok(restored) = builder(model.vectors()).restore(&state) {
                *config = restored;
                model.take(state.msix.expect("it was just set"));
            }
        }
    }
}

/// The table as the specification has it: PCI Local Bus Specification 3.0, section 6.8.2.
struct Model {
    words: Vec<u32>,
    pending: Vec<bool>,
    enabled: bool,
    masked: bool,
}

impl Model {
    fn new(vectors: u16) -> Self {
        Self {
            words: [0, 0, 0, 1].repeat(vectors.into()),
            pending: vec![false; vectors.into()],
            enabled: false,
            masked: false,
        }
    }

    fn vectors(&self) -> u16 {
        self.pending.len() as u16
    }

    fn state(&self, vector: u16) -> VectorState {
        let [low, high, data, control] = self.words[usize::from(vector) * 4..][..4] else {
            unreachable!("the slice has four words");
        };
        if !self.enabled || self.masked || control & 1 != 0 {
            return VectorState::Masked;
        }
        VectorState::Unmasked(MsiMessage {
            address: u64::from(high) << 32 | u64::from(low),
            data,
        })
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<VectorChange> {
        let whole = matches!(data.len(), 4 | 8) && offset.is_multiple_of(data.len() as u64);
        let first = (offset / 4) as usize;
        if !whole || first >= self.words.len() {
            return None;
        }
        let vector = (first / 4) as u16;
        let before = self.state(vector);
        for (index, word) in (first..).zip(data.chunks(4)) {
            let word = u32::from_le_bytes(word.try_into().expect("a dword has four bytes"));
            self.words[index] = match index % 4 {
                0 => word & !3,
                3 => word & 1,
                _ => word,
            };
        }
        self.change(vector, before)
    }

    fn change(&mut self, vector: u16, before: VectorState) -> Option<VectorChange> {
        let after = self.state(vector);
        let pending = &mut self.pending[usize::from(vector)];
        let fire = *pending && after != VectorState::Masked;
        *pending &= !fire;
        (before != after).then_some(VectorChange {
            vector,
            before,
            after,
            fire,
        })
    }

    fn control(&mut self, enabled: bool, masked: bool) -> Vec<ConfigEffect> {
        self.change_all(|model| (model.enabled, model.masked) = (enabled, masked))
    }

    fn change_all(&mut self, change: impl FnOnce(&mut Self)) -> Vec<ConfigEffect> {
        let was_enabled = self.enabled;
        let before: Vec<_> = (0..self.vectors()).map(|v| self.state(v)).collect();
        change(self);
        let vectors: Vec<_> = (0..self.vectors())
            .zip(before)
            .filter_map(|(vector, before)| self.change(vector, before))
            .collect();
        if was_enabled == self.enabled && vectors.is_empty() {
            return Vec::new();
        }
        vec![ConfigEffect::Msix(MessageChange {
            enabled: self.enabled,
            was_enabled,
            vectors,
        })]
    }

    fn raise(&mut self, vector: u16) -> Option<MsiMessage> {
        if vector >= self.vectors() {
            return None;
        }
        match self.state(vector) {
            VectorState::Unmasked(message) => Some(message),
            VectorState::Masked => {
                self.pending[usize::from(vector)] |= self.enabled;
                None
            }
        }
    }

    /// Takes over a state that was accepted, and checks that it should have been.
    fn take(&mut self, state: MsixTableState) {
        assert_eq!(state.entries.len(), self.pending.len());
        self.words = state
            .entries
            .iter()
            .flat_map(|entry| {
                let MsiMessage { address, data } = entry.message;
                assert_eq!(address & 3, 0);
                let high = (address >> 32) as u32;
                [address as u32, high, data, entry.masked.into()]
            })
            .collect();
        self.pending.fill(false);
        for vector in state.pending {
            assert_eq!(self.state(vector), VectorState::Masked);
            self.pending[usize::from(vector)] = true;
        }
    }

    fn compare(&self, table: &MsixTable) {
        assert_eq!(table.is_enabled(), self.enabled);
        let mut words = vec![0; self.words.len() * 4];
        for (at, word) in (0..).step_by(4).zip(words.chunks_exact_mut(4)) {
            table.read_table(at, word);
        }
        let expected: Vec<u8> = self
            .words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        assert_eq!(words, expected);
        let mut bits = vec![0; self.pending.len().div_ceil(64) * 8];
        for (at, bits) in (0..).step_by(8).zip(bits.chunks_exact_mut(8)) {
            table.read_pba(at, bits);
        }
        for (vector, pending) in self.pending.iter().enumerate() {
            assert_eq!(bits[vector / 8] >> (vector % 8) & 1 != 0, *pending);
        }
    }
}
