//! Walks over hand-made lists, and over arbitrary bytes.

use proptest::collection::vec;
use proptest::prelude::{Strategy, any};
use proptest::{prop_assert, prop_oneof, proptest};

use super::*;

/// A conventional space whose list begins at `first`, with bytes stored on top.
fn legacy(first: u8, stores: &[(usize, &[u8])]) -> Vec<u8> {
    let mut config = vec![0; LEGACY_SPACE_LEN];
    config[0x06] = 0x10;
    config[0x34] = first;
    for (offset, bytes) in stores {
        config[*offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    config
}

fn extended(stores: &[(usize, u32)]) -> Vec<u8> {
    let mut config = vec![0; 4096];
    for (offset, value) in stores {
        config[*offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }
    config
}

fn offsets(config: &[u8]) -> Vec<u16> {
    let found = walk_capabilities(config).unwrap();
    found.iter().map(|cap| cap.offset.into()).collect()
}

#[test]
fn list_is_followed_in_its_order_with_reserved_link_bits_masked() {
    let config = legacy(
        0x83,
        &[(0x80, &[0x01, 0x42]), (0x40, &[0x05, 0x00, 0x80, 0x00])],
    );
    assert_eq!(offsets(&config), [0x80, 0x40]);
    assert_eq!(walk_capabilities(&config).unwrap()[1].id, CapabilityId::MSI);
}

#[test]
fn status_bit_decides_whether_there_is_a_list() {
    let mut config = legacy(0x40, &[(0x40, &[0x01, 0x00])]);
    config[0x06] = 0;
    assert_eq!(walk_capabilities(&config), Ok(vec![]));
}

#[test]
fn loops_and_wild_links_are_refused() {
    let to_itself = legacy(0x40, &[(0x40, &[0x09, 0x40, 4])]);
    assert_eq!(
        walk_capabilities(&to_itself),
        Err(WalkError::Loop {
            link: 0x41,
            target: 0x40
        })
    );
    let into_header = legacy(0x40, &[(0x40, &[0x09, 0x10, 4])]);
    assert_eq!(
        walk_capabilities(&into_header),
        Err(WalkError::OutOfRange {
            link: 0x41,
            target: 0x10
        })
    );
    let gone = vec![0xff; LEGACY_SPACE_LEN];
    assert_eq!(
        walk_capabilities(&gone),
        Err(WalkError::AllOnes { offset: 0xfc })
    );
}

#[test]
fn overlaps_are_refused() {
    let into_next = legacy(0x40, &[(0x40, &[0x11, 0x48]), (0x48, &[0x01, 0x00])]);
    let error = WalkError::Overlap {
        offset: 0x40,
        len: 12,
        limit: 0x48,
    };
    assert_eq!(walk_capabilities(&into_next), Err(error));
    let out_of_space = legacy(0xfc, &[(0xfc, &[0x01, 0x00])]);
    let error = WalkError::Overlap {
        offset: 0xfc,
        len: 8,
        limit: 0x100,
    };
    assert_eq!(walk_capabilities(&out_of_space), Err(error));
}

#[test]
fn msi_length_follows_its_control_register() {
    for (control, len) in [(0x00, 0x0c), (0x80, 0x10), (0x100_u16, 0x14), (0x180, 0x18)] {
        let [low, high] = control.to_le_bytes();
        let fits = legacy(
            0x40,
            &[
                (0x40, &[5, 0x40 + len, low, high]),
                (0x40 + usize::from(len), &[1, 0]),
            ],
        );
        assert_eq!(offsets(&fits).len(), 2);
        let tight = 0x40 + len - 4;
        let overlaps = legacy(
            0x40,
            &[(0x40, &[5, tight, low, high]), (tight.into(), &[1, 0])],
        );
        assert!(walk_capabilities(&overlaps).is_err(), "{control:#x}");
    }
}

#[test]
fn extended_list_skips_null_entries() {
    let config = extended(&[
        (0x100, 0x1480_0000),
        (0x148, 0x2001_0003),
        (0x200, 0x0002_0019),
    ]);
    let found = walk_extended_capabilities(&config).unwrap();
    let found: Vec<_> = found
        .iter()
        .map(|cap| (cap.id.0, cap.version, cap.offset))
        .collect();
    assert_eq!(found, [(3, 1, 0x148), (0x19, 2, 0x200)]);
}

#[test]
fn extended_space_may_be_absent() {
    for config in [vec![0; 256], vec![0; 4096], vec![0xff; 4096]] {
        assert_eq!(walk_extended_capabilities(&config), Ok(vec![]));
    }
}

#[test]
fn extended_loops_wild_links_and_overlaps_are_refused() {
    let looping = extended(&[(0x100, 0x2001_0001), (0x200, 0x1001_0001)]);
    assert_eq!(
        walk_extended_capabilities(&looping),
        Err(WalkError::Loop {
            link: 0x200,
            target: 0x100
        })
    );
    let into_legacy = extended(&[(0x100, 0x0401_0001)]);
    assert_eq!(
        walk_extended_capabilities(&into_legacy),
        Err(WalkError::OutOfRange {
            link: 0x100,
            target: 0x40
        })
    );
    let overlap = extended(&[(0x100, 0x1081_0003), (0x108, 0x0001_0001)]);
    assert_eq!(
        walk_extended_capabilities(&overlap),
        Err(WalkError::Overlap {
            offset: 0x100,
            len: 12,
            limit: 0x108
        })
    );
}

/// Spaces of either size: noise, or zeros with a list that is mostly plausible.
fn configs() -> impl Strategy<Value = Vec<u8>> {
    let noise = prop_oneof![
        vec(any::<u8>(), 256),
        vec(any::<u8>(), 4096),
        vec(any::<u8>(), 0..300)
    ];
    let links = vec((0x10_u16..0x40, 0_u8..0x14, 0x10_u8..0x40), 0..12);
    let plausible = (0x10_u8..0x40, links).prop_map(|(first, links)| {
        let mut config = legacy(first * 4, &[]);
        for (at, id, next) in links {
            let at = usize::from(at) * 4;
            config[at] = id;
            config[at + 1] = next * 4;
        }
        config
    });
    prop_oneof![noise, plausible]
}

proptest! {
    #[test]
    fn arbitrary_bytes_end_in_distinct_capabilities_or_an_error(config in configs()) {
        if let Ok(mut found) = walk_capabilities(&config) {
            found.sort_unstable_by_key(|cap| cap.offset);
            prop_assert!(found.windows(2).all(|pair| pair[0].offset + 4 <= pair[1].offset));
            prop_assert!(found.iter().all(|cap| cap.offset >= 0x40 && cap.offset % 4 == 0));
        }
        if let Ok(mut found) = walk_extended_capabilities(&config) {
            found.sort_unstable_by_key(|cap| cap.offset);
            prop_assert!(found.windows(2).all(|pair| pair[0].offset + 4 <= pair[1].offset));
            prop_assert!(found.iter().all(|cap| cap.offset >= 0x100));
        }
    }
}
