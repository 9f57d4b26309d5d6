//! A pure model of PCI: configuration space, BARs, capabilities, MSI and MSI-X, and the root
//! complex that routes guest accesses to functions.
//!
//! Nothing here does I/O, starts threads, logs, or knows of KVM or VFIO. A guest write returns
//! [`ConfigEffect`]s, plain values that the owner applies after every lock is released. Guest
//! accesses are total: a malformed one reads as all-ones or is ignored. Saved state is hostile:
//! restoring it checks every value and answers with a typed error.
//!
//! Register layouts follow the PCI Local Bus Specification 3.0 (chapter 6) and the PCI Express
//! Base Specification (chapter 7).
#![forbid(unsafe_code)]
#![deny(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod access;
mod address;
mod bar;
mod builder;
mod cap;
mod config_space;
mod effect;
mod function;
mod header;
mod host_bridge;
mod message;
mod msix_table;
mod register_file;
pub mod regs;
mod root_complex;

pub use address::{AddressError, BarIndex, Bdf};
pub use bar::{BarError, BarKind, BarPlacement};
pub use builder::{BuildError, ConfigSpaceBuilder};
pub use cap::msi::MsiCapability;
pub use cap::msix::{BarOffset, MsixCapability};
pub use cap::walk::{
    CapabilityHeader, ExtendedCapabilityHeader, WalkError, walk_capabilities,
    walk_extended_capabilities,
};
pub use cap::{Capability, CapabilityError};
pub use config_space::{ConfigSpace, ConfigSpaceState, InterruptMode};
pub use effect::{ConfigEffect, FunctionEffect};
pub use function::PciFunction;
pub use header::{Identity, InterruptPin};
pub use host_bridge::HostBridge;
pub use message::{MessageChange, MsiMessage, VectorChange, VectorState};
pub use msix_table::{MAX_MSIX_VECTORS, MsixEntryState, MsixStateError, MsixTable, MsixTableState};
pub use register_file::{RegisterState, StateError};
pub use root_complex::{
    AttachError, CONFIG_PORTS, CONFIG_PORTS_LEN, ECAM_LEN, RootComplex, RootComplexState, SlotError,
};
