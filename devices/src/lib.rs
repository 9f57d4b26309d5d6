//! The device model: what a guest meets on its port and memory buses.
//!
//! A device knows offsets into its own window, never addresses; what it wants done to the machine
//! it returns as an [`Effect`]. What it needs from the machine comes through the small traits of
//! [`host`], so that nothing here knows KVM, vCPUs or threads. The machine (crate `vmm`) builds
//! the devices, places them on a [`Bus`], applies their effects and saves their states.
#![forbid(unsafe_code)]

pub mod access;
pub mod acpi_pm;
pub mod bus;
pub mod cmos_rtc;
pub mod console;
pub mod host;
pub mod i8042;
pub mod lifecycle;
pub mod log;
pub mod pci_host;
pub mod serial_port;
pub mod uart16550;
pub mod vfio;

#[cfg(test)]
mod testing;

pub use access::{BusDevice, Effect};
pub use acpi_pm::{AcpiPm, AcpiPmState};
pub use bus::{Bus, BusError, Mmio, MmioBus, Pio, PioBus};
pub use cmos_rtc::{CmosRtc, CmosRtcState};
pub use console::{Console, ConsoleError, ConsoleMode, ConsoleSubscriber, restore_terminal};
pub use host::{IrqLine, SerialBackend};
pub use i8042::I8042;
pub use lifecycle::{Quiesced, Save, SavedState};
pub use pci_host::{PciConfigPorts, PciEcam};
pub use serial_port::SerialPort;
pub use uart16550::SerialPortState;
