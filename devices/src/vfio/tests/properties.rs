//! Guests that write anything anywhere: nothing panics, buses and mappings equal what the registers say, nothing leaks, and
//! whatever state results can be saved and restored.

use std::ops::Range;

use dormouse_pci::{BarKind, ConfigEffect, PciFunction};
use proptest::prelude::{Just, any, prop_oneof};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestRunner};

use crate::bus::{Mmio, Pio};
use crate::lifecycle::{Quiesced, Save};
use crate::vfio::VfioFunctionState;
use crate::vfio::host::MsiSink;
use crate::vfio::testing::{MMIO32, MMIO64, Model, PORTS, Rig, RigParts};

#[derive(Debug, Clone)]
enum Step {
    Write(u16, Vec<u8>),
    /// A dword to one of the BARs or the ROM.
    Bar(u16, u32),
    Command(u16),
    Mmio(u64, Vec<u8>),
    Port(u16, Vec<u8>),
    Read(u16, usize),
    Signal(u16),
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let data = || proptest::collection::vec(any::<u8>(), 0..9);
    // A few places, so that BARs meet each other, RAM, and the ends of the windows.
    let place = prop_oneof![
        (0..8u32).prop_map(|n| 0xd000_0000 + n * 0x1000),
        (0..8u32).prop_map(|n| 0xd000_0000 + n * 0x4000),
        Just(0xefff_e000),
        Just(0),
        Just(0x1000),
        Just(u32::MAX),
        any::<u32>(),
    ];
    let bar = prop_oneof![(0..6u16).prop_map(|n| 0x10 + 4 * n), Just(0x30)];
    let mmio = prop_oneof![
        (0xd000_0000..0xd002_0000u64),
        (0..0x800u64).prop_map(|n| 0xd000_2000 + n * 8),
        any::<u64>(),
    ];
    prop_oneof![
        3 => (0..0x200u16, data()).prop_map(|(at, data)| Step::Write(at, data)),
        1 => (any::<u16>(), data()).prop_map(|(at, data)| Step::Write(at, data)),
        4 => (bar, place).prop_map(|(at, value)| Step::Bar(at, value)),
        4 => prop_oneof![0..8u16, any::<u16>()].prop_map(Step::Command),
        4 => (mmio, data()).prop_map(|(at, data)| Step::Mmio(at, data)),
        1 => (any::<u16>(), data()).prop_map(|(at, data)| Step::Port(at, data)),
        2 => (0..0x200u16, 0..9usize).prop_map(|(at, len)| Step::Read(at, len)),
        1 => (0..8u16).prop_map(Step::Signal),
        1 => Just(Step::Reset),
    ]
}

fn run(rig: &Rig, step: Step) {
    match step {
        Step::Write(at, data) => drop(rig.write(at, &data)),
        Step::Bar(at, value) => rig.write32(at, value),
        Step::Command(value) => rig.write16(0x04, value),
        Step::Mmio(at, data) => {
            let _ = rig.spaces.mmio.write(Mmio(at), &data);
            rig.spaces.mmio.read(Mmio(at), &mut data.clone());
        }
        Step::Port(at, data) => {
            let _ = rig.spaces.pio.write(Pio(at), &data);
            rig.spaces.pio.read(Pio(at), &mut data.clone());
        }
        Step::Read(at, len) => rig.function.config_read(at, &mut vec![0; len]),
        Step::Signal(vector) => {
            if let Some(sink) = rig
                .sink
                .as_ref()
                .filter(|sink| usize::from(vector) < sink.len())
            {
                sink.signal(vector);
            }
        }
        Step::Reset => rig.function.reset().unwrap(),
    }
}

fn apart(ranges: &[(BarKind, Range<u64>)]) -> bool {
    ranges.iter().enumerate().all(|(position, (kind, range))| {
        let io = |kind: &BarKind| matches!(kind, BarKind::Io { .. });
        ranges[..position].iter().all(|(other_kind, other)| {
            io(kind) != io(other_kind) || other.end <= range.start || range.end <= other.start
        })
    })
}

/// What is placed is what the registers say, except where two claim one place, and nothing else is.
fn check(rig: &Rig, steps: &[Step]) {
    check_placed(&check_own(rig, steps), &[rig], steps);
}

/// Functions of one machine.
fn check_all(rigs: &[&Rig], steps: &[Step]) {
    let ranges: Vec<_> = rigs.iter().flat_map(|rig| check_own(rig, steps)).collect();
    check_placed(&ranges, rigs, steps);
}

/// Nothing is in two places, and nothing is unplaced where there is room for it.
fn check_placed(ranges: &[(BarKind, Range<u64>)], rigs: &[&Rig], steps: &[Step]) {
    assert!(apart(ranges), "{ranges:x?} {steps:?}");
    let io = |kind: &BarKind| matches!(kind, BarKind::Io { .. });
    for rig in rigs {
        let desired = rig.function.desired_bars();
        for bar in desired.iter().filter(|bar| bar.decoded) {
            let Some(end) = bar.address.checked_add(bar.kind.size()) else {
                continue;
            };
            let range = bar.address..end;
            let free = !ranges.iter().any(|(kind, other)| {
                io(kind) == io(&bar.kind) && other.start < range.end && range.start < other.end
            });
            let legal = rig.spaces.windows.contains(bar.kind, &range);
            assert!(
                !(free && legal),
                "{} is not placed at {range:x?}: {steps:?}",
                bar.index
            );
        }
    }
}

/// Where the BARs of one function are.
fn check_own(rig: &Rig, steps: &[Step]) -> Vec<(BarKind, Range<u64>)> {
    let placed = rig.function.placed_bars();
    let desired = rig.function.desired_bars();
    let mut expected_bytes = 0;
    let mut ranges = Vec::new();
    for (index, address, mapped) in &placed {
        let bar = desired.iter().find(|bar| bar.index == *index).unwrap();
        assert!(bar.decoded && bar.address == *address, "{index} {steps:?}");
        let range = *address..address + bar.kind.size();
        let inside = |window: Range<u64>| window.start <= range.start && range.end <= window.end;
        assert!(
            match bar.kind {
                BarKind::Io { .. } => inside(PORTS),
                _ => inside(MMIO32) || inside(MMIO64),
            },
            "{range:x?} {steps:?}"
        );
        expected_bytes += mapped;
        ranges.push((bar.kind, range));
    }
    let mapped = rig.host.mapped();
    assert_eq!(
        mapped
            .iter()
            .map(|range| range.end - range.start)
            .sum::<u64>(),
        expected_bytes
    );
    assert_eq!(rig.host.exposed(), 0, "{steps:?}");
    for area in &mapped {
        let within =
            |(_, bar): &(BarKind, Range<u64>)| bar.start <= area.start && area.end <= bar.end;
        assert!(ranges.iter().any(within), "{area:x?} {steps:?}");
    }
    ranges
}

fn check_model(model: Model) {
    let config = Config {
        cases: 200,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&proptest::collection::vec(step(), 0..60), |steps| {
            let rig = Rig::new(model.clone());
            for step in steps.clone() {
                run(&rig, step);
                check(&rig, &steps);
            }
            assert_eq!(rig.function.counters().refused_accesses, 0);
            let quiesced = Quiesced::declare();
            let state = rig.function.save(&quiesced);
            let text = serde_json::to_string(&state).unwrap();
            let mut parts = RigParts::new(model.clone());
            parts.state = Some(serde_json::from_str(&text).unwrap());
            let woken = parts.build().unwrap();
            assert_eq!(woken.function.save(&quiesced), state);
            // Of two BARs in one place the one that answered answers again.
            woken.function.fix_up().unwrap();
            assert_eq!(woken.function.placed_bars(), rig.function.placed_bars());
            assert_eq!(woken.function.save(&quiesced), state);
            woken.function.apply_effect(ConfigEffect::LayoutChanged);
            check(&woken, &steps);
            assert_eq!(woken.function.placed_bars(), rig.function.placed_bars());
            let Rig {
                function,
                host,
                spaces,
                ..
            } = rig;
            drop(function);
            assert!(host.mapped().is_empty());
            assert_eq!(format!("{:?}{:?}", spaces.mmio, spaces.pio), "{}{}");
            Ok(())
        })
        .unwrap();
}

/// One change to a saved state.
#[derive(Debug, Clone)]
enum Damage {
    Register(usize, u32),
    Offset(usize, u16),
    Bar(usize, u64),
    Size(usize, u64),
    Used(Vec<u16>),
    Entry(usize, u64),
    Pending(Vec<u16>),
    Entries(usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = || 0..40usize;
    let address = prop_oneof![
        (0..8u64).prop_map(|n| 0xd000_0000 + n * 0x4000),
        any::<u64>()
    ];
    let vectors = || proptest::collection::vec(prop_oneof![0..8u16, any::<u16>()], 0..6);
    prop_oneof![
        (at(), any::<u32>()).prop_map(|(at, value)| Damage::Register(at, value)),
        (at(), any::<u16>()).prop_map(|(at, value)| Damage::Offset(at, value)),
        (at(), address).prop_map(|(at, value)| Damage::Bar(at, value)),
        (at(), any::<u64>()).prop_map(|(at, value)| Damage::Size(at, value)),
        vectors().prop_map(Damage::Used),
        (at(), any::<u64>()).prop_map(|(at, value)| Damage::Entry(at, value)),
        vectors().prop_map(Damage::Pending),
        (0..8usize).prop_map(Damage::Entries),
    ]
}

fn inflict(state: &mut VfioFunctionState, damage: Damage) {
    /// The element that a random number names.
    fn pick<T>(list: &mut [T], at: usize) -> Option<&mut T> {
        let len = list.len();
        list.get_mut(at.checked_rem(len)?)
    }
    let msix = state.config.msix.as_mut().unwrap();
    match damage {
        Damage::Register(at, value) => {
            pick(&mut state.config.registers, at).unwrap().value ^= value
        }
        Damage::Offset(at, value) => pick(&mut state.config.registers, at).unwrap().offset = value,
        Damage::Bar(at, value) => {
            if let Some(bar) = pick(&mut state.bars, at) {
                bar.address = value;
            }
        }
        Damage::Size(at, value) => {
            if let Some(bar) = pick(&mut state.assigned_bars, at) {
                bar.size = value;
            }
        }
        Damage::Used(used) => state.used_vectors = used,
        Damage::Entry(at, value) => {
            if let Some(entry) = pick(&mut msix.entries, at) {
                entry.message.address = value;
                entry.masked = value % 3 == 0;
            }
        }
        Damage::Pending(pending) => msix.pending = pending,
        Damage::Entries(count) => msix.entries.truncate(count),
    }
}

#[test]
fn a_damaged_state_is_refused_or_leaves_all_in_order() {
    let config = Config {
        cases: 1000,
        failure_persistence: None,
        ..Config::default()
    };
    let inputs = (
        proptest::collection::vec(step(), 0..20),
        proptest::collection::vec(damage(), 1..4),
        proptest::collection::vec(step(), 0..10),
    );
    TestRunner::new(config)
        .run(&inputs, |(before, damages, after)| {
            let rig = Rig::new(Model::nvme());
            rig.function
                .assign_bars(|_| Ok::<_, ()>(0xd000_0000))
                .unwrap();
            before.into_iter().for_each(|step| run(&rig, step));
            let mut state = rig.function.save(&Quiesced::declare());
            damages
                .into_iter()
                .for_each(|damage| inflict(&mut state, damage));
            let mut parts = RigParts::new(Model::nvme());
            parts.state = Some(state);
            let Ok(woken) = parts.build() else {
                return Ok(());
            };
            if woken.function.fix_up().is_ok() {
                woken.function.apply_effect(ConfigEffect::LayoutChanged);
                check(&woken, &after);
                for step in after.clone() {
                    run(&woken, step);
                    check(&woken, &after);
                }
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_wild_guest_of_an_nvme_leaves_all_in_order() {
    check_model(Model::nvme());
}

#[test]
fn a_wild_guest_of_an_mtty_leaves_all_in_order() {
    check_model(Model::mtty());
}

#[test]
fn a_wild_guest_of_a_virtual_function_leaves_all_in_order() {
    check_model(Model::igb_vf());
}

#[test]
fn wild_guests_of_two_functions_leave_no_bar_waiting_for_a_free_place() {
    let config = Config {
        cases: 200,
        failure_persistence: None,
        ..Config::default()
    };
    // Mostly moves between few places, so that the functions are in each other's way.
    let bar = prop_oneof![Just(0x10), Just(0x1c)];
    let moves = (bar, 0..3u32).prop_map(|(at, n)| Step::Bar(at, 0xd000_0000 + n * 0x4000));
    let decode = prop_oneof![Just(2), Just(6), Just(0)].prop_map(Step::Command);
    let step = prop_oneof![6 => moves, 3 => decode, 2 => step()];
    let steps = proptest::collection::vec((any::<bool>(), step), 0..60);
    TestRunner::new(config)
        .run(&steps, |steps| {
            let first = Rig::new(Model::igb_vf());
            let mut parts = RigParts::new(Model::nvme());
            parts.spaces = first.spaces.clone();
            let second = parts.build().unwrap();
            let all: Vec<_> = steps.iter().map(|(_, step)| step.clone()).collect();
            for (which, step) in steps {
                run(if which { &first } else { &second }, step);
                check_all(&[&first, &second], &all);
            }
            Ok(())
        })
        .unwrap();
}
