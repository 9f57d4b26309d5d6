//! Registers with which a guest resets the function: Initiate Function Level Reset of PCI Express
//! (PCI Express Base Specification, section 7.5.3.4) and of Advanced Features (PCI ECN "Advanced
//! Capabilities for Conventional PCI").
//!
//! The bit reads as zero always; writing one to it becomes an effect.

use crate::cap::walk::CapabilityHeader;
use crate::register_file::{RegisterFile, Role};
use crate::regs::CapabilityId;

/// Device capabilities of PCI Express: the function can be reset.
const PCIE_RESET_CAPABLE: u32 = 1 << 28;
/// Device control of PCI Express: reset the function.
const PCIE_INITIATE_RESET: u32 = 1 << 15;
/// Advanced features, first dword: the function can be reset, and tells when its transactions are
/// done. Neither is of use without the other.
const AF_RESET_CAPABLE: u32 = 1 << 25 | 1 << 24;
/// Advanced features, second dword: reset the function.
const AF_INITIATE_RESET: u32 = 1 << 0;

/// The bit of a register that starts a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ResetBit {
    pub register: u16,
    pub bit: u32,
}

/// Finds the reset bits of a function with these capabilities and gives their registers the role.
pub(crate) fn define_reset_bits(
    registers: &mut RegisterFile,
    capabilities: &[CapabilityHeader],
) -> Vec<ResetBit> {
    let mut found = Vec::new();
    for cap in capabilities {
        let offset = u16::from(cap.offset);
        let (flags, capable, control, bit) = match cap.id {
            CapabilityId::PCI_EXPRESS => (
                offset + 4,
                PCIE_RESET_CAPABLE,
                offset + 8,
                PCIE_INITIATE_RESET,
            ),
            CapabilityId::ADVANCED_FEATURES => {
                (offset, AF_RESET_CAPABLE, offset + 4, AF_INITIATE_RESET)
            }
            _ => continue,
        };
        if registers.reset_value(flags) & capable != capable {
            continue;
        }
        if let Some(register) = registers.register_mut(control) {
            register.role = Role::ResetControl;
            found.push(ResetBit {
                register: control,
                bit,
            });
        }
    }
    found
}
