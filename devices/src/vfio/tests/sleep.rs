//! Sleep and wake: the order of everything that reaches the devices, from one trace (invariants 1, 2, 6, 7 and 9).

use std::sync::Arc;

use dormouse_vfio_migration::group::PeerDma;
use dormouse_vfio_migration::testing::{Fault, ScriptedDevice, Trace};
use dormouse_vfio_migration::{MigFlags, MigState, StreamControl};

use crate::lifecycle::{Quiesced, Save};
use crate::vfio::migration::{check_pausable, pause, resume};
use crate::vfio::testing::{FakeHost, HostFaults, Model, Rig, RigParts, message};
use crate::vfio::{Error, VfioFunctionState};

const BAR: u64 = 0xd000_0000;
const EIO: i32 = 5;

struct Sleeper {
    rig: Rig,
    device: Arc<ScriptedDevice>,
}

impl Sleeper {
    fn new(
        name: &'static str,
        model: Model,
        trace: &Trace,
        state: Option<VfioFunctionState>,
    ) -> Self {
        let mut parts = RigParts::new(model.clone());
        parts.name = name;
        parts.trace = trace.clone();
        parts.host = FakeHost::new(model, trace);
        let flags = MigFlags::STOP_COPY | MigFlags::P2P;
        let device = ScriptedDevice::new(name, flags, trace);
        parts.migration = Some(Arc::clone(&device) as _);
        parts.state = state;
        Self {
            rig: parts.build().unwrap(),
            device,
        }
    }

    /// With one vector in use, one masked, and its BAR mapped.
    fn busy(name: &'static str, trace: &Trace) -> Self {
        let sleeper = Self::new(name, Model::nvme(), trace, None);
        let rig = &sleeper.rig;
        rig.write32(0x10, BAR as u32);
        rig.write16(0x04, 0x0406);
        rig.write16(0x42, 0x8000);
        rig.program_vector(BAR + 0x2000, 0, message(0x40), false);
        rig.program_vector(BAR + 0x2000, 1, message(0x41), false);
        rig.mmio_write32(BAR + 0x201c, 1);
        trace.clear();
        sleeper
    }

    fn save(&self) -> (VfioFunctionState, Vec<u8>) {
        let state = self.rig.function.save(&Quiesced::declare());
        let mut blob = Vec::new();
        let control = &mut StreamControl::default();
        self.rig.function.save_stream(&mut blob, control).unwrap();
        (state, blob)
    }

    fn load(&self, blob: &[u8]) -> Result<(), Error> {
        let control = &mut StreamControl::default();
        self.rig
            .function
            .load(&mut &blob[..], blob.len() as u64, control)
            .map(drop)
    }
}

const SET_UP: [&str; 3] = [
    "host: command 0x0406",
    "host: arm Msix 0 xx---",
    "host: map 0 0x0",
];

#[test]
fn wake_fixes_the_device_up_in_resuming_and_in_order() {
    let trace = Trace::new();
    let source = Sleeper::busy("vfio0", &trace);
    pause(&[&source.rig.function], PeerDma::Possible).unwrap();
    let (state, blob) = source.save();
    trace.clear();
    let woken = Sleeper::new("vfio0", Model::nvme(), &trace, Some(state.clone()));
    assert_eq!(
        trace.changes(),
        ["host: reset", "host: arm Intx 0 x", "host: disarm Intx"],
        "a restored device is tried and not set up before its state is loaded"
    );
    trace.clear();
    woken.load(&blob).unwrap();
    let mut expected = vec!["vfio0: RUNNING -> RESUMING", "vfio0: close"];
    expected.extend(SET_UP);
    assert_eq!(trace.changes(), expected);
    assert_eq!(woken.device.current_state(), MigState::Resuming);
    trace.clear();
    resume(&[&woken.rig.function], PeerDma::Possible).unwrap();
    assert_eq!(
        trace.changes(),
        [
            "vfio0: RESUMING -> RUNNING_P2P",
            "vfio0: RUNNING_P2P -> RUNNING"
        ]
    );
    assert_eq!(woken.device.contents(), source.device.contents());
    assert_eq!(woken.rig.function.save(&Quiesced::declare()), state);
}

#[test]
fn wake_writes_back_what_the_guest_programmed_in_the_device() {
    let mut model = Model::nvme();
    // Advanced error reporting behind the last extended capability.
    model.config[0x160..0x164].copy_from_slice(&0x1801_0015_u32.to_le_bytes());
    model.config[0x180..0x184].copy_from_slice(&0x0001_0001_u32.to_le_bytes());
    let trace = Trace::new();
    let source = Sleeper::new("vfio0", model.clone(), &trace, None);
    let rig = &source.rig;
    rig.write16(0x04, 0x0404);
    rig.write16(0x88, 0x5936);
    rig.write16(0xa8, 0x0400);
    rig.write16(0x90, 0x0002);
    rig.write32(0x188, 0x1111_0000);
    rig.write32(0x18c, 0x2222_0000);
    rig.write32(0x194, 0x3333_0000);
    rig.write32(0x190, 0xffff_ffff);
    rig.host.set_config_byte(0x8a, 0x0f);
    pause(&[&rig.function], PeerDma::Possible).unwrap();
    let (state, blob) = source.save();

    let woken = Sleeper::new("vfio0", model, &trace, Some(state.clone()));
    trace.clear();
    woken.load(&blob).unwrap();
    assert_eq!(
        trace.changes()[2..],
        [
            "host: command 0x0404",
            "host: config 0x88",
            "host: config 0xa8",
            "host: config 0x188",
            "host: config 0x18c",
            "host: config 0x194",
            "line: connect",
            "host: arm Intx 0 x",
            "host: unmask on resample"
        ]
    );
    let byte = |offset| woken.rig.host.config_byte(offset);
    assert_eq!([byte(0x88), byte(0x89), byte(0x8a)], [0x36, 0x59, 0x00]);
    assert_eq!([byte(0xa9), byte(0x90)], [0x04, 0x00]);
    assert_eq!([byte(0x18b), byte(0x18f), byte(0x197)], [0x11, 0x22, 0x33]);
    assert_eq!(byte(0x193), 0, "status is not written");
    assert_eq!(woken.rig.function.save(&Quiesced::declare()), state);
    // What is right already is not written again.
    trace.clear();
    woken.rig.function.fix_up().unwrap();
    assert!(
        !trace
            .changes()
            .iter()
            .any(|line| line.contains("config 0x"))
    );
}

#[test]
fn functions_are_paused_and_resumed_in_phases() {
    let trace = Trace::new();
    let one = Sleeper::new("vfio0", Model::mtty(), &trace, None);
    let two = Sleeper::new("vfio1", Model::mtty(), &trace, None);
    trace.clear();
    let functions = [&one.rig.function, &two.rig.function];
    check_pausable(&functions, PeerDma::Possible).unwrap();
    pause(&functions, PeerDma::Possible).unwrap();
    resume(&functions, PeerDma::Possible).unwrap();
    let sets: Vec<_> = trace
        .changes()
        .into_iter()
        .filter(|line| line.contains("->"))
        .collect();
    assert_eq!(
        sets,
        [
            "vfio0: RUNNING -> RUNNING_P2P",
            "vfio1: RUNNING -> RUNNING_P2P",
            "vfio0: RUNNING_P2P -> STOP",
            "vfio1: RUNNING_P2P -> STOP",
            "vfio0: STOP -> RUNNING_P2P",
            "vfio1: STOP -> RUNNING_P2P",
            "vfio0: RUNNING_P2P -> RUNNING",
            "vfio1: RUNNING_P2P -> RUNNING",
        ]
    );
}

#[test]
fn nothing_touches_a_bar_of_a_stopped_device() {
    let trace = Trace::new();
    let sleeper = Sleeper::busy("vfio0", &trace);
    let rig = &sleeper.rig;
    pause(&[&rig.function], PeerDma::Possible).unwrap();
    let before = rig.host.region_accesses();
    assert_eq!(rig.mmio_read32(BAR + 0x100), Some(u32::MAX));
    assert!(rig.mmio_write32(BAR + 0x100, 1));
    assert_eq!(rig.host.region_accesses(), before);
    assert_eq!(rig.function.counters().refused_accesses, 2);
    let (state, blob) = sleeper.save();

    let woken = Sleeper::new("vfio0", Model::nvme(), &trace, Some(state));
    woken.load(&blob).unwrap();
    assert_eq!(woken.rig.mmio_read32(BAR + 0x100), Some(u32::MAX));
    assert_eq!(woken.rig.host.region_accesses(), 0);
    resume(&[&woken.rig.function], PeerDma::Possible).unwrap();
    assert_eq!(woken.rig.mmio_read32(BAR + 0x100), Some(0));
}

#[test]
fn a_level_interrupt_is_not_lost_over_wake() {
    let trace = Trace::new();
    let source = Sleeper::new("vfio0", Model::mtty(), &trace, None);
    pause(&[&source.rig.function], PeerDma::Possible).unwrap();
    let (state, blob) = source.save();
    let woken = Sleeper::new("vfio0", Model::mtty(), &trace, Some(state));
    woken.load(&blob).unwrap();
    trace.clear();
    resume(&[&woken.rig.function], PeerDma::Possible).unwrap();
    assert_eq!(
        trace.changes(),
        [
            "vfio0: RESUMING -> RUNNING_P2P",
            "vfio0: RUNNING_P2P -> RUNNING",
            "host: unmask intx",
            "line: raise"
        ]
    );
    // The device and its line were not set up anew, so the guest is not disturbed again.
    trace.clear();
    pause(&[&woken.rig.function], PeerDma::Possible).unwrap();
    resume(&[&woken.rig.function], PeerDma::Possible).unwrap();
    assert_eq!(trace.changes().last().unwrap(), "host: unmask intx");
}

#[test]
fn a_guest_that_switched_intx_off_is_not_disturbed() {
    let trace = Trace::new();
    let source = Sleeper::new("vfio0", Model::mtty(), &trace, None);
    source.rig.write16(0x04, 0x0401);
    pause(&[&source.rig.function], PeerDma::Possible).unwrap();
    let (state, blob) = source.save();
    let woken = Sleeper::new("vfio0", Model::mtty(), &trace, Some(state));
    woken.load(&blob).unwrap();
    resume(&[&woken.rig.function], PeerDma::Possible).unwrap();
    assert!(!trace.changes().contains(&"line: raise".to_owned()));
}

#[test]
fn a_failed_pause_leaves_devices_that_work() {
    let trace = Trace::new();
    let one = Sleeper::busy("vfio0", &trace);
    let two = Sleeper::new("vfio1", Model::mtty(), &trace, None);
    two.device.inject(Fault::Set {
        to: MigState::Stop,
        hops: 0,
        errno: EIO,
    });
    let functions = [&one.rig.function, &two.rig.function];
    pause(&functions, PeerDma::Possible).unwrap_err();
    assert_eq!(one.device.current_state(), MigState::Running);
    assert_eq!(two.device.current_state(), MigState::Running);
    assert_eq!(one.rig.mmio_read32(BAR + 0x100), Some(0));
    assert_eq!(one.rig.function.counters().refused_accesses, 0);
}

#[test]
fn fix_ups_are_repeated_after_a_reset_on_pause() {
    let trace = Trace::new();
    let sleeper = Sleeper::busy("vfio0", &trace);
    sleeper.device.inject(Fault::SetBreaks {
        to: MigState::Stop,
        errno: EIO,
    });
    pause(&[&sleeper.rig.function], PeerDma::Possible).unwrap_err();
    let changes = trace.changes();
    let reset = changes
        .iter()
        .position(|line| line == "vfio0: reset")
        .unwrap();
    assert_eq!(
        changes[reset + 1..],
        [
            "host: command 0x0406",
            "host: disarm Msix",
            "host: arm Msix 0 xx---"
        ],
        "the BAR is mapped still"
    );
    assert_eq!(sleeper.rig.host.mapped().len(), 1);
}

#[test]
fn fix_ups_are_repeated_after_a_reset_on_resume() {
    let trace = Trace::new();
    let sleeper = Sleeper::busy("vfio0", &trace);
    pause(&[&sleeper.rig.function], PeerDma::Possible).unwrap();
    sleeper.device.inject(Fault::SetBreaks {
        to: MigState::Running,
        errno: EIO,
    });
    trace.clear();
    resume(&[&sleeper.rig.function], PeerDma::Possible).unwrap_err();
    let changes = trace.changes();
    let reset = changes
        .iter()
        .position(|line| line == "vfio0: reset")
        .unwrap();
    assert!(changes[reset..].contains(&"host: command 0x0406".to_owned()));
    assert!(changes[reset..].contains(&"host: arm Msix 0 xx---".to_owned()));
    resume(&[&sleeper.rig.function], PeerDma::Possible).unwrap();
    assert_eq!(sleeper.rig.mmio_read32(BAR + 0x100), Some(0));
}

#[test]
fn a_device_in_error_does_not_keep_the_vm_paused() {
    let trace = Trace::new();
    let sleeper = Sleeper::busy("vfio0", &trace);
    pause(&[&sleeper.rig.function], PeerDma::Possible).unwrap();
    sleeper.device.force_state(MigState::Error);
    trace.clear();
    let error = resume(&[&sleeper.rig.function], PeerDma::Possible).unwrap_err();
    assert!(error.to_string().contains("ERROR"), "{error}");
    assert_eq!(
        trace.changes(),
        [
            "vfio0: reset",
            "host: command 0x0406",
            "host: disarm Msix",
            "host: arm Msix 0 xx---"
        ]
    );
    resume(&[&sleeper.rig.function], PeerDma::Possible).unwrap();
    assert_eq!(sleeper.rig.mmio_read32(BAR + 0x100), Some(0));
}

#[test]
fn a_device_that_lost_its_state_is_known() {
    let trace = Trace::new();
    let sleeper = Sleeper::busy("vfio0", &trace);
    let function = &sleeper.rig.function;
    assert!(!function.has_lost_state());
    pause(&[function], PeerDma::Possible).unwrap();
    sleeper.device.inject(Fault::ResetAtRead { at: 0 });
    let control = &mut StreamControl::default();
    let failed = function.save_stream(&mut Vec::new(), control);
    failed.unwrap_err();
    assert!(function.has_lost_state(), "after a snapshot that failed");
    resume(&[function], PeerDma::Possible).unwrap();
    assert!(function.has_lost_state(), "until the guest does something");
    function.reset().unwrap();
    assert!(!function.has_lost_state());

    pause(&[function], PeerDma::Possible).unwrap();
    let breaks = |to| Fault::SetBreaks { to, errno: EIO };
    sleeper.device.inject(breaks(MigState::Running));
    resume(&[function], PeerDma::Possible).unwrap_err();
    assert!(function.has_lost_state(), "after a resume that failed");
    resume(&[function], PeerDma::Possible).unwrap();
    sleeper.rig.write16(0x88, 0x8000);
    assert!(!function.has_lost_state(), "the guest reset it itself");

    sleeper.device.inject(breaks(MigState::Stop));
    pause(&[function], PeerDma::Possible).unwrap_err();
    assert!(function.has_lost_state(), "after a pause that failed");

    function.reset().unwrap();
    assert!(!function.has_lost_state());
    sleeper.device.inject(breaks(MigState::Stop));
    sleeper.device.inject(Fault::Reset { errno: EIO });
    pause(&[function], PeerDma::Possible).unwrap_err();
    assert!(function.has_lost_state(), "when its reset failed, too");
}

#[test]
fn a_woken_device_has_lost_its_state_until_it_is_loaded() {
    let trace = Trace::new();
    let source = Sleeper::busy("vfio0", &trace);
    pause(&[&source.rig.function], PeerDma::Possible).unwrap();
    let (state, blob) = source.save();
    let woken = Sleeper::new("vfio0", Model::nvme(), &trace, Some(state));
    assert!(woken.rig.function.has_lost_state());
    woken.load(&blob).unwrap();
    assert!(!woken.rig.function.has_lost_state());
}

#[test]
fn fix_ups_are_repeated_after_a_save_that_ended_in_a_reset() {
    let trace = Trace::new();
    let sleeper = Sleeper::busy("vfio0", &trace);
    pause(&[&sleeper.rig.function], PeerDma::Possible).unwrap();
    sleeper.device.inject(Fault::ResetAtRead { at: 0 });
    trace.clear();
    let control = &mut StreamControl::default();
    let failed = sleeper.rig.function.save_stream(&mut Vec::new(), control);
    assert!(matches!(failed, Err(Error::Migration(_))));
    assert!(
        trace
            .changes()
            .contains(&"host: arm Msix 0 xx---".to_owned())
    );
    resume(&[&sleeper.rig.function], PeerDma::Possible).unwrap();
}

#[test]
fn a_device_that_cannot_be_set_up_does_not_run() {
    let trace = Trace::new();
    let source = Sleeper::busy("vfio0", &trace);
    pause(&[&source.rig.function], PeerDma::Possible).unwrap();
    let (state, blob) = source.save();
    for faults in [
        HostFaults {
            writes: true,
            ..HostFaults::default()
        },
        HostFaults {
            arm: true,
            ..HostFaults::default()
        },
        HostFaults {
            maps: Some(0),
            ..HostFaults::default()
        },
    ] {
        let woken = Sleeper::new("vfio0", Model::nvme(), &trace, Some(state.clone()));
        woken.rig.host.set_faults(faults);
        let error = woken.load(&blob).unwrap_err();
        assert!(error.to_string().contains("vfio0"), "{error}");
        assert_eq!(woken.device.current_state(), MigState::Running);
        assert_eq!(
            trace.changes().last().unwrap(),
            "vfio0: reset",
            "{faults:?}"
        );
        assert!(woken.rig.host.mapped().is_empty());
    }
}

#[test]
fn a_blob_for_a_device_that_cannot_load_it_is_refused_untouched() {
    let rig = Rig::new(Model::nvme());
    rig.take_changes();
    let control = &mut StreamControl::default();
    let refused = rig.function.load(&mut &[0u8][..], 1, control);
    assert!(matches!(refused, Err(Error::NotMigratable { .. })));
    assert!(rig.take_changes().is_empty());
}

#[test]
fn dma_of_a_device_that_is_not_saved_can_be_held() {
    let rig = Rig::new(Model::nvme());
    rig.write16(0x04, 0x0406);
    rig.function.hold_dma().unwrap();
    assert_eq!((rig.host.command(), rig.read16(0x04)), (0x0402, 0x0406));
    rig.function.release_dma().unwrap();
    assert_eq!(rig.host.command(), 0x0406);
}
