//! The CPUID registers whose bits are features, with the names of the bits that guests commonly rely on.
//!
//! Names are those of Linux in `/proc/cpuinfo` or, where it has none, the vendor's. A bit without a name here is compared all the same.

use super::leaves::Register;

use Register::{Eax, Ebx, Ecx, Edx};

/// A feature word, the bits in it that are no promise of the host, and the names of the rest.
pub(super) struct FeatureWord {
    pub(super) leaf: u32,
    pub(super) subleaf: u32,
    pub(super) register: Register,
    pub(super) ignored: u32,
    pub(super) names: &'static [(u32, &'static str)],
}

const fn word(
    leaf: u32,
    subleaf: u32,
    register: Register,
    names: &'static [(u32, &'static str)],
) -> FeatureWord {
    FeatureWord {
        leaf,
        subleaf,
        register,
        ignored: 0,
        names,
    }
}

/// The words to compare.
pub(super) const FEATURE_WORDS: [FeatureWord; 18] = [
    FeatureWord {
        // The VMM sets x2APIC and the hypervisor bit itself; OSXSAVE follows CR4.
        ignored: 1 << 21 | 1 << 27 | 1 << 31,
        ..word(
            0x1,
            0,
            Ecx,
            &[
                (0, "pni"),
                (1, "pclmulqdq"),
                (5, "vmx"),
                (9, "ssse3"),
                (12, "fma"),
                (13, "cx16"),
                (15, "pdcm"),
                (17, "pcid"),
                (19, "sse4_1"),
                (20, "sse4_2"),
                (22, "movbe"),
                (23, "popcnt"),
                (24, "tsc_deadline_timer"),
                (25, "aes"),
                (26, "xsave"),
                (28, "avx"),
                (29, "f16c"),
                (30, "rdrand"),
            ],
        )
    },
    // HTT follows from the topology.
    FeatureWord {
        ignored: 1 << 28,
        ..word(
            0x1,
            0,
            Edx,
            &[(4, "tsc"), (19, "clflush"), (25, "sse"), (26, "sse2")],
        )
    },
    word(
        0x7,
        0,
        Ebx,
        &[
            (0, "fsgsbase"),
            (1, "tsc_adjust"),
            (3, "bmi1"),
            (4, "hle"),
            (5, "avx2"),
            (7, "smep"),
            (8, "bmi2"),
            (9, "erms"),
            (10, "invpcid"),
            (11, "rtm"),
            (14, "mpx"),
            (16, "avx512f"),
            (17, "avx512dq"),
            (18, "rdseed"),
            (19, "adx"),
            (20, "smap"),
            (21, "avx512ifma"),
            (23, "clflushopt"),
            (24, "clwb"),
            (28, "avx512cd"),
            (29, "sha_ni"),
            (30, "avx512bw"),
            (31, "avx512vl"),
        ],
    ),
    FeatureWord {
        // OSPKE follows CR4.
        ignored: 1 << 4,
        ..word(
            0x7,
            0,
            Ecx,
            &[
                (1, "avx512vbmi"),
                (2, "umip"),
                (3, "pku"),
                (5, "waitpkg"),
                (6, "avx512_vbmi2"),
                (7, "shstk"),
                (8, "gfni"),
                (9, "vaes"),
                (10, "vpclmulqdq"),
                (11, "avx512_vnni"),
                (12, "avx512_bitalg"),
                (14, "avx512_vpopcntdq"),
                (16, "la57"),
                (22, "rdpid"),
                (24, "bus_lock_detect"),
                (25, "cldemote"),
                (27, "movdiri"),
                (28, "movdir64b"),
            ],
        )
    },
    word(
        0x7,
        0,
        Edx,
        &[
            (4, "fsrm"),
            (8, "avx512_vp2intersect"),
            (10, "md_clear"),
            (14, "serialize"),
            (16, "tsxldtrk"),
            (20, "ibt"),
            (22, "amx_bf16"),
            (23, "avx512_fp16"),
            (24, "amx_tile"),
            (25, "amx_int8"),
            (26, "spec_ctrl"),
            (27, "intel_stibp"),
            (28, "flush_l1d"),
            (29, "arch_capabilities"),
            (31, "ssbd"),
        ],
    ),
    word(
        0x7,
        1,
        Eax,
        &[
            (4, "avx_vnni"),
            (5, "avx512_bf16"),
            (21, "amx_fp16"),
            (23, "avx_ifma"),
            (26, "lam"),
        ],
    ),
    word(
        0x7,
        1,
        Edx,
        &[
            (4, "avx_vnni_int8"),
            (5, "avx_ne_convert"),
            (14, "prefetchiti"),
            (19, "avx10"),
        ],
    ),
    word(0x7, 2, Edx, &[]),
    // State components that XCR0 may enable.
    word(
        0xd,
        0,
        Eax,
        &[
            (2, "xcr0 avx"),
            (5, "xcr0 opmask"),
            (6, "xcr0 zmm_hi256"),
            (7, "xcr0 hi16_zmm"),
            (9, "xcr0 pkru"),
        ],
    ),
    word(0xd, 0, Edx, &[]),
    word(
        0xd,
        1,
        Eax,
        &[
            (0, "xsaveopt"),
            (1, "xsavec"),
            (2, "xgetbv1"),
            (3, "xsaves"),
            (4, "xfd"),
        ],
    ),
    word(
        0x4000_0001,
        0,
        Eax,
        &[
            (0, "kvmclock"),
            (3, "kvmclock2"),
            (4, "kvm_async_pf"),
            (5, "kvm_steal_time"),
            (6, "kvm_pv_eoi"),
            (7, "kvm_pv_unhalt"),
            (9, "kvm_pv_tlb_flush"),
            (11, "kvm_pv_ipi"),
            (12, "kvm_poll_control"),
            (13, "kvm_pv_sched_yield"),
            (14, "kvm_async_pf_int"),
            (24, "kvmclock_stable"),
        ],
    ),
    FeatureWord {
        // CMP_LEGACY follows from the topology.
        ignored: 1 << 1,
        ..word(
            0x8000_0001,
            0,
            Ecx,
            &[
                (0, "lahf_lm"),
                (2, "svm"),
                (5, "abm"),
                (6, "sse4a"),
                (7, "misalignsse"),
                (8, "3dnowprefetch"),
                (11, "xop"),
                (16, "fma4"),
                (21, "tbm"),
                (22, "topoext"),
                (23, "perfctr_core"),
            ],
        )
    },
    word(
        0x8000_0001,
        0,
        Edx,
        &[
            (11, "syscall"),
            (20, "nx"),
            (26, "pdpe1gb"),
            (27, "rdtscp"),
            (29, "lm"),
        ],
    ),
    word(0x8000_0007, 0, Edx, &[(8, "constant_tsc")]),
    word(
        0x8000_0008,
        0,
        Ebx,
        &[
            (0, "clzero"),
            (4, "rdpru"),
            (9, "wbnoinvd"),
            (12, "ibpb"),
            (14, "ibrs"),
            (15, "stibp"),
        ],
    ),
    // SVM, seen only by guests that run guests.
    word(
        0x8000_000a,
        0,
        Edx,
        &[
            (0, "npt"),
            (3, "nrip_save"),
            (6, "flushbyasid"),
            (15, "v_vmsave_vmload"),
            (16, "vgif"),
        ],
    ),
    word(
        0x8000_0021,
        0,
        Eax,
        &[
            (0, "nested_data_bp"),
            (2, "lfence_rdtsc"),
            (6, "null_sel_clr_base"),
            (8, "autoibrs"),
        ],
    ),
];
