//! The bounded walk over the capability lists of a real device.
//!
//! The bytes come from hardware and are not trusted: links may loop, leave the space or run
//! through the middle of another capability. A walk visits each dword at most once and ends with a
//! typed error that names the offset. This is the only code that follows such links.
//!
//! PCI Local Bus Specification 3.0, section 6.7; PCI Express Base Specification, section 7.6.

use thiserror::Error;

use crate::regs::{
    self, CapabilityId, ExtendedCapabilityId, FIRST_CAPABILITY, FIRST_EXTENDED_CAPABILITY,
    LEGACY_SPACE_LEN, Status,
};

/// A capability of the conventional list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapabilityHeader {
    /// What it is.
    pub id: CapabilityId,
    /// Where it begins, dword-aligned.
    pub offset: u8,
}

/// A capability of the extended list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtendedCapabilityHeader {
    /// What it is.
    pub id: ExtendedCapabilityId,
    /// Version of its register layout, 0 to 15.
    pub version: u8,
    /// Where it begins, dword-aligned.
    pub offset: u16,
}

/// Why a capability list was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WalkError {
    /// A link leads out of the part of the space that the list may use.
    #[error("the capability link at {link:#x} leads to {target:#x}, outside of the list's space")]
    OutOfRange {
        /// Where the link is.
        link: u16,
        /// Where it leads.
        target: u16,
    },
    /// A link leads to a capability that was visited before.
    #[error("the capability link at {link:#x} leads back to {target:#x}")]
    Loop {
        /// Where the link is.
        link: u16,
        /// Where it leads.
        target: u16,
    },
    /// The header reads as all-ones, as from a device that has gone.
    #[error("the capability at {offset:#x} reads as all-ones: the device does not answer")]
    AllOnes {
        /// Where the header is.
        offset: u16,
    },
    /// The registers of one capability reach into the next or out of the space.
    #[error("the capability at {offset:#x} is {len} bytes long and runs into {limit:#x}")]
    Overlap {
        /// Where the capability begins.
        offset: u16,
        /// Bytes that its kind has at least.
        len: u16,
        /// Where the following capability or the end of the space is.
        limit: u16,
    },
}

/// The capabilities that begin at the pointer in the header; none when the status register says
/// that there is no list. Bytes that `config` lacks read as zero.
pub fn walk_capabilities(config: &[u8]) -> Result<Vec<CapabilityHeader>, WalkError> {
    let status = Status::from_bits_truncate(halfword(config, regs::STATUS));
    if !status.contains(Status::CAPABILITY_LIST) {
        return Ok(Vec::new());
    }
    let mut found: Vec<CapabilityHeader> = Vec::new();
    let mut link = regs::CAPABILITIES_POINTER;
    loop {
        // The low two bits of a link are reserved and have to be masked, 6.7.
        let offset = byte(config, link) & !0x3;
        if offset == 0 {
            break;
        }
        let target = u16::from(offset);
        if target < FIRST_CAPABILITY {
            return Err(WalkError::OutOfRange { link, target });
        }
        if found.iter().any(|cap| cap.offset == offset) {
            return Err(WalkError::Loop { link, target });
        }
        let id = CapabilityId(byte(config, target));
        if id.0 == 0xff {
            return Err(WalkError::AllOnes { offset: target });
        }
        found.push(CapabilityHeader { id, offset });
        link = target + 1;
    }
    let extents = found
        .iter()
        .map(|cap| (u16::from(cap.offset), known_len(config, *cap)));
    check_overlap(extents.collect(), LEGACY_SPACE_LEN)?;
    Ok(found)
}

/// The capabilities that begin at 0x100; none when the device has no extended space. Null entries
/// are steps of the list and are not returned.
pub fn walk_extended_capabilities(
    config: &[u8],
) -> Result<Vec<ExtendedCapabilityHeader>, WalkError> {
    let mut visited: Vec<ExtendedCapabilityHeader> = Vec::new();
    let mut offset = FIRST_EXTENDED_CAPABILITY;
    // A conventional device answers with zeros or all-ones from here on.
    if matches!(dword(config, offset), 0 | u32::MAX) {
        return Ok(visited);
    }
    loop {
        let header = dword(config, offset);
        if header == u32::MAX {
            return Err(WalkError::AllOnes { offset });
        }
        let [id_low, id_high, version_next, next_high] = header.to_le_bytes();
        visited.push(ExtendedCapabilityHeader {
            id: ExtendedCapabilityId(u16::from_le_bytes([id_low, id_high])),
            version: version_next & 0xf,
            offset,
        });
        let next = u16::from_le_bytes([version_next, next_high]) >> 4 & !0x3;
        if next == 0 {
            break;
        }
        if next < FIRST_EXTENDED_CAPABILITY || usize::from(next) >= config.len() {
            return Err(WalkError::OutOfRange {
                link: offset,
                target: next,
            });
        }
        if visited.iter().any(|cap| cap.offset == next) {
            return Err(WalkError::Loop {
                link: offset,
                target: next,
            });
        }
        offset = next;
    }
    let extents = visited
        .iter()
        .map(|cap| (cap.offset, known_extended_len(config, *cap)));
    check_overlap(extents.collect(), config.len())?;
    visited.retain(|cap| cap.id != ExtendedCapabilityId::NULL);
    Ok(visited)
}

/// Refuses extents that overlap each other or the end of the space.
fn check_overlap(mut extents: Vec<(u16, u16)>, end: usize) -> Result<(), WalkError> {
    extents.sort_unstable();
    let end = u16::try_from(end).unwrap_or(u16::MAX);
    let limits = extents.iter().skip(1).map(|(offset, _)| *offset);
    for (&(offset, len), limit) in extents.iter().zip(limits.chain([end])) {
        if limit - offset < len {
            return Err(WalkError::Overlap { offset, len, limit });
        }
    }
    Ok(())
}

/// Bytes that a conventional capability has at least, from `<linux/pci_regs.h>`; four where the
/// kind does not say.
fn known_len(config: &[u8], cap: CapabilityHeader) -> u16 {
    let at = u16::from(cap.offset);
    let flags = halfword(config, at + 2);
    match cap.id {
        CapabilityId::POWER_MANAGEMENT | CapabilityId::ADVANCED_FEATURES => 8,
        CapabilityId::MSI => super::msi::len_of_control(flags),
        CapabilityId::MSIX => super::msix::LEN,
        CapabilityId::VENDOR => u16::from(byte(config, at + 2)).max(4),
        CapabilityId::PCI_EXPRESS => pcie_len(flags),
        _ => 4,
    }
}

/// Bytes of a PCI Express capability with these flags. Version 1 of an endpoint inside the root
/// complex ends before the link registers.
fn pcie_len(flags: u16) -> u16 {
    const ROOT_COMPLEX_ENDPOINT: u16 = 0x9;
    match (flags & 0xf, flags >> 4 & 0xf) {
        (0 | 1, ROOT_COMPLEX_ENDPOINT) => 0x0c,
        (0 | 1, _) => 0x14,
        _ => 0x2c,
    }
}

/// Bytes that an extended capability has at least; four where the kind does not say.
fn known_extended_len(config: &[u8], cap: ExtendedCapabilityHeader) -> u16 {
    match cap.id {
        ExtendedCapabilityId::SERIAL_NUMBER => 12,
        // Length in bits 31:20 of the second dword, header included.
        ExtendedCapabilityId::VENDOR => (halfword(config, cap.offset + 6) >> 4).max(8),
        ExtendedCapabilityId::SRIOV => 64,
        ExtendedCapabilityId::ARI => 8,
        _ => 4,
    }
}

fn byte(config: &[u8], offset: u16) -> u8 {
    config.get(usize::from(offset)).copied().unwrap_or(0)
}

fn halfword(config: &[u8], offset: u16) -> u16 {
    u16::from_le_bytes([byte(config, offset), byte(config, offset + 1)])
}

fn dword(config: &[u8], offset: u16) -> u32 {
    u32::from(halfword(config, offset + 2)) << 16 | u32::from(halfword(config, offset))
}

#[cfg(test)]
mod tests;
