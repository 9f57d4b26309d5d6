//! The interrupt routes of a VM: which global system interrupt (GSI) reaches which interrupt controller pin or is which message.
//!
//! KVM only takes the whole table at once (`KVM_SET_GSI_ROUTING`), so one `InterruptRouter` owns it. `table` is the pure table,
//! `router` keeps the kernel's copy equal to it, `msi` and `intx` are what one PCI function gets of it: the implementations of
//! `MsiSink` and `IntxLine`. `Routes` is what all of them need of KVM; the tests record its calls.
//!
//! Lock order: the vectors of a function, then the table. Reference: `Documentation/virt/kvm/api.rst`, sections 4.52 and 4.75.

mod intx;
mod msi;
mod router;
mod routes;
mod supply;
mod table;

#[cfg(test)]
mod tests;

pub use intx::Intx;
pub use msi::MsiVectors;
pub use router::{Error, InterruptRouter};
pub use routes::{Irqchip, Route, RouteTarget, Routes};
pub use supply::SlotInterrupts;
