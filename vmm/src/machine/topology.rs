//! The vCPUs of a machine: how many, how arranged, and what CPUID each of them shows.

use dormouse_api::config::{CpuAffinity, CpusConfig};
use dormouse_arch::x86_64::cpuid::{self, CpuParams, Topology, TopologyError};
use dormouse_arch::x86_64::layout;
use kvm_bindings::kvm_cpuid_entry2;
use rustix::thread::CpuSet;
use thiserror::Error;

use crate::kvm::{self, Kvm};

/// vCPUs that cannot be had on this host.
#[derive(Debug, Error)]
pub enum Error {
    /// The host cannot tell what CPUs it offers.
    #[error("cannot find out what CPUs this host offers")]
    Kvm(#[source] kvm::Error),
    /// More vCPUs than the host's KVM takes.
    #[error("cpus.boot_vcpus is {asked}, but this host's KVM takes at most {max}")]
    TooMany {
        /// vCPUs in the config.
        asked: u32,
        /// vCPUs that KVM takes.
        max: u32,
    },
    /// The topology does not make sense.
    #[error("cpus.topology cannot be used")]
    Topology(#[source] TopologyError),
}

/// The vCPUs as the config wants them on this host.
#[derive(Debug, Clone)]
pub struct Processors {
    supported: Vec<kvm_cpuid_entry2>,
    count: u32,
    topology: Topology,
    explicit_topology: Option<Topology>,
    affinity: Vec<CpuAffinity>,
    max_phys_bits: u8,
    nested: bool,
    tsc_deadline: bool,
    invariant_tsc: bool,
}

impl Processors {
    /// Reads what the host supports.
    ///
    /// # Errors
    /// When the host cannot have that many vCPUs or the topology does not fit them.
    pub fn new(config: &CpusConfig, kvm: &Kvm) -> Result<Self, Error> {
        let capabilities = kvm.capabilities();
        let count = config.boot_vcpus;
        let max = capabilities.max_vcpus.min(layout::MAX_VCPUS);
        if count > max {
            return Err(Error::TooMany { asked: count, max });
        }
        let explicit_topology = config.topology.map(|topology| Topology {
            threads_per_core: topology.threads_per_core.into(),
            cores_per_die: topology.cores_per_die.into(),
            dies_per_package: topology.dies_per_package.into(),
            packages: topology.packages.into(),
        });
        let topology = explicit_topology.unwrap_or_else(|| Topology::flat(count));
        // A topology describes max_vcpus; the ones beyond boot_vcpus are not there.
        let described = if explicit_topology.is_some() {
            config.max_vcpus
        } else {
            count
        };
        topology.check(described).map_err(Error::Topology)?;
        Ok(Self {
            supported: kvm.supported_cpuid().map_err(Error::Kvm)?,
            count,
            topology,
            explicit_topology,
            affinity: config.affinity.clone(),
            max_phys_bits: config.max_phys_bits,
            // Nested virtualization is only shown where its state could be saved.
            nested: config.nested && capabilities.nested_state_bytes != 0,
            tsc_deadline: capabilities.tsc_deadline_timer,
            // A counter that runs on while the guest sleeps is not one to measure time by.
            invariant_tsc: capabilities.tsc_offset,
        })
    }

    /// Number of vCPUs.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// APIC ids of all vCPUs, by index.
    #[must_use]
    pub fn apic_ids(&self) -> Vec<u32> {
        (0..self.count)
            .map(|index| self.topology.apic_id(index))
            .collect()
    }

    /// Where the thread of vCPU `index` may run, if the config says.
    #[must_use]
    pub fn host_cpus(&self, index: u32) -> Option<CpuSet> {
        let affinity = self
            .affinity
            .iter()
            .find(|affinity| affinity.vcpu == index)?;
        let mut cpus = CpuSet::new();
        for &cpu in affinity
            .host_cpus
            .iter()
            .filter(|&&cpu| (cpu as usize) < CpuSet::MAX_CPU)
        {
            cpus.set(cpu as usize);
        }
        Some(cpus)
    }

    /// What CPUID shows on vCPU `index`.
    #[must_use]
    pub fn cpuid(&self, index: u32) -> Vec<kvm_cpuid_entry2> {
        let params = CpuParams {
            index,
            count: self.count,
            topology: self.explicit_topology,
            phys_bits: Some(self.max_phys_bits),
            nested: self.nested,
            pmu: false,
            amx: false,
            tsc_deadline: self.tsc_deadline,
            invariant_tsc: self.invariant_tsc,
            tsc_khz: None,
        };
        cpuid::guest_cpuid(&self.supported, &params)
    }

    /// CPUID leaves that the host supports, to check a snapshot against.
    #[must_use]
    pub fn supported(&self) -> &[kvm_cpuid_entry2] {
        &self.supported
    }

    /// Width of the guest's physical addresses, in bits.
    #[must_use]
    pub fn phys_bits(&self) -> u8 {
        cpuid::phys_bits(&self.supported).min(self.max_phys_bits)
    }
}
