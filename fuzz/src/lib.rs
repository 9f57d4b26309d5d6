//! What several fuzz targets share.
//!
//! A target turns the fuzzer's bytes into input of one crate and checks what must hold for any input; that nothing
//! panics is the least of it. `pci_guest` is a guest that knows what the PCI model owes it, `message` checks errors.

pub mod device_bytes;
pub mod message;
pub mod pci_guest;
