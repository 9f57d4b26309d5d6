//! A guest, a device and a host that use one modelled PCI function in any order, and know what the model owes them.
//!
//! Every effect is compared with what changed: layout, bus mastering, INTx, and each message vector, whose state is
//! followed through the effects alone. At the end, and whenever the fuzzer asks, the function is saved, read back from
//! JSON and restored, and has to be the same.

use std::collections::BTreeSet;

use arbitrary::Arbitrary;
use dormouse_pci::regs::Command;
use dormouse_pci::{
    BarIndex, BarPlacement, ConfigEffect, ConfigSpace, ConfigSpaceBuilder, ConfigSpaceState,
    InterruptMode, MessageChange, MsixTable, VectorState,
};

/// Offsets reach a little beyond the space.
const OFFSETS: u16 = 4096 + 4;

/// One thing that happens to a function.
#[derive(Arbitrary, Debug)]
pub enum Event {
    /// The guest reads.
    Read(Place),
    /// The guest writes.
    Write(Place, [u8; 8]),
    /// The guest wrote to hardware.
    MirrorWrite(Place, [u8; 8]),
    /// The guest read from hardware.
    MirrorRead(Place, [u8; 8]),
    /// The guest reads the MSI-X table, or the pending bits.
    ReadMsix(bool, u16, u8),
    /// The guest writes the MSI-X table.
    WriteMsix(u16, u8, [u8; 8]),
    /// The device raises MSI.
    RaiseMsi(u8),
    /// The device raises MSI-X.
    RaiseMsix(u16),
    /// The device raises or lowers its pin.
    Intx(bool),
    /// The host could not place a BAR.
    RefuseBar(u8, u64, u64),
    /// The function is reset.
    Reset,
    /// The VM sleeps and wakes.
    SaveAndRestore,
}

/// Where in configuration space an access is, and how long.
#[derive(Arbitrary, Debug, Clone, Copy)]
pub struct Place(u16, u8);

impl Place {
    /// Mostly in the header and the conventional capabilities, where most registers are.
    fn offset(self) -> u16 {
        let space = if self.1 & 0x80 == 0 { 256 } else { OFFSETS };
        self.0 % space
    }

    fn len(self) -> usize {
        access_len(self.1)
    }
}

/// Mostly lengths that a bus can carry.
fn access_len(choice: u8) -> usize {
    [1, 2, 4, 8, 4, 2, 3, 0][usize::from(choice % 8)]
}

/// What the guest can see of the header and has to be told about.
#[derive(PartialEq)]
struct Header {
    decoded: Vec<BarPlacement>,
    command: Command,
}

impl Header {
    fn of(config: &ConfigSpace) -> Self {
        Self {
            decoded: config
                .desired_bars()
                .into_iter()
                .filter(|bar| bar.decoded)
                .collect(),
            command: config.command(),
        }
    }
}

/// Vectors of one kind, as their owner knows them from effects.
#[derive(Debug, PartialEq)]
struct Vectors {
    enabled: bool,
    states: Vec<VectorState>,
}

impl Vectors {
    fn apply(&mut self, change: &MessageChange) {
        assert!(!change.is_empty(), "an effect without an effect");
        assert_eq!(change.was_enabled, self.enabled);
        self.enabled = change.enabled;
        for vector in &change.vectors {
            let known = &mut self.states[usize::from(vector.vector)];
            assert_eq!(*known, vector.before);
            assert_ne!(*known, vector.after);
            assert!(!vector.fire || vector.after != VectorState::Masked);
            *known = vector.after;
        }
    }
}

/// The function and everything known of it.
pub struct Function<'a> {
    config: ConfigSpace,
    builder: &'a dyn Fn() -> ConfigSpaceBuilder,
    msi: Vec<VectorState>,
    msix: Option<Vectors>,
    msix_pending: BTreeSet<u16>,
    links: Vec<(u32, u16)>,
}

impl<'a> Function<'a> {
    /// The function that `builder` describes, after a reset.
    pub fn new(builder: &'a dyn Fn() -> ConfigSpaceBuilder) -> Self {
        let config = builder().build();
        let mut function = Self {
            msi: config.msi_vectors(),
            msix: config.msix().map(vectors),
            msix_pending: BTreeSet::new(),
            links: links(&config),
            config,
            builder,
        };
        function.save_and_restore();
        function
    }

    /// Lets all events happen.
    pub fn run(mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            self.happen(event);
            self.check();
        }
        self.save_and_restore();
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Read(place) => self.read(place),
            Event::Write(place, bytes) => {
                let data = &bytes[..place.len()];
                self.observe(|config| config.write(place.offset(), data));
            }
            Event::MirrorWrite(place, bytes) => {
                let data = &bytes[..place.len()];
                self.observe(|config| config.mirror_write(place.offset(), data));
            }
            Event::MirrorRead(place, bytes) => {
                let data = &bytes[..place.len()];
                self.config.mirror_read(place.offset(), data);
            }
            Event::ReadMsix(pending, offset, len) => {
                let mut data = vec![0; usize::from(len % 10)];
                if let Some(table) = self.config.msix() {
                    if pending {
                        table.read_pba(offset.into(), &mut data);
                    } else {
                        table.read_table(offset.into(), &mut data);
                    }
                }
            }
            Event::WriteMsix(offset, len, bytes) => self.write_msix(offset, len, bytes),
            Event::RaiseMsi(vector) => {
                let state = self.msi.get(usize::from(vector)).copied();
                assert_eq!(self.config.raise_msi(vector), message_of(state));
            }
            Event::RaiseMsix(vector) => self.raise_msix(vector),
            Event::Intx(asserted) => self.config.set_interrupt_status(asserted),
            Event::RefuseBar(number, refused, previous) => {
                if let Ok(index) = BarIndex::new(number % 8) {
                    let _ = self.config.refuse_bar(index, refused, previous);
                }
            }
            Event::Reset => {
                self.msix_pending.clear();
                self.observe(ConfigSpace::reset);
                assert_eq!(self.config.command(), Command::empty());
            }
            Event::SaveAndRestore => self.save_and_restore(),
        }
    }

    /// A read of several bytes is that of each of them.
    fn read(&self, place: Place) {
        let mut data = vec![0xa5; place.len()];
        self.config.read(place.offset(), &mut data);
        if data.len() == 1 || data.iter().all(|byte| *byte == 0xff) {
            return;
        }
        for (offset, expected) in (place.offset()..).zip(data) {
            let mut byte = [0];
            self.config.read(offset, &mut byte);
            assert_eq!(byte, [expected]);
        }
    }

    /// Makes a change and compares its effects with what is different afterwards.
    fn observe(&mut self, change: impl FnOnce(&mut ConfigSpace) -> Vec<ConfigEffect>) {
        let before = Header::of(&self.config);
        let effects = change(&mut self.config);
        let after = Header::of(&self.config);
        let switched = before.command ^ after.command;
        let told = |wanted: fn(&ConfigEffect) -> bool| effects.iter().any(wanted);
        assert_eq!(
            told(|effect| matches!(effect, ConfigEffect::LayoutChanged)),
            before.decoded != after.decoded
        );
        assert_eq!(
            told(|effect| matches!(effect, ConfigEffect::BusMasterChanged { .. })),
            switched.contains(Command::BUS_MASTER)
        );
        assert_eq!(
            told(|effect| matches!(effect, ConfigEffect::InterruptDisableChanged { .. })),
            switched.contains(Command::INTX_DISABLE)
        );
        for effect in &effects {
            match effect {
                ConfigEffect::BusMasterChanged { enabled } => {
                    assert_eq!(*enabled, after.command.contains(Command::BUS_MASTER));
                }
                ConfigEffect::InterruptDisableChanged { disabled } => {
                    assert_eq!(*disabled, after.command.contains(Command::INTX_DISABLE));
                }
                ConfigEffect::Msi(change) => {
                    for vector in &change.vectors {
                        let known = &mut self.msi[usize::from(vector.vector)];
                        assert_eq!(*known, vector.before);
                        *known = vector.after;
                    }
                }
                ConfigEffect::Msix(change) => {
                    self.msix.as_mut().expect("it has MSI-X").apply(change);
                    for vector in change.vectors.iter().filter(|vector| vector.fire) {
                        assert!(self.msix_pending.remove(&vector.vector));
                    }
                }
                ConfigEffect::LayoutChanged | ConfigEffect::FunctionReset => {}
            }
        }
    }

    fn write_msix(&mut self, offset: u16, len: u8, bytes: [u8; 8]) {
        let Some(table) = self.config.msix_mut() else {
            return;
        };
        let data = &bytes[..access_len(len)];
        let Some(change) = table.write_table(offset.into(), data) else {
            return;
        };
        let known = self.msix.as_mut().expect("it has MSI-X");
        assert_eq!(known.states[usize::from(change.vector)], change.before);
        known.states[usize::from(change.vector)] = change.after;
        if change.fire {
            assert_ne!(change.after, VectorState::Masked);
            assert!(self.msix_pending.remove(&change.vector));
        }
    }

    fn raise_msix(&mut self, vector: u16) {
        let (Some(known), Some(table)) = (&self.msix, self.config.msix_mut()) else {
            return;
        };
        let state = known.states.get(usize::from(vector)).copied();
        assert_eq!(table.raise(vector), message_of(state));
        if known.enabled && state == Some(VectorState::Masked) {
            self.msix_pending.insert(vector);
        }
    }

    /// What holds after every event.
    fn check(&self) {
        assert_eq!(self.config.msi_vectors(), self.msi);
        let msix_enabled = self.msix.as_ref().is_some_and(|msix| msix.enabled);
        assert_eq!(
            self.config.interrupt_mode() == InterruptMode::Msix,
            msix_enabled
        );
    }

    fn save_and_restore(&mut self) {
        assert_eq!(self.config.msix().map(vectors), self.msix);
        assert_eq!(links(&self.config), self.links, "a guest changed the lists");
        let state = self.config.save();
        let pending = state.msix.iter().flat_map(|table| table.pending.clone());
        assert!(pending.eq(self.msix_pending.iter().copied()));
        let json = serde_json::to_vec(&state).expect("a state is JSON");
        let read: ConfigSpaceState = serde_json::from_slice(&json).expect("it reads back");
        assert_eq!(read, state);
        let restored = (self.builder)()
            .restore(&read)
            .expect("a function takes its own state");
        assert_eq!(restored.save(), state);
        assert_eq!(restored.desired_bars(), self.config.desired_bars());
        self.config = restored;
    }
}

fn vectors(table: &MsixTable) -> Vectors {
    Vectors {
        enabled: table.is_enabled(),
        states: (0..table.vectors())
            .map(|vector| table.vector(vector).expect("the table counts its vectors"))
            .collect(),
    }
}

fn message_of(state: Option<VectorState>) -> Option<dormouse_pci::MsiMessage> {
    match state {
        Some(VectorState::Unmasked(message)) => Some(message),
        Some(VectorState::Masked) | None => None,
    }
}

/// Identifiers and places of the capabilities that a guest finds. A bounded walk of its own: that of the model also looks
/// at lengths, which may be the hardware's to change.
fn links(config: &ConfigSpace) -> Vec<(u32, u16)> {
    let dword = |offset: u16| {
        let mut bytes = [0; 4];
        config.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    };
    let mut found = Vec::new();
    let mut at = (dword(0x34) & 0xfc) as u16;
    while at != 0 {
        assert!(at >= 0x40 && found.len() < 64, "the list is broken");
        found.push((dword(at) & 0xff, at));
        at = (dword(at) >> 8 & 0xfc) as u16;
    }
    let mut at = 0x100;
    while at != 0 && !matches!(dword(at), 0 | u32::MAX) {
        assert!(at >= 0x100 && found.len() < 2048, "the list is broken");
        found.push((dword(at) & 0xf_ffff, at));
        at = (dword(at) >> 20 & 0xffc) as u16;
    }
    found
}
