//! Plans for the fake devices and for bytes that no device should have.

use dormouse_pci::{BarError, WalkError};
use proptest::prelude::{any, prop_assert, proptest};

use super::{
    BarIndex, BuildError, CapabilityError, DeviceShape, InterruptPin, MsiPlan, Plan, RegisterPlan,
    WriteTarget,
};
use crate::vfio::testing::Model;

fn shape(model: &Model) -> DeviceShape {
    let mut region_len = [0; BarIndex::COUNT];
    for (len, region) in region_len.iter_mut().zip(&model.regions) {
        *len = region.size;
    }
    let [intx, msi, msix, ..] = model.irqs.map(|count| count > 0);
    DeviceShape {
        region_len,
        has_intx: intx,
        has_msi: msi,
        has_msix: msix,
    }
}

fn store(config: &mut [u8], offset: usize, value: u32) {
    config[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}

fn plan(model: &Model) -> Plan {
    let mut config = model.config.clone();
    config.resize(config.len().next_multiple_of(256), 0);
    Plan::new(&config, &shape(model)).unwrap()
}

#[test]
fn registers_are_planned_by_what_they_are() {
    let model = Model::nvme();
    let plan = plan(&model);
    let check = |offset: u16, from_device: u32, from_model: u32, write| {
        let expected = RegisterPlan {
            from_device,
            from_model,
            write,
        };
        assert_eq!(plan.register(offset), expected, "{offset:#x}");
    };
    use WriteTarget::{Device, Model as Shadow, Nobody};
    check(0x00, u32::MAX, 0, Device);
    check(0x04, 0xffef_0000, 0x0010_ffff, Device);
    check(0x0c, 0, u32::MAX, Device);
    for bar in (0x10..0x28).step_by(4).chain([0x30, 0x34, 0x3c]) {
        check(bar, 0, u32::MAX, Shadow);
    }
    for msix in [0x40, 0x44, 0x48] {
        check(msix, 0, u32::MAX, Shadow);
    }
    check(0x4c, u32::MAX, 0, Device);
    for (capability, next) in [(0x60, 0x64), (0x80, 0x84)] {
        check(capability, 0xffff_0000, 0xffff, Device);
        check(next, u32::MAX, 0, Device);
    }
    // ARI at the anchor of the list, serial number, Resizable BAR.
    check(0x100, 0, u32::MAX, Nobody);
    check(0x104, 0, 0, Nobody);
    check(0x108, u32::MAX, 0, Device);
    check(0x140, 0, u32::MAX, Device);
    check(0x144, u32::MAX, 0, Device);
    for hidden in (0x160..0x194).step_by(4) {
        check(hidden, 0, 0, Nobody);
    }
    check(0x194, u32::MAX, 0, Device);
    assert_eq!(plan.msix_vectors, Some(5));
    assert_eq!(plan.power_control, Some(0x64));
    assert_eq!(plan.pin, Some(InterruptPin::A));
    assert_eq!(plan.msi, None);
}

#[test]
fn hidden_capabilities_are_unlinked() {
    let config = plan(&Model::nvme()).builder.build();
    let read = |offset: u16| {
        let mut data = [0; 4];
        config.read(offset, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!(
        read(0x100),
        0x1400_0000,
        "a null capability keeps the list going"
    );
    assert_eq!(read(0x140), 0x0001_0003, "the serial number is last now");
}

#[test]
fn interrupt_capabilities_without_interrupts_are_hidden() {
    let mut model = Model::igb_vf();
    let with = plan(&model);
    assert_eq!(
        with.msi,
        Some(MsiPlan {
            offset: 0x50,
            vectors: 1,
            pending: Some(0x64)
        })
    );
    model.irqs = [0; 5];
    let without = plan(&model);
    assert_eq!((without.msi, without.msix_vectors), (None, None));
    let offsets: Vec<_> = without
        .builder
        .capabilities()
        .iter()
        .map(|cap| cap.offset)
        .collect();
    assert_eq!(offsets, [0xa0]);
    assert_eq!(without.register(0x50), RegisterPlan::HIDDEN);
    assert_eq!(without.register(0x78), RegisterPlan::HIDDEN);
}

#[test]
fn a_second_interrupt_capability_is_hidden() {
    let mut model = Model::igb_vf();
    store(&mut model.config, 0xa0, 0x0002_d010);
    store(&mut model.config, 0xd0, 0x0000_0005);
    let plan = plan(&model);
    assert_eq!(plan.msi.map(|msi| msi.offset), Some(0x50));
    assert_eq!(plan.register(0xd0), RegisterPlan::HIDDEN);
    assert_eq!(plan.builder.capabilities().len(), 3);
}

#[test]
fn short_odd_and_small_regions_become_bars() {
    let mut model = Model::mtty();
    model.regions[0].size = 6;
    model.regions[1].size = 2;
    model.regions[6].size = 0x100;
    let bars = plan(&model).builder.build().desired_bars();
    let sizes: Vec<_> = bars.iter().map(|bar| bar.kind.size()).collect();
    assert_eq!(sizes, [8, 4, 0x800]);
}

#[test]
fn senseless_devices_are_refused() {
    let refuse = |change: &dyn Fn(&mut Model)| {
        let mut model = Model::nvme();
        change(&mut model);
        Plan::new(&model.config, &shape(&model)).unwrap_err()
    };
    let looping = refuse(&|model| store(&mut model.config, 0x80, 0x0002_6010));
    assert!(
        matches!(
            looping,
            BuildError::Walk(WalkError::Loop { target: 0x60, .. })
        ),
        "{looping}"
    );
    let astray = refuse(&|model| store(&mut model.config, 0x140, 0x0041_0003));
    assert!(
        matches!(astray, BuildError::Walk(WalkError::OutOfRange { .. })),
        "{astray}"
    );
    let bridge = refuse(&|model| model.config[0x0e] = 1);
    assert_eq!(bridge, BuildError::HeaderType { header_type: 1 });
    let huge = refuse(&|model| model.regions[0].size = u64::MAX);
    assert!(
        matches!(huge, BuildError::Bar(BarError::Size { .. })),
        "{huge}"
    );
    let overlapping = refuse(&|model| model.regions[1].size = 0x1000);
    assert!(
        matches!(overlapping, BuildError::Bar(BarError::Occupied { .. })),
        "{overlapping}"
    );
    let table = refuse(&|model| store(&mut model.config, 0x44, 0x4000));
    let expected = BuildError::Capability(CapabilityError::MsixPlacement {
        bar: BarIndex::BAR0,
        offset: 0x4000,
        len: 80,
    });
    assert_eq!(table, expected);
}

proptest! {
    /// Whatever a device says, it is planned for or refused.
    #[test]
    fn any_bytes_are_planned_or_refused(
        long in any::<bool>(),
        changes in proptest::collection::vec((0..4096usize, any::<u8>()), 0..40),
        sizes in proptest::array::uniform7(proptest::option::of(0..70u32)),
    ) {
        let mut config = Model::nvme().config;
        for (at, value) in changes {
            config[at] = value;
        }
        config.truncate(if long { 4096 } else { 256 });
        let shape = DeviceShape {
            region_len: sizes.map(|log2| log2.map_or(0, |log2| 1u64.checked_shl(log2).unwrap_or(u64::MAX))),
            has_intx: true,
            has_msi: true,
            has_msix: true,
        };
        if let Ok(plan) = Plan::new(&config, &shape) {
            for offset in (0..4096).step_by(4) {
                let register = plan.register(offset);
                prop_assert!(register.from_device & register.from_model == 0);
            }
        }
    }
}
