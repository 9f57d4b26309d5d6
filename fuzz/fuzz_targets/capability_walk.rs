//! Capability lists of a foreign device: the walk ends, and what it finds is in the space and apart.
#![no_main]

use dormouse_fuzz::device_bytes;
use dormouse_pci::{BuildError, ConfigSpaceBuilder, walk_capabilities, walk_extended_capabilities};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // Any bytes first, also of lengths that no device has.
    check(input);
    let config = device_bytes::sparse(input);
    check(&config);

    let walks = walk_capabilities(&config).is_ok() && walk_extended_capabilities(&config).is_ok();
    match ConfigSpaceBuilder::from_device(&config) {
        Ok(shadow) => {
            assert!(walks);
            check_guest_view(shadow);
        }
        Err(BuildError::Walk(_)) => assert!(!walks),
        Err(_) => {}
    }
});

fn check(config: &[u8]) {
    if let Ok(found) = walk_capabilities(config) {
        let mut offsets: Vec<_> = found.iter().map(|cap| cap.offset).collect();
        assert!(offsets.iter().all(|at| at % 4 == 0 && *at >= 0x40));
        assert_distinct(&mut offsets);
    }
    if let Ok(found) = walk_extended_capabilities(config) {
        let mut offsets: Vec<_> = found.iter().map(|cap| cap.offset).collect();
        let inside =
            |at: u16| at.is_multiple_of(4) && at >= 0x100 && usize::from(at) < config.len();
        assert!(offsets.iter().all(|at| inside(*at)));
        assert_distinct(&mut offsets);
    }
}

fn assert_distinct<T: Ord>(offsets: &mut [T]) {
    offsets.sort_unstable();
    assert!(offsets.windows(2).all(|pair| pair[0] < pair[1]));
}

/// A guest that walks the lists of the model finds what the model says that there is.
fn check_guest_view(shadow: ConfigSpaceBuilder) {
    let legacy = shadow.capabilities().to_vec();
    let extended = shadow.extended_capabilities().to_vec();
    let config = shadow.build();
    let mut view = vec![0; 4096];
    for (dword, offset) in view.chunks_exact_mut(4).zip((0u16..).step_by(4)) {
        config.read(offset, dword);
    }
    assert_eq!(walk_capabilities(&view), Ok(legacy));
    assert_eq!(walk_extended_capabilities(&view), Ok(extended));
}
