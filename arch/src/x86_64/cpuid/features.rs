//! Which features of the host a guest is not offered, because the VMM could not keep what they promise.
//!
//! KVM's list of supported CPUID is the starting point; it already leaves out what KVM cannot virtualize. What is cleared
//! here is state or behaviour that does not survive a snapshot, needs help from the VMM that does not exist, or shows
//! the host's own management. Each entry says why.

use super::CpuParams;
use super::leaves::{Leaves, Register};

use Register::{Eax, Ebx, Ecx, Edx};

/// (leaf, subleaf, register, bits)
type Bits = (u32, u32, Register, u32);

/// Features no guest gets.
const CLEARED: [Bits; 17] = [
    // DTES64, MONITOR, DS-CPL: waits that the host would have to intercept, a debug store in host-physical terms.
    (0x1, 0, Ecx, 1 << 2 | 1 << 3 | 1 << 4),
    // SMX, EIST, TM2: measured launch and power management belong to the host.
    (0x1, 0, Ecx, 1 << 6 | 1 << 7 | 1 << 8),
    // xTPR, DCA: tuning of the host's chipset. OSXSAVE follows CR4; KVM keeps it.
    (0x1, 0, Ecx, 1 << 14 | 1 << 18 | 1 << 27),
    // PSN, DS, ACPI, TM, PBE: a host serial number, and thermal and debug facilities without virtual registers.
    (0x1, 0, Edx, 1 << 18 | 1 << 21 | 1 << 22 | 1 << 29 | 1 << 31),
    // SGX: enclave pages cannot be saved. RDT monitoring and allocation: host resources.
    (0x7, 0, Ebx, 1 << 2 | 1 << 12 | 1 << 15),
    // Processor trace: off in KVM by default, so a host to restore on may well not have it.
    (0x7, 0, Ebx, 1 << 25),
    // OSPKE follows CR4. TME: the key is the host's. Key locker: its internal key cannot be read. SGX launch control.
    (0x7, 0, Ecx, 1 << 4 | 1 << 13 | 1 << 23 | 1 << 30),
    // CET: the shadow stack pointer is in no list of MSRs and in no XSAVE area, only behind KVM_GET_ONE_REG.
    (0x7, 0, Ecx, 1 << 7),
    (0x7, 0, Edx, 1 << 20),
    // Hybrid: vCPUs move between kinds of cores. PCONFIG: memory encryption keys. Architectural LBR: not in the MSR list.
    (0x7, 0, Edx, 1 << 15 | 1 << 18 | 1 << 19),
    // All of thermal and power management but ARAT (the APIC timer never stops).
    (0x6, 0, Eax, !(1 << 2)),
    (0x6, 0, Ebx, u32::MAX),
    (0x6, 0, Ecx, u32::MAX),
    (0x6, 0, Edx, u32::MAX),
    // SKINIT, watchdog, lightweight profiling: no virtual registers. IBS: sampling in host-physical terms.
    (0x8000_0001, 0, Ecx, 1 << 10 | 1 << 12 | 1 << 13 | 1 << 15),
    // NodeId MSR, northbridge and cache counters, MWAITX.
    (0x8000_0001, 0, Ecx, 1 << 19 | 1 << 24 | 1 << 28 | 1 << 29),
    // Power management of the host: only the invariant time stamp counter concerns a guest.
    (0x8000_0007, 0, Edx, !(1 << 8)),
];

/// Leaves no guest gets.
const REMOVED: [u32; 14] = [
    // MONITOR, direct cache access, cache monitoring and allocation.
    0x5,
    0x9,
    0xf,
    0x10,
    // SGX, processor trace, key locker, hybrid, PCONFIG, last branch records.
    0x12,
    0x14,
    0x19,
    0x1a,
    0x1b,
    0x1c,
    // IBS, memory encryption, bandwidth enforcement, and AMD's second topology leaf: 0xB says it all.
    0x8000_001b,
    0x8000_001f,
    0x8000_0020,
    0x8000_0026,
];

const PERFORMANCE_MONITORING: u32 = 0xa;
const AMD_PERFORMANCE_MONITORING: u32 = 0x8000_0022;
/// The debug and performance capability register, and AMD's extended core counters.
const PMU_BITS: [Bits; 2] = [(0x1, 0, Ecx, 1 << 15), (0x8000_0001, 0, Ecx, 1 << 23)];

const SVM_FEATURES: u32 = 0x8000_000a;
/// VMX and SVM.
const NESTED_BITS: [Bits; 2] = [(0x1, 0, Ecx, 1 << 5), (0x8000_0001, 0, Ecx, 1 << 2)];

/// AMX-BF16, AMX-TILE, AMX-INT8; AMX-FP16; AMX-COMPLEX.
const AMX_BITS: [Bits; 3] = [
    (0x7, 0, Edx, 1 << 22 | 1 << 24 | 1 << 25),
    (0x7, 1, Eax, 1 << 21),
    (0x7, 1, Edx, 1 << 8),
];
const TILE_INFORMATION: u32 = 0x1d;
const TMUL_INFORMATION: u32 = 0x1e;
const XSAVE: u32 = 0xd;
/// Tile configuration and tile data, as state components of XCR0.
const TILE_COMPONENTS: [u32; 2] = [17, 18];
/// Legacy area and header of an XSAVE area.
const XSAVE_MIN_SIZE: u32 = 576;

const HYPERVISOR_BIT: u32 = 1 << 31;
const X2APIC_BIT: u32 = 1 << 21;
const TSC_DEADLINE_BIT: u32 = 1 << 24;
const INVARIANT_TSC_BIT: u32 = 1 << 8;

/// Takes away what the guest must not see and sets what the in-kernel APIC provides.
pub(super) fn filter(leaves: &mut Leaves, params: &CpuParams) {
    clear_all(leaves, &CLEARED);
    for leaf in REMOVED {
        leaves.remove(leaf);
    }
    if !params.pmu {
        clear_all(leaves, &PMU_BITS);
        leaves.remove(PERFORMANCE_MONITORING);
        leaves.remove(AMD_PERFORMANCE_MONITORING);
    }
    if !params.nested {
        clear_all(leaves, &NESTED_BITS);
        leaves.remove(SVM_FEATURES);
    }
    if !params.amx {
        remove_amx(leaves);
    }
    if !params.invariant_tsc {
        leaves.clear(0x8000_0007, 0, Edx, INVARIANT_TSC_BIT);
    }
    let features = leaves.or_insert(0x1);
    features.ecx |= HYPERVISOR_BIT | X2APIC_BIT;
    features.ecx &= !TSC_DEADLINE_BIT;
    if params.tsc_deadline {
        features.ecx |= TSC_DEADLINE_BIT;
    }
}

fn clear_all(leaves: &mut Leaves, list: &[Bits]) {
    for &(leaf, subleaf, register, bits) in list {
        leaves.clear(leaf, subleaf, register, bits);
    }
}

/// Tile data makes each vCPU's state 8 KiB larger and needs a permission the process may not have asked for.
fn remove_amx(leaves: &mut Leaves) {
    clear_all(leaves, &AMX_BITS);
    leaves.remove(TILE_INFORMATION);
    leaves.remove(TMUL_INFORMATION);
    let tiles = TILE_COMPONENTS
        .iter()
        .fold(0, |mask, component| mask | 1 << component);
    let Some(supported) = leaves.get(XSAVE, 0).map(|entry| entry.eax) else {
        return;
    };
    if supported & tiles == 0 {
        return;
    }
    leaves.clear(XSAVE, 0, Eax, tiles);
    for component in TILE_COMPONENTS {
        leaves.remove_subleaf(XSAVE, component);
    }
    // In the standard format a component lies at the offset in its EBX; the area ends where the last one does.
    let end = |entry: &mut kvm_bindings::kvm_cpuid_entry2| entry.ebx.saturating_add(entry.eax);
    let size = leaves
        .of_leaf(XSAVE)
        .filter(|entry| {
            (2..32).contains(&entry.index) && supported & !tiles & 1 << entry.index != 0
        })
        .map(end)
        .fold(XSAVE_MIN_SIZE, u32::max);
    for entry in leaves.of_leaf(XSAVE).filter(|entry| entry.index == 0) {
        entry.ebx = entry.ebx.min(size);
        entry.ecx = size;
    }
}
