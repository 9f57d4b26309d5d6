//! Fakes of the host's side of a function, and three devices: one like an NVMe controller, one like an mtty, one like a virtual
//! function of a network card.
//!
//! The fake host behaves as the kernel does where it matters: one interrupt mode at a time, no region access without decoding,
//! no two mappings in one place. Everything that changes it goes into one [`Trace`], together with the steps of the scripted
//! migration device, so that a test can assert the order. Part of the crate with the `testing` feature only.

mod fake_host;
mod fake_interrupts;
mod models;

use std::ops::Range;
use std::sync::{Arc, Mutex};

use dormouse_pci::{BarIndex, BarKind, ConfigEffect, MsiMessage, PciFunction};
use dormouse_vfio_migration::MigrationIo;
use dormouse_vfio_migration::testing::Trace;

pub use fake_host::{FakeHost, HostFaults};
pub use fake_interrupts::FakeSink;
use fake_interrupts::FakeSupply;
pub use models::Model;

use super::host::AddressWindows;
use super::{BarSpaces, Error, VfioDeps, VfioFunction, VfioFunctionState, VfioSpec};
use crate::bus::{Mmio, MmioBus, Pio, PioBus};

/// The windows of the fake machine.
pub const MMIO32: Range<u64> = 0xc000_0000..0xf000_0000;
pub const MMIO64: Range<u64> = 0x10_0000_0000..0x20_0000_0000;
pub const PORTS: Range<u64> = 0x1000..0x1_0000;

struct FakeWindows;

impl AddressWindows for FakeWindows {
    fn contains(&self, kind: BarKind, range: &Range<u64>) -> bool {
        let inside = |window: Range<u64>| window.start <= range.start && range.end <= window.end;
        match kind {
            BarKind::Io { .. } => inside(PORTS),
            BarKind::Mem32 { .. } => inside(MMIO32),
            BarKind::Mem64 { .. } => inside(MMIO32) || inside(MMIO64),
        }
    }
}

/// The buses of a machine and nothing on them.
pub fn empty_spaces() -> BarSpaces {
    let (pio, mmio) = (Arc::new(PioBus::new()), Arc::new(MmioBus::new()));
    BarSpaces::new(pio, mmio, Arc::new(FakeWindows))
}

/// A function over fakes, as a guest and its machine use it.
pub struct Rig {
    pub trace: Trace,
    pub host: Arc<FakeHost>,
    pub sink: Option<Arc<FakeSink>>,
    pub spaces: BarSpaces,
    pub function: VfioFunction,
}

/// What a rig is built from.
pub struct RigParts {
    pub name: &'static str,
    pub host: Arc<FakeHost>,
    pub trace: Trace,
    pub spaces: BarSpaces,
    pub migration: Option<Arc<dyn MigrationIo>>,
    pub state: Option<VfioFunctionState>,
    pub trapped_bars: Vec<BarIndex>,
}

impl RigParts {
    pub fn new(model: Model) -> Self {
        let trace = Trace::new();
        let host = FakeHost::new(model, &trace);
        let spaces = empty_spaces();
        Self {
            name: "vfio0",
            host,
            trace,
            spaces,
            migration: None,
            state: None,
            trapped_bars: Vec::new(),
        }
    }

    pub fn build(self) -> Result<Rig, Error> {
        let Self {
            name,
            host,
            trace,
            spaces,
            migration,
            state,
            trapped_bars,
        } = self;
        let supply = FakeSupply {
            trace: trace.clone(),
            sink: Mutex::new(None),
        };
        let spec = VfioSpec {
            name: name.into(),
            trapped_bars,
        };
        let deps = VfioDeps {
            host: Arc::clone(&host) as _,
            migration,
            interrupts: &supply,
            spaces: spaces.clone(),
        };
        let function = match &state {
            Some(state) => VfioFunction::restore(state, &spec, deps)?,
            None => VfioFunction::new(&spec, deps)?,
        };
        let sink = supply.sink.into_inner().unwrap();
        Ok(Rig {
            trace,
            host,
            sink,
            spaces,
            function,
        })
    }
}

impl Rig {
    pub fn new(model: Model) -> Self {
        RigParts::new(model).build().unwrap()
    }

    /// A guest write with its effects applied, as a vCPU thread does.
    pub fn write(&self, offset: u16, data: &[u8]) -> Vec<ConfigEffect> {
        let effects = self.function.config_write(offset, data);
        for effect in effects.clone() {
            self.function.apply_effect(effect);
        }
        effects
    }

    pub fn write32(&self, offset: u16, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    pub fn write16(&self, offset: u16, value: u16) {
        self.write(offset, &value.to_le_bytes());
    }

    pub fn read32(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.function.config_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn read16(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.function.config_read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    pub fn mmio_write32(&self, address: u64, value: u32) -> bool {
        self.spaces
            .mmio
            .write(Mmio(address), &value.to_le_bytes())
            .is_some()
    }

    pub fn mmio_read32(&self, address: u64) -> Option<u32> {
        let mut data = [0; 4];
        let answered = self.spaces.mmio.read(Mmio(address), &mut data);
        answered.then(|| u32::from_le_bytes(data))
    }

    pub fn port_read8(&self, port: u16) -> Option<u8> {
        let mut data = [0];
        self.spaces
            .pio
            .read(Pio(port), &mut data)
            .then_some(data[0])
    }

    pub fn sink(&self) -> &FakeSink {
        self.sink.as_ref().unwrap()
    }

    /// Programs MSI-X `vector` through the table at `table`.
    pub fn program_vector(&self, table: u64, vector: u64, message: MsiMessage, masked: bool) {
        let entry = table + vector * 16;
        assert!(self.mmio_write32(entry, message.address as u32));
        assert!(self.mmio_write32(entry + 4, (message.address >> 32) as u32));
        assert!(self.mmio_write32(entry + 8, message.data));
        assert!(self.mmio_write32(entry + 12, masked.into()));
    }

    /// What the trace has since the last call, as lines of changes.
    pub fn take_changes(&self) -> Vec<String> {
        let changes = self.trace.changes();
        self.trace.clear();
        changes
    }
}

/// A message that a guest's local APIC takes.
pub const fn message(data: u32) -> MsiMessage {
    MsiMessage {
        address: 0xfee0_0000,
        data,
    }
}
