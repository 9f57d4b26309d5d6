//! What interrupt routing needs of KVM, as values and one narrow trait. `kvm` implements it for the VM descriptor.

use std::io;

use dormouse_pci::MsiMessage;
use vmm_sys_util::eventfd::EventFd;

/// An interrupt controller inside the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Irqchip {
    /// First 8259, inputs 0 to 7.
    PicMaster,
    /// Second 8259, inputs 8 to 15.
    PicSlave,
    /// I/O APIC, inputs 0 to 23.
    Ioapic,
}

/// Where a GSI leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteTarget {
    /// An input of an interrupt controller.
    Pin {
        /// The controller.
        chip: Irqchip,
        /// Its input.
        pin: u32,
    },
    /// A message to the local APICs.
    Message(MsiMessage),
}

/// One entry of the routing table. A GSI may have several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The global system interrupt.
    pub gsi: u32,
    /// Where it leads.
    pub target: RouteTarget,
}

/// The calls of KVM that move interrupts.
pub trait Routes: Send + Sync {
    /// Replaces the whole routing table.
    ///
    /// # Errors
    /// The kernel's answer.
    fn set_routing(&self, routes: &[Route]) -> io::Result<()>;

    /// Connects `trigger` to `gsi`. With `resample` the GSI is level-triggered: KVM lowers it and signals `resample` when the guest
    /// acknowledges the interrupt. A count that `trigger` already has raises the interrupt at once.
    ///
    /// # Errors
    /// The kernel's answer.
    fn register(&self, gsi: u32, trigger: &EventFd, resample: Option<&EventFd>) -> io::Result<()>;

    /// Disconnects `trigger` from `gsi`; when this returns, what was signalled before has been raised.
    ///
    /// # Errors
    /// The kernel's answer.
    fn unregister(&self, gsi: u32, trigger: &EventFd) -> io::Result<()>;
}
