//! Where one function gets its interrupts while it is built: vectors of the VM's router, and the line of its slot.

use std::io;
use std::sync::Arc;

use dormouse_arch::x86_64::layout;
use dormouse_devices::vfio::host::{InterruptSupply, IntxLine, MsiSink};
use dormouse_pci::InterruptPin;

use super::router::InterruptRouter;

/// The interrupts of the function in one slot of the bus.
pub struct SlotInterrupts {
    router: Arc<InterruptRouter>,
    slot: u8,
}

impl SlotInterrupts {
    /// Interrupts for `slot`, 0 to 31.
    #[must_use]
    pub fn new(router: &Arc<InterruptRouter>, slot: u8) -> Self {
        Self {
            router: Arc::clone(router),
            slot,
        }
    }
}

impl InterruptSupply for SlotInterrupts {
    fn vectors(&self, count: u16) -> io::Result<Arc<dyn MsiSink>> {
        let vectors = self.router.msi_vectors(count).map_err(io::Error::other)?;
        Ok(Arc::new(vectors))
    }

    fn intx(&self, pin: InterruptPin) -> io::Result<Option<Arc<dyn IntxLine>>> {
        // INTA is 1 in the pin register, and 0 in `_PRT`.
        let line = self
            .router
            .intx(layout::intx_gsi(self.slot, pin.register() - 1))
            .map_err(io::Error::other)?;
        Ok(Some(Arc::new(line)))
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use dormouse_arch::x86_64::layout;
    use dormouse_devices::vfio::host::InterruptSupply;
    use dormouse_pci::InterruptPin;
    use vmm_sys_util::eventfd::EventFd;

    use super::SlotInterrupts;
    use crate::interrupts::{InterruptRouter, Route, Routes};

    struct NoKvm;

    impl Routes for NoKvm {
        fn set_routing(&self, _: &[Route]) -> io::Result<()> {
            Ok(())
        }

        fn register(&self, _: u32, _: &EventFd, _: Option<&EventFd>) -> io::Result<()> {
            Ok(())
        }

        fn unregister(&self, _: u32, _: &EventFd) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_pin_leads_to_the_line_that_the_guest_is_told_of() {
        let router = InterruptRouter::new(Arc::new(NoKvm), 4096);
        let supply = SlotInterrupts::new(&router, 6);
        for (pin, number) in [
            (InterruptPin::A, 0),
            (InterruptPin::B, 1),
            (InterruptPin::D, 3),
        ] {
            let line = supply.intx(pin).unwrap().unwrap();
            assert_eq!(line.gsi(), layout::intx_gsi(6, number));
        }
        assert_eq!(supply.vectors(3).unwrap().len(), 3);
        assert_eq!(router.allocated_gsis(), 0, "masked vectors hold no GSI");
    }
}
