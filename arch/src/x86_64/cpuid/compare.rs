//! Finds the CPU features a saved guest relies on that a host does not have.
//!
//! Called by `vmm` before a restore changes anything. Only promises are compared (feature words, address width, vendor);
//! caches, topology and the like may differ.

use std::fmt;

use kvm_bindings::kvm_cpuid_entry2;

use super::feature_words::FEATURE_WORDS;
use super::leaves::{Register, find};
use super::{ADDRESS_SIZES, phys_bits};

/// Bits of one CPUID register that the guest was promised and the host lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingFeature {
    /// CPUID leaf.
    pub leaf: u32,
    /// Its subleaf.
    pub subleaf: u32,
    /// The register.
    pub register: Register,
    /// The bits that are missing; for the vendor and the address width, those that differ.
    pub bits: u32,
    /// Names of these bits, as far as they are in our table.
    pub names: Vec<&'static str>,
}

impl fmt::Display for MissingFeature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            leaf,
            subleaf,
            register,
            bits,
            names,
        } = self;
        write!(f, "CPUID {leaf:#x}.{subleaf} {register} bits {bits:#x}")?;
        if !names.is_empty() {
            write!(f, " ({})", names.join(", "))?;
        }
        Ok(())
    }
}

/// What `saved` promises and `host` does not have; empty when the guest can be restored.
///
/// `host` is what [`guest_cpuid`](super::guest_cpuid) gives on this host for the same parameters.
pub fn missing_features(
    saved: &[kvm_cpuid_entry2],
    host: &[kvm_cpuid_entry2],
) -> Vec<MissingFeature> {
    let words = FEATURE_WORDS.iter().filter_map(|word| {
        let value = |entries| {
            find(entries, word.leaf, word.subleaf).map_or(0, |entry| word.register.of(entry))
        };
        let bits = value(saved) & !value(host) & !word.ignored;
        let names = word
            .names
            .iter()
            .filter(|(bit, _)| bits & 1 << bit != 0)
            .map(|&(_, name)| name)
            .collect();
        (bits != 0).then_some(MissingFeature {
            leaf: word.leaf,
            subleaf: word.subleaf,
            register: word.register,
            bits,
            names,
        })
    });
    vendor(saved, host)
        .into_iter()
        .chain(words)
        .chain(address_width(saved, host))
        .collect()
}

/// Guests choose errata workarounds and instructions such as VMCALL by vendor.
fn vendor(saved: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Option<MissingFeature> {
    let bits = [Register::Ebx, Register::Edx, Register::Ecx]
        .into_iter()
        .find_map(|register| {
            let value = |entries| find(entries, 0, 0).map_or(0, |entry| register.of(entry));
            let differing = value(saved) ^ value(host);
            (differing != 0).then_some((register, differing))
        });
    bits.map(|(register, bits)| MissingFeature {
        leaf: 0,
        subleaf: 0,
        register,
        bits,
        names: vec!["vendor"],
    })
}

fn address_width(saved: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Option<MissingFeature> {
    let (saved, host) = (phys_bits(saved), phys_bits(host));
    (saved > host).then(|| MissingFeature {
        leaf: ADDRESS_SIZES,
        subleaf: 0,
        register: Register::Eax,
        bits: u32::from(saved ^ host),
        names: vec!["physical address bits"],
    })
}
