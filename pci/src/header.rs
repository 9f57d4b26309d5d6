//! The type-0 header: what a function is, and which of its registers a guest may write.
//!
//! PCI Local Bus Specification 3.0, section 6.2. BARs are the business of `bar`, the capability
//! pointer of `cap`.

use serde::{Deserialize, Serialize};

use crate::register_file::{RegisterFile, Role};
use crate::regs;

/// The interrupt pin that a function drives in INTx mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InterruptPin {
    /// INTA#.
    A,
    /// INTB#.
    B,
    /// INTC#.
    C,
    /// INTD#.
    D,
}

impl InterruptPin {
    /// The pin that the value of an interrupt pin register names; none for 0 and reserved values.
    pub const fn from_register(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::A),
            2 => Some(Self::B),
            3 => Some(Self::C),
            4 => Some(Self::D),
            _ => None,
        }
    }

    /// The value of the interrupt pin register that names this pin.
    pub const fn register(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
            Self::C => 3,
            Self::D => 4,
        }
    }
}

/// The read-only registers that tell a guest what a function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor_id: u16,
    /// Device id.
    pub device_id: u16,
    /// Subsystem vendor id.
    pub subsystem_vendor_id: u16,
    /// Subsystem id.
    pub subsystem_id: u16,
    /// Class, subclass and programming interface, the class in bits 23:16.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// Pin used in INTx mode, if the function has that mode.
    pub interrupt_pin: Option<InterruptPin>,
}

/// Rules of one header register; bits in no mask are read-only.
struct HeaderRule {
    offset: u16,
    writable: u32,
    write_one_clears: u32,
    volatile: u32,
    role: Role,
}

const COMMAND_WRITABLE: u16 = regs::Command::all().bits();
const STATUS_ERRORS: u32 = (regs::Status::ERRORS.bits() as u32) << 16;
const STATUS_INTERRUPT: u32 = (regs::Status::INTERRUPT.bits() as u32) << 16;

/// The header registers that are not wholly read-only.
const HEADER_RULES: [HeaderRule; 3] = [
    HeaderRule {
        offset: regs::COMMAND,
        writable: COMMAND_WRITABLE as u32,
        write_one_clears: STATUS_ERRORS,
        volatile: STATUS_INTERRUPT,
        role: Role::Command,
    },
    // Cache line size: software state that the function ignores.
    HeaderRule {
        offset: regs::CACHE_LINE_SIZE,
        writable: 0x0000_00ff,
        write_one_clears: 0,
        volatile: 0,
        role: Role::Plain,
    },
    // Interrupt line: a note of the firmware to the driver, 6.2.4.
    HeaderRule {
        offset: regs::INTERRUPT_LINE,
        writable: 0x0000_00ff,
        write_one_clears: 0,
        volatile: 0,
        role: Role::Plain,
    },
];

/// Lays the header's write rules over `registers` without touching values.
pub(crate) fn apply_rules(registers: &mut RegisterFile) {
    for rule in &HEADER_RULES {
        if let Some(register) = registers.register_mut(rule.offset) {
            register.writable = rule.writable;
            register.write_one_clears = rule.write_one_clears;
            register.volatile = rule.volatile;
            register.role = rule.role;
        }
    }
}

/// Turns the reset values of a real device's header into those a guest finds after a reset: what
/// the host's software programmed is gone, and whether there are more functions is for the root
/// complex to say.
pub(crate) fn forget_host_programming(registers: &mut RegisterFile) {
    const HEADER_TYPE_AND_LATENCY: u32 = 0x007f_ff00;
    let read_only_status = !(STATUS_ERRORS | STATUS_INTERRUPT) & 0xffff_0000;
    let kept = [
        (regs::COMMAND, read_only_status),
        (regs::CACHE_LINE_SIZE, HEADER_TYPE_AND_LATENCY),
        (regs::INTERRUPT_LINE, 0xffff_ff00),
        (regs::ROM_ADDRESS, 0),
    ];
    let bars = (regs::BAR0..=regs::BAR5).step_by(4).map(|bar| (bar, 0));
    for (offset, mask) in kept.into_iter().chain(bars) {
        if let Some(register) = registers.register_mut(offset) {
            register.reset &= mask;
        }
    }
}

/// Stores the interrupt pin as its register's reset value.
pub(crate) fn apply_interrupt_pin(registers: &mut RegisterFile, pin: Option<InterruptPin>) {
    const PIN: u32 = 0x0000_ff00;
    let value = pin.map_or(0, InterruptPin::register);
    if let Some(register) = registers.register_mut(regs::INTERRUPT_LINE) {
        register.reset = register.reset & !PIN | u32::from(value) << 8;
    }
}

/// Stores the values of `identity` as reset values.
pub(crate) fn apply_identity(registers: &mut RegisterFile, identity: &Identity) {
    let pair = |low: u16, high: u16| u32::from(high) << 16 | u32::from(low);
    apply_interrupt_pin(registers, identity.interrupt_pin);
    let values = [
        (regs::ID, pair(identity.vendor_id, identity.device_id)),
        (
            regs::CLASS_REVISION,
            identity.class << 8 | u32::from(identity.revision),
        ),
        (
            regs::SUBSYSTEM_ID,
            pair(identity.subsystem_vendor_id, identity.subsystem_id),
        ),
    ];
    for (offset, value) in values {
        if let Some(register) = registers.register_mut(offset) {
            register.reset = value;
        }
    }
}
