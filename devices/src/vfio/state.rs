//! What is saved of a passed-through function, beside the stream that its driver gives.
//!
//! Plain values only: who the device is, for a check that the one at hand is alike; the shadow of its configuration space with
//! the MSI-X table, pending vectors and BARs as programmed (a move that waits for decoding to be switched on is in the
//! registers); where BARs answer; which vectors were in use. The capability to migrate is not part of it: the kernel is
//! asked each time. State is hostile and checked when a function is restored.

use dormouse_pci::{BarIndex, ConfigSpaceState};
use serde::{Deserialize, Serialize};
use thiserror::Error as ThisError;

use super::host::{CONFIG_REGION, HostFunction, IrqIndex, ROM_REGION};
use crate::lifecycle::SavedState;

/// The saved state of a passed-through function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VfioFunctionState {
    /// Who the device is.
    pub identity: IdentityState,
    /// Configuration space as the guest knows it.
    pub config: ConfigSpaceState,
    /// Where BARs answer. Their places are to be reserved before new ones are given out. One that does not answer is not here:
    /// where it once did another may be.
    pub bars: Vec<BarAddressState>,
    /// The addresses that BARs get when the machine is reset.
    pub assigned_bars: Vec<BarAddressState>,
    /// Message vectors that the guest had unmasked at some time, in ascending order.
    pub used_vectors: Vec<u16>,
}

impl SavedState for VfioFunctionState {
    const KIND: &'static str = "vfio-function";
    const VERSION: u32 = 1;
}

/// What makes two devices the same to a guest's driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityState {
    /// Vendor id.
    pub vendor_id: u16,
    /// Device id.
    pub device_id: u16,
    /// Subsystem vendor id.
    pub subsystem_vendor_id: u16,
    /// Subsystem id.
    pub subsystem_id: u16,
    /// Class, subclass and programming interface, the class in bits 23:16.
    pub class: u32,
    /// Bytes of BAR 0 to 5, the ROM and configuration space.
    pub region_bytes: [u64; 8],
    /// Vectors of INTx, MSI and MSI-X.
    pub interrupts: [u32; 3],
}

/// The address of one BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BarAddressState {
    /// The BAR.
    pub bar: BarIndex,
    /// Its first address or port.
    pub address: u64,
    /// How many bytes or ports it decodes.
    pub size: u64,
    /// Whether it decodes ports.
    pub io: bool,
}

/// How the device at hand differs from the saved one, or why the state is of no device.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
pub enum IdentityMismatch {
    /// Another model.
    #[error(
        "the state is of {saved_vendor:04x}:{saved_device:04x} (subsystem {saved_subsystem:08x}, class {saved_class:06x}) and the device is {vendor:04x}:{device:04x} (subsystem {subsystem:08x}, class {class:06x}); give the VM a device of the same model"
    )]
    Model {
        /// Saved vendor id.
        saved_vendor: u16,
        /// Saved device id.
        saved_device: u16,
        /// Saved subsystem ids, the vendor in the low half.
        saved_subsystem: u32,
        /// Saved class.
        saved_class: u32,
        /// The device's vendor id.
        vendor: u16,
        /// The device's device id.
        device: u16,
        /// The device's subsystem ids.
        subsystem: u32,
        /// The device's class.
        class: u32,
    },
    /// A BAR, the ROM or configuration space has another length.
    #[error(
        "region {region} was {saved:#x} bytes long and the device's is {actual:#x}; give the VM a device with the same firmware settings"
    )]
    RegionLength {
        /// VFIO's number of the region.
        region: usize,
        /// Saved length.
        saved: u64,
        /// The device's.
        actual: u64,
    },
    /// An interrupt mode has another number of vectors.
    #[error(
        "interrupt index {index} had {saved} vectors and the device's has {actual}; give both devices the same number of vectors"
    )]
    Vectors {
        /// VFIO's number of the interrupt index.
        index: usize,
        /// Saved number.
        saved: u32,
        /// The device's.
        actual: u32,
    },
    /// A saved address is of no BAR of the device, or listed twice.
    #[error("the saved address {address:#x} is not one that {bar} of the device can have")]
    BarAddress {
        /// The BAR.
        bar: BarIndex,
        /// Its saved address.
        address: u64,
    },
    /// A saved vector does not exist or is listed out of order.
    #[error("the saved vector {vector} in use does not exist or is listed out of order")]
    UsedVector {
        /// The vector.
        vector: u16,
    },
}

impl IdentityState {
    /// The identity of the device behind `host` with these bytes of configuration space.
    pub(super) fn of(config: &[u8], host: &dyn HostFunction) -> Self {
        let byte = |at: usize| config.get(at).copied().unwrap_or(0xff);
        let halfword = |at: usize| u16::from_le_bytes([byte(at), byte(at + 1)]);
        let mut region_bytes = [0; 8];
        for (region, bytes) in (0..=CONFIG_REGION.max(ROM_REGION)).zip(&mut region_bytes) {
            *bytes = host.region(region).size;
        }
        Self {
            vendor_id: halfword(0x00),
            device_id: halfword(0x02),
            subsystem_vendor_id: halfword(0x2c),
            subsystem_id: halfword(0x2e),
            class: u32::from_le_bytes([byte(0x09), byte(0x0a), byte(0x0b), 0]),
            region_bytes,
            interrupts: [IrqIndex::Intx, IrqIndex::Msi, IrqIndex::Msix].map(|i| host.irq_count(i)),
        }
    }

    /// Whether this saved device and `actual` are alike to a guest's driver.
    pub(super) fn check(&self, actual: &Self) -> Result<(), IdentityMismatch> {
        let model = |one: &Self| {
            let subsystem = u32::from(one.subsystem_id) << 16 | u32::from(one.subsystem_vendor_id);
            (one.vendor_id, one.device_id, subsystem, one.class)
        };
        if model(self) != model(actual) {
            let (saved_vendor, saved_device, saved_subsystem, saved_class) = model(self);
            let (vendor, device, subsystem, class) = model(actual);
            return Err(IdentityMismatch::Model {
                saved_vendor,
                saved_device,
                saved_subsystem,
                saved_class,
                vendor,
                device,
                subsystem,
                class,
            });
        }
        let regions = self.region_bytes.into_iter().zip(actual.region_bytes);
        for (region, (saved, actual)) in regions.enumerate() {
            if saved != actual {
                return Err(IdentityMismatch::RegionLength {
                    region,
                    saved,
                    actual,
                });
            }
        }
        let interrupts = self.interrupts.into_iter().zip(actual.interrupts);
        for (index, (saved, actual)) in interrupts.enumerate() {
            if saved != actual {
                return Err(IdentityMismatch::Vectors {
                    index,
                    saved,
                    actual,
                });
            }
        }
        Ok(())
    }
}

/// Refuses vectors that a function with `count` of them cannot have in use.
pub(super) fn check_used_vectors(used: &[u16], count: usize) -> Result<(), IdentityMismatch> {
    let mut lowest = 0;
    for &vector in used {
        if usize::from(vector) >= count || vector < lowest {
            return Err(IdentityMismatch::UsedVector { vector });
        }
        lowest = vector + 1;
    }
    Ok(())
}

/// Refuses addresses that the BARs in `desired` cannot have.
pub(super) fn check_addresses(
    saved: &[BarAddressState],
    bars: &[dormouse_pci::BarPlacement],
) -> Result<(), IdentityMismatch> {
    for (
        position,
        BarAddressState {
            bar,
            address,
            size,
            io,
        },
    ) in saved.iter().enumerate()
    {
        let known = bars.iter().find(|known| known.index == *bar);
        let is_io = |kind| matches!(kind, dormouse_pci::BarKind::Io { .. });
        let fits = known
            .is_some_and(|known| known.kind.size() == *size && is_io(known.kind) == *io)
            && address.is_multiple_of(*size)
            && address.checked_add(*size).is_some();
        let again = saved[..position].iter().any(|other| other.bar == *bar);
        if !fits || again {
            return Err(IdentityMismatch::BarAddress {
                bar: *bar,
                address: *address,
            });
        }
    }
    Ok(())
}
