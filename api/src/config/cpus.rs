//! `cpus`: how many vCPUs the guest has, how they are arranged, and what of the host they see.
//!
//! The names and defaults are Cloud Hypervisor's. `vmm` reads this when it builds CPUID and starts vCPU threads.

use serde::{Deserialize, Serialize};

use super::object::{
    null_is_default, null_is_true, null_is_u8, object_or_default, objects, optional_object,
};

/// Guest physical address width when the config names none, in bits.
pub const DEFAULT_MAX_PHYS_BITS: u8 = 46;

/// The vCPUs of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CpusConfig {
    /// vCPUs that run from the start.
    pub boot_vcpus: u32,
    /// vCPUs that the guest's tables describe; at least `boot_vcpus`.
    pub max_vcpus: u32,
    /// How the `max_vcpus` are arranged; without it each vCPU is a core of one package.
    #[serde(
        default,
        deserialize_with = "optional_object",
        skip_serializing_if = "Option::is_none"
    )]
    pub topology: Option<CpuTopology>,
    /// Hyper-V enlightenments; not implemented, must be false.
    #[serde(default, deserialize_with = "null_is_default")]
    pub kvm_hyperv: bool,
    /// Upper bound of the guest's physical address width, in bits.
    #[serde(
        default = "default_max_phys_bits",
        deserialize_with = "null_is_u8::<DEFAULT_MAX_PHYS_BITS, _>"
    )]
    pub max_phys_bits: u8,
    /// Host CPUs on which each vCPU thread may run; vCPUs not listed run anywhere.
    #[serde(
        default,
        deserialize_with = "objects",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub affinity: Vec<CpuAffinity>,
    /// Optional CPU features.
    #[serde(default, deserialize_with = "object_or_default")]
    pub features: CpuFeatures,
    /// Shows hardware virtualisation to the guest where the host has it.
    #[serde(default = "default_nested", deserialize_with = "null_is_true")]
    pub nested: bool,
    /// Core scheduling of vCPU threads; only the default is accepted, and it changes nothing.
    #[serde(default, deserialize_with = "null_is_default")]
    pub core_scheduling: CoreScheduling,
    /// CPU profile; only the host's own is implemented.
    #[serde(default, deserialize_with = "null_is_default")]
    pub profile: CpuProfile,
}

impl Default for CpusConfig {
    fn default() -> Self {
        Self {
            boot_vcpus: 1,
            max_vcpus: 1,
            topology: None,
            kvm_hyperv: false,
            max_phys_bits: DEFAULT_MAX_PHYS_BITS,
            affinity: Vec::new(),
            features: CpuFeatures::default(),
            nested: true,
            core_scheduling: CoreScheduling::default(),
            profile: CpuProfile::default(),
        }
    }
}

fn default_max_phys_bits() -> u8 {
    DEFAULT_MAX_PHYS_BITS
}

fn default_nested() -> bool {
    true
}

/// Arrangement of the vCPUs; the product of the four is `max_vcpus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CpuTopology {
    /// Hardware threads of a core.
    pub threads_per_core: u16,
    /// Cores of a die.
    pub cores_per_die: u16,
    /// Dies of a package.
    pub dies_per_package: u16,
    /// Packages (sockets).
    pub packages: u16,
}

/// Host CPUs for one vCPU thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CpuAffinity {
    /// Index of the vCPU, from 0.
    pub vcpu: u32,
    /// Numbers of host CPUs.
    pub host_cpus: Vec<u32>,
}

/// Optional CPU features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CpuFeatures {
    /// Intel AMX; not implemented, must be false.
    #[serde(default, deserialize_with = "null_is_default")]
    pub amx: bool,
}

/// Which threads may share a core at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum CoreScheduling {
    /// Threads of the same VM.
    #[default]
    Vm,
    /// Only one vCPU at a time.
    Vcpu,
    /// No restriction.
    Off,
}

/// The CPU model shown to the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum CpuProfile {
    /// The host's model.
    #[default]
    Host,
}
