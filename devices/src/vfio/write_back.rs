//! Registers that a guest programs in the device itself and that neither the driver's stream nor the model brings back: they are
//! written from the shadow when the device is set up.
//!
//! A short fixed list, of which the kernel lets user space write all (`drivers/vfio/pci/vfio_pci_config.c`): what a guest's kernel
//! sets for every PCI Express function. Link control is the host's business, and status registers are cleared by what is written
//! to them.

use dormouse_pci::regs::{CapabilityId, ExtendedCapabilityId};
use dormouse_pci::{CapabilityHeader, ExtendedCapabilityHeader};

/// Advanced Error Reporting.
const ERROR_REPORTING: ExtendedCapabilityId = ExtendedCapabilityId(0x0001);
/// Of PCI Express, PCI Express Base Specification, section 7.5.3: device control and its reset bit, and device control 2, which
/// version 1 lacks.
const DEVICE_CONTROL: u16 = 0x08;
const INITIATE_RESET: u32 = 1 << 15;
const DEVICE_CONTROL_2: u16 = 0x28;
/// Of Advanced Error Reporting, section 7.8.4: masks and severity.
const ERROR_REGISTERS: [u16; 3] = [0x08, 0x0c, 0x14];

/// A register to write back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WriteBack {
    pub offset: u16,
    /// 2 or 4 bytes.
    pub len: usize,
    /// Bits that are written as zero.
    pub cleared: u32,
}

/// The registers of a device with these capabilities and bytes of configuration space.
pub(super) fn registers(
    config: &[u8],
    conventional: &[CapabilityHeader],
    extended: &[ExtendedCapabilityHeader],
) -> Vec<WriteBack> {
    let mut found = Vec::new();
    for cap in conventional {
        if cap.id != CapabilityId::PCI_EXPRESS {
            continue;
        }
        let at = u16::from(cap.offset);
        let halfword = |offset, cleared| WriteBack {
            offset: at + offset,
            len: 2,
            cleared,
        };
        found.push(halfword(DEVICE_CONTROL, INITIATE_RESET));
        let version = config
            .get(usize::from(at) + 2)
            .map_or(0, |flags| flags & 0xf);
        if version >= 2 {
            found.push(halfword(DEVICE_CONTROL_2, 0));
        }
    }
    for cap in extended.iter().filter(|cap| cap.id == ERROR_REPORTING) {
        found.extend(ERROR_REGISTERS.map(|offset| WriteBack {
            offset: cap.offset.saturating_add(offset),
            len: 4,
            cleared: 0,
        }));
    }
    found
}
