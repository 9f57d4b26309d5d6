//! Names of the registers and bits of configuration space.
//!
//! Offsets and bit meanings are those of `<linux/pci_regs.h>`. Identifiers are open newtypes:
//! an unknown capability keeps its number instead of becoming an error.

use bitflags::bitflags;

/// Bytes of configuration space of one function, extended space included.
pub const CONFIG_SPACE_LEN: usize = 4096;
/// Bytes of configuration space that conventional PCI has.
pub const LEGACY_SPACE_LEN: usize = 256;

/// Vendor id (16 bits) and device id (16 bits).
pub const ID: u16 = 0x00;
/// Command register, 16 bits.
pub const COMMAND: u16 = 0x04;
/// Status register, 16 bits.
pub const STATUS: u16 = 0x06;
/// Revision (8 bits) and class code (24 bits).
pub const CLASS_REVISION: u16 = 0x08;
/// Cache line size, latency timer, header type and BIST, 8 bits each.
pub const CACHE_LINE_SIZE: u16 = 0x0c;
/// Header type, 8 bits.
pub const HEADER_TYPE: u16 = 0x0e;
/// First base address register.
pub const BAR0: u16 = 0x10;
/// Last base address register.
pub const BAR5: u16 = 0x24;
/// Subsystem vendor id and subsystem id, 16 bits each.
pub const SUBSYSTEM_ID: u16 = 0x2c;
/// Expansion ROM base address of a type-0 header.
pub const ROM_ADDRESS: u16 = 0x30;
/// Offset of the first capability, 8 bits.
pub const CAPABILITIES_POINTER: u16 = 0x34;
/// Interrupt line and pin, 8 bits each.
pub const INTERRUPT_LINE: u16 = 0x3c;
/// First offset behind the type-0 header, where capabilities may lie.
pub const FIRST_CAPABILITY: u16 = 0x40;
/// Where the list of extended capabilities begins.
pub const FIRST_EXTENDED_CAPABILITY: u16 = 0x100;

/// Bit of [`HEADER_TYPE`] that says that the device has functions beyond 0.
pub const HEADER_TYPE_MULTIFUNCTION: u8 = 0x80;
/// Bit of [`ROM_ADDRESS`] that switches the ROM's decoder on.
pub const ROM_ENABLE: u32 = 0x1;

bitflags! {
    /// Bits of the command register.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Command: u16 {
        /// The function answers at its I/O BARs.
        const IO_DECODE = 0x0001;
        /// The function answers at its memory BARs.
        const MEMORY_DECODE = 0x0002;
        /// The function may issue DMA and message interrupts.
        const BUS_MASTER = 0x0004;
        /// Parity errors are reported.
        const PARITY_RESPONSE = 0x0040;
        /// System errors are reported.
        const SERR_ENABLE = 0x0100;
        /// The function does not assert INTx.
        const INTX_DISABLE = 0x0400;
    }
}

bitflags! {
    /// Bits of the status register.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Status: u16 {
        /// INTx is asserted.
        const INTERRUPT = 0x0008;
        /// The function has a capability list.
        const CAPABILITY_LIST = 0x0010;
        /// Error bits, cleared by writing one.
        const ERRORS = 0xf900;
    }
}

/// Identifier of a capability in the legacy list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CapabilityId(pub u8);

impl CapabilityId {
    /// Null capability: no registers beyond the header.
    pub const NULL: Self = Self(0x00);
    /// Power management.
    pub const POWER_MANAGEMENT: Self = Self(0x01);
    /// Message signalled interrupts.
    pub const MSI: Self = Self(0x05);
    /// Vendor specific.
    pub const VENDOR: Self = Self(0x09);
    /// PCI Express.
    pub const PCI_EXPRESS: Self = Self(0x10);
    /// MSI-X.
    pub const MSIX: Self = Self(0x11);
    /// Advanced features: a reset for conventional PCI.
    pub const ADVANCED_FEATURES: Self = Self(0x13);
}

/// Identifier of an extended capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExtendedCapabilityId(pub u16);

impl ExtendedCapabilityId {
    /// Null capability: keeps a list going after its first entry was hidden.
    pub const NULL: Self = Self(0x0000);
    /// Device serial number.
    pub const SERIAL_NUMBER: Self = Self(0x0003);
    /// Vendor specific.
    pub const VENDOR: Self = Self(0x000b);
    /// Alternative routing-id interpretation.
    pub const ARI: Self = Self(0x000e);
    /// Single-root I/O virtualisation.
    pub const SRIOV: Self = Self(0x0010);
    /// Resizable BAR.
    pub const RESIZABLE_BAR: Self = Self(0x0015);
}
