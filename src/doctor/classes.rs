//! Names of PCI classes for people, from the PCI Code and ID Assignment Specification.

/// Class codes by base class and subclass; a name without subclass is for the rest of its base class.
const NAMES: &[(u8, Option<u8>, &str)] = &[
    (0x01, Some(0x01), "IDE disk"),
    (0x01, Some(0x04), "RAID"),
    (0x01, Some(0x06), "SATA"),
    (0x01, Some(0x07), "SAS"),
    (0x01, Some(0x08), "NVMe"),
    (0x01, None, "storage"),
    (0x02, Some(0x00), "Ethernet"),
    (0x02, Some(0x07), "InfiniBand"),
    (0x02, None, "network"),
    (0x03, Some(0x00), "VGA"),
    (0x03, Some(0x02), "3D"),
    (0x03, None, "display"),
    (0x04, None, "multimedia"),
    (0x05, None, "memory"),
    (0x06, Some(0x00), "host bridge"),
    (0x06, Some(0x01), "ISA bridge"),
    (0x06, Some(0x04), "PCI bridge"),
    (0x06, None, "bridge"),
    (0x07, None, "serial port"),
    (0x08, None, "system"),
    (0x09, None, "input"),
    (0x0c, Some(0x03), "USB"),
    (0x0c, Some(0x05), "SMBus"),
    (0x0c, None, "serial bus"),
    (0x0d, None, "wireless"),
    (0x0b, None, "processor"),
    (0x10, None, "encryption"),
    (0x11, None, "signals"),
    (0x12, None, "accelerator"),
];

/// Name of a class code (base class, subclass, programming interface).
pub fn name(class: u32) -> &'static str {
    let [_, base, sub, _] = class.to_be_bytes();
    NAMES
        .iter()
        .find(|(of_base, of_sub, _)| *of_base == base && of_sub.is_none_or(|it| it == sub))
        .map_or("other", |(_, _, name)| name)
}

/// Bridges belong to the host: VFIO does not take them.
pub fn is_bridge(class: u32) -> bool {
    class >> 16 == 0x06
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subclass_comes_before_base_class() {
        assert_eq!(name(0x01_0802), "NVMe");
        assert_eq!(name(0x01_8000), "storage");
        assert_eq!(name(0x02_0000), "Ethernet");
        assert_eq!(name(0xff_ff00), "other");
        assert!(is_bridge(0x06_0400) && !is_bridge(0x01_0802));
    }
}
