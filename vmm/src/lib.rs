//! The machine: memory, vCPU threads, interrupts, the main loop, and the order in which all of them start, stop and sleep.
//!
//! `Controller` owns at most one `Machine` and everything that outlives it (consoles, signals, the event loop). `kvm` is the only
//! module that knows KVM's descriptors; `unsafe` stays in `kvm`, `memory` and the descriptors of `vfio`. Nothing here knows HTTP:
//! requests arrive as the values of `dormouse_api`.

pub mod control;
pub mod controller;
pub mod events;
pub mod interrupts;
pub mod kvm;
mod limits;
pub mod machine;
pub mod memory;
pub mod pci_bus;
pub mod progress;
pub mod seccomp;
pub mod signals;
pub mod snapshot;
#[cfg(test)]
mod testing;
pub mod vcpu_thread;
pub mod vfio;
pub mod windows;

pub use controller::{Controller, Outcome};
