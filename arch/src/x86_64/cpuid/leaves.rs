//! A set of CPUID leaves that can be looked up and changed, in the form KVM takes and gives.

use std::fmt;

use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Serialize};

/// `KVM_CPUID_FLAG_SIGNIFCANT_INDEX`: the entry answers for its subleaf only.
const SIGNIFICANT_INDEX: u32 = 1;

/// First leaf that the hypervisor answers for.
pub(super) const HYPERVISOR_BASE: u32 = 0x4000_0000;
/// First extended leaf.
pub(super) const EXTENDED_BASE: u32 = 0x8000_0000;
/// First leaf of the range that follows the extended one.
const EXTENDED_END: u32 = 0x8001_0000;

/// An output register of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

impl Register {
    /// The register's value in `entry`.
    pub fn of(self, entry: &kvm_cpuid_entry2) -> u32 {
        match self {
            Self::Eax => entry.eax,
            Self::Ebx => entry.ebx,
            Self::Ecx => entry.ecx,
            Self::Edx => entry.edx,
        }
    }

    pub(super) fn of_mut(self, entry: &mut kvm_cpuid_entry2) -> &mut u32 {
        match self {
            Self::Eax => &mut entry.eax,
            Self::Ebx => &mut entry.ebx,
            Self::Ecx => &mut entry.ecx,
            Self::Edx => &mut entry.edx,
        }
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eax => "EAX",
            Self::Ebx => "EBX",
            Self::Ecx => "ECX",
            Self::Edx => "EDX",
        })
    }
}

/// The entry of a subleaf.
pub(super) fn find(
    entries: &[kvm_cpuid_entry2],
    leaf: u32,
    subleaf: u32,
) -> Option<&kvm_cpuid_entry2> {
    entries.iter().find(|entry| {
        entry.function == leaf && (entry.index == subleaf || entry.flags & SIGNIFICANT_INDEX == 0)
    })
}

/// Leaves under construction.
pub(super) struct Leaves(Vec<kvm_cpuid_entry2>);

impl Leaves {
    pub(super) fn new(entries: &[kvm_cpuid_entry2]) -> Self {
        Self(entries.to_vec())
    }

    pub(super) fn into_entries(self) -> Vec<kvm_cpuid_entry2> {
        self.0
    }

    pub(super) fn get(&self, leaf: u32, subleaf: u32) -> Option<&kvm_cpuid_entry2> {
        find(&self.0, leaf, subleaf)
    }

    /// All subleaves of `leaf`.
    pub(super) fn of_leaf(&mut self, leaf: u32) -> impl Iterator<Item = &mut kvm_cpuid_entry2> {
        self.0
            .iter_mut()
            .filter(move |entry| entry.function == leaf)
    }

    /// The first subleaf of `leaf`, created when it is not there.
    pub(super) fn or_insert(&mut self, leaf: u32) -> &mut kvm_cpuid_entry2 {
        let at = self
            .0
            .iter()
            .position(|entry| entry.function == leaf)
            .unwrap_or_else(|| {
                self.0.push(kvm_cpuid_entry2 {
                    function: leaf,
                    ..Default::default()
                });
                self.0.len() - 1
            });
        &mut self.0[at]
    }

    pub(super) fn remove(&mut self, leaf: u32) {
        self.0.retain(|entry| entry.function != leaf);
    }

    pub(super) fn remove_subleaf(&mut self, leaf: u32, subleaf: u32) {
        self.0
            .retain(|entry| (entry.function, entry.index) != (leaf, subleaf));
    }

    /// Replaces all subleaves of `leaf`; each tuple is EAX, EBX, ECX, EDX of the next subleaf.
    pub(super) fn replace(&mut self, leaf: u32, subleaves: &[(u32, u32, u32, u32)]) {
        self.remove(leaf);
        self.0.extend(
            (0u32..)
                .zip(subleaves)
                .map(|(index, &(eax, ebx, ecx, edx))| kvm_cpuid_entry2 {
                    function: leaf,
                    index,
                    flags: SIGNIFICANT_INDEX,
                    eax,
                    ebx,
                    ecx,
                    edx,
                    ..Default::default()
                }),
        );
    }

    pub(super) fn clear(&mut self, leaf: u32, subleaf: u32, register: Register, bits: u32) {
        for entry in self.of_leaf(leaf).filter(|entry| entry.index == subleaf) {
            *register.of_mut(entry) &= !bits;
        }
    }

    /// Makes each range say which leaf is its last, now that leaves were added and removed.
    pub(super) fn update_maxima(&mut self) {
        for (base, end) in [
            (0, HYPERVISOR_BASE),
            (HYPERVISOR_BASE, HYPERVISOR_BASE + 0x100),
            (EXTENDED_BASE, EXTENDED_END),
        ] {
            let last = self
                .0
                .iter()
                .map(|entry| entry.function)
                .filter(|leaf| (base..end).contains(leaf))
                .max();
            if let Some(last) = last {
                self.or_insert(base).eax = last;
            }
        }
    }
}
