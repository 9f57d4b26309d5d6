//! Which capabilities of a passed-through device a guest sees, as a table.
//!
//! Emulated are those whose registers describe interrupts, which the host programs for itself. Hidden are those that belong to
//! whoever owns the physical function or the platform: a guest that used them would resize BARs, make virtual functions or
//! renumber the bus under the host's feet. Everything else, known or not, is the guest driver's business and passes through;
//! what of it must not be written the kernel virtualises (`drivers/vfio/pci/vfio_pci_config.c`).

use dormouse_pci::regs::{CapabilityId, ExtendedCapabilityId};

/// What becomes of a capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Treatment {
    /// The guest talks to the device.
    PassThrough,
    /// The model answers.
    Emulate,
    /// The capability is not there; so many bytes of it read as zero.
    Hide(u16),
}

/// Enhanced Allocation fixes the device's addresses, which are the host's.
const ENHANCED_ALLOCATION: CapabilityId = CapabilityId(0x14);

const CONVENTIONAL: [(CapabilityId, Treatment); 3] = [
    (CapabilityId::MSI, Treatment::Emulate),
    (CapabilityId::MSIX, Treatment::Emulate),
    (ENHANCED_ALLOCATION, Treatment::Hide(4)),
];

/// Lengths are those of `<linux/pci_regs.h>`, for Resizable BAR with all of its six entries.
const EXTENDED: [(ExtendedCapabilityId, Treatment); 8] = [
    (ExtendedCapabilityId::ARI, Treatment::Hide(8)),
    // Address translation, page requests and process ids need an IOMMU that the guest does not have.
    (ExtendedCapabilityId(0x000f), Treatment::Hide(8)),
    (ExtendedCapabilityId(0x0013), Treatment::Hide(16)),
    (ExtendedCapabilityId(0x001b), Treatment::Hide(8)),
    (ExtendedCapabilityId::SRIOV, Treatment::Hide(64)),
    // Multi-root I/O virtualisation.
    (ExtendedCapabilityId(0x0011), Treatment::Hide(4)),
    (ExtendedCapabilityId::RESIZABLE_BAR, Treatment::Hide(52)),
    // Resizable BARs of the virtual functions.
    (ExtendedCapabilityId(0x0024), Treatment::Hide(52)),
];

/// What becomes of a capability of the conventional list.
pub(super) fn conventional(id: CapabilityId) -> Treatment {
    look_up(&CONVENTIONAL, id)
}

/// What becomes of an extended capability.
pub(super) fn extended(id: ExtendedCapabilityId) -> Treatment {
    look_up(&EXTENDED, id)
}

fn look_up<I: PartialEq>(table: &[(I, Treatment)], id: I) -> Treatment {
    table
        .iter()
        .find(|(known, _)| *known == id)
        .map_or(Treatment::PassThrough, |(_, treatment)| *treatment)
}
