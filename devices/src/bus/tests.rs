//! Tests of address decoding, with a device that records offsets.

use std::sync::Mutex;

use proptest::prelude::{any, prop};
use proptest::{prop_assert, prop_assert_eq, prop_oneof, proptest, strategy::Strategy};

use super::*;

/// Reads as the low byte of its offset; remembers the last write.
#[derive(Default)]
struct Probe {
    last: Mutex<Option<(u64, Vec<u8>)>>,
}

impl BusDevice for Probe {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = at as u8;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Effect {
        *self.last.lock().unwrap() = Some((offset, data.to_vec()));
        Effect::Reset
    }
}

fn probe() -> Arc<Probe> {
    Arc::new(Probe::default())
}

#[test]
fn accesses_reach_the_device_by_offset() {
    let bus = PioBus::new();
    let device = probe();
    bus.insert(Pio(0x3f8), 8, device.clone()).unwrap();
    let mut data = [0; 2];
    assert!(bus.read(Pio(0x3fb), &mut data));
    assert_eq!(data, [3, 4]);
    assert_eq!(bus.write(Pio(0x3ff), &[9]), Some(Effect::Reset));
    assert_eq!(*device.last.lock().unwrap(), Some((7, vec![9])));
}

#[test]
fn an_access_that_leaves_the_range_reads_all_ones_and_writes_nothing() {
    let bus = PioBus::new();
    let device = probe();
    bus.insert(Pio(0x3f8), 8, device.clone()).unwrap();
    for (port, len) in [(0x3f7, 1), (0x3f7, 2), (0x3ff, 2), (0x400, 1), (0x3f8, 16)] {
        let mut data = vec![0; len];
        assert!(!bus.read(Pio(port), &mut data));
        assert!(data.iter().all(|&byte| byte == 0xff));
        assert_eq!(bus.write(Pio(port), &data), None);
    }
    assert!(!bus.read(Pio(0x3f8), &mut []));
    assert_eq!(*device.last.lock().unwrap(), None);
}

#[test]
fn overlaps_empty_and_endless_ranges_are_refused() {
    let bus = PioBus::new();
    bus.insert(Pio(0x100), 0x10, probe()).unwrap();
    for (base, len) in [(0x0ff, 2), (0x100, 1), (0x10f, 1), (0x0f0, 0x100)] {
        assert_eq!(
            bus.insert(Pio(base), len, probe()),
            Err(BusError::Overlap {
                base: base.into(),
                len,
                other_base: 0x100,
                other_len: 0x10
            })
        );
    }
    assert_eq!(
        bus.insert(Pio(0), 0, probe()),
        Err(BusError::Empty { base: 0 })
    );
    assert!(matches!(
        bus.insert(Pio(0xffff), 2, probe()),
        Err(BusError::Overflow { last: 0xffff, .. })
    ));
    bus.insert(Pio(0xffff), 1, probe()).unwrap();
    let mmio = MmioBus::new();
    mmio.insert(Mmio(u64::MAX), 1, probe()).unwrap();
    assert!(matches!(
        mmio.insert(Mmio(u64::MAX - 1), 3, probe()),
        Err(BusError::Overflow { .. })
    ));
    assert!(mmio.read(Mmio(u64::MAX), &mut [0]));
    assert!(!mmio.read(Mmio(u64::MAX), &mut [0, 0]));
}

#[test]
fn a_refused_relocation_leaves_the_range_where_it_was() {
    let bus = MmioBus::new();
    bus.insert(Mmio(0x1000), 0x1000, probe()).unwrap();
    bus.insert(Mmio(0x4000), 0x1000, probe()).unwrap();
    assert!(matches!(
        bus.relocate(Mmio(0x1000), Mmio(0x3800)),
        Err(BusError::Overlap { .. })
    ));
    assert!(bus.read(Mmio(0x1000), &mut [0]));
    bus.relocate(Mmio(0x1000), Mmio(0x1800)).unwrap();
    assert!(!bus.read(Mmio(0x1000), &mut [0]));
    assert!(bus.read(Mmio(0x27ff), &mut [0]));
    assert_eq!(
        bus.relocate(Mmio(0x1000), Mmio(0x9000)),
        Err(BusError::NotFound { base: 0x1000 })
    );
}

#[test]
fn a_removed_device_no_longer_answers() {
    let bus = PioBus::new();
    bus.insert(Pio(0x60), 5, probe()).unwrap();
    bus.remove(Pio(0x60)).unwrap();
    assert!(!bus.read(Pio(0x60), &mut [0]));
    assert_eq!(
        bus.remove(Pio(0x60)),
        Err(BusError::NotFound { base: 0x60 })
    );
}

/// A device that reaches back into the bus, as a BAR move on another vCPU would.
struct Reentrant(Arc<PioBus>);

impl BusDevice for Reentrant {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        self.0.relocate(Pio(0x10), Pio(0x20)).unwrap();
        data.fill(1);
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Effect {
        Effect::None
    }
}

#[test]
fn the_lock_is_free_while_a_device_runs() {
    let bus = Arc::new(PioBus::new());
    bus.insert(Pio(0x10), 1, Arc::new(Reentrant(bus.clone())))
        .unwrap();
    assert!(bus.read(Pio(0x10), &mut [0]));
    assert!(!bus.read(Pio(0x10), &mut [0]));
    assert_eq!(bus.write(Pio(0x20), &[0]), Some(Effect::None));
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u16, u64),
    Remove(u16),
    Relocate(u16, u16),
    Access(u16, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let port = || prop_oneof![0..64u16, any::<u16>()];
    prop::collection::vec(
        prop_oneof![
            (port(), prop_oneof![0..32u64, any::<u64>()]).prop_map(|(b, l)| Step::Insert(b, l)),
            port().prop_map(Step::Remove),
            (port(), port()).prop_map(|(o, n)| Step::Relocate(o, n)),
            (port(), 0..9usize).prop_map(|(a, l)| Step::Access(a, l)),
        ],
        0..60,
    )
}

proptest! {
    /// The bus against a table with one entry per port.
    #[test]
    fn any_sequence_agrees_with_a_flat_table(steps in steps()) {
        let bus = PioBus::new();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let fits = |ranges: &[(u64, u64)], base: u64, len: u64| {
            len > 0
                && base.checked_add(len).is_some_and(|end| end <= 0x1_0000)
                && ranges.iter().all(|&(b, l)| base + len <= b || b + l <= base)
        };
        for step in steps {
            match step {
                Step::Insert(base, len) => {
                    let fit = fits(&ranges, base.into(), len);
                    prop_assert_eq!(bus.insert(Pio(base), len, probe()).is_ok(), fit);
                    if fit {
                        ranges.push((base.into(), len));
                    }
                }
                Step::Remove(base) => {
                    let at = ranges.iter().position(|r| r.0 == u64::from(base));
                    prop_assert_eq!(bus.remove(Pio(base)).is_ok(), at.is_some());
                    at.map(|at| ranges.swap_remove(at));
                }
                Step::Relocate(old, new) => {
                    let at = ranges.iter().position(|r| r.0 == u64::from(old));
                    let moved = at.map(|at| ranges.swap_remove(at));
                    let fit = moved.is_some_and(|(_, len)| fits(&ranges, new.into(), len));
                    prop_assert_eq!(bus.relocate(Pio(old), Pio(new)).is_ok(), fit);
                    if let Some((base, len)) = moved {
                        ranges.push((if fit { new.into() } else { base }, len));
                    }
                }
                Step::Access(port, len) => {
                    let (port, mut data) = (u64::from(port), vec![0; len]);
                    let hit = len > 0
                        && ranges.iter().any(|&(b, l)| b <= port && port + len as u64 <= b + l);
                    prop_assert_eq!(bus.read(Pio(port as u16), &mut data), hit);
                    prop_assert_eq!(bus.write(Pio(port as u16), &data).is_some(), hit);
                    prop_assert!(hit || data.iter().all(|&byte| byte == 0xff));
                }
            }
        }
    }
}
