//! Fakes of the traits in `host`, and the tests that every device has to pass.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::{any, prop};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestRunner};

use crate::access::BusDevice;
use crate::host::{IrqLine, SerialBackend};
use crate::lifecycle::{Quiesced, Save};

/// An interrupt line that counts its pulses.
#[derive(Default)]
pub(crate) struct CountingIrq(AtomicUsize);

impl CountingIrq {
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl IrqLine for CountingIrq {
    fn pulse(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The host end of a serial line that keeps everything.
#[derive(Default)]
pub(crate) struct RecordingBackend {
    transmitted: Mutex<Vec<u8>>,
    rooms: AtomicUsize,
}

impl RecordingBackend {
    pub(crate) fn transmitted(&self) -> Vec<u8> {
        self.transmitted.lock().unwrap().clone()
    }

    pub(crate) fn rooms(&self) -> usize {
        self.rooms.load(Ordering::Relaxed)
    }
}

impl SerialBackend for RecordingBackend {
    fn transmit(&self, bytes: &[u8]) {
        self.transmitted.lock().unwrap().extend_from_slice(bytes);
    }

    fn input_room(&self) {
        self.rooms.fetch_add(1, Ordering::Relaxed);
    }
}

/// Reads one byte from `device`.
pub(crate) fn read_u8(device: &dyn BusDevice, offset: u64) -> u8 {
    let mut data = [0];
    device.read(offset, &mut data);
    data[0]
}

/// Writes one byte to a device that wants nothing of the machine in return.
#[track_caller]
pub(crate) fn write_u8(device: &dyn BusDevice, offset: u64, value: u8) {
    assert_eq!(
        device.write(offset, &[value]),
        crate::access::Effect::None,
        "write of {value:#04x} at {offset:#x}"
    );
}

/// The contract of every device with state: what is saved and travels as JSON restores to the
/// same, and `disturb` really changes what is saved.
pub(crate) fn check_contract<D: Save>(
    device: D,
    disturb: impl FnOnce(&D),
    restore: impl FnOnce(D::State) -> D,
) where
    D::State: Clone + PartialEq + std::fmt::Debug,
{
    let quiesced = Quiesced::declare();
    let saved = device.save(&quiesced);
    assert_eq!(device.save(&quiesced), saved, "saving changes the device");
    disturb(&device);
    assert_ne!(
        device.save(&quiesced),
        saved,
        "the disturbance is invisible"
    );
    let text = serde_json::to_string(&saved).unwrap();
    let restored = restore(serde_json::from_str(&text).unwrap());
    assert_eq!(restored.save(&quiesced), saved);
}

/// Accesses of any kind, anywhere near or far from a device's window.
pub(crate) fn accesses() -> impl Strategy<Value = Vec<(bool, u64, Vec<u8>)>> {
    let offset = proptest::prop_oneof![4 => 0..16u64, 1 => any::<u64>()];
    let data = proptest::prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 1..=1),
        1 => prop::collection::vec(any::<u8>(), 0..10),
    ];
    prop::collection::vec((any::<bool>(), offset, data), 0..100)
}

/// No sequence of accesses makes `device` panic, and it can always be saved and restored.
pub(crate) fn check_total<D: BusDevice>(device: impl Fn() -> D, after: impl Fn(&D)) {
    TestRunner::new(Config::with_cases(256))
        .run(&accesses(), |accesses| {
            let device = device();
            for (write, offset, mut data) in accesses {
                if write {
                    let _any = device.write(offset, &data);
                } else {
                    device.read(offset, &mut data);
                }
            }
            after(&device);
            Ok(())
        })
        .unwrap();
}
