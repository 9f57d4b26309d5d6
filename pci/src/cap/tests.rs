//! Placement and links of capability lists.

use super::*;
use crate::regs::ExtendedCapabilityId;

fn append(
    lists: &mut CapabilityLists,
    len: usize,
    place: Option<u8>,
) -> Result<u8, CapabilityError> {
    lists.append(
        &mut RegisterFile::new(256),
        CapabilityId::VENDOR,
        len,
        place,
    )
}

#[test]
fn capabilities_fill_the_first_gap_that_fits() {
    let mut lists = CapabilityLists::default();
    assert_eq!(append(&mut lists, 3, Some(0x48)), Ok(0x48));
    assert_eq!(append(&mut lists, 9, None), Ok(0x4c));
    assert_eq!(append(&mut lists, 8, None), Ok(0x40));
    assert_eq!(append(&mut lists, 0xa8, None), Ok(0x58));
    assert_eq!(
        append(&mut lists, 4, None),
        Err(CapabilityError::NoRoom { len: 4 })
    );
}

#[test]
fn places_that_are_taken_or_reserved_are_refused() {
    let mut lists = CapabilityLists::default();
    append(&mut lists, 16, Some(0x50)).unwrap();
    for (offset, len) in [
        (0x50, 4),
        (0x5c, 4),
        (0x4c, 8),
        (0x3c, 4),
        (0x61, 4),
        (0xfc, 8),
        (0x60, 0),
        (0x60, 1 << 20),
    ] {
        let refused = CapabilityError::Placement {
            offset: offset.into(),
            len,
        };
        assert_eq!(append(&mut lists, len, Some(offset)), Err(refused));
    }
    assert_eq!(append(&mut lists, 4, Some(0xfc)), Ok(0xfc));
}

#[test]
fn hiding_relinks_the_neighbours() {
    let mut registers = RegisterFile::new(4096);
    let mut lists = CapabilityLists::default();
    for id in [1, 2, 3] {
        lists
            .append(&mut registers, CapabilityId(id), 8, None)
            .unwrap();
    }
    let links = |registers: &RegisterFile| {
        [0x34, 0x40, 0x48, 0x50].map(|offset| registers.reset_value(offset) & 0xffff)
    };
    assert_eq!(links(&registers), [0x40, 0x4801, 0x5002, 0x0003]);
    lists.hide(&mut registers, 0x48).unwrap();
    assert_eq!(links(&registers), [0x40, 0x5001, 0, 0x0003]);
    lists.hide(&mut registers, 0x40).unwrap();
    assert_eq!(links(&registers), [0x50, 0, 0, 0x0003]);
    lists.hide(&mut registers, 0x50).unwrap();
    assert_eq!(links(&registers), [0; 4]);
    assert_eq!(registers.reset_value(regs::STATUS), 0, "no list any more");
    assert_eq!(
        lists.hide(&mut registers, 0x50),
        Err(CapabilityError::Absent { offset: 0x50 })
    );
}

#[test]
fn hiding_the_first_extended_capability_leaves_a_null_one() {
    let header = |id, offset| ExtendedCapabilityHeader {
        id: ExtendedCapabilityId(id),
        version: 1,
        offset,
    };
    let mut registers = RegisterFile::new(4096);
    let list = vec![
        header(0x10, 0x100),
        header(0x0e, 0x140),
        header(0x03, 0x200),
    ];
    let mut lists = CapabilityLists::of_device(Vec::new(), list);
    lists.link(&mut registers);
    let links =
        |registers: &RegisterFile| [0x100, 0x140, 0x200].map(|at| registers.reset_value(at));
    assert_eq!(links(&registers), [0x1401_0010, 0x2001_000e, 0x0001_0003]);
    lists.hide_extended(&mut registers, 0x100).unwrap();
    assert_eq!(links(&registers), [0x1400_0000, 0x2001_000e, 0x0001_0003]);
    lists.hide_extended(&mut registers, 0x140).unwrap();
    assert_eq!(links(&registers), [0x2000_0000, 0, 0x0001_0003]);
    lists.hide_extended(&mut registers, 0x200).unwrap();
    assert_eq!(links(&registers), [0; 3]);
}
