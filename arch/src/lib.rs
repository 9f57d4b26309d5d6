//! The platform a guest sees: memory map, boot protocols, CPUID, MSRs and ACPI tables.
//!
//! Everything here is tables and bytes. The crate opens no KVM file, starts no thread and knows no device: the
//! `vmm` crate reads the constants, asks for register values and lets these modules write into guest memory.
//! The target architecture is selected in this file and nowhere else.

#![forbid(unsafe_code)]

#[cfg(target_arch = "x86_64")]
pub mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64::{acpi, boot_params, boot_regs, cpuid, layout, loader, msr, page_tables};
