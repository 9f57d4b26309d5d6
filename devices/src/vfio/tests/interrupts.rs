//! Interrupts: what the device is told when the guest switches modes, masks and unmasks.

use crate::vfio::host::{IrqIndex, MsiSink};
use crate::vfio::testing::{HostFaults, Model, Rig, message};

const BAR: u64 = 0xd000_0000;
const TABLE: u64 = BAR + 0x2000;
const PENDING: u64 = BAR + 0x3000;

/// An NVMe with decoding and bus mastering on and MSI-X off.
fn nvme() -> Rig {
    let rig = Rig::new(Model::nvme());
    rig.write32(0x10, BAR as u32);
    rig.write16(0x04, 0x0406);
    rig.take_changes();
    rig
}

fn enable(rig: &Rig) {
    rig.write16(0x42, 0x8000);
}

#[test]
fn intx_is_armed_from_the_start_and_left_for_msix() {
    let rig = nvme();
    assert_eq!(rig.host.armed(IrqIndex::Intx), Some(vec![true]));
    enable(&rig);
    assert_eq!(
        rig.take_changes(),
        [
            "host: disarm Intx",
            "line: disconnect",
            "host: arm Msix 0 -----"
        ]
    );
    rig.write16(0x42, 0x0000);
    assert_eq!(
        rig.take_changes(),
        [
            "host: disarm Msix",
            "line: connect",
            "host: arm Intx 0 x",
            "host: unmask on resample"
        ]
    );
}

#[test]
fn vectors_get_their_eventfd_when_first_unmasked_and_keep_it() {
    let rig = nvme();
    enable(&rig);
    rig.program_vector(TABLE, 1, message(0x41), false);
    assert_eq!(
        rig.host.armed(IrqIndex::Msix),
        Some(vec![false, true, false, false, false])
    );
    assert_eq!(rig.sink().vector(1).routed, Some(message(0x41)));
    rig.take_changes();
    rig.mmio_write32(TABLE + 0x1c, 1);
    assert_eq!(rig.sink().vector(1).routed, None);
    rig.mmio_write32(TABLE + 0x1c, 0);
    assert_eq!(rig.sink().vector(1).routed, Some(message(0x41)));
    assert!(
        rig.take_changes().is_empty(),
        "masking is no business of the device"
    );
}

#[test]
fn vectors_programmed_beforehand_are_armed_at_once() {
    let rig = nvme();
    for vector in [0, 1, 3] {
        rig.program_vector(TABLE, vector, message(0x40 + vector as u32), false);
    }
    rig.take_changes();
    enable(&rig);
    let changes = rig.take_changes();
    assert_eq!(changes.last().unwrap(), "host: arm Msix 0 xx-x-");
    assert_eq!(rig.sink().vector(3).routed, Some(message(0x43)));
}

#[test]
fn vectors_unmasked_together_are_armed_in_runs() {
    let rig = nvme();
    rig.write16(0x42, 0xc000);
    for vector in [0, 1, 3] {
        rig.program_vector(TABLE, vector, message(0x40), false);
    }
    rig.take_changes();
    rig.write16(0x42, 0x8000);
    assert_eq!(
        rig.take_changes(),
        ["host: arm Msix 0 xx", "host: arm Msix 3 x"]
    );
}

#[test]
fn an_interrupt_while_masked_stays_pending_and_fires_once() {
    let rig = nvme();
    enable(&rig);
    rig.program_vector(TABLE, 2, message(0x42), false);
    rig.mmio_write32(TABLE + 0x2c, 1);
    rig.sink().signal(2);
    assert_eq!(rig.mmio_read32(PENDING), Some(0x4));
    assert_eq!(
        rig.mmio_read32(PENDING),
        Some(0x4),
        "reading leaves it pending"
    );
    assert_eq!(rig.sink().vector(2).delivered, 0);
    rig.mmio_write32(TABLE + 0x2c, 0);
    assert_eq!(rig.sink().vector(2).delivered, 1);
    assert_eq!(rig.mmio_read32(PENDING), Some(0));
    rig.mmio_write32(TABLE + 0x2c, 1);
    rig.mmio_write32(TABLE + 0x2c, 0);
    assert_eq!(rig.sink().vector(2).delivered, 1);
}

#[test]
fn the_function_mask_keeps_pending_too() {
    let rig = nvme();
    enable(&rig);
    rig.program_vector(TABLE, 0, message(0x40), false);
    rig.write16(0x42, 0xc000);
    rig.sink().signal(0);
    assert_eq!(rig.mmio_read32(PENDING), Some(0x1));
    rig.write16(0x42, 0x8000);
    assert_eq!(rig.sink().vector(0).delivered, 1);
}

#[test]
fn what_is_pending_is_forgotten_with_the_mode() {
    let rig = nvme();
    enable(&rig);
    rig.program_vector(TABLE, 0, message(0x40), false);
    rig.mmio_write32(TABLE + 0x0c, 1);
    rig.sink().signal(0);
    rig.write16(0x42, 0x0000);
    rig.mmio_write32(TABLE + 0x0c, 0);
    enable(&rig);
    assert_eq!(rig.sink().vector(0).delivered, 0);
}

#[test]
fn msi_is_armed_before_the_device_sees_it_enabled() {
    let rig = Rig::new(Model::igb_vf());
    rig.write32(0x54, 0xfee0_0000);
    rig.write16(0x5c, 0x0041);
    rig.take_changes();
    rig.write16(0x52, 0x0001);
    assert_eq!(
        rig.take_changes(),
        ["host: arm Msi 0 x", "host: config 0x52"]
    );
    assert_eq!(rig.host.config_byte(0x52), 0x81);
    assert_eq!(rig.sink().vector(0).routed, Some(message(0x41)));

    rig.write32(0x60, 1);
    rig.sink().signal(0);
    assert_eq!(rig.read32(0x64), 1);
    rig.write32(0x60, 0);
    assert_eq!(rig.sink().vector(0).delivered, 1);
    assert_eq!(rig.read32(0x64), 0);
    rig.take_changes();

    rig.write16(0x52, 0x0000);
    assert_eq!(
        rig.take_changes(),
        ["host: config 0x52", "host: disarm Msi"]
    );
    assert_eq!(rig.host.config_byte(0x52), 0x80);
}

/// The virtual function with four messages instead of one.
fn four_messages() -> Rig {
    let mut model = Model::igb_vf();
    model.config[0x52] |= 0x04;
    model.irqs[1] = 4;
    let rig = Rig::new(model);
    rig.write32(0x54, 0xfee0_0000);
    rig.write16(0x5c, 0x0044);
    rig.take_changes();
    rig
}

#[test]
fn as_many_messages_are_armed_as_the_guest_enables() {
    let rig = four_messages();
    rig.write16(0x52, 0x0011);
    assert_eq!(rig.host.armed(IrqIndex::Msi), Some(vec![true; 2]));
    assert_eq!(rig.sink().vector(1).routed, Some(message(0x45)));
    rig.write16(0x52, 0x0021);
    assert_eq!(rig.host.armed(IrqIndex::Msi), Some(vec![true; 4]));
    // More than there are means all.
    rig.write16(0x52, 0x0071);
    assert_eq!(rig.host.armed(IrqIndex::Msi), Some(vec![true; 4]));
}

#[test]
fn a_host_with_one_message_gives_that() {
    let rig = four_messages();
    rig.host.set_faults(HostFaults {
        one_message: true,
        ..HostFaults::default()
    });
    rig.write16(0x52, 0x0021);
    assert_eq!(rig.host.armed(IrqIndex::Msi), Some(vec![true]));
    assert!(!rig.function.has_failed());
}

#[test]
fn msi_gives_way_to_msix_and_back() {
    let rig = Rig::new(Model::igb_vf());
    rig.write16(0x52, 0x0001);
    rig.write16(0x72, 0x8000);
    assert_eq!(rig.host.armed(IrqIndex::Msi), None);
    assert_eq!(rig.host.armed(IrqIndex::Msix), Some(vec![false; 3]));
    rig.write16(0x72, 0x0000);
    assert_eq!(rig.host.armed(IrqIndex::Msix), None);
    assert_eq!(rig.host.armed(IrqIndex::Msi), Some(vec![true]));
}

#[test]
fn what_the_host_refuses_is_counted_and_tried_again() {
    let rig = nvme();
    rig.host.set_faults(HostFaults {
        arm: true,
        ..HostFaults::default()
    });
    enable(&rig);
    assert!(rig.function.has_failed());
    assert_eq!(rig.host.armed(IrqIndex::Msix), None);
    rig.host.set_faults(HostFaults::default());
    rig.program_vector(TABLE, 0, message(0x40), false);
    assert_eq!(
        rig.host.armed(IrqIndex::Msix),
        Some(vec![true, false, false, false, false])
    );
    rig.sink().set_refusing(true);
    rig.program_vector(TABLE, 1, message(0x41), false);
    assert_eq!(rig.sink().vector(1).routed, None);
    rig.sink().set_refusing(false);
    rig.mmio_write32(TABLE + 0x1c, 0);
    rig.mmio_write32(TABLE + 0x18, 0x41);
    rig.mmio_write32(TABLE + 0x18, 0x42);
    assert_eq!(rig.sink().vector(1).routed, Some(message(0x42)));
    // A mask that failed is made good with the next change of any vector.
    rig.sink().set_refusing(true);
    rig.mmio_write32(TABLE + 0x1c, 1);
    assert_eq!(rig.sink().vector(1).routed, Some(message(0x42)));
    rig.sink().set_refusing(false);
    rig.program_vector(TABLE, 2, message(0x43), false);
    assert_eq!(rig.sink().vector(1).routed, None);
}

#[test]
fn a_mode_that_was_entered_half_does_not_bar_the_others() {
    let rig = nvme();
    enable(&rig);
    rig.host.set_faults(HostFaults {
        unmask: true,
        ..HostFaults::default()
    });
    rig.write16(0x42, 0x0000);
    assert_eq!(rig.host.armed(IrqIndex::Intx), None);
    enable(&rig);
    assert_eq!(rig.host.armed(IrqIndex::Msix), Some(vec![false; 5]));

    let rig = four_messages();
    rig.host.set_faults(HostFaults {
        writes: true,
        ..HostFaults::default()
    });
    rig.write16(0x52, 0x0001);
    assert_eq!(rig.host.armed(IrqIndex::Msi), None);
    rig.write16(0x72, 0x8000);
    assert!(rig.host.armed(IrqIndex::Msix).is_some());
}

#[test]
fn two_vcpus_cannot_leave_the_device_with_the_older_state() {
    let rig = nvme();
    enable(&rig);
    rig.program_vector(TABLE, 0, message(0x40), true);
    for round in 0..200u32 {
        std::thread::scope(|scope| {
            for data in [0x50, 0x60] {
                let rig = &rig;
                scope.spawn(move || {
                    rig.mmio_write32(TABLE + 0x8, data + round % 16);
                    rig.mmio_write32(TABLE + 0xc, round & 1);
                    // The other way into the same state.
                    rig.write16(0x42, 0xc000);
                    rig.write16(0x42, 0x8000);
                });
            }
        });
        let masked = rig.mmio_read32(TABLE + 0xc) == Some(1);
        let data = rig.mmio_read32(TABLE + 0x8).unwrap();
        let expected = (!masked).then(|| message(data));
        assert_eq!(rig.sink().vector(0).routed, expected, "round {round}");
    }
}
