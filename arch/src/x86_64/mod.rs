//! The x86-64 PC that Dormouse models: no firmware, hardware-reduced ACPI, one PCI bus.
//!
//! `layout` fixes the addresses; `loader` puts a kernel into RAM; `acpi`, `boot_params` and `page_tables` write what
//! that kernel is handed; `boot_regs`, `cpuid` and `msr` describe the vCPUs. Called by `vmm` when it builds or
//! restores a machine.

pub mod acpi;
pub mod boot_params;
pub mod boot_regs;
pub mod cpuid;
pub mod layout;
pub mod loader;
pub mod msr;
pub mod page_tables;
mod reset_vector;
