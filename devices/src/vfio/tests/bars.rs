//! BARs: placing, moving, trapping, refusing, and leaving nothing behind.

use std::sync::Arc;

use dormouse_pci::{BarIndex, ConfigEffect, PciFunction};

use crate::access::{BusDevice, Effect};
use crate::bus::{Mmio, Pio};
use crate::lifecycle::{Quiesced, Save};
use crate::vfio::testing::{HostFaults, Model, Rig, RigParts};

const BAR: u64 = 0xd000_0000;

/// Something else that answers on a bus.
struct Other;

impl BusDevice for Other {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0x5a);
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Effect {
        Effect::None
    }
}

/// Programs BAR 0, 64 bits wide, and switches decoding on.
fn enabled(model: Model) -> Rig {
    let rig = Rig::new(model);
    place(&rig, BAR);
    rig.write16(0x04, 0x0006);
    rig
}

fn place(rig: &Rig, address: u64) {
    rig.write32(0x10, address as u32);
    rig.write32(0x14, (address >> 32) as u32);
}

#[test]
fn a_bar_is_mapped_around_its_msix_pages() {
    let rig = enabled(Model::nvme());
    assert_eq!(rig.host.mapped(), [BAR..BAR + 0x2000]);
    // Trapped: the page of the table beside the table, from the device.
    assert!(rig.mmio_write32(BAR + 0x2800, 0x1234));
    assert_eq!(rig.mmio_read32(BAR + 0x2800), Some(0x1234));
    assert_eq!(rig.host.region_accesses(), 2);
    // The table itself, from the model.
    assert_eq!(rig.mmio_read32(BAR + 0x200c), Some(1));
    assert_eq!(rig.mmio_read32(BAR + 0x3000), Some(0));
    assert_eq!(rig.host.region_accesses(), 2);
}

#[test]
fn sparse_areas_are_mapped_and_msix_pages_are_not_even_if_they_could_be() {
    let mut model = Model::igb_vf();
    model.regions[3].mappable = vec![0..0x4000];
    model.regions[3].msix_mappable = true;
    let rig = enabled(model);
    rig.write32(0x1c, 0xd100_0000);
    let bar3 = 0xd100_0000;
    assert_eq!(
        rig.host.mapped(),
        [
            BAR..BAR + 0x1000,
            BAR + 0x2000..BAR + 0x4000,
            bar3 + 0x1000..bar3 + 0x2000,
            bar3 + 0x3000..bar3 + 0x4000
        ]
    );
    let before = rig.host.region_accesses();
    assert_eq!(rig.mmio_read32(bar3 + 0x2000), Some(0));
    assert_eq!(rig.host.region_accesses(), before, "the model answers");
}

#[test]
fn excluded_bars_are_trapped_wholly() {
    let mut parts = RigParts::new(Model::nvme());
    parts.trapped_bars = vec![BarIndex::BAR0];
    let rig = parts.build().unwrap();
    place(&rig, BAR);
    rig.write16(0x04, 0x0006);
    assert!(rig.host.mapped().is_empty());
    assert_eq!(rig.mmio_read32(BAR), Some(0));
    assert_eq!(rig.host.region_accesses(), 1);
}

#[test]
fn switching_decode_off_unmaps_before_the_device_stops_answering() {
    let rig = enabled(Model::nvme());
    rig.write16(0x04, 0x0000);
    assert_eq!(
        rig.host.exposed(),
        0,
        "a vCPU could have faulted on the mapping"
    );
    assert!(rig.host.mapped().is_empty());
    assert_eq!(rig.mmio_read32(BAR), None);
    rig.write16(0x04, 0x0002);
    assert_eq!(rig.host.mapped(), [BAR..BAR + 0x2000]);
}

#[test]
fn vcpus_that_move_and_switch_at_once_leave_what_the_registers_say() {
    let rig = enabled(Model::nvme());
    for round in 0..100u32 {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for command in [0, 2, 0, 2] {
                    rig.write16(0x04, command);
                }
            });
            scope.spawn(|| {
                for step in 0..4 {
                    rig.write32(0x10, BAR as u32 + (round + step) % 8 * 0x4000);
                }
            });
        });
        let address = u64::from(rig.read32(0x10) & !0xf);
        assert_eq!(rig.host.mapped(), [address..address + 0x2000]);
        assert!(rig.mmio_read32(address + 0x2000).is_some());
        assert_eq!(rig.host.exposed(), 0);
    }
}

#[test]
fn a_write_that_the_device_does_not_take_changes_nothing() {
    let rig = enabled(Model::nvme());
    let before = rig.read32(0x88);
    rig.host.set_faults(HostFaults {
        writes: true,
        ..HostFaults::default()
    });
    rig.write16(0x04, 0x0000);
    rig.write16(0x88, 0x1234);
    rig.write16(0x64, 0x000b);
    assert!(rig.function.has_failed());
    assert_eq!(rig.host.mapped(), [BAR..BAR + 0x2000], "it still answers");
    rig.host.set_faults(HostFaults::default());
    assert_eq!((rig.read16(0x04), rig.host.command()), (0x0006, 0x0006));
    assert_eq!(rig.read32(0x88), before);
    let state = rig.function.save(&Quiesced::declare());
    let saved = |offset| {
        let mut registers = state.config.registers.iter();
        registers.find(|register| register.offset == offset)
    };
    assert_eq!(saved(0x04).unwrap().value & 0xffff, 0x0006);
    assert_eq!(saved(0x88).unwrap().value, before);
}

#[test]
fn a_device_in_a_lower_power_state_has_no_bars() {
    let rig = enabled(Model::nvme());
    rig.write16(0x64, 0x000b);
    assert!(rig.function.placed_bars().is_empty());
    assert!(rig.host.mapped().is_empty());
    rig.write16(0x64, 0x0008);
    assert_eq!(rig.host.mapped(), [BAR..BAR + 0x2000]);
}

#[test]
fn a_device_that_stays_on_keeps_its_bars() {
    let rig = enabled(Model::nvme());
    rig.host.set_faults(HostFaults {
        always_on: true,
        ..HostFaults::default()
    });
    rig.write16(0x64, 0x000b);
    assert_eq!(rig.read16(0x64), 0x0008);
    assert_eq!(rig.host.mapped(), [BAR..BAR + 0x2000]);
}

#[test]
fn bars_shorter_than_a_page_are_trapped() {
    let mut model = Model::igb_vf();
    model.regions[0].size = 0x100;
    model.regions[0].mappable = vec![0..0x100];
    let rig = enabled(model);
    assert!(rig.host.mapped().is_empty());
    assert_eq!(rig.mmio_read32(BAR + 0xfc), Some(0));
}

#[test]
fn a_bar_moves_while_it_is_decoded() {
    let rig = enabled(Model::nvme());
    place(&rig, 0x10_0000_4000);
    assert_eq!(rig.host.mapped(), [0x10_0000_4000..0x10_0000_6000]);
    assert_eq!(rig.mmio_read32(BAR + 0x2000), None);
    assert!(rig.mmio_read32(0x10_0000_6000).is_some());
}

#[test]
fn a_probe_of_the_size_takes_the_bar_away_and_brings_it_back() {
    let rig = enabled(Model::nvme());
    rig.write32(0x10, u32::MAX);
    assert!(rig.function.placed_bars().is_empty());
    rig.write32(0x10, BAR as u32);
    assert_eq!(rig.host.mapped(), [BAR..BAR + 0x2000]);
}

#[test]
fn ram_and_places_outside_of_the_windows_are_not_given() {
    let rig = enabled(Model::nvme());
    for address in [0, 0x10_0000, 0xf000_0000, 0x20_0000_0000, !0x3fff] {
        place(&rig, address);
        assert!(rig.function.placed_bars().is_empty(), "{address:#x}");
        assert!(rig.host.mapped().is_empty());
        assert_eq!(
            rig.read32(0x10) & !0xf,
            address as u32,
            "the register keeps what was written"
        );
    }
}

#[test]
fn a_bar_does_not_answer_at_a_place_that_is_taken() {
    let rig = enabled(Model::nvme());
    let taken = BAR + 0x10_0000;
    rig.spaces
        .mmio
        .insert(Mmio(taken + 0x3000), 0x1000, Arc::new(Other))
        .unwrap();
    place(&rig, taken);
    assert_eq!(
        rig.read32(0x10) & !0xf,
        taken as u32,
        "the register keeps what was written"
    );
    assert!(rig.host.mapped().is_empty());
    assert_eq!((rig.mmio_read32(BAR), rig.mmio_read32(taken)), (None, None));
    assert_eq!(rig.mmio_read32(taken + 0x3000), Some(0x5a5a_5a5a));
    assert!(
        !rig.function.has_failed(),
        "a guest's doing is no failure of the device"
    );
}

#[test]
fn a_mapping_that_fails_half_way_leaves_the_bar_where_it_was() {
    let rig = enabled(Model::igb_vf());
    assert_eq!(rig.host.mapped().len(), 2);
    // One of two areas fits, then none; putting it back takes two more.
    rig.host.set_faults(HostFaults {
        maps: Some(1),
        ..HostFaults::default()
    });
    rig.write32(0x10, 0xd200_0000);
    assert!(rig.host.mapped().is_empty());
    assert!(rig.function.placed_bars().is_empty());
    assert_eq!(rig.mmio_read32(0xd200_0000), None);
    assert_eq!(rig.read32(0x10) & !0xf, BAR as u32);
    assert!(rig.function.has_failed());
    rig.host.set_faults(HostFaults::default());
    rig.write16(0x04, 0x0000);
    rig.write16(0x04, 0x0002);
    assert_eq!(rig.host.mapped().len(), 2);
}

#[test]
fn two_bars_swap_places() {
    let mut model = Model::igb_vf();
    model.regions[3].mappable = vec![0x1000..0x2000];
    let rig = enabled(model);
    let other = BAR + 0x4000;
    rig.write32(0x1c, other as u32);
    let before = rig.function.placed_bars();
    rig.write16(0x04, 0x0000);
    rig.write32(0x10, other as u32);
    rig.write32(0x1c, BAR as u32);
    rig.write16(0x04, 0x0002);
    let after = rig.function.placed_bars();
    assert_eq!((before[0].1, before[1].1), (after[1].1, after[0].1));
}

#[test]
fn ports_and_rom_are_trapped() {
    let rig = Rig::new(Model::mtty());
    rig.write32(0x10, 0xc000);
    rig.write32(0x14, 0xc008);
    rig.write16(0x04, 0x0001);
    assert_eq!(rig.spaces.pio.write(Pio(0xc009), &[7]), Some(Effect::None));
    assert_eq!(rig.port_read8(0xc009), Some(7));
    assert_eq!(rig.port_read8(0xc001), Some(0));
    assert_eq!(rig.port_read8(0xc010), None);

    let nvme = enabled(Model::nvme());
    nvme.write32(0x30, 0xd800_0001);
    assert!(nvme.mmio_write32(0xd800_0000, 0x5a));
    assert_eq!(
        nvme.mmio_read32(0xd800_0000),
        Some(0),
        "a ROM is not written"
    );
    assert_eq!(nvme.host.mapped().len(), 1);
}

#[test]
fn a_removed_function_leaves_nothing_behind() {
    let rig = enabled(Model::nvme());
    let Rig {
        function,
        host,
        spaces,
        ..
    } = rig;
    drop(function);
    assert!(host.mapped().is_empty());
    spaces
        .mmio
        .insert(Mmio(BAR), 0x4000, Arc::new(Other))
        .unwrap();
}

#[test]
fn a_guest_reset_of_the_function_takes_everything_back() {
    let rig = enabled(Model::nvme());
    rig.write16(0x42, 0x8000);
    rig.take_changes();
    rig.write16(0x88, 0x8000);
    assert_eq!(
        rig.take_changes(),
        [
            "host: config 0x88",
            "host: disarm Msix",
            "host: reset",
            "host: command 0x0000",
            "host: config 0x88",
            "line: connect",
            "host: arm Intx 0 x",
            "host: unmask on resample",
        ]
    );
    assert!(rig.host.mapped().is_empty());
    assert_eq!(rig.read32(0x10), 0x4);
    assert_eq!((rig.read16(0x04), rig.read16(0x42)), (0, 4));
}

#[test]
fn the_device_is_reset_by_the_host_and_not_by_its_reset_bit() {
    let rig = enabled(Model::nvme());
    rig.host.set_faults(HostFaults {
        reset: Some(5),
        ..HostFaults::default()
    });
    let effects = rig.function.config_write(0x88, &0xa936_u16.to_le_bytes());
    assert_eq!(effects, [ConfigEffect::FunctionReset]);
    assert_eq!(rig.host.config_byte(0x89), 0x29, "without the bit");
    rig.function.apply_effect(ConfigEffect::FunctionReset);
    assert!(rig.function.has_failed(), "a failed reset is told");
    assert_eq!(rig.host.command(), 0, "and the device does no more DMA");
    assert!(rig.host.mapped().is_empty());

    let rig = enabled(Model::nvme());
    rig.host.set_faults(HostFaults {
        reset: Some(22),
        ..HostFaults::default()
    });
    rig.write16(0x88, 0x8000);
    assert!(rig.function.has_failed(), "also one that the host lacks");
}

#[test]
fn firmware_addresses_come_back_after_a_reset_of_the_machine() {
    let rig = Rig::new(Model::nvme());
    let mut next = 0xd000_0000;
    rig.function
        .assign_bars(|kind| {
            next += kind.size().max(0x1000) * 16;
            Ok::<_, ()>(next)
        })
        .unwrap();
    let bars = (rig.read32(0x10), rig.read32(0x30));
    assert_eq!(bars, (0xd004_0004, 0xd005_0000));
    rig.write32(0x10, 0xd800_0000);
    rig.write16(0x04, 0x0006);
    rig.function.reset().unwrap();
    assert_eq!((rig.read32(0x10), rig.read32(0x30)), bars);
    assert_eq!(rig.host.command(), 0);
    assert!(rig.host.mapped().is_empty());
    rig.write16(0x04, 0x0006);
    assert_eq!(rig.function.placed_bars()[0].1, 0xd004_0000);
}

/// Another function beside `first`, at the same place.
fn neighbour(first: &Rig) -> Rig {
    let mut parts = RigParts::new(Model::nvme());
    parts.spaces = first.spaces.clone();
    let second = parts.build().unwrap();
    place(&second, BAR);
    second.write16(0x04, 0x0006);
    assert!(second.function.placed_bars().is_empty());
    assert!(second.host.mapped().is_empty());
    second
}

fn address(rig: &Rig) -> Option<u64> {
    rig.function.placed_bars().first().map(|bar| bar.1)
}

#[test]
fn two_functions_cannot_share_a_place() {
    let first = enabled(Model::nvme());
    let second = neighbour(&first);
    place(&second, BAR + 0x4000);
    assert_eq!(second.function.placed_bars().len(), 1);
}

#[test]
fn a_bar_that_waits_gets_its_place_when_it_is_left() {
    let leave: [fn(&Rig); 5] = [
        |first| place(first, BAR + 0x8000),
        |first| first.write32(0x10, u32::MAX),
        |first| first.write16(0x04, 0x0000),
        |first| first.write16(0x88, 0x8000),
        |first| first.function.reset().unwrap(),
    ];
    for leave in leave {
        let first = enabled(Model::nvme());
        let second = neighbour(&first);
        leave(&first);
        assert_eq!(address(&second), Some(BAR));
        assert!(address(&first).is_none_or(|first| first != BAR));
    }
}

#[test]
fn two_functions_swap_places_while_they_decode() {
    let first = enabled(Model::nvme());
    let second = neighbour(&first);
    place(&second, BAR + 0x4000);
    place(&first, BAR + 0x4000);
    assert_eq!(address(&first), None);
    place(&second, BAR);
    assert_eq!(
        (address(&first), address(&second)),
        (Some(BAR + 0x4000), Some(BAR))
    );
}

#[test]
fn vcpus_that_move_bars_of_two_functions_do_not_hang_and_place_what_fits() {
    let first = enabled(Model::nvme());
    let second = neighbour(&first);
    for round in 0..100u64 {
        std::thread::scope(|scope| {
            for (rig, start) in [(&first, round), (&second, round * 7)] {
                scope.spawn(move || {
                    for step in 0..6 {
                        rig.write32(0x10, (BAR + (start + step) % 3 * 0x4000) as u32);
                    }
                });
            }
        });
        let wanted = |rig: &Rig| u64::from(rig.read32(0x10) & !0xf);
        let placed = [&first, &second].map(address);
        if wanted(&first) == wanted(&second) {
            assert_eq!(placed.iter().flatten().count(), 1, "round {round}");
        } else {
            assert_eq!(placed, [&first, &second].map(|rig| Some(wanted(rig))));
        }
    }
}
