//! `platform`: properties of the whole machine, and how VFIO is used. `rng`: accepted at its default, and not built.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::object::{null_is_default, null_is_true, null_is_u8, null_is_u16};

/// Width of a virtual IOMMU's addresses in Cloud Hypervisor's default, in bits.
const DEFAULT_IOMMU_ADDRESS_WIDTH_BITS: u8 = 64;
/// The number of PCI segments that Dormouse builds.
const DEFAULT_PCI_SEGMENTS: u16 = 1;
/// The only source of entropy that is accepted.
pub(super) const DEFAULT_RNG_SOURCE: &str = "/dev/urandom";

/// Properties of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlatformConfig {
    /// PCI segments; only 1 is implemented.
    #[serde(
        default = "default_pci_segments",
        deserialize_with = "null_is_u16::<DEFAULT_PCI_SEGMENTS, _>"
    )]
    pub num_pci_segments: u16,
    /// Segments behind a virtual IOMMU; not implemented, must be absent or empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iommu_segments: Option<Vec<u16>>,
    /// Width of a virtual IOMMU's addresses, in bits; must be the default.
    #[serde(
        default = "default_iommu_address_width_bits",
        deserialize_with = "null_is_u8::<DEFAULT_IOMMU_ADDRESS_WIDTH_BITS, _>"
    )]
    pub iommu_address_width_bits: u8,
    /// SMBIOS system serial number; not implemented, must be absent.
    #[serde(
        default,
        alias = "serial_number",
        skip_serializing_if = "Option::is_none"
    )]
    pub system_serial_number: Option<String>,
    /// SMBIOS system UUID; not implemented, must be absent.
    #[serde(default, alias = "uuid", skip_serializing_if = "Option::is_none")]
    pub system_uuid: Option<String>,
    /// SMBIOS OEM strings; not implemented, must be absent or empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oem_strings: Option<Vec<String>>,
    /// SMBIOS system manufacturer; not implemented, must be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_manufacturer: Option<String>,
    /// SMBIOS product name; not implemented, must be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_product_name: Option<String>,
    /// SMBIOS system version; not implemented, must be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_version: Option<String>,
    /// SMBIOS system family; not implemented, must be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_family: Option<String>,
    /// SMBIOS SKU number; not implemented, must be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_sku_number: Option<String>,
    /// SMBIOS chassis asset tag; not implemented, must be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chassis_asset_tag: Option<String>,
    /// Open VFIO devices through iommufd (true), through groups (false), or as the host allows (absent).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iommufd: Option<bool>,
    /// Descriptor of an iommufd; it cannot travel in JSON, so it must be absent or -1.
    #[serde(default, skip_serializing)]
    pub(super) iommufd_fd: Option<i64>,
    /// Maps the devices' BARs for peer-to-peer DMA between them.
    #[serde(default = "default_vfio_p2p_dma", deserialize_with = "null_is_true")]
    pub vfio_p2p_dma: bool,
    /// Intel TDX; not implemented, must be false.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub tdx: bool,
    /// AMD SEV-SNP; not implemented, must be false.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub sev_snp: bool,
}

impl Default for PlatformConfig {
    fn default() -> Self {
        Self {
            num_pci_segments: DEFAULT_PCI_SEGMENTS,
            iommu_segments: None,
            iommu_address_width_bits: DEFAULT_IOMMU_ADDRESS_WIDTH_BITS,
            system_serial_number: None,
            system_uuid: None,
            oem_strings: None,
            system_manufacturer: None,
            system_product_name: None,
            system_version: None,
            system_family: None,
            system_sku_number: None,
            chassis_asset_tag: None,
            iommufd: None,
            iommufd_fd: None,
            vfio_p2p_dma: true,
            tdx: false,
            sev_snp: false,
        }
    }
}

fn default_pci_segments() -> u16 {
    DEFAULT_PCI_SEGMENTS
}

fn default_iommu_address_width_bits() -> u8 {
    DEFAULT_IOMMU_ADDRESS_WIDTH_BITS
}

fn default_vfio_p2p_dma() -> bool {
    true
}

/// The virtio entropy device. Not implemented: its default is accepted, and means that there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RngConfig {
    /// Name of the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Placement behind a virtual IOMMU; must be false.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub iommu: bool,
    /// PCI segment; must be 0.
    #[serde(default, deserialize_with = "null_is_default")]
    pub pci_segment: u16,
    /// Slot on the PCI bus; must be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_device_id: Option<u8>,
    /// Where entropy comes from; must be `/dev/urandom`.
    pub src: PathBuf,
}

impl Default for RngConfig {
    fn default() -> Self {
        Self {
            id: None,
            iommu: false,
            pci_segment: 0,
            pci_device_id: None,
            src: PathBuf::from(DEFAULT_RNG_SOURCE),
        }
    }
}
