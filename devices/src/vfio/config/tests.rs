//! Guest accesses to configuration space of the fake devices: invariant 7 register class by register class.

use dormouse_pci::ConfigEffect;

use crate::lifecycle::{Quiesced, Save};
use crate::vfio::host::Alarms;
use crate::vfio::testing::{HostFaults, Model, Rig};

/// The dword at `offset` of the saved shadow.
fn saved(rig: &Rig, offset: u16) -> u32 {
    let state = rig.function.save(&Quiesced::declare());
    let register = state
        .config
        .registers
        .iter()
        .find(|register| register.offset == offset);
    register.map_or(0, |register| register.value)
}

#[test]
fn command_goes_to_the_device_and_into_the_shadow() {
    let rig = Rig::new(Model::nvme());
    rig.write16(0x04, 0x0406);
    assert_eq!(rig.host.command(), 0x0406);
    assert_eq!(saved(&rig, 0x04) & 0xffff, 0x0406);
    rig.write(0x04, &[0x02]);
    assert_eq!(
        (rig.host.command(), saved(&rig, 0x04) & 0xffff),
        (0x0402, 0x0402)
    );
    rig.write32(0x04, 0xffff_0007);
    assert_eq!(saved(&rig, 0x04) & 0xffff, 0x0007);
}

#[test]
fn a_new_device_has_the_command_register_that_its_guest_sees() {
    let mut model = Model::nvme();
    model.config[4] = 0x07;
    let rig = Rig::new(model);
    assert_eq!((rig.host.command(), rig.read16(0x04)), (0, 0));
}

#[test]
fn command_is_read_from_the_shadow_and_status_from_the_device() {
    let rig = Rig::new(Model::mtty());
    rig.write16(0x04, 0x0003);
    // mtty answers with a constant.
    rig.host.set_config_byte(4, 0x01);
    rig.host.set_config_byte(6, 0x08);
    assert_eq!(rig.read32(0x04), 0x0208_0003);
}

#[test]
fn device_registers_are_passed_through_and_mirrored() {
    let rig = Rig::new(Model::nvme());
    for (offset, data) in [(0xd0, &[0xab][..]), (0xd2, &[1, 2]), (0xd4, &[3, 4, 5, 6])] {
        rig.write(offset, data);
        let mut read = vec![0; data.len()];
        for (at, byte) in (usize::from(offset)..).zip(data) {
            assert_eq!(rig.host.config_byte(at), *byte);
        }
        dormouse_pci::PciFunction::config_read(&rig.function, offset, &mut read);
        assert_eq!(read, data);
    }
    assert_eq!(saved(&rig, 0xd0), 0x0201_00ab);
    assert_eq!(saved(&rig, 0xd4), 0x0605_0403);
    // What the device changes by itself is recorded when the guest reads it.
    rig.host.set_config_byte(0xd4, 0x99);
    assert_eq!(rig.read32(0xd4), 0x0605_0499);
    assert_eq!(saved(&rig, 0xd4), 0x0605_0499);
}

#[test]
fn bars_rom_and_interrupt_registers_never_reach_the_device() {
    let rig = Rig::new(Model::nvme());
    let before = rig.host.config_writes().len();
    let registers = [0x10, 0x14, 0x18, 0x24, 0x30, 0x34, 0x3c, 0x40, 0x44, 0x48];
    for offset in registers {
        rig.write32(offset, u32::MAX);
        rig.write(offset + 1, &[0x5a]);
    }
    for hidden in [0x100, 0x104, 0x160, 0x190] {
        rig.write32(hidden, u32::MAX);
    }
    assert_eq!(rig.host.config_writes().len(), before);
    assert_eq!(rig.read32(0x10), 0xffff_c004 & !0xff00 | 0x4000);
    assert_eq!(rig.read32(0x14), 0xffff_5aff);
    assert_eq!(
        rig.read32(0x3c) & 0xffff,
        0x01ff,
        "line is a note, pin is fixed"
    );
}

#[test]
fn hidden_capabilities_read_as_zero_whatever_the_device_says() {
    let rig = Rig::new(Model::nvme());
    assert_eq!(rig.read32(0x104), 0);
    assert_eq!((rig.read32(0x160), rig.read32(0x168)), (0, 0));
    assert_eq!(rig.read32(0x144), 0x1234_5678);
}

#[test]
fn a_space_that_ends_oddly_is_readable_to_its_end() {
    let mut model = Model::mtty();
    model.config[0xfc] = 0x11;
    model.config[0xfe] = 0x22;
    let rig = Rig::new(model);
    assert_eq!(rig.read32(0xfc), 0x0022_0011);
    assert_eq!(rig.read32(0x100), u32::MAX);
    rig.write32(0xfc, 0x4433_2211);
    assert_eq!(rig.host.config_byte(0xfe), 0x33);
    assert!(!rig.function.has_failed());
}

#[test]
fn a_device_that_fails_reads_all_ones_and_is_reported() {
    let rig = Rig::new(Model::nvme());
    rig.host.set_faults(HostFaults {
        reads: true,
        ..HostFaults::default()
    });
    assert_eq!(rig.read32(0x00), u32::MAX);
    assert_eq!(rig.read32(0x04), u32::MAX);
    assert!(rig.function.has_failed());
    assert_eq!(rig.function.counters().host_errors, 2);
    rig.host.set_faults(HostFaults {
        writes: true,
        ..HostFaults::default()
    });
    rig.write16(0x04, 0x0006);
    assert_eq!(rig.function.counters().host_errors, 3);
    assert_eq!(
        saved(&rig, 0x04) & 0xffff,
        0x0000,
        "the shadow is what the device has"
    );
}

#[test]
fn a_device_that_answers_nothing_is_out_of_order_until_it_answers() {
    let rig = Rig::new(Model::nvme());
    let dead = HostFaults {
        reads: true,
        ..HostFaults::default()
    };
    rig.host.set_faults(dead);
    for _ in 0..15 {
        rig.read32(0x64);
    }
    assert!(!rig.function.is_out_of_order());
    rig.read32(0x64);
    rig.read32(0x64);
    assert!(rig.function.is_out_of_order());
    assert_eq!(rig.function.counters().host_errors, 17, "all are counted");
    rig.host.set_faults(HostFaults::default());
    rig.read32(0x64);
    assert!(!rig.function.is_out_of_order());

    let vendor = [0, 1].map(|at| rig.host.config_byte(at));
    rig.host.set_config_byte(0, 0xff);
    rig.host.set_config_byte(1, 0xff);
    rig.read32(0x00);
    assert!(rig.function.is_out_of_order(), "it fell off its bus");
    rig.host.set_config_byte(0, vendor[0]);
    rig.host.set_config_byte(1, vendor[1]);
    rig.read32(0x00);
    assert!(!rig.function.is_out_of_order());
    rig.host.set_faults(HostFaults {
        alarms: Alarms {
            wanted_back: true,
            failed: true,
        },
        ..HostFaults::default()
    });
    assert!(rig.function.is_out_of_order() && rig.function.is_wanted_back());
}

#[test]
fn mirroring_does_not_swallow_a_bar_move() {
    let rig = Rig::new(Model::nvme());
    rig.write32(0x10, 0xd000_0000);
    rig.write32(0x14, 0);
    // Anything that goes to the device in between, dwords with the command register included.
    rig.write32(0xd0, 7);
    rig.write32(0x0c, 0x10);
    assert!(rig.function.placed_bars().is_empty());
    assert!(
        rig.write(0x04, &[2, 0])
            .contains(&ConfigEffect::LayoutChanged)
    );
    assert_eq!(rig.function.placed_bars()[0].1, 0xd000_0000);
}

#[test]
fn malformed_accesses_do_nothing() {
    let rig = Rig::new(Model::nvme());
    let before = rig.host.config_writes().len();
    for (offset, len) in [
        (0x04u16, 0usize),
        (0x04, 3),
        (0x07, 2),
        (0xd1, 4),
        (0xd0, 8),
        (4096, 1),
    ] {
        assert!(rig.write(offset, &vec![0xff; len]).is_empty());
        let mut data = vec![0; len];
        dormouse_pci::PciFunction::config_read(&rig.function, offset, &mut data);
        assert!(data.iter().all(|byte| *byte == 0xff), "{offset:#x} {len}");
    }
    assert_eq!(rig.host.config_writes().len(), before);
}
