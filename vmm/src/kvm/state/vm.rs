//! The state of the VM itself: interrupt controllers and clock.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
};
use serde::{Deserialize, Serialize};

use super::super::{Error, Vm};

/// Everything that KVM remembers of the VM outside of its vCPUs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmState {
    /// The first PIC.
    pub pic_master: kvm_irqchip,
    /// The second PIC.
    pub pic_slave: kvm_irqchip,
    /// The IOAPIC.
    pub ioapic: kvm_irqchip,
    /// The guest's clock at the moment of the pause, in nanoseconds since its start.
    pub clock_ns: u64,
}

impl Vm {
    /// The guest's clock now, in nanoseconds since the guest started.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn clock_ns(&self) -> Result<u64, Error> {
        let clock = self
            .fd()
            .get_clock()
            .map_err(Error::ioctl("read the guest's clock"))?;
        Ok(clock.clock)
    }

    /// Sets the guest's clock, so that for the guest no time has passed. The host's wall clock plays no part: without
    /// `KVM_CLOCK_REALTIME` KVM does not add the time that went by.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn set_clock_ns(&self, clock_ns: u64) -> Result<(), Error> {
        let clock = kvm_clock_data {
            clock: clock_ns,
            ..Default::default()
        };
        tracing::trace!("the guest's clock is set");
        self.fd()
            .set_clock(&clock)
            .map_err(Error::ioctl("set the guest's clock"))
    }

    /// Reads the state, after the last device has stopped raising interrupts. `clock_ns` was read when the vCPUs stopped.
    ///
    /// # Errors
    /// When the kernel refuses a part.
    pub fn save(&self, clock_ns: u64) -> Result<VmState, Error> {
        tracing::trace!("the interrupt controllers are read");
        Ok(VmState {
            pic_master: self.irqchip(KVM_IRQCHIP_PIC_MASTER)?,
            pic_slave: self.irqchip(KVM_IRQCHIP_PIC_SLAVE)?,
            ioapic: self.irqchip(KVM_IRQCHIP_IOAPIC)?,
            clock_ns,
        })
    }

    /// Writes the interrupt controllers. The clock is set by `set_clock_ns` just before the vCPUs run.
    ///
    /// # Errors
    /// When the kernel refuses a part.
    pub fn restore(&self, state: &VmState) -> Result<(), Error> {
        tracing::trace!("the interrupt controllers are set");
        for (chip, id) in [
            (&state.pic_master, KVM_IRQCHIP_PIC_MASTER),
            (&state.pic_slave, KVM_IRQCHIP_PIC_SLAVE),
            (&state.ioapic, KVM_IRQCHIP_IOAPIC),
        ] {
            // Which chip it is is our knowledge, not the snapshot's.
            let chip = kvm_irqchip {
                chip_id: id,
                ..*chip
            };
            self.fd()
                .set_irqchip(&chip)
                .map_err(Error::ioctl("set an interrupt controller"))?;
        }
        Ok(())
    }

    fn irqchip(&self, id: u32) -> Result<kvm_irqchip, Error> {
        let mut chip = kvm_irqchip {
            chip_id: id,
            ..Default::default()
        };
        self.fd()
            .get_irqchip(&mut chip)
            .map_err(Error::ioctl("read an interrupt controller"))?;
        Ok(chip)
    }
}
