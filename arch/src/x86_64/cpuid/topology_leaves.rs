//! CPUID leaves that tell a vCPU where it is and with whom it shares caches.
//!
//! Intel SDM volume 2, CPUID leaves 1, 4, 0xB and 0x1F; AMD APM volume 3, appendix E.4. What KVM reports in them is the
//! host CPU that the ioctl happened to run on.

use super::CpuParams;
use super::leaves::Leaves;
use super::topology::Topology;

const FEATURES: u32 = 0x1;
const INTEL_CACHES: u32 = 0x4;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const AMD_FEATURES: u32 = 0x8000_0001;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;

const HTT: u32 = 1 << 28;
const AMD_CMP_LEGACY: u32 = 1 << 1;
const AMD_TOPOLOGY_EXTENSIONS: u32 = 1 << 22;

const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;
const LEVEL_DIE: u32 = 5;

/// Maker of the host CPU: the leaves differ.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Vendor {
    Intel,
    /// AMD and Hygon.
    Amd,
    Other,
}

/// Rewrites all leaves that depend on the vCPU's place in `topology`.
pub(super) fn describe(leaves: &mut Leaves, params: &CpuParams, topology: &Topology) {
    let apic_id = topology.apic_id(params.index);
    let vendor = vendor(leaves);
    features(leaves, topology, apic_id);
    cpu_levels(leaves, topology, apic_id, vendor);
    match vendor {
        Vendor::Intel => {
            caches(leaves, INTEL_CACHES, topology);
            leaves.remove(AMD_CACHES);
            leaves.remove(AMD_TOPOLOGY);
        }
        Vendor::Amd => {
            caches(leaves, AMD_CACHES, topology);
            leaves.remove(INTEL_CACHES);
            amd_levels(leaves, topology, params.index, apic_id);
        }
        Vendor::Other => caches(leaves, INTEL_CACHES, topology),
    }
}

fn vendor(leaves: &Leaves) -> Vendor {
    let name = leaves
        .get(0, 0)
        .map(|entry| [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes));
    match name.as_ref().map(|name| name.as_flattened()) {
        Some(b"GenuineIntel") => Vendor::Intel,
        Some(b"AuthenticAMD" | b"HygonGenuine") => Vendor::Amd,
        _ => Vendor::Other,
    }
}

fn features(leaves: &mut Leaves, topology: &Topology, apic_id: u32) {
    let ids_per_package = (1u32 << topology.package_shift().min(8)).min(0xff);
    let features = leaves.or_insert(FEATURES);
    features.ebx = features.ebx & 0xffff | ids_per_package << 16 | (apic_id & 0xff) << 24;
    features.edx &= !HTT;
    if topology.threads_per_package() > 1 {
        features.edx |= HTT;
    }
}

/// Leaves 0xB and, where dies matter, 0x1F: one subleaf per level, then an empty one.
fn cpu_levels(leaves: &mut Leaves, topology: &Topology, apic_id: u32, vendor: Vendor) {
    let level = |number: u32, kind: u32, shift: u32, threads: u32| {
        (shift, threads, number | kind << 8, apic_id)
    };
    let smt = level(
        0,
        LEVEL_SMT,
        topology.core_shift(),
        topology.threads_per_core,
    );
    let package = |number, kind| {
        level(
            number,
            kind,
            topology.package_shift(),
            topology.threads_per_package(),
        )
    };
    leaves.replace(TOPOLOGY, &[smt, package(1, LEVEL_CORE), (0, 0, 2, apic_id)]);

    let has_v2 = leaves.get(TOPOLOGY_V2, 0).is_some();
    leaves.remove(TOPOLOGY_V2);
    if vendor == Vendor::Intel && (has_v2 || topology.dies_per_package > 1) {
        let core = level(
            1,
            LEVEL_CORE,
            topology.die_shift(),
            topology.threads_per_die(),
        );
        leaves.replace(
            TOPOLOGY_V2,
            &[smt, core, package(2, LEVEL_DIE), (0, 0, 3, apic_id)],
        );
    }
}

/// Caches of level 1 and 2 belong to a core, those above to a die. Both vendors use the same fields.
fn caches(leaves: &mut Leaves, leaf: u32, topology: &Topology) {
    let ids = |shift: u32| (1u32 << shift.min(12)) - 1;
    let cores = ids(topology.package_shift() - topology.core_shift()).min(0x3f);
    for entry in leaves.of_leaf(leaf).filter(|entry| entry.eax & 0x1f != 0) {
        let level = entry.eax >> 5 & 0x7;
        let sharing = ids(if level <= 2 {
            topology.core_shift()
        } else {
            topology.die_shift()
        });
        // Bits 25:14 are the ids that share the cache. Bits 31:26 are cores of the package for Intel, reserved for AMD.
        entry.eax = entry.eax & 0x3fff | sharing << 14;
        if leaf == INTEL_CACHES {
            entry.eax |= cores << 26;
        }
    }
}

fn amd_levels(leaves: &mut Leaves, topology: &Topology, index: u32, apic_id: u32) {
    let threads = topology.threads_per_package();
    let features = leaves.or_insert(AMD_FEATURES);
    let extended = features.ecx & AMD_TOPOLOGY_EXTENSIONS != 0;
    features.ecx &= !AMD_CMP_LEGACY;
    if threads > 1 {
        features.ecx |= AMD_CMP_LEGACY;
    }
    // Bits 7:0 threads of the package less one, 15:12 width of their ids; the rest is kept.
    let sizes = leaves.or_insert(AMD_SIZES);
    sizes.ecx = sizes.ecx & !0xf0ff
        | threads.saturating_sub(1).min(0xff)
        | topology.package_shift().min(0xf) << 12;
    leaves.remove(AMD_TOPOLOGY);
    if extended {
        let core = topology.position(index).core & 0xff;
        let node = apic_id >> topology.die_shift() & 0xff;
        let threads_per_core = topology.threads_per_core.saturating_sub(1).min(0xff);
        let nodes = topology.dies_per_package.saturating_sub(1).min(7);
        let entry = leaves.or_insert(AMD_TOPOLOGY);
        (entry.eax, entry.ebx, entry.ecx) =
            (apic_id, core | threads_per_core << 8, node | nodes << 8);
    }
}
