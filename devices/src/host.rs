//! What the host lends a device: small traits that the machine implements and tests fake.

/// An interrupt line that a device raises by edge.
///
/// The machine implements it with an eventfd that KVM injects as an interrupt.
pub trait IrqLine: Send + Sync {
    /// Raises the line once. Does not block.
    fn pulse(&self);
}

/// The host end of a serial line, as seen from the chip.
///
/// Both calls come from a vCPU thread in the middle of a guest access: they must not block and
/// must not call back into the device.
pub trait SerialBackend: Send + Sync {
    /// Takes bytes that the guest sent. What the host cannot take is dropped and counted there.
    fn transmit(&self, bytes: &[u8]);

    /// Says that input which the chip refused before would now be accepted.
    fn input_room(&self);
}
