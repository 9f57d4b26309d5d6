//! The few bytes of firmware that this PC has: what runs when a guest jumps to the reset vector to reset the machine.
//!
//! Linux does so in real mode when it believes in a BIOS ("reboot=bios"); it chooses that on hardware-reduced ACPI without EFI,
//! whatever the FADT's reset register says (`reboot_init` of `arch/x86/kernel/reboot.c`). Without code there the guest would run
//! through zeros for ever. Called by `boot_params`.

use super::layout::{ACPI_CONTROL_PORT, ACPI_RESET_VALUE};

/// Length of the code; the vector has room for 16 bytes.
pub const LEN: usize = 9;

/// 16-bit code that writes the reset value to the reset port, and halts should it ever come back.
pub fn code() -> [u8; LEN] {
    let [port_low, port_high] = ACPI_CONTROL_PORT.to_le_bytes();
    [
        0xba,
        port_low,
        port_high, // mov dx, port
        0xb0,
        ACPI_RESET_VALUE, // mov al, value
        0xee,             // out dx, al
        0xf4,             // hlt
        0xeb,
        0xfd, // jmp to the hlt
    ]
}
