//! Property tests: whatever the bytes, reading and validating never panics.

use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};
use serde_json::json;

use super::super::VmConfig;
use super::{chain, from_file, full};

/// The full config's text with some bytes replaced, removed or doubled.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let edits = proptest::collection::vec(
        (any::<proptest::sample::Index>(), any::<u8>(), 0..4_u8),
        0..6,
    );
    edits.prop_map(|edits| {
        let mut text = full().to_string().into_bytes();
        for (at, byte, kind) in edits {
            let at = at.index(text.len());
            match kind {
                0 => text[at] = byte,
                1 => drop(text.remove(at)),
                2 => text.insert(at, text[at]),
                _ => text[at] = b"0123456789-,:{}[]\""[usize::from(byte) % 18],
            }
        }
        text
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let strict = VmConfig::from_file_bytes(&bytes).is_ok();
        prop_assert!(!strict || VmConfig::from_http_bytes(&bytes).is_ok());
    }

    #[test]
    fn mutated_config_is_refused_or_keeps_its_meaning(bytes in mutated()) {
        match VmConfig::from_file_bytes(&bytes) {
            Ok(config) => {
                let _ = config.validate();
                let written = serde_json::to_vec(&config).expect("a config can be written");
                prop_assert_eq!(VmConfig::from_file_bytes(&written).expect("it reads back"), config);
            }
            Err(error) => prop_assert!(!chain(&error).is_empty()),
        }
    }

    #[test]
    fn absurd_numbers_never_overflow(
        cpus in any::<[u32; 2]>(), topology in any::<[u16; 4]>(), size in any::<u64>(), bits in any::<u8>(),
        hugepage_size in any::<u64>(), slot in any::<u8>(),
    ) {
        let config = json!({
            "cpus": {
                "boot_vcpus": cpus[0], "max_vcpus": cpus[1], "max_phys_bits": bits,
                "topology": {
                    "threads_per_core": topology[0], "cores_per_die": topology[1],
                    "dies_per_package": topology[2], "packages": topology[3]
                }
            },
            "memory": {"size": size, "hugepages": true, "hugepage_size": hugepage_size},
            "payload": {"kernel": "/k"},
            "devices": [{"path": "/d", "pci_device_id": slot}]
        });
        let valid = from_file(&config).expect("it can be read").validate().is_ok();
        prop_assert!(!valid || cpus[1] <= 254);
    }
}
