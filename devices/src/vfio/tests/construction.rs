//! Building and restoring a function, and the states that are refused.

use dormouse_pci::{BarIndex, ConfigEffect};
use dormouse_vfio_migration::MigFlags;
use dormouse_vfio_migration::testing::ScriptedDevice;

use crate::lifecycle::{Quiesced, Save};
use crate::testing::check_contract;
use crate::vfio::testing::{FakeHost, HostFaults, Model, Rig, RigParts, message};
use crate::vfio::{Error, IdentityMismatch, VfioFunctionState};

const BAR: u64 = 0xd000_0000;

fn save(rig: &Rig) -> VfioFunctionState {
    rig.function.save(&Quiesced::declare())
}

/// An NVMe as a guest's driver leaves it, with one vector masked.
fn used_nvme() -> Rig {
    let rig = Rig::new(Model::nvme());
    rig.write32(0x10, BAR as u32);
    rig.write16(0x04, 0x0406);
    rig.write16(0x42, 0x8000);
    rig.program_vector(BAR + 0x2000, 0, message(0x40), false);
    rig.program_vector(BAR + 0x2000, 1, message(0x41), false);
    rig.mmio_write32(BAR + 0x201c, 1);
    rig
}

#[test]
fn what_is_saved_restores_to_the_same() {
    for model in [Model::nvme(), Model::mtty(), Model::igb_vf()] {
        let Rig { function, .. } = Rig::new(model.clone());
        check_contract(
            function,
            |function| {
                let effects =
                    dormouse_pci::PciFunction::config_write(function, 0x10, &[0, 0x70, 0, 0xd0]);
                effects
                    .into_iter()
                    .for_each(|effect| function.apply_effect(effect));
                let _ = dormouse_pci::PciFunction::config_write(function, 0x3c, &[11]);
            },
            |state| {
                let mut parts = RigParts::new(model.clone());
                parts.state = Some(state);
                parts.build().unwrap().function
            },
        );
    }
}

#[test]
fn a_used_device_restores_to_the_same_and_is_set_up_alike() {
    let rig = used_nvme();
    crate::vfio::host::MsiSink::signal(rig.sink(), 1);
    let state = save(&rig);
    assert_eq!(state.config.msix.as_ref().unwrap().pending, [1]);
    assert_eq!(state.used_vectors, [0, 1]);
    assert_eq!(state.bars[0].address, BAR);

    let mut parts = RigParts::new(Model::nvme());
    parts.state = Some(state.clone());
    let woken = parts.build().unwrap();
    assert_eq!(save(&woken), state);
    assert!(woken.host.mapped().is_empty());
    woken.function.fix_up().unwrap();
    assert_eq!(save(&woken), state);
    assert_eq!(woken.host.mapped(), rig.host.mapped());
    assert_eq!(woken.host.command(), 0x0406);
    let index = crate::vfio::host::IrqIndex::Msix;
    assert_eq!(woken.host.armed(index), rig.host.armed(index));
    assert_eq!(woken.sink().vector(0).routed, Some(message(0x40)));
    woken.mmio_write32(BAR + 0x201c, 0);
    assert_eq!(
        woken.sink().vector(1).delivered,
        1,
        "pending over sleep and wake"
    );
}

#[test]
fn the_old_place_of_a_bar_that_does_not_answer_is_not_recorded() {
    let rig = Rig::new(Model::igb_vf());
    // BAR 3 answers, is sized, and BAR 0 comes to its place.
    rig.write16(0x04, 0x0006);
    rig.write32(0x1c, BAR as u32);
    rig.write32(0x1c, u32::MAX);
    rig.write32(0x10, BAR as u32);
    let state = save(&rig);
    let recorded: Vec<_> = state.bars.iter().map(|bar| bar.address).collect();
    assert_eq!(recorded, [BAR], "no two in one place");
    rig.write16(0x04, 0x0000);
    assert!(save(&rig).bars.is_empty());

    let mut parts = RigParts::new(Model::igb_vf());
    parts.state = Some(state.clone());
    let woken = parts.build().unwrap();
    woken.function.fix_up().unwrap();
    assert_eq!(save(&woken), state);
    assert_eq!(woken.function.placed_bars().len(), 1);
}

#[test]
fn of_two_bars_in_one_place_the_one_that_answered_answers_again() {
    let rig = Rig::new(Model::igb_vf());
    rig.write16(0x04, 0x0006);
    rig.write32(0x1c, BAR as u32);
    rig.write32(0x10, BAR as u32);
    let state = save(&rig);
    assert_eq!(state.bars.len(), 1);
    assert_eq!(state.bars[0].bar, BarIndex::new(3).unwrap());
    let mut parts = RigParts::new(Model::igb_vf());
    parts.state = Some(state.clone());
    let woken = parts.build().unwrap();
    woken.function.fix_up().unwrap();
    assert_eq!(woken.function.placed_bars(), rig.function.placed_bars());
    woken.function.apply_effect(ConfigEffect::LayoutChanged);
    assert_eq!(save(&woken), state);
}

#[test]
fn a_pending_bar_move_survives() {
    let rig = used_nvme();
    rig.write16(0x04, 0x0000);
    rig.write32(0x10, 0xd800_0000);
    let mut parts = RigParts::new(Model::nvme());
    parts.state = Some(save(&rig));
    let woken = parts.build().unwrap();
    woken.function.fix_up().unwrap();
    assert!(woken.function.placed_bars().is_empty());
    woken.write16(0x04, 0x0002);
    assert_eq!(woken.function.placed_bars()[0].1, 0xd800_0000);
}

#[test]
fn other_devices_and_damaged_states_are_refused() {
    let state = save(&used_nvme());
    let refuse = |change: &dyn Fn(&mut VfioFunctionState)| {
        let mut changed = state.clone();
        change(&mut changed);
        let mut parts = RigParts::new(Model::nvme());
        parts.state = Some(changed);
        match parts.build() {
            Ok(_) => panic!("accepted"),
            Err(error) => error,
        }
    };
    let mismatch = |change: &dyn Fn(&mut VfioFunctionState)| match refuse(change) {
        Error::Identity { device, source } => {
            assert_eq!(&*device, "vfio0");
            source
        }
        other => panic!("{other}"),
    };
    let model = mismatch(&|state| state.identity.device_id = 0x11);
    assert!(matches!(
        model,
        IdentityMismatch::Model {
            saved_device: 0x11,
            device: 0x10,
            ..
        }
    ));
    let class = mismatch(&|state| state.identity.class = 0);
    assert!(matches!(class, IdentityMismatch::Model { .. }));
    let region = mismatch(&|state| state.identity.region_bytes[0] = 0x8000);
    assert!(matches!(
        region,
        IdentityMismatch::RegionLength { region: 0, .. }
    ));
    let vectors = mismatch(&|state| state.identity.interrupts[2] = 6);
    assert!(matches!(
        vectors,
        IdentityMismatch::Vectors {
            index: 2,
            saved: 6,
            actual: 5
        }
    ));

    let address = |change: &dyn Fn(&mut VfioFunctionState)| {
        assert!(matches!(
            mismatch(change),
            IdentityMismatch::BarAddress { .. }
        ));
    };
    address(&|state| state.bars[0].address += 0x1000);
    address(&|state| state.bars[0].address = u64::MAX - 0x3fff);
    address(&|state| state.bars[0].size = 0);
    address(&|state| state.bars[0].io = true);
    address(&|state| state.bars.push(state.bars[0]));
    address(&|state| state.assigned_bars = vec![state.bars[0], state.bars[0]]);
    for used in [vec![5], vec![1, 0], vec![1, 1], vec![u16::MAX]] {
        let vector = mismatch(&|state| state.used_vectors.clone_from(&used));
        assert!(matches!(vector, IdentityMismatch::UsedVector { .. }));
    }
    let config = refuse(&|state| state.config.msix = None);
    assert!(matches!(config, Error::RestoreConfig { .. }));
    let config = refuse(&|state| state.config.registers[0].value ^= 1);
    assert!(matches!(config, Error::RestoreConfig { .. }));
}

#[test]
fn the_device_is_reset_before_anything_is_read() {
    let rig = Rig::new(Model::nvme());
    assert_eq!(
        rig.take_changes(),
        [
            "host: reset",
            "host: arm Intx 0 x",
            "host: disarm Intx",
            "host: command 0x0000",
            "line: connect",
            "host: arm Intx 0 x",
            "host: unmask on resample"
        ]
    );
}

#[test]
fn a_device_whose_legacy_interrupt_cannot_be_armed_has_none() {
    for errno in [16, 19] {
        let build = |state| {
            let mut parts = RigParts::new(Model::nvme());
            parts.host.set_faults(HostFaults {
                intx: Some(errno),
                ..HostFaults::default()
            });
            parts.state = state;
            parts.build().unwrap()
        };
        let rig = build(None);
        assert_eq!(rig.read32(0x3c) >> 8 & 0xff, 0, "no pin");
        assert_eq!(rig.host.armed(crate::vfio::host::IrqIndex::Intx), None);
        // A guest that has the pin from elsewhere may have no use for it.
        let woken = build(Some(save(&used_nvme())));
        woken.function.fix_up().unwrap();
        assert_eq!(woken.read32(0x3c) >> 8 & 0xff, 1);
        assert_eq!(woken.sink().vector(0).routed, Some(message(0x40)));
    }
}

#[test]
fn devices_that_do_not_work_are_named() {
    let build = |faults: HostFaults| {
        let parts = RigParts::new(Model::nvme());
        parts.host.set_faults(faults);
        parts.build().map(|_| ()).map_err(|error| error.to_string())
    };
    let no_reset = HostFaults {
        reset: Some(22),
        ..HostFaults::default()
    };
    assert_eq!(
        build(no_reset),
        Ok(()),
        "a device without a reset is normal"
    );
    for faults in [
        HostFaults {
            reset: Some(5),
            ..HostFaults::default()
        },
        HostFaults {
            reads: true,
            ..HostFaults::default()
        },
        HostFaults {
            writes: true,
            ..HostFaults::default()
        },
        HostFaults {
            arm: true,
            ..HostFaults::default()
        },
    ] {
        let message = build(faults).unwrap_err();
        assert!(message.contains("vfio0"), "{message}");
    }
    let mut gone = Model::nvme();
    gone.config.fill(0xff);
    let parts = RigParts::new(gone);
    assert!(matches!(parts.build(), Err(Error::Gone { .. })));
    let mut looping = Model::nvme();
    looping.config[0x81] = 0x60;
    let parts = RigParts::new(looping);
    assert!(matches!(parts.build(), Err(Error::Unsuitable { .. })));
}

#[test]
fn migration_is_asked_of_the_kernel_each_time() {
    let build = |flags: Option<MigFlags>, state: Option<VfioFunctionState>| {
        let mut parts = RigParts::new(Model::nvme());
        let device = ScriptedDevice::new("vfio0", MigFlags::STOP_COPY, &parts.trace);
        device.set_flags(flags);
        parts.migration = Some(device);
        parts.state = state;
        parts.build().unwrap()
    };
    let able = build(Some(MigFlags::STOP_COPY), None);
    assert_eq!(able.function.blocks_snapshot(), None);
    let state = save(&able);
    assert!(!serde_json::to_string(&state).unwrap().contains("migra"));
    let unable = build(None, Some(state));
    let block = unable.function.blocks_snapshot().unwrap().to_string();
    assert!(
        block.contains("vfio0") && block.contains("migration support"),
        "{block}"
    );
}

#[test]
fn a_host_without_migration_requests_blocks_snapshots() {
    let parts = RigParts::new(Model::igb_vf());
    let host: std::sync::Arc<FakeHost> = std::sync::Arc::clone(&parts.host);
    let rig = parts.build().unwrap();
    assert!(rig.function.blocks_snapshot().is_some());
    // Nothing is armed for a device without a pin.
    assert_eq!(host.armed(crate::vfio::host::IrqIndex::Intx), None);
}
