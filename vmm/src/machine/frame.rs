//! What a fresh and a restored machine are both built on: RAM in its slots, buses, the PCI bus and the interrupt router.

use std::sync::Arc;

use dormouse_pci::{ConfigSpaceState, RootComplexState};

use super::build::Error;
use super::topology::Processors;
use crate::interrupts::InterruptRouter;
use crate::kvm::{Kvm, Vm};
use crate::memory::{Ram, SlotAllocator};
use crate::pci_bus::PciBus;
use crate::vcpu_thread::Buses;
use crate::windows::Windows;

/// The skeleton of a machine.
pub struct Frame {
    /// KVM.
    pub kvm: Arc<Kvm>,
    /// The VM, without vCPUs.
    pub vm: Arc<Vm>,
    /// RAM, in the VM's memory slots.
    pub ram: Ram,
    /// The other memory slots.
    pub slots: Arc<SlotAllocator>,
    /// Where guest accesses go.
    pub buses: Arc<Buses>,
    /// The PCI bus with its host bridge.
    pub pci: Arc<PciBus>,
    /// Where BARs may go.
    pub windows: Arc<Windows>,
    /// Interrupts of functions.
    pub router: Arc<InterruptRouter>,
}

/// The saved state of the bus itself.
pub struct BusState {
    /// The root complex.
    pub root: RootComplexState,
    /// The host bridge.
    pub bridge: ConfigSpaceState,
}

impl Frame {
    /// Creates the VM around `ram`. The bus is as after power-on, or as `saved`.
    pub fn new(
        kvm: &Arc<Kvm>,
        ram: Ram,
        processors: &Processors,
        saved: Option<&BusState>,
    ) -> Result<Self, Error> {
        let vm = Arc::new(kvm.create_vm().map_err(Error::Kvm)?);
        let slots = Arc::new(SlotAllocator::new(vm.capabilities().memory_slots));
        give_ram_to_guest(&vm, &ram, &slots)?;
        vm.create_interrupt_controllers().map_err(Error::Kvm)?;
        let buses = Arc::new(Buses::default());
        let pci = PciBus::new(&buses, saved).map_err(Error::Pci)?;
        let windows = Arc::new(Windows::new(ram.size(), processors.phys_bits()));
        let router = InterruptRouter::new(Arc::clone(&vm) as _, vm.capabilities().irq_routes);
        Ok(Self {
            kvm: Arc::clone(kvm),
            vm,
            ram,
            slots,
            buses,
            pci,
            windows,
            router,
        })
    }
}

/// Makes each RAM region a memory slot.
fn give_ram_to_guest(vm: &Vm, ram: &Ram, slots: &SlotAllocator) -> Result<(), Error> {
    for (guest, host) in ram.regions() {
        let slot = slots.allocate().ok_or(Error::NoMemorySlot)?;
        let len = guest.end - guest.start;
        // SAFETY: `Frame` and `Machine` drop the VM before the RAM, and an error here drops both without running a vCPU.
        unsafe { vm.set_memory_slot(slot, 0, guest.start, host, len) }.map_err(Error::Kvm)?;
    }
    Ok(())
}
