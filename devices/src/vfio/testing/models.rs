//! The fake devices, as bytes and sizes.

use std::ops::Range;

use crate::vfio::host::{CONFIG_REGION, Region};

/// Puts dwords into configuration space.
fn config(len: usize, dwords: &[(usize, u32)]) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (offset, value) in dwords {
        bytes[*offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// What a fake device is.
#[derive(Clone)]
pub struct Model {
    pub config: Vec<u8>,
    pub regions: [Region; 9],
    pub irqs: [u32; 5],
    pub mediated: bool,
}

impl Model {
    fn new(config: Vec<u8>, irqs: [u32; 5]) -> Self {
        let mut regions: [Region; 9] = Default::default();
        regions[CONFIG_REGION as usize] = Region {
            size: config.len() as u64,
            readable: true,
            writable: true,
            ..Region::default()
        };
        Self {
            config,
            regions,
            irqs,
            mediated: false,
        }
    }

    fn region(mut self, index: usize, size: u64, mappable: &[Range<u64>]) -> Self {
        self.regions[index] = Region {
            size,
            readable: true,
            writable: index != 6,
            mappable: mappable.to_vec(),
            msix_mappable: false,
        };
        self
    }

    /// BAR 0 of 16 KiB with an MSI-X table of 5 vectors at 0x2000 and its pending bits at 0x3000, a ROM; MSI-X, power management
    /// and PCI Express with a reset; extended: ARI, serial number, Resizable BAR.
    pub fn nvme() -> Self {
        let config = config(
            4096,
            &[
                (0x00, 0x0010_1b36),
                (0x04, 0x0010_0000),
                (0x08, 0x0108_0202),
                (0x10, 0x0000_0004),
                (0x2c, 0x1100_1af4),
                (0x34, 0x40),
                (0x3c, 0x0000_0100),
                (0x40, 0x0004_6011),
                (0x44, 0x0000_2000),
                (0x48, 0x0000_3000),
                (0x60, 0x0003_8001),
                (0x64, 0x0000_0008),
                (0x80, 0x0002_0010),
                (0x84, 0x1000_8fe2),
                (0x88, 0x0000_2810),
                (0x100, 0x1401_000e),
                (0x104, 0x5555_5555),
                (0x140, 0x1601_0003),
                (0x144, 0x1234_5678),
                (0x160, 0x0001_0015),
                (0x164, 0x7777_7777),
                (0x168, 0x7777_7777),
            ],
        );
        Self::new(config, [1, 0, 5, 0, 0])
            .region(0, 0x4000, &[0..0x4000])
            .region(6, 0x800, &[])
    }

    /// Two I/O BARs of 8 ports, INTx, an MSI vector without a capability for it, 255 bytes of configuration space.
    pub fn mtty() -> Self {
        let mut bytes = config(
            256,
            &[
                (0x00, 0x3253_4348),
                (0x04, 0x0200_0001),
                (0x08, 0x0700_0210),
                (0x10, 0x0000_0001),
                (0x14, 0x0000_0001),
                (0x2c, 0x3253_4348),
                (0x3c, 0x0000_0100),
            ],
        );
        bytes.truncate(255);
        let mut model = Self::new(bytes, [1, 1, 0, 0, 0])
            .region(0, 8, &[])
            .region(1, 8, &[]);
        model.mediated = true;
        model
    }

    /// BAR 0 and BAR 3 of 16 KiB, MSI-X with 3 vectors in BAR 3, MSI with one maskable vector, no pin.
    pub fn igb_vf() -> Self {
        let config = config(
            4096,
            &[
                (0x00, 0x10ca_8086),
                (0x04, 0x0010_0000),
                (0x08, 0x0200_0001),
                (0x10, 0x0000_000c),
                (0x1c, 0x0000_000c),
                (0x34, 0x50),
                (0x50, 0x0180_7005),
                (0x70, 0x0002_a011),
                (0x74, 0x0000_0003),
                (0x78, 0x0000_2003),
                (0xa0, 0x0002_0010),
                (0xa4, 0x1000_8fe2),
            ],
        );
        Self::new(config, [0, 1, 3, 0, 0])
            .region(0, 0x4000, &[0..0x1000, 0x2000..0x4000])
            .region(3, 0x4000, &[0x1000..0x2000, 0x3000..0x4000])
    }
}
