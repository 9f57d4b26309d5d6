//! Guest CPUID from made-up Intel and AMD hosts.

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

use super::*;

fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    let flags = u32::from(matches!(
        function,
        0x4 | 0x7 | 0xb | 0xd | 0x1f | 0x8000_001d
    ));
    kvm_cpuid_entry2 {
        function,
        index,
        flags,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

fn host(vendor: &[u8; 12]) -> Vec<kvm_cpuid_entry2> {
    let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
    vec![
        entry(0x0, 0, [0x20, word(0), word(8), word(4)]),
        entry(0x1, 0, [0x50654, 0x3040_0800, u32::MAX, u32::MAX]),
        entry(0x5, 0, [1; 4]),
        entry(0x6, 0, [0xff; 4]),
        entry(0x7, 0, [2, u32::MAX, u32::MAX, u32::MAX]),
        entry(0xa, 0, [0x0730_0404, 0, 0, 0x603]),
        entry(0xb, 0, [0; 4]),
        // x87, SSE, AVX and both tile components.
        entry(0xd, 0, [0x6_0007, 11008, 11008, 0]),
        entry(0xd, 1, [0x1f, 0, 0, 0]),
        entry(0xd, 2, [256, 576, 0, 0]),
        entry(0xd, 17, [64, 2752, 0, 0]),
        entry(0xd, 18, [8192, 2816, 0, 0]),
        entry(0x12, 0, [1; 4]),
        entry(0x1d, 0, [1; 4]),
        entry(0x20, 0, [0; 4]),
        entry(
            0x4000_0000,
            0,
            [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d],
        ),
        entry(0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
        entry(0x8000_0000, 0, [0x8000_0026, 0, 0, 0]),
        entry(0x8000_0001, 0, [0, 0, u32::MAX, u32::MAX]),
        entry(0x8000_0002, 0, [0x6574_6e49; 4]),
        entry(0x8000_0008, 0, [0x3034, 0xff, 0x7007, 0]),
        entry(0x8000_000a, 0, [1, 8, 0, 0xff]),
        entry(0x8000_0026, 0, [1; 4]),
    ]
}

fn intel() -> Vec<kvm_cpuid_entry2> {
    let mut host = host(b"GenuineIntel");
    // L1 data, L2 and L3 as shared on a big host, then the end of the list.
    host.extend([
        entry(0x4, 0, [0xfc00_4121, 0x1c0_003f, 63, 0]),
        entry(0x4, 1, [0xfc00_4143, 0x3c0_003f, 1023, 0]),
        entry(0x4, 2, [0xfc1f_c163, 0x280_003f, 0x6fff, 4]),
        entry(0x4, 3, [0; 4]),
    ]);
    host
}

fn amd() -> Vec<kvm_cpuid_entry2> {
    let mut host = host(b"AuthenticAMD");
    host.extend([
        entry(0x8000_001d, 0, [0x4121, 0, 0, 0]),
        entry(0x8000_001d, 1, [0x3_c163, 0, 0, 0]),
        entry(0x8000_001d, 2, [0; 4]),
        entry(0x8000_001e, 0, [0x30, 0x118, 0x100, 0]),
    ]);
    host
}

fn leaf(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> Option<[u32; 4]> {
    entries
        .iter()
        .find(|entry| (entry.function, entry.index) == (function, index))
        .map(|entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
}

/// Two packages of two dies of two cores of two threads.
const SIXTEEN: Topology = Topology {
    threads_per_core: 2,
    cores_per_die: 2,
    dies_per_package: 2,
    packages: 2,
};

#[test]
fn leaf_1_names_the_vcpu_and_the_hypervisor() {
    let params = CpuParams {
        index: 11,
        count: 16,
        topology: Some(SIXTEEN),
        ..Default::default()
    };
    let [_, ebx, ecx, edx] = leaf(&guest_cpuid(&intel(), &params), 0x1, 0).unwrap();
    assert_eq!((ebx >> 24, ebx >> 16 & 0xff, ebx & 0xffff), (11, 8, 0x0800));
    assert_eq!(ecx & (1 << 31 | 1 << 21 | 1 << 24), 1 << 31 | 1 << 21);
    assert_ne!(edx & 1 << 28, 0);
}

#[test]
fn deadline_timer_follows_the_capability() {
    let params = CpuParams {
        count: 1,
        tsc_deadline: true,
        ..Default::default()
    };
    let [_, _, ecx, edx] = leaf(&guest_cpuid(&intel(), &params), 0x1, 0).unwrap();
    assert_ne!(ecx & 1 << 24, 0);
    assert_eq!(edx & 1 << 28, 0, "one CPU has no siblings");
}

#[test]
fn what_cannot_be_kept_is_gone() {
    let guest = guest_cpuid(
        &intel(),
        &CpuParams {
            count: 2,
            ..Default::default()
        },
    );
    for gone in [0x5, 0xa, 0x12, 0x1d, 0x8000_000a, 0x8000_0026] {
        assert_eq!(leaf(&guest, gone, 0), None, "{gone:#x}");
    }
    let [_, _, ecx, _] = leaf(&guest, 0x1, 0).unwrap();
    assert_eq!(
        ecx & (1 << 3 | 1 << 5 | 1 << 15 | 1 << 27),
        0,
        "MONITOR, VMX, PDCM, OSXSAVE"
    );
    let [_, ebx, _, edx] = leaf(&guest, 0x7, 0).unwrap();
    assert_eq!((ebx & 1 << 2, edx & 1 << 24), (0, 0), "SGX, AMX");
    assert_eq!(leaf(&guest, 0x6, 0), Some([4, 0, 0, 0]));
    assert!(leaf(&guest, 0x8000_0002, 0).is_some() && leaf(&guest, 0x4000_0001, 0).is_some());
}

#[test]
fn what_is_asked_for_stays() {
    let params = CpuParams {
        count: 1,
        nested: true,
        pmu: true,
        amx: true,
        ..Default::default()
    };
    let guest = guest_cpuid(&intel(), &params);
    assert!(
        leaf(&guest, 0xa, 0).is_some()
            && leaf(&guest, 0x1d, 0).is_some()
            && leaf(&guest, 0x8000_000a, 0).is_some()
    );
    assert_ne!(leaf(&guest, 0x1, 0).unwrap()[2] & 1 << 5, 0);
    assert_eq!(leaf(&guest, 0xd, 0), Some([0x6_0007, 11008, 11008, 0]));
}

#[test]
fn without_amx_the_xsave_area_shrinks() {
    let guest = guest_cpuid(
        &intel(),
        &CpuParams {
            count: 1,
            ..Default::default()
        },
    );
    assert_eq!(leaf(&guest, 0xd, 0), Some([0x7, 832, 832, 0]));
    assert_eq!((leaf(&guest, 0xd, 17), leaf(&guest, 0xd, 18)), (None, None));
    assert_eq!(leaf(&guest, 0xd, 2), Some([256, 576, 0, 0]));
}

#[test]
fn maxima_name_the_last_leaf_of_each_range() {
    let params = CpuParams {
        count: 1,
        tsc_khz: Some(2_500_000),
        ..Default::default()
    };
    let guest = guest_cpuid(&intel(), &params);
    assert_eq!(leaf(&guest, 0, 0).unwrap()[0], 0x20);
    assert_eq!(leaf(&guest, 0x4000_0000, 0).unwrap()[0], 0x4000_0010);
    assert_eq!(
        leaf(&guest, 0x4000_0010, 0),
        Some([2_500_000, 1_000_000, 0, 0])
    );
    assert_eq!(leaf(&guest, 0x8000_0000, 0).unwrap()[0], 0x8000_0008);
}

#[test]
fn intel_levels_and_caches_match_the_topology() {
    let params = CpuParams {
        index: 13,
        count: 16,
        topology: Some(SIXTEEN),
        ..Default::default()
    };
    let guest = guest_cpuid(&intel(), &params);
    assert_eq!(leaf(&guest, 0xb, 0), Some([1, 2, 0x100, 13]));
    assert_eq!(leaf(&guest, 0xb, 1), Some([3, 8, 0x201, 13]));
    assert_eq!(leaf(&guest, 0xb, 2), Some([0, 0, 2, 13]));
    assert_eq!(leaf(&guest, 0x1f, 1), Some([2, 4, 0x201, 13]));
    assert_eq!(leaf(&guest, 0x1f, 2), Some([3, 8, 0x502, 13]));
    let caches: Vec<_> = (0..3)
        .map(|index| leaf(&guest, 0x4, index).unwrap()[0])
        .map(|eax| (eax >> 14 & 0xfff, eax >> 26, eax & 0x3fff))
        .collect();
    assert_eq!(caches, [(1, 3, 0x121), (1, 3, 0x143), (3, 3, 0x163)]);
    assert_eq!(leaf(&guest, 0x4, 3), Some([0; 4]));
}

#[test]
fn one_die_hosts_have_no_second_topology_leaf() {
    let guest = guest_cpuid(
        &intel(),
        &CpuParams {
            count: 4,
            ..Default::default()
        },
    );
    assert_eq!(leaf(&guest, 0x1f, 0), None);
    assert_eq!(leaf(&guest, 0xb, 1), Some([2, 4, 0x201, 0]));
}

#[test]
fn amd_levels_and_caches_match_the_topology() {
    let params = CpuParams {
        index: 14,
        count: 16,
        topology: Some(SIXTEEN),
        ..Default::default()
    };
    let guest = guest_cpuid(&amd(), &params);
    assert_eq!(leaf(&guest, 0x4, 0), None);
    assert_eq!(leaf(&guest, 0x8000_001d, 1).unwrap()[0], 3 << 14 | 0x163);
    assert_eq!(leaf(&guest, 0x8000_001e, 0), Some([14, 0x101, 0x103, 0]));
    let [_, _, ecx, _] = leaf(&guest, 0x8000_0008, 0).unwrap();
    assert_eq!((ecx & 0xff, ecx >> 12), (7, 3));
    assert_ne!(leaf(&guest, 0x8000_0001, 0).unwrap()[2] & 1 << 1, 0);
}

#[test]
fn address_width_is_read_and_limited() {
    assert_eq!(phys_bits(&intel()), 52);
    assert_eq!(phys_bits(&[]), 36);
    assert_eq!(
        phys_bits(&[entry(0x8000_0008, 0, [0x30_3034, 0, 0, 0])]),
        48
    );
    let params = CpuParams {
        count: 1,
        phys_bits: Some(46),
        ..Default::default()
    };
    assert_eq!(
        leaf(&guest_cpuid(&intel(), &params), 0x8000_0008, 0).unwrap()[0],
        0x302e
    );
}

#[test]
fn a_guest_can_return_to_its_own_host() {
    let params = CpuParams {
        count: 2,
        ..Default::default()
    };
    let saved = guest_cpuid(&intel(), &params);
    assert_eq!(
        missing_features(
            &saved,
            &guest_cpuid(&intel(), &CpuParams { index: 1, ..params })
        ),
        []
    );
}

#[test]
fn missing_features_are_named() {
    let params = CpuParams {
        count: 1,
        ..Default::default()
    };
    let saved = guest_cpuid(&intel(), &params);
    let mut older = intel();
    for entry in &mut older {
        match entry.function {
            0x7 => entry.ebx &= !(1 << 16),
            0x8000_0008 => entry.eax = 0x302e,
            _ => {}
        }
    }
    let missing = missing_features(&saved, &guest_cpuid(&older, &params));
    let text: Vec<String> = missing.iter().map(MissingFeature::to_string).collect();
    assert_eq!(text.len(), 2, "{text:?}");
    assert_eq!(text[0], "CPUID 0x7.0 EBX bits 0x10000 (avx512f)");
    assert!(text[1].contains("physical address bits"));
    // Guests do not mind more than they know.
    assert_eq!(missing_features(&guest_cpuid(&older, &params), &saved), []);
    assert_eq!(
        missing_features(&saved, &guest_cpuid(&amd(), &params))[0].names,
        ["vendor"]
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_leaves_never_panic(
        raw in vec((any::<u32>(), 0u32..4, any::<[u32; 4]>()), 0..40),
        saved in vec((any::<u32>(), 0u32..4, any::<[u32; 4]>()), 0..40),
        index: u32, threads: u32, cores: u32, dies: u32, packages: u32,
    ) {
        let entries = |raw: &[(u32, u32, [u32; 4])]| -> Vec<_> {
            raw.iter().map(|&(f, i, regs)| entry(f & 0xc000_003f, i, regs)).collect()
        };
        let topology = Topology { threads_per_core: threads, cores_per_die: cores, dies_per_package: dies, packages };
        for topology in [Some(topology), None] {
            let params = CpuParams { index, count: 3, topology, phys_bits: Some(40), ..Default::default() };
            let guest = guest_cpuid(&entries(&raw), &params);
            let _ = missing_features(&entries(&saved), &guest);
        }
    }

    #[test]
    fn every_vcpu_reports_the_apic_id_of_its_place(threads in 1u32..3, cores in 1u32..6, dies in 1u32..3, packages in 1u32..4) {
        let topology = Topology { threads_per_core: threads, cores_per_die: cores, dies_per_package: dies, packages };
        let count = threads * cores * dies * packages;
        prop_assert_eq!(topology.check(count), Ok(()));
        for (host, index) in [intel(), amd()].iter().flat_map(|host| (0..count).map(move |index| (host, index))) {
            let params = CpuParams { index, count, topology: Some(topology), ..Default::default() };
            let guest = guest_cpuid(host, &params);
            let [_, ebx, _, _] = leaf(&guest, 0x1, 0).unwrap();
            let [shift, siblings, _, id] = leaf(&guest, 0xb, 1).unwrap();
            prop_assert_eq!((ebx >> 24, id), (topology.apic_id(index), topology.apic_id(index)));
            prop_assert_eq!((id >> shift, siblings), (index / (threads * cores * dies), threads * cores * dies));
            prop_assert!(guest.len() <= host.len() + 8);
        }
    }
}

#[test]
fn what_a_sleep_would_break_is_not_offered() {
    let find = |cpuid: &[kvm_cpuid_entry2], leaf| {
        let mut entries = cpuid.iter();
        *entries
            .find(|entry| entry.function == leaf && entry.index == 0)
            .unwrap()
    };
    let mut host = intel();
    host.push(kvm_cpuid_entry2 {
        function: 0x8000_0007,
        edx: 1 << 8,
        ..Default::default()
    });
    for entry in host.iter_mut().filter(|entry| entry.function == 0x7) {
        entry.ecx |= 1 << 7;
        entry.edx |= 1 << 20;
    }
    for kept in [true, false] {
        let params = CpuParams {
            count: 1,
            invariant_tsc: kept,
            ..Default::default()
        };
        let guest = guest_cpuid(&host, &params);
        let invariant = guest
            .iter()
            .any(|entry| entry.function == 0x8000_0007 && entry.edx & 1 << 8 != 0);
        assert_eq!(invariant, kept, "the invariant counter");
        let features = find(&guest, 0x7);
        assert_eq!(features.ecx & 1 << 7, 0, "shadow stacks");
        assert_eq!(features.edx & 1 << 20, 0, "branch tracking");
    }
}
