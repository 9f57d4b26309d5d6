//! CPUID of a guest: what KVM supports, less what the VMM cannot keep, plus the vCPU's place in its topology.
//!
//! Intel SDM volume 2 (CPUID), AMD APM volume 3 appendix E, `Documentation/virt/kvm/x86/cpuid.rst`. `vmm` calls
//! [`guest_cpuid`] for each new vCPU; a restored vCPU gets its saved leaves back, after [`missing_features`] has found
//! that this host can keep all their promises.

mod compare;
mod feature_words;
mod features;
mod leaves;
#[cfg(test)]
mod tests;
mod topology;
mod topology_leaves;

use kvm_bindings::kvm_cpuid_entry2;

use leaves::{HYPERVISOR_BASE, Leaves, find};

pub use compare::{MissingFeature, missing_features};
pub use leaves::Register;
pub use topology::{Topology, TopologyError};

const ADDRESS_SIZES: u32 = 0x8000_0008;
/// Physical address bits of a CPU that does not say (Intel SDM, CPUID leaf 0x80000008).
const DEFAULT_PHYS_BITS: u8 = 36;
/// Leaf with the frequency of the time stamp counter and the APIC timer, in kHz; first used by VMware.
const TIMING: u32 = HYPERVISOR_BASE + 0x10;
/// KVM's APIC timer counts nanoseconds.
const APIC_TIMER_KHZ: u32 = 1_000_000;

/// What CPUID depends on beyond the host.
#[derive(Clone, Debug, Default)]
pub struct CpuParams {
    /// Number of the vCPU.
    pub index: u32,
    /// vCPUs of the machine.
    pub count: u32,
    /// A topology that passed [`Topology::check`]; one package of single-threaded cores by default.
    pub topology: Option<Topology>,
    /// Upper limit for the physical address bits the guest sees.
    pub phys_bits: Option<u8>,
    /// Whether the guest may run guests of its own (and nested state is saved).
    pub nested: bool,
    /// Whether the guest gets performance counters.
    pub pmu: bool,
    /// Whether the guest gets AMX (and the process has the permission for its state).
    pub amx: bool,
    /// Whether KVM has `KVM_CAP_TSC_DEADLINE_TIMER`.
    pub tsc_deadline: bool,
    /// Whether the time stamp counter counts the guest's time and nothing else, also after the guest has slept.
    pub invariant_tsc: bool,
    /// Frequency of the guest's time stamp counter, where it is known, to be announced in kHz.
    pub tsc_khz: Option<u32>,
}

impl CpuParams {
    /// The topology in effect.
    pub fn topology(&self) -> Topology {
        self.topology.unwrap_or_else(|| Topology::flat(self.count))
    }
}

/// The leaves of one vCPU, from what `KVM_GET_SUPPORTED_CPUID` returns.
pub fn guest_cpuid(supported: &[kvm_cpuid_entry2], params: &CpuParams) -> Vec<kvm_cpuid_entry2> {
    let mut leaves = Leaves::new(supported);
    features::filter(&mut leaves, params);
    topology_leaves::describe(&mut leaves, params, &params.topology());
    if let Some(limit) = params.phys_bits {
        limit_phys_bits(&mut leaves, limit);
    }
    if let Some(khz) = params.tsc_khz {
        let timing = leaves.or_insert(TIMING);
        (timing.eax, timing.ebx) = (khz, APIC_TIMER_KHZ);
    }
    leaves.update_maxima();
    leaves.into_entries()
}

/// Physical address bits that a guest can use: the CPU's, or fewer when nested paging reaches less far.
pub fn phys_bits(supported: &[kvm_cpuid_entry2]) -> u8 {
    let Some(entry) = find(supported, ADDRESS_SIZES, 0) else {
        return DEFAULT_PHYS_BITS;
    };
    let [bits, _, guest_bits, _] = entry.eax.to_le_bytes();
    match (bits, guest_bits) {
        (0, _) => DEFAULT_PHYS_BITS,
        (bits, 0) => bits,
        (bits, guest_bits) => bits.min(guest_bits),
    }
}

fn limit_phys_bits(leaves: &mut Leaves, limit: u8) {
    for entry in leaves.of_leaf(ADDRESS_SIZES) {
        let [bits, linear_bits, guest_bits, reserved] = entry.eax.to_le_bytes();
        entry.eax = u32::from_le_bytes([
            bits.min(limit),
            linear_bits,
            guest_bits.min(limit),
            reserved,
        ]);
    }
}
