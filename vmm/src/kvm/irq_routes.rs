//! `interrupts::Routes` over the VM descriptor: routing entries in KVM's form, irqfds with and without resampling.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
};
use vmm_sys_util::eventfd::EventFd;

use super::Vm;
use crate::interrupts::{Irqchip, Route, RouteTarget, Routes};

/// The descriptor of an eventfd, which its type only gives as a number.
pub fn borrow_eventfd(eventfd: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor stays open as long as `eventfd`, which the answer borrows.
    unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) }
}

fn io_error(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

fn entry(route: &Route) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi: route.gsi,
        ..Default::default()
    };
    match route.target {
        RouteTarget::Pin { chip, pin } => {
            entry.type_ = KVM_IRQ_ROUTING_IRQCHIP;
            entry.u.irqchip.irqchip = match chip {
                Irqchip::PicMaster => KVM_IRQCHIP_PIC_MASTER,
                Irqchip::PicSlave => KVM_IRQCHIP_PIC_SLAVE,
                Irqchip::Ioapic => KVM_IRQCHIP_IOAPIC,
            };
            entry.u.irqchip.pin = pin;
        }
        RouteTarget::Message(message) => {
            entry.type_ = KVM_IRQ_ROUTING_MSI;
            entry.u.msi.address_lo = message.address as u32;
            entry.u.msi.address_hi = (message.address >> 32) as u32;
            entry.u.msi.data = message.data;
        }
    }
    entry
}

impl Routes for Vm {
    fn set_routing(&self, routes: &[Route]) -> io::Result<()> {
        let entries: Vec<_> = routes.iter().map(entry).collect();
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| io::Error::from_raw_os_error(libc::ENOSPC))?;
        self.fd().set_gsi_routing(&table).map_err(io_error)
    }

    fn register(&self, gsi: u32, trigger: &EventFd, resample: Option<&EventFd>) -> io::Result<()> {
        match resample {
            None => self.fd().register_irqfd(trigger, gsi),
            Some(resample) => self
                .fd()
                .register_irqfd_with_resample(trigger, resample, gsi),
        }
        .map_err(io_error)
    }

    fn unregister(&self, gsi: u32, trigger: &EventFd) -> io::Result<()> {
        self.fd().unregister_irqfd(trigger, gsi).map_err(io_error)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dormouse_devices::vfio::host::{IntxLine, MsiSink};
    use dormouse_pci::{MsiMessage, VectorChange, VectorState};

    use super::{Route, RouteTarget, Routes};
    use crate::interrupts::InterruptRouter;
    use crate::kvm::{Kvm, Vm};

    fn vm() -> Option<(Kvm, Arc<Vm>)> {
        match Kvm::open() {
            Ok(kvm) => {
                let vm = kvm.create_vm().unwrap();
                vm.create_interrupt_controllers().unwrap();
                let vm = Arc::new(vm);
                Some((kvm, vm))
            }
            Err(error) => {
                eprintln!("not run: {error}");
                None
            }
        }
    }

    #[test]
    fn the_capability_limits_both_the_routes_and_their_gsis() {
        let Some((kvm, vm)) = vm() else { return };
        let limit = kvm.capabilities().irq_routes;
        let target = RouteTarget::Message(MsiMessage {
            address: 0xfee0_0000,
            data: 0x30,
        });
        let table =
            |gsis: std::ops::Range<u32>| gsis.map(|gsi| Route { gsi, target }).collect::<Vec<_>>();
        vm.set_routing(&table(0..limit)).unwrap();
        assert!(vm.set_routing(&table(limit..limit + 1)).is_err());
    }

    #[test]
    fn kvm_raises_what_was_signalled_before_the_irqfd() {
        let Some((kvm, vm)) = vm() else { return };
        let router = InterruptRouter::new(Arc::clone(&vm) as _, kvm.capabilities().irq_routes);
        let function = router.msi_vectors(3).unwrap();
        let change = |vector, after| VectorChange {
            vector,
            before: VectorState::Masked,
            after,
            fire: false,
        };
        let unmask = |vector, data| {
            change(
                vector,
                VectorState::Unmasked(MsiMessage {
                    address: 0xfee0_0000,
                    data,
                }),
            )
        };
        function.signal(1);
        function
            .apply(&[unmask(0, 0x4030), unmask(1, 0x4031), unmask(2, 0x4032)])
            .unwrap();
        function.apply(&[unmask(1, 0x4041)]).unwrap();
        assert_eq!(function.routed(1).map(|message| message.data), Some(0x4041));
        function.apply(&[change(1, VectorState::Masked)]).unwrap();
        assert!(!function.take_pending(1), "KVM has taken it");

        let lines = [router.intx(17).unwrap(), router.intx(17).unwrap()];
        for line in &lines {
            line.connect(true).unwrap();
        }
        drop(function);
        assert_eq!(router.allocated_gsis(), 0);
    }
}
