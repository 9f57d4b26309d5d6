//! Finds the VFIO driver that is made for a PCI function (`mlx5_vfio_pci`, …), in the aliases of the kernel's modules and of the
//! drivers that are built into it.
//!
//! Such a driver announces itself as `vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i*`; the generic `vfio-pci` as one with stars only.
//! Reference: `drivers/pci/pci-driver.c`, `PCI_DRIVER_OVERRIDE_DEVICE_VFIO`.

use std::collections::BTreeMap;

use dormouse_vmm::vfio::Identity;
use dormouse_vmm::vfio::inspect::Device;

/// Vendor, device and driver of one alias.
struct Alias<'a> {
    vendor: u16,
    device: Option<u16>,
    driver: &'a str,
}

/// The variant driver of each function that has one, by address. `modules` is the text of `modules.alias`, `builtin` that of
/// `modules.builtin.modinfo`.
pub fn drivers(modules: &str, builtin: &str, functions: &[Device]) -> BTreeMap<String, String> {
    let modules = modules.lines().filter_map(Alias::parse);
    let builtin = builtin.split('\0').filter_map(Alias::parse_builtin);
    let aliases: Vec<_> = modules.chain(builtin).collect();
    functions
        .iter()
        .filter_map(|function| {
            let identity = function.host.identity?;
            let alias = aliases.iter().find(|alias| alias.matches(identity))?;
            Some((function.host.name.clone(), alias.driver.to_owned()))
        })
        .collect()
}

impl<'a> Alias<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (pattern, driver) = line.strip_prefix("alias ")?.split_once(' ')?;
        Self::new(pattern, driver)
    }

    /// One of the strings `DRIVER.KEY=VALUE`.
    fn parse_builtin(entry: &'a str) -> Option<Self> {
        let (driver, entry) = entry.split_once('.')?;
        Self::new(entry.strip_prefix("alias=")?, driver)
    }

    fn new(pattern: &'a str, driver: &'a str) -> Option<Self> {
        let pattern = pattern.strip_prefix("vfio_pci:v")?;
        let (vendor, rest) = pattern.split_once('d')?;
        let (device, _) = rest.split_once('s')?;
        Some(Self {
            vendor: id(vendor)?,
            device: match device {
                "*" => None,
                device => Some(id(device)?),
            },
            driver: driver.trim(),
        })
    }

    fn matches(&self, identity: Identity) -> bool {
        self.vendor == identity.vendor && self.device.is_none_or(|device| device == identity.device)
    }
}

fn id(digits: &str) -> Option<u16> {
    u16::try_from(u32::from_str_radix(digits, 16).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_of_vfio_drivers_name_vendor_and_device() {
        let parse = |line| Alias::parse(line).map(|it| (it.vendor, it.device, it.driver));
        assert_eq!(
            parse("alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci"),
            Some((0x15b3, Some(0x101e), "mlx5_vfio_pci"))
        );
        assert_eq!(
            parse("alias vfio_pci:v00001AF4d*sv*sd*bc*sc*i* some_vfio_pci"),
            Some((0x1af4, None, "some_vfio_pci"))
        );
        for other in [
            "alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci",
            "alias pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_core",
            "alias vfio_pci:v000015B3",
            "alias vfio_pci:vZZd1s x",
            "",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn drivers_that_are_built_in_are_known_too() {
        let entries = "mlx5_vfio_pci.license=GPL\0\
            mlx5_vfio_pci.alias=vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i*\0\
            mlx5_core.alias=pci:v000015B3d00001011sv*sd*bc*sc*i*\0\
            broken\0";
        let found: Vec<_> = entries
            .split('\0')
            .filter_map(Alias::parse_builtin)
            .map(|it| (it.vendor, it.device, it.driver))
            .collect();
        assert_eq!(found, [(0x15b3, Some(0x101e), "mlx5_vfio_pci")]);
    }

    #[test]
    fn the_id_must_match() {
        let alias = Alias {
            vendor: 0x15b3,
            device: Some(0x101e),
            driver: "x",
        };
        let identity = |vendor, device| Identity {
            vendor,
            device,
            class: 0,
        };
        assert!(alias.matches(identity(0x15b3, 0x101e)));
        assert!(!alias.matches(identity(0x15b3, 0x101d)));
        assert!(!alias.matches(identity(0x8086, 0x101e)));
    }
}
