//! A guest's view of configuration space: sizing, moving BARs, reset, restore, and arbitrary
//! writes.

use proptest::collection::vec;
use proptest::prelude::{Strategy, any};
use proptest::{prop_assert, prop_assert_eq, proptest};

use super::*;
use crate::bar::BarKind;
use crate::builder::ConfigSpaceBuilder;
use crate::header::{Identity, InterruptPin};

const IDENTITY: Identity = Identity {
    vendor_id: 0x1234,
    device_id: 0x5678,
    subsystem_vendor_id: 0x1af4,
    subsystem_id: 0x1100,
    class: 0x02_00_00,
    revision: 3,
    interrupt_pin: Some(InterruptPin::A),
};

fn index(number: u8) -> BarIndex {
    BarIndex::new(number).unwrap()
}

/// BAR 0: 64-bit prefetchable 8 GiB; BAR 2: 32-bit 4 KiB; BAR 3: I/O 32; ROM 64 KiB.
fn builder() -> ConfigSpaceBuilder {
    let mut builder = ConfigSpaceBuilder::new(&IDENTITY);
    let mem64 = BarKind::Mem64 {
        size: 8 << 30,
        prefetchable: true,
    };
    let mem32 = |size| BarKind::Mem32 {
        size,
        prefetchable: false,
    };
    builder.bar(index(0), mem64).unwrap();
    builder.bar(index(2), mem32(0x1000)).unwrap();
    builder.bar(index(3), BarKind::Io { size: 32 }).unwrap();
    builder.bar(BarIndex::ROM, mem32(0x1_0000)).unwrap();
    builder
}

fn read(config: &ConfigSpace, offset: u16) -> u32 {
    let mut data = [0; 4];
    config.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn write(config: &mut ConfigSpace, offset: u16, value: u32) -> Vec<ConfigEffect> {
    config.write(offset, &value.to_le_bytes())
}

fn set_command(config: &mut ConfigSpace, command: Command) -> Vec<ConfigEffect> {
    config.write(regs::COMMAND, &command.bits().to_le_bytes())
}

fn placement(config: &ConfigSpace, index: BarIndex) -> BarPlacement {
    let bars = config.desired_bars();
    *bars.iter().find(|bar| bar.index == index).unwrap()
}

#[test]
fn identity_is_where_software_looks_for_it() {
    let config = builder().build();
    assert_eq!(read(&config, 0x00), 0x5678_1234);
    assert_eq!(read(&config, 0x08), 0x0200_0003);
    assert_eq!(read(&config, 0x2c), 0x1100_1af4);
    assert_eq!(read(&config, 0x3c), 0x0000_0100);
}

#[test]
fn probing_reads_back_the_size_of_each_bar() {
    let mut config = builder().build();
    for (register, mask) in [
        (0x10, 0x0000_000c),
        (0x14, 0xffff_fffe),
        (0x18, 0xffff_f000),
        (0x1c, 0xffff_ffe1),
        (0x20, 0),
        (0x30, 0xffff_0001),
    ] {
        // The largest value with the ROM's enable bit clear, as OpenBSD probes, works as well.
        for probe in [0xffff_ffff, 0xffff_fffe] {
            write(&mut config, register, probe);
            let expected = if register == 0x30 { mask & probe } else { mask };
            assert_eq!(read(&config, register), expected, "{register:#x}");
        }
    }
}

#[test]
fn bar_written_while_decoding_is_off_takes_effect_when_it_turns_on() {
    let mut config = builder().build();
    assert_eq!(write(&mut config, 0x10, 0), []);
    assert_eq!(write(&mut config, 0x14, 0x40), []);
    assert!(!placement(&config, index(0)).decoded);
    assert_eq!(
        set_command(&mut config, Command::MEMORY_DECODE),
        [ConfigEffect::LayoutChanged]
    );
    let bar = placement(&config, index(0));
    assert_eq!((bar.address, bar.decoded), (0x40_0000_0000, true));
    assert!(!placement(&config, index(3)).decoded, "I/O decode is off");
}

#[test]
fn bar_written_while_decoding_is_on_moves_at_once() {
    let mut config = builder().build();
    let _ = set_command(&mut config, Command::MEMORY_DECODE);
    assert_eq!(write(&mut config, 0x14, 1), []);
    assert_eq!(write(&mut config, 0x14, 2), [ConfigEffect::LayoutChanged]);
    assert_eq!(placement(&config, index(0)).address, 2 << 32);
    // The same value again, and a byte of it, change nothing.
    assert_eq!(write(&mut config, 0x14, 2), []);
    assert_eq!(config.write(0x1b, &[0xe0]), [ConfigEffect::LayoutChanged]);
    assert_eq!(placement(&config, index(2)).address, 0xe000_0000);
}

#[test]
fn rom_needs_its_own_enable_bit_too() {
    let mut config = builder().build();
    let _ = set_command(&mut config, Command::MEMORY_DECODE);
    assert_eq!(write(&mut config, 0x30, 0xfeb0_0000), []);
    assert_eq!(
        write(&mut config, 0x30, 0xfeb0_0001),
        [ConfigEffect::LayoutChanged]
    );
    assert_eq!(placement(&config, BarIndex::ROM).address, 0xfeb0_0000);
    assert_eq!(
        set_command(&mut config, Command::empty()),
        [ConfigEffect::LayoutChanged]
    );
}

#[test]
fn refused_move_restores_the_register_unless_it_changed_again() {
    let mut config = builder().build();
    let _ = write(&mut config, 0x14, 3);
    assert!(!config.refuse_bar(index(0), 5 << 32, 4 << 32));
    assert_eq!(placement(&config, index(0)).address, 2 << 32);
    assert!(config.refuse_bar(index(0), 2 << 32, 4 << 32));
    assert_eq!(read(&config, 0x14), 4);
    assert_eq!(read(&config, 0x10), 0xc, "flags stay");
    assert!(!config.refuse_bar(index(1), 0, 0), "no BAR of its own");
}

#[test]
fn refused_rom_move_keeps_the_enable_bit() {
    let mut config = builder().build();
    let _ = write(&mut config, 0x30, 0xfeb0_0001);
    assert!(config.refuse_bar(BarIndex::ROM, 0xfeb0_0000, 0xfea0_0000));
    assert_eq!(read(&config, 0x30), 0xfea0_0001);
}

#[test]
fn command_bits_report_what_switched() {
    let mut config = builder().build();
    assert_eq!(
        set_command(&mut config, Command::BUS_MASTER | Command::INTX_DISABLE),
        [
            ConfigEffect::BusMasterChanged { enabled: true },
            ConfigEffect::InterruptDisableChanged { disabled: true },
        ]
    );
    let unchanged = config.command();
    assert_eq!(set_command(&mut config, unchanged), []);
    assert_eq!(
        config.reset(),
        [
            ConfigEffect::BusMasterChanged { enabled: false },
            ConfigEffect::InterruptDisableChanged { disabled: false },
        ]
    );
}

#[test]
fn interrupt_status_is_shown_and_not_writable() {
    let mut config = builder().build();
    config.set_interrupt_status(true);
    let _ = write(&mut config, regs::COMMAND, 0);
    assert_eq!(read(&config, regs::COMMAND), 0x0008_0000);
    config.set_interrupt_status(false);
    assert_eq!(read(&config, regs::COMMAND), 0);
}

#[test]
fn mirrored_command_moves_decoding_and_mirrored_bars_change_nothing() {
    let mut config = builder().build();
    let _ = write(&mut config, 0x14, 4);
    assert_eq!(config.mirror_write(0x14, &[9, 0, 0, 0]), []);
    assert_eq!(
        config.mirror_write(regs::COMMAND, &[0x06, 0x00]),
        [
            ConfigEffect::LayoutChanged,
            ConfigEffect::BusMasterChanged { enabled: true }
        ]
    );
    assert_eq!(placement(&config, index(0)).address, 4 << 32);
    let saved = config.save();
    let restored = builder().restore(&saved).unwrap();
    assert!(restored.command().contains(Command::BUS_MASTER));
}

#[test]
fn mirrored_status_errors_clear_when_the_guest_writes_one() {
    let mut config = builder().build();
    config.mirror_read(regs::STATUS, &[0x08, 0xf9]);
    assert_eq!(read(&config, regs::COMMAND), 0xf908_0000);
    let _ = config.mirror_write(regs::STATUS, &[0x00, 0x20]);
    assert_eq!(read(&config, regs::COMMAND), 0xd908_0000);
}

#[test]
fn state_of_another_function_is_refused() {
    let other = Identity {
        device_id: 0x5679,
        ..IDENTITY
    };
    let state = ConfigSpaceBuilder::new(&other).build().save();
    assert!(matches!(
        builder().restore(&state),
        Err(StateError::ReadOnly { offset: 0, .. })
    ));
}

/// Writes biased to the registers that mean something.
fn writes() -> impl Strategy<Value = Vec<(u16, Vec<u8>)>> {
    let offset = proptest::prop_oneof![0u16..0x80, any::<u16>()];
    vec((offset, vec(any::<u8>(), 0..9)), 0..64)
}

proptest! {
    #[test]
    fn no_write_changes_read_only_bits(writes in writes()) {
        let fresh = builder().build();
        let mut config = fresh.clone();
        for (offset, data) in &writes {
            let _ = config.write(*offset, data);
        }
        for register in [0x00, 0x08, 0x20, 0x24, 0x28, 0x2c, 0x34, 0x38, 0x40, 0xffc] {
            prop_assert_eq!(read(&config, register), read(&fresh, register));
        }
        for (register, read_only) in [
            (0x04, 0xffff_fab8), (0x0c, 0xffff_ff00), (0x10, 0xffff_ffff), (0x14, 0x1),
            (0x18, 0xfff), (0x1c, 0x1f), (0x30, 0xfffe), (0x3c, 0xffff_ff00),
        ] {
            prop_assert_eq!(read(&config, register) & read_only, read(&fresh, register) & read_only);
        }
    }

    #[test]
    fn sizing_works_after_any_writes(writes in writes()) {
        let mut config = builder().build();
        for (offset, data) in &writes {
            let _ = config.write(*offset, data);
        }
        let _ = write(&mut config, 0x10, u32::MAX);
        let _ = write(&mut config, 0x14, u32::MAX);
        let mask = u64::from(read(&config, 0x14)) << 32 | u64::from(read(&config, 0x10) & !0xf);
        prop_assert_eq!(mask.wrapping_neg(), 8 << 30);
    }

    #[test]
    fn save_and_restore_keep_everything(writes in writes()) {
        let mut config = builder().build();
        for (offset, data) in &writes {
            let _ = config.write(*offset, data);
        }
        let state = config.save();
        let json = serde_json::to_string(&state).unwrap();
        let restored = builder().restore(&serde_json::from_str(&json).unwrap()).unwrap();
        prop_assert_eq!(restored.save(), state);
        prop_assert_eq!(restored.desired_bars(), config.desired_bars());
    }

    #[test]
    fn state_with_a_flipped_bit_is_refused_or_lies_where_a_guest_may_write(
        register in 0u16..0x100, bit in 0u32..32,
    ) {
        let mut config = builder().build();
        let mut state = config.save();
        let offset = register & !0x3;
        let flipped = read(&config, offset) ^ 1 << bit;
        state.registers.retain(|register| register.offset != offset);
        state.registers.push(RegisterState { offset, value: flipped });
        state.registers.sort_by_key(|register| register.offset);
        let restored = builder().restore(&state).map(|config| read(&config, offset));

        let _ = write(&mut config, offset, flipped);
        let status_bits = 0xf908_0000_u32;
        if read(&config, offset) == flipped || offset == 4 && status_bits >> bit & 1 != 0 {
            prop_assert_eq!(restored, Ok(flipped));
        } else {
            prop_assert!(restored.is_err());
        }
    }
}
