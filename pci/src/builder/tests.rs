//! Functions with capabilities: interrupts, resets, and shadows of real devices.

use proptest::collection::vec;
use proptest::prelude::any;
use proptest::{prop_assert_eq, proptest};

use super::*;
use crate::config_space::InterruptMode;
use crate::effect::ConfigEffect;
use crate::message::{MessageChange, MsiMessage, VectorState};
use crate::{BarOffset, MsixTable};

const IDENTITY: Identity = Identity {
    vendor_id: 0x1234,
    device_id: 0x5678,
    subsystem_vendor_id: 0,
    subsystem_id: 0,
    class: 0x01_08_02,
    revision: 0,
    interrupt_pin: None,
};

const MSIX: MsixCapability = MsixCapability {
    vectors: 4,
    table: BarOffset {
        bar: BarIndex::BAR0,
        offset: 0,
    },
    pba: BarOffset {
        bar: BarIndex::BAR0,
        offset: 0x800,
    },
};

const MSI: MsiCapability = MsiCapability {
    vectors: 4,
    address_64: true,
    per_vector_masking: true,
};

const MEMORY: BarKind = BarKind::Mem32 {
    size: 0x1000,
    prefetchable: false,
};

fn bar(number: u8) -> BarIndex {
    BarIndex::new(number).unwrap()
}

/// MSI at 0x40, MSI-X at 0x58.
fn emulated() -> ConfigSpaceBuilder {
    let mut builder = ConfigSpaceBuilder::new(&IDENTITY);
    builder.bar(bar(0), MEMORY).unwrap();
    assert_eq!(builder.msi(MSI), Ok(0x40));
    assert_eq!(builder.msix(MSIX), Ok(0x58));
    builder
}

fn read(config: &ConfigSpace, offset: u16) -> u32 {
    let mut data = [0; 4];
    config.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn store(bytes: &mut [u8], offset: usize, value: u32) {
    bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}

/// Bytes of a device as a host reads them: programmed BARs and command, PCI Express with FLR at
/// 0x40, MSI at 0x80 (32-bit, one vector), MSI-X at 0x90, vendor at 0xa0, SR-IOV at 0x100, serial
/// number at 0x180.
fn device_bytes() -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    for (offset, value) in [
        (0x00, 0x101e_15b3),
        (0x04, 0x2018_0406),
        (0x08, 0x0200_0000),
        (0x0c, 0x0080_0010),
        (0x10, 0xe000_000c),
        (0x30, 0xfea0_0001),
        (0x34, 0x40),
        (0x3c, 0x0000_010b),
        (0x40, 0x0002_8010),
        (0x44, 0x1000_8fe2),
        (0x48, 0x0000_2910),
        (0x80, 0x0001_9005),
        (0x84, 0xfee0_0000),
        (0x90, 0xc003_a011),
        (0x94, 0x0000_0000),
        (0x98, 0x0000_0800),
        (0xa0, 0x0008_0009),
        (0xa4, 0xabcd_ef01),
        (0x100, 0x1801_0010),
        (0x180, 0x0001_0003),
        (0x184, 0x1122_3344),
    ] {
        store(&mut bytes, offset, value);
    }
    bytes
}

fn shadow() -> ConfigSpaceBuilder {
    let mut builder = ConfigSpaceBuilder::from_device(&device_bytes()).unwrap();
    builder.bar(bar(0), MEMORY).unwrap();
    builder
}

#[test]
fn emulated_capabilities_can_be_walked() {
    let config = emulated().build();
    let mut bytes = vec![0; 256];
    for offset in (0..256).step_by(4) {
        store(
            &mut bytes,
            offset,
            read(&config, offset.try_into().unwrap()),
        );
    }
    let found: Vec<_> = walk_capabilities(&bytes)
        .unwrap()
        .iter()
        .map(|c| (c.id.0, c.offset))
        .collect();
    assert_eq!(found, [(5, 0x40), (0x11, 0x58)]);
    assert_eq!(read(&config, 0x58) >> 16, 3);
    assert_eq!(read(&config, 0x60), 0x800);
}

#[test]
fn misplaced_msix_structures_are_refused() {
    let refuse = |table: (u8, u32), pba: (u8, u32), vectors| {
        let mut builder = ConfigSpaceBuilder::new(&IDENTITY);
        builder.bar(bar(0), MEMORY).unwrap();
        builder.bar(bar(1), BarKind::Io { size: 64 }).unwrap();
        let at = |(number, offset)| BarOffset {
            bar: bar(number),
            offset,
        };
        builder
            .msix(MsixCapability {
                vectors,
                table: at(table),
                pba: at(pba),
            })
            .unwrap_err()
    };
    let placement = |number, offset, len| CapabilityError::MsixPlacement {
        bar: bar(number),
        offset,
        len,
    };
    assert_eq!(refuse((0, 0xfc8), (0, 0), 4), placement(0, 0xfc8, 64));
    assert_eq!(refuse((0, 0), (0, 0xffc), 4), placement(0, 0xffc, 8));
    assert_eq!(refuse((1, 0), (0, 0), 4), placement(1, 0, 64));
    assert_eq!(refuse((2, 0), (0, 0), 4), placement(2, 0, 64));
    assert_eq!(
        refuse((0, 0), (0, 0x38), 4),
        CapabilityError::MsixOverlap { bar: bar(0) }
    );
    assert_eq!(
        refuse((0, 0), (0, 0x38), 0),
        CapabilityError::MsixVectors { vectors: 0 }
    );
}

#[test]
fn control_word_is_accepted_as_byte_word_and_dword() {
    for (offset, data) in [
        (0x5b, &[0x80][..]),
        (0x5a, &[0xff, 0x87]),
        (0x58, &[0xff, 0xff, 0xff, 0xbf]),
    ] {
        let mut config = emulated().build();
        let change = MessageChange {
            enabled: true,
            was_enabled: false,
            vectors: vec![],
        };
        assert_eq!(config.write(offset, data), [ConfigEffect::Msix(change)]);
        assert_eq!(config.interrupt_mode(), InterruptMode::Msix);
        assert_eq!(read(&config, 0x58), 0x8003_0011);
    }
}

#[test]
fn msi_vectors_follow_enable_count_mask_and_message() {
    let mut config = emulated().build();
    let _ = config.write(0x44, &0xfee0_3003_u32.to_le_bytes());
    let _ = config.write(0x4c, &[0x47, 0x00]);
    // Two of four messages.
    let effects = config.write(0x42, &[0x11, 0x00]);
    let [ConfigEffect::Msi(change)] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert!(change.enabled && !change.was_enabled);
    let message = |data| MsiMessage {
        address: 0xfee0_3000,
        data,
    };
    let opened: Vec<_> = change.vectors.iter().map(|c| (c.vector, c.after)).collect();
    let open = |data| VectorState::Unmasked(message(data));
    assert_eq!(opened, [(0, open(0x46)), (1, open(0x47))]);
    assert_eq!(config.raise_msi(1), Some(message(0x47)));
    assert_eq!(config.raise_msi(2), None);
    assert_eq!(config.raise_msi(200), None);
    assert_eq!(read(&config, 0x54), 1 << 2);
}

#[test]
fn masked_msi_vector_fires_once_when_unmasked() {
    let mut config = emulated().build();
    let _ = config.write(0x50, &[0x0f]);
    let _ = config.write(0x42, &[0x21, 0x00]);
    assert_eq!(config.raise_msi(3), None);
    assert_eq!(read(&config, 0x54), 0x8);
    // Pending survives a snapshot.
    let mut config = emulated().restore(&config.save()).unwrap();
    let effects = config.write(0x50, &[0x00]);
    let [ConfigEffect::Msi(change)] = &effects[..] else {
        panic!("{effects:?}");
    };
    let fired: Vec<_> = change.vectors.iter().map(|c| c.fire).collect();
    assert_eq!(fired, [false, false, false, true]);
    assert_eq!(read(&config, 0x54), 0);
    assert_eq!(
        config.write(0x50, &[0xf0]),
        [],
        "there are only four mask bits"
    );
}

#[test]
fn pending_msi_vector_that_is_not_masked_is_refused() {
    let mut config = emulated().build();
    let _ = config.write(0x50, &[0x02]);
    let _ = config.write(0x42, &[0x21, 0x00]);
    assert_eq!(config.raise_msi(1), None);
    let mut state = config.save();
    assert!(emulated().restore(&state).is_ok());
    state.registers.retain(|register| register.offset != 0x50);
    let refused = emulated()
        .restore(&state)
        .map(|config| config.msi_vectors());
    assert_eq!(refused, Err(StateError::MsiPendingUnmasked { vector: 1 }));
}

#[test]
fn pending_msi_vectors_are_those_of_the_model_whatever_hardware_says() {
    let mut config = emulated().build();
    let _ = config.write(0x42, &[0x21, 0x00]);
    config.mirror_read(0x54, &[0x02]);
    assert_eq!(read(&config, 0x54), 0);
    assert!(emulated().restore(&config.save()).is_ok());
}

#[test]
fn msi_shapes_have_their_registers_where_the_specification_says() {
    for (address_64, per_vector_masking, control, data) in [
        (false, false, 0, 0x48),
        (true, false, 0x80, 0x4c),
        (false, true, 0x100, 0x48),
        (true, true, 0x180, 0x4c),
    ] {
        let mut builder = ConfigSpaceBuilder::new(&IDENTITY);
        let shape = MsiCapability {
            vectors: 1,
            address_64,
            per_vector_masking,
        };
        assert_eq!(builder.msi(shape), Ok(0x40));
        assert_eq!(
            builder.capability(&vendor()).unwrap(),
            0x40 + u8::try_from(shape.len_bytes()).unwrap()
        );
        let mut config = builder.build();
        assert_eq!(read(&config, 0x40) >> 16, control);
        let _ = config.write(data, &[0x31, 0x40, 0xff, 0xff]);
        assert_eq!(read(&config, data), 0x4031);
        let _ = config.write(0x42, &[1]);
        let sent = config.raise_msi(0).unwrap();
        assert_eq!(sent.data, 0x4031);
    }
}

fn vendor() -> Capability {
    Capability {
        id: CapabilityId::VENDOR,
        body: vec![8, 1, 2, 3, 4, 5],
        writable: vec![0, 0, 0xf0],
    }
}

#[test]
fn vendor_capability_keeps_its_bytes_and_masks() {
    let mut builder = ConfigSpaceBuilder::new(&IDENTITY);
    builder.capability_at(0x60, &vendor()).unwrap();
    let mut config = builder.build();
    for offset in [0x60, 0x64] {
        let _ = config.write(offset, &[0xff; 4]);
    }
    assert_eq!(read(&config, 0x60), 0x0108_0009);
    assert_eq!(read(&config, 0x64), 0x0504_03f2);
}

#[test]
fn modelled_capabilities_can_be_there_once() {
    let duplicate = CapabilityError::Duplicate { id: 0x11 };
    assert_eq!(emulated().msix(MSIX), Err(duplicate));
    let vectors = CapabilityError::MsiVectors { vectors: 3 };
    let odd = MsiCapability { vectors: 3, ..MSI };
    assert_eq!(ConfigSpaceBuilder::new(&IDENTITY).msi(odd), Err(vectors));
}

#[test]
fn reset_masks_everything_and_says_so() {
    let mut config = emulated().build();
    let _ = config.write(0x5a, &[0x00, 0x80]);
    let _ = config.msix_mut().unwrap().write_table(12, &[0; 4]);
    let _ = config.write(0x42, &[0x01, 0x00]);
    let effects = config.reset();
    assert!(
        matches!(&effects[..], [ConfigEffect::Msi(_), ConfigEffect::Msix(_)]),
        "{effects:?}"
    );
    assert_eq!(config.save(), emulated().build().save());
    assert_eq!(config.interrupt_mode(), InterruptMode::Intx);
}

#[test]
fn shadow_starts_from_the_device_without_what_the_host_programmed() {
    let config = shadow().build();
    assert_eq!(config.interrupt_mode(), InterruptMode::Intx);
    assert_eq!(read(&config, 0x00), 0x101e_15b3);
    assert_eq!(read(&config, 0x04), 0x0010_0000);
    assert_eq!(
        read(&config, 0x0c),
        0,
        "multifunction is for the root complex"
    );
    assert_eq!(read(&config, 0x10), 0);
    assert_eq!(read(&config, 0x30), 0);
    assert_eq!(read(&config, 0x3c), 0x0000_0100);
    assert_eq!(read(&config, 0xa4), 0xabcd_ef01);
    assert_eq!(read(&config, 0x184), 0x1122_3344);
}

#[test]
fn shadow_adopts_the_interrupts_of_the_device_disabled() {
    let mut builder = shadow();
    let msi = builder.adopt_msi().unwrap().unwrap();
    assert_eq!(
        msi,
        MsiCapability {
            vectors: 1,
            address_64: false,
            per_vector_masking: false
        }
    );
    assert_eq!(builder.adopt_msix(), Ok(Some(MSIX)));
    let mut config = builder.build();
    assert_eq!(config.interrupt_mode(), InterruptMode::Intx);
    assert_eq!(read(&config, 0x84), 0);
    assert_eq!(read(&config, 0x90), 0x0003_a011);
    let _ = config.write(0x93, &[0x80]);
    assert_eq!(config.interrupt_mode(), InterruptMode::Msix);
    assert_eq!(config.msix().map(MsixTable::vectors), Some(4));
}

#[test]
fn shadow_refuses_what_cannot_be_given_to_a_guest() {
    let refused = |change: fn(&mut Vec<u8>)| {
        let mut bytes = device_bytes();
        change(&mut bytes);
        ConfigSpaceBuilder::from_device(&bytes).unwrap_err()
    };
    assert_eq!(
        refused(|b| b.truncate(255)),
        BuildError::DeviceLen { len: 255 }
    );
    assert_eq!(
        refused(|b| b[0x0e] = 0x81),
        BuildError::HeaderType { header_type: 1 }
    );
    assert_eq!(
        refused(|b| b.fill(0xff)),
        BuildError::HeaderType { header_type: 0x7f }
    );
    assert!(matches!(
        refused(|b| b[0xa1] = 0x40),
        BuildError::Walk(WalkError::Loop { .. })
    ));
    let mut builder = ConfigSpaceBuilder::from_device(&device_bytes()).unwrap();
    assert!(builder.adopt_msix().is_err(), "its BAR is missing");
}

#[test]
fn hidden_capabilities_are_gone_from_both_lists() {
    let mut builder = shadow();
    builder.hide_capability(0x80).unwrap();
    builder.hide_extended_capability(0x100).unwrap();
    builder.pass_through(0x40, 0xfc0);
    let mut config = builder.build();
    // Reads of the real links do not bring the hidden entries back.
    config.mirror_read(0x40, &0x0002_8010_u32.to_le_bytes());
    config.mirror_read(0x100, &0x1801_0010_u32.to_le_bytes());
    assert_eq!(read(&config, 0x40), 0x0002_9010);
    assert_eq!(read(&config, 0x100), 0x1800_0000);
}

#[test]
fn passed_through_registers_record_writes_and_accept_any_state() {
    let describe = || {
        let mut builder = shadow();
        builder.adopt_msix().unwrap();
        builder.pass_through(0x40, 0x3c).pass_through(0x90, 12);
        builder
    };
    let mut config = describe().build();
    assert_eq!(config.mirror_write(0x48, &[0x30, 0x51]), []);
    assert_eq!(read(&config, 0x48), 0x0000_5130);
    assert_eq!(config.mirror_write(0x90, &[0xff; 4]), []);
    assert_eq!(read(&config, 0x90), 0x0003_a011, "MSI-X is the model's");
    let restored = describe().restore(&config.save()).unwrap();
    assert_eq!(read(&restored, 0x48), 0x0000_5130);
}

#[test]
fn reads_of_the_hardware_leave_the_model_its_registers() {
    let mut builder = shadow();
    builder.adopt_msi().unwrap();
    builder.adopt_msix().unwrap();
    builder.pass_through(0, 4096);
    let mut config = builder.build();
    let _ = config.write(0x10, &0xfe00_0000_u32.to_le_bytes());
    let _ = config.write(0x04, &[0x06, 0x04]);
    let _ = config.write(0x84, &0xfee0_2000_u32.to_le_bytes());
    let before = config.save();
    // Link status of PCI Express is the hardware's, all else here is not.
    for offset in [0x04, 0x10, 0x80, 0x84, 0x88, 0x90, 0x94] {
        config.mirror_read(offset, &[0x00, 0x00, 0x00, 0x00]);
    }
    assert_eq!(config.save(), before);
    config.mirror_read(0x52, &[0x43, 0x10]);
    assert_eq!(read(&config, 0x50), 0x1043_0000);
}

#[test]
fn interrupt_pin_can_be_taken_away() {
    let mut builder = shadow();
    builder.interrupt_pin(None);
    assert_eq!(read(&builder.clone().build(), 0x3c), 0);
    builder.interrupt_pin(Some(InterruptPin::C));
    assert_eq!(read(&builder.build(), 0x3c), 0x0000_0300);
}

#[test]
fn conventional_functions_have_no_extended_space() {
    let emulated = emulated().build();
    let shadow = ConfigSpaceBuilder::from_device(&device_bytes()[..256]).unwrap();
    for mut config in [emulated, shadow.build()] {
        assert_eq!(config.write(0x100, &[0; 4]), []);
        assert_eq!(read(&config, 0x100), u32::MAX);
        assert_eq!(read(&config, 0xffc), u32::MAX);
    }
}

#[test]
fn function_level_reset_is_an_effect_and_not_a_stored_bit() {
    let mut builder = shadow();
    builder.pass_through(0x40, 0x3c);
    let mut config = builder.build();
    assert_eq!(
        config.mirror_write(0x49, &[0xa9]),
        [ConfigEffect::FunctionReset]
    );
    assert_eq!(read(&config, 0x48), 0x0000_2910);
    assert_eq!(
        config.write(0x48, &[0, 0x80]),
        [ConfigEffect::FunctionReset]
    );
    assert_eq!(config.write(0x48, &[0, 0x7f]), []);

    let mut incapable = device_bytes();
    store(&mut incapable, 0x44, 0x0000_8fe2);
    let mut config = ConfigSpaceBuilder::from_device(&incapable).unwrap().build();
    assert_eq!(config.write(0x48, &[0, 0x80]), []);
}

#[test]
fn reset_bits_can_be_taken_out_of_a_write() {
    let config = shadow().build();
    let strip = |offset, data: &[u8]| {
        let mut data = data.to_vec();
        config.strip_reset(offset, &mut data);
        data
    };
    assert_eq!(strip(0x48, &[0x36, 0xa9]), [0x36, 0x29]);
    assert_eq!(strip(0x49, &[0xff]), [0x7f]);
    assert_eq!(strip(0x48, &[0xff; 4]), [0xff, 0x7f, 0xff, 0xff]);
    assert_eq!(strip(0x4c, &[0xff; 4]), [0xff; 4]);
    assert_eq!(strip(0x4b, &[0xff; 2]), [0xff; 2], "no access");
}

#[test]
fn advanced_features_reset_only_with_transactions_pending() {
    for (flags, resets) in [(0x03, true), (0x02, false), (0x01, false)] {
        let mut bytes = vec![0; 256];
        store(&mut bytes, 0x00, 0x1234_5678);
        store(&mut bytes, 0x04, 0x0010_0000);
        store(&mut bytes, 0x34, 0x40);
        store(&mut bytes, 0x40, u32::from_le_bytes([0x13, 0, 6, flags]));
        let mut config = ConfigSpaceBuilder::from_device(&bytes).unwrap().build();
        let reset = config.write(0x44, &[1]) == [ConfigEffect::FunctionReset];
        assert_eq!(reset, resets, "{flags:#x}");
    }
}

#[test]
fn state_must_agree_about_msix() {
    let mut without = emulated().build().save();
    without.msix = None;
    assert!(matches!(
        emulated().restore(&without),
        Err(StateError::MsixPresence)
    ));
}

proptest! {
    #[test]
    fn any_device_bytes_are_modelled_or_refused(
        noise in vec((0usize..4096, any::<u8>()), 0..24),
        writes in vec((0u16..0x200, vec(any::<u8>(), 1..5)), 0..32),
    ) {
        let mut bytes = device_bytes();
        for (offset, byte) in noise {
            bytes[offset] = byte;
        }
        let describe = || -> Result<ConfigSpaceBuilder, BuildError> {
            let mut builder = ConfigSpaceBuilder::from_device(&bytes)?;
            builder.bar(bar(0), MEMORY)?;
            builder.adopt_msi()?;
            builder.adopt_msix()?;
            builder.pass_through(0, 4096);
            Ok(builder)
        };
        if let Ok(builder) = describe() {
            let mut config = builder.build();
            for (offset, data) in &writes {
                let _ = config.write(*offset, data);
                let _ = config.mirror_write(*offset, data);
            }
            let state = config.save();
            let restored = describe().unwrap().restore(&state).unwrap();
            prop_assert_eq!(restored.save(), state);
            prop_assert_eq!(restored.interrupt_mode(), config.interrupt_mode());
        }
    }

    #[test]
    fn writes_to_capabilities_survive_save_and_restore(
        writes in vec((0x34u16..0x80, vec(any::<u8>(), 0..6)), 0..64),
        raised in vec(0u8..5, 0..8),
    ) {
        let mut config = emulated().build();
        let fresh = config.clone();
        for (offset, data) in &writes {
            let _ = config.write(*offset, data);
        }
        for vector in raised {
            let _ = config.raise_msi(vector);
            let _ = config.msix_mut().and_then(|table| table.raise(vector.into()));
        }
        for (offset, read_only) in [
            (0x34, u32::MAX), (0x40, 0xff8e_ffff), (0x44, 0x3), (0x4c, 0xffff_0000),
            (0x50, 0xffff_fff0), (0x58, 0x3fff_ffff), (0x5c, u32::MAX), (0x60, u32::MAX),
        ] {
            prop_assert_eq!(read(&config, offset) & read_only, read(&fresh, offset) & read_only);
        }
        let state = config.save();
        let json = serde_json::to_string(&state).unwrap();
        let restored = emulated().restore(&serde_json::from_str(&json).unwrap()).unwrap();
        prop_assert_eq!(restored.save(), state);
        prop_assert_eq!(restored.msi_vectors(), config.msi_vectors());
    }
}
