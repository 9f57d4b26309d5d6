//! Quiet MMIO (invariant 2), looked at from within every state change: a device that is asked to move tries all BARs first.

use std::io;
use std::sync::{Arc, Mutex};

use dormouse_vfio_migration::group::PeerDma;
use dormouse_vfio_migration::testing::{ScriptedDevice, Trace};
use dormouse_vfio_migration::{DataFd, IovaRange, MigFlags, MigState, MigrationIo};

use crate::bus::Mmio;
use crate::vfio::BarSpaces;
use crate::vfio::migration::{pause, resume};
use crate::vfio::testing::{FakeHost, Model, Rig, RigParts};

const BARS: [u64; 2] = [0xd000_0000, 0xd100_0000];

/// What the devices of a test share: where their BARs answer, their hosts, and the state changes during which one answered.
#[derive(Default)]
struct Watch {
    machine: Mutex<Vec<(BarSpaces, Arc<FakeHost>)>>,
    touched: Mutex<Vec<String>>,
}

impl Watch {
    fn try_all_bars(&self, moment: &str) {
        for (spaces, host) in &*self.machine.lock().unwrap() {
            let before = host.region_accesses();
            for bar in BARS {
                spaces.mmio.read(Mmio(bar + 0x100), &mut [0; 4]);
            }
            if host.region_accesses() != before {
                self.touched.lock().unwrap().push(moment.to_owned());
            }
        }
    }
}

/// A device that tries all BARs before and after each of its state changes.
struct Nosy {
    name: &'static str,
    device: Arc<ScriptedDevice>,
    watch: Arc<Watch>,
}

impl MigrationIo for Nosy {
    fn probe(&self) -> io::Result<Option<MigFlags>> {
        self.device.probe()
    }

    fn get_state(&self) -> io::Result<MigState> {
        self.device.get_state()
    }

    fn set_state(&self, target: MigState) -> io::Result<Option<Box<dyn DataFd>>> {
        let Self { name, watch, .. } = self;
        watch.try_all_bars(&format!("before {name} is in {target}"));
        let answer = self.device.set_state(target);
        watch.try_all_bars(&format!("when {name} is in {target}"));
        answer
    }

    fn data_size(&self) -> io::Result<u64> {
        self.device.data_size()
    }

    fn reset(&self) -> io::Result<()> {
        self.device.reset()
    }

    fn has_dma_logging(&self) -> io::Result<bool> {
        self.device.has_dma_logging()
    }

    fn dma_logging_start(&self, page_size: u64, ranges: &[IovaRange]) -> io::Result<u64> {
        self.device.dma_logging_start(page_size, ranges)
    }

    fn dma_logging_report(
        &self,
        range: IovaRange,
        page_size: u64,
        bitmap: &mut [u64],
    ) -> io::Result<()> {
        self.device.dma_logging_report(range, page_size, bitmap)
    }

    fn dma_logging_stop(&self) -> io::Result<()> {
        self.device.dma_logging_stop()
    }
}

/// A function whose trapped BAR answers at `bar`.
fn watched(name: &'static str, bar: u64, trace: &Trace, watch: &Arc<Watch>) -> Rig {
    let mut parts = RigParts::new(Model::nvme());
    parts.name = name;
    parts.trapped_bars = vec![dormouse_pci::BarIndex::new(0).unwrap()];
    parts.migration = Some(Arc::new(Nosy {
        name,
        device: ScriptedDevice::new(name, MigFlags::STOP_COPY | MigFlags::P2P, trace),
        watch: Arc::clone(watch),
    }));
    let rig = parts.build().unwrap();
    rig.write32(0x10, bar as u32);
    rig.write16(0x04, 0x0406);
    assert_eq!(rig.mmio_read32(bar + 0x100), Some(0));
    rig
}

#[test]
fn bars_are_quiet_from_before_the_first_device_moves_until_the_last_one_runs() {
    let (trace, watch) = (Trace::new(), Arc::new(Watch::default()));
    let rigs = [
        watched("vfio0", BARS[0], &trace, &watch),
        watched("vfio1", BARS[1], &trace, &watch),
    ];
    let machine = rigs
        .iter()
        .map(|rig| (rig.spaces.clone(), Arc::clone(&rig.host)));
    *watch.machine.lock().unwrap() = machine.collect();
    let functions = [&rigs[0].function, &rigs[1].function];

    pause(&functions, PeerDma::Possible).unwrap();
    watch.try_all_bars("while paused");
    resume(&functions, PeerDma::Possible).unwrap();
    let touched = std::mem::take(&mut *watch.touched.lock().unwrap());
    assert!(touched.is_empty(), "{touched:?}");

    watch.try_all_bars("while both run");
    assert_eq!(watch.touched.lock().unwrap().len(), 2);
}
