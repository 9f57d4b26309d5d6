//! Routing of configuration accesses, against functions that record what reaches them.

use std::sync::Mutex;

use super::*;
use crate::address::BarIndex;
use crate::bar::BarPlacement;
use crate::effect::ConfigEffect;

/// Reads as its tag, records writes, answers each with an effect.
struct Recorder {
    tag: u8,
    writes: Mutex<Vec<(u16, Vec<u8>)>>,
}

impl Recorder {
    fn new(tag: u8) -> Arc<Self> {
        Arc::new(Self {
            tag,
            writes: Mutex::default(),
        })
    }
}

impl PciFunction for Recorder {
    fn config_read(&self, _offset: u16, data: &mut [u8]) {
        data.fill(self.tag);
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Vec<ConfigEffect> {
        self.writes.lock().unwrap().push((offset, data.to_vec()));
        vec![ConfigEffect::LayoutChanged]
    }

    fn desired_bars(&self) -> Vec<BarPlacement> {
        Vec::new()
    }

    fn refuse_bar(&self, _: BarIndex, _: u64, _: u64) -> bool {
        false
    }
}

fn bdf(text: &str) -> Bdf {
    text.parse().unwrap()
}

fn root_with(functions: &[(&str, u8)]) -> RootComplex {
    let root = RootComplex::new();
    for (address, tag) in functions {
        root.attach(bdf(address), Recorder::new(*tag)).unwrap();
    }
    root
}

fn ecam_byte(root: &RootComplex, address: &str, register: u64) -> u8 {
    let mut data = [0];
    root.ecam_read(u64::from(bdf(address).devfn()) << 12 | register, &mut data);
    data[0]
}

fn select(root: &RootComplex, address: u32) {
    assert_eq!(root.port_write(0, &address.to_le_bytes()), []);
}

#[test]
fn ecam_reaches_the_function_and_register_of_the_offset() {
    let root = root_with(&[("00:00.0", 0), ("00:1f.0", 0x11), ("00:1f.7", 0x17)]);
    assert_eq!(ecam_byte(&root, "00:1f.7", 0), 0x17);
    let device = Recorder::new(1);
    root.attach(bdf("00:02.0"), device.clone()).unwrap();
    let effects = root.ecam_write(0x10_abc, &[1, 2]);
    assert_eq!(effects[0].bdf, bdf("00:02.0"));
    assert_eq!(*device.writes.lock().unwrap(), [(0xabc, vec![1, 2])]);
}

#[test]
fn absent_functions_read_all_ones_and_ignore_writes() {
    let root = root_with(&[("00:00.0", 0)]);
    assert_eq!(ecam_byte(&root, "00:01.0", 0), 0xff);
    assert_eq!(root.ecam_write(0x8000, &[0; 4]), []);
    for offset in [ECAM_LEN, u64::MAX] {
        let mut data = [0; 4];
        root.ecam_read(offset, &mut data);
        assert_eq!(data, [0xff; 4]);
        assert_eq!(root.ecam_write(offset, &[0; 4]), []);
    }
}

#[test]
fn data_port_reaches_the_latched_register() {
    let root = root_with(&[("00:00.0", 0)]);
    let device = Recorder::new(0x42);
    root.attach(bdf("00:03.0"), device.clone()).unwrap();
    select(&root, 0x8000_1840);
    let mut data = [0; 2];
    root.port_read(6, &mut data);
    assert_eq!(data, [0x42; 2]);
    assert_eq!(root.port_write(7, &[9])[0].bdf, bdf("00:03.0"));
    assert_eq!(*device.writes.lock().unwrap(), [(0x43, vec![9])]);
}

#[test]
fn data_port_is_dead_without_enable_bit_or_on_other_buses() {
    let root = root_with(&[("00:00.0", 0x42)]);
    for address in [0x0000_0000, 0x8001_0000] {
        select(&root, address);
        let mut data = [0; 4];
        root.port_read(4, &mut data);
        assert_eq!(data, [0xff; 4]);
        assert_eq!(root.port_write(4, &[0; 4]), []);
    }
}

#[test]
fn only_a_dword_latches_the_address() {
    let root = root_with(&[]);
    select(&root, 0xffff_ffff);
    for (offset, data) in [
        (0, &[0][..]),
        (1, &[6]),
        (0, &[0; 2]),
        (2, &[0; 4]),
        (9, &[0; 4]),
    ] {
        assert_eq!(root.port_write(offset, data), []);
    }
    let mut data = [0; 4];
    root.port_read(0, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x80ff_fffc);
    let mut byte = [0];
    root.port_read(1, &mut byte);
    assert_eq!(byte, [0xff]);
}

#[test]
fn functions_are_hidden_until_function_0_exists() {
    let root = root_with(&[("00:04.1", 0x41)]);
    assert_eq!(ecam_byte(&root, "00:04.1", 0), 0xff);
    root.attach(bdf("00:04.0"), Recorder::new(0x40)).unwrap();
    assert_eq!(ecam_byte(&root, "00:04.1", 0), 0x41);
    assert!(root.detach(bdf("00:04.0")).is_some());
    assert_eq!(ecam_byte(&root, "00:04.1", 0), 0xff);
}

#[test]
fn multifunction_bit_follows_what_is_attached() {
    let root = root_with(&[("00:04.0", 0)]);
    let header = |offset: u64, len: usize| {
        let mut data = vec![0; len];
        root.ecam_read(0x2_0000 + offset, &mut data);
        data
    };
    assert_eq!(header(0x0c, 4), [0; 4]);
    root.attach(bdf("00:04.2"), Recorder::new(0)).unwrap();
    assert_eq!(header(0x0c, 4), [0, 0, 0x80, 0]);
    assert_eq!(header(0x0e, 1), [0x80]);
    assert_eq!(header(0x0e, 2), [0x80, 0]);
    assert_eq!(header(0x0c, 2), [0; 2]);
    assert_eq!(header(0x0f, 1), [0]);
    root.detach(bdf("00:04.2"));
    assert_eq!(header(0x0e, 1), [0]);
}

#[test]
fn slots_are_handed_out_once_and_come_back() {
    let root = root_with(&[("00:00.0", 0)]);
    assert_eq!(root.allocate_slot(None), Ok(bdf("00:01.0")));
    assert_eq!(root.allocate_slot(Some(3)), Ok(bdf("00:03.0")));
    assert_eq!(root.allocate_slot(None), Ok(bdf("00:02.0")));
    assert_eq!(root.allocate_slot(None), Ok(bdf("00:04.0")));
    assert_eq!(
        root.allocate_slot(Some(3)),
        Err(SlotError::Taken { device: 3 })
    );
    assert_eq!(
        root.allocate_slot(Some(0)),
        Err(SlotError::Taken { device: 0 })
    );
    assert_eq!(
        root.allocate_slot(Some(32)),
        Err(SlotError::OutOfRange { device: 32 })
    );
    root.release_slot(bdf("00:02.0"));
    assert_eq!(root.allocate_slot(None), Ok(bdf("00:02.0")));
    root.attach(bdf("00:03.0"), Recorder::new(3)).unwrap();
    root.attach(bdf("00:03.1"), Recorder::new(4)).unwrap();
    root.detach(bdf("00:03.1"));
    assert_eq!(
        root.allocate_slot(Some(3)),
        Err(SlotError::Taken { device: 3 })
    );
    root.detach(bdf("00:03.0"));
    assert_eq!(root.allocate_slot(Some(3)), Ok(bdf("00:03.0")));
    for _ in 5..32 {
        root.allocate_slot(None).unwrap();
    }
    assert_eq!(root.allocate_slot(None), Err(SlotError::Full));
}

#[test]
fn attach_refuses_taken_and_unreachable_addresses() {
    let root = root_with(&[("00:01.0", 1)]);
    let attach = |address| root.attach(bdf(address), Recorder::new(2));
    assert_eq!(
        attach("00:01.0"),
        Err(AttachError::Taken {
            bdf: bdf("00:01.0")
        })
    );
    assert_eq!(
        attach("01:00.0"),
        Err(AttachError::NoSuchBus {
            bdf: bdf("01:00.0")
        })
    );
    assert!(root.detach(bdf("01:01.0")).is_none());
    assert_eq!(ecam_byte(&root, "00:01.0", 0), 1);
}

#[test]
fn address_port_survives_save_and_restore() {
    let root = root_with(&[]);
    select(&root, 0x8000_1234);
    let state = root.save();
    assert_eq!(RootComplex::restore(&state).unwrap().save(), state);
    let hostile = RootComplexState {
        config_address: 0x8100_0000,
    };
    assert!(RootComplex::restore(&hostile).is_err());
}
