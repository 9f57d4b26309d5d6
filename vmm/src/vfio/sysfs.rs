//! What sysfs says about PCI functions, mediated devices and IOMMU groups. Only reads, and never opens a device.
//!
//! The roots are parameters so that tests can use a tree of their own. Reference: `Documentation/driver-api/vfio.rst`,
//! `Documentation/driver-api/vfio-mediated-device.rst`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::Error;

/// Drivers outside of VFIO that leave a group usable: the kernel lets them keep their devices (`driver_managed_dma`).
const HARMLESS_DRIVERS: [&str; 2] = ["pci-stub", "pcieport"];
/// Name of the groups that the kernel makes up: for functions without an IOMMU (`enable_unsafe_noiommu_mode`), and for every
/// mediated device, whose driver does the work of an IOMMU.
const NO_IOMMU_GROUP: &str = "vfio-noiommu";

/// Where sysfs and devtmpfs are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// sysfs.
    pub sys: PathBuf,
    /// Device nodes.
    pub dev: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            sys: PathBuf::from("/sys"),
            dev: PathBuf::from("/dev"),
        }
    }
}

impl Roots {
    /// The node of iommufd.
    pub(super) fn iommufd(&self) -> PathBuf {
        self.dev.join("iommu")
    }

    /// The node of VFIO containers.
    pub(super) fn container(&self) -> PathBuf {
        self.dev.join("vfio/vfio")
    }

    /// The node of a VFIO group.
    pub(super) fn group(&self, id: u32) -> PathBuf {
        self.dev.join(format!("vfio/{id}"))
    }

    /// The node of a VFIO device, by its name in the kernel (`vfio3`).
    pub(super) fn cdev(&self, name: &str) -> PathBuf {
        self.dev.join("vfio/devices").join(name)
    }
}

/// The bus of a device that can be passed through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bus {
    /// A PCI function.
    Pci,
    /// A mediated device, made by a driver of the host.
    Mdev,
}

/// Who made a PCI function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class code: base class, subclass, programming interface.
    pub class: u32,
}

/// A device of an IOMMU group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Address of the device.
    pub name: String,
    /// The driver that it is bound to.
    pub driver: Option<String>,
    /// The host uses it, so no device of the group can be passed through.
    pub blocks: bool,
}

impl Member {
    /// Members for a message.
    pub(super) fn list(members: &[Self]) -> String {
        let name = |member: &Self| {
            format!(
                "{} ({})",
                member.name,
                member.driver.as_deref().unwrap_or("no driver")
            )
        };
        members.iter().map(name).collect::<Vec<_>>().join(", ")
    }
}

/// An IOMMU group: the devices that the IOMMU cannot keep apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Its number.
    pub id: u32,
    /// All its devices, this one too, sorted by name.
    pub members: Vec<Member>,
}

/// What sysfs knows about a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostDevice {
    /// PCI address with domain, or UUID of a mediated device.
    pub name: String,
    /// Its directory with all links resolved, which tells devices apart.
    pub path: PathBuf,
    /// Its bus.
    pub bus: Bus,
    /// The ids of a PCI function.
    pub identity: Option<Identity>,
    /// The driver that it is bound to.
    pub driver: Option<String>,
    /// The driver is one of VFIO.
    pub vfio_driver: bool,
    /// Its IOMMU group; none where there is no IOMMU.
    pub group: Option<Group>,
    /// Its name as a VFIO device of its own (`vfio3`), from Linux 6.1 on.
    pub vfio_name: Option<String>,
}

impl HostDevice {
    /// Reads the directory of a device.
    ///
    /// # Errors
    /// When there is none, or it is no PCI function and no mediated device.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let not_found = |source| Error::NotFound {
            path: path.to_owned(),
            source,
        };
        let not_passable = || Error::NotPassable {
            path: path.to_owned(),
        };
        let resolved = fs::canonicalize(path).map_err(not_found)?;
        let name = link_name(&resolved).ok_or_else(not_passable)?;
        let bus = match link_target(&resolved.join("subsystem")).as_deref() {
            Some("pci") => Bus::Pci,
            Some("mdev") => Bus::Mdev,
            _ => return Err(not_passable()),
        };
        let driver = link_target(&resolved.join("driver"));
        let vfio_name = only_entry(&resolved.join("vfio-dev"));
        let vfio_driver = is_vfio_driver(bus, driver.as_deref(), vfio_name.is_some());
        let identity = match bus {
            Bus::Pci => read_identity(&resolved),
            Bus::Mdev => None,
        };
        Ok(Self {
            name,
            bus,
            identity,
            driver,
            vfio_driver,
            group: read_group(bus, &resolved),
            vfio_name,
            path: resolved,
        })
    }

    /// Whether the device can be passed through, as far as sysfs can tell.
    ///
    /// # Errors
    /// The first obstacle, with its remedy.
    pub fn check(&self) -> Result<(), Error> {
        let name = || self.name.clone();
        if self.group.is_none() && self.bus == Bus::Pci {
            return Err(Error::NoIommu { name: name() });
        }
        if !self.vfio_driver {
            return Err(Error::NotBound {
                name: name(),
                bus: self.bus,
                driver: self.driver.clone(),
            });
        }
        if let Some(group) = &self.group {
            let blockers: Vec<_> = group
                .members
                .iter()
                .filter(|member| member.blocks)
                .cloned()
                .collect();
            if !blockers.is_empty() {
                return Err(Error::GroupNotViable {
                    name: name(),
                    group: group.id,
                    blockers,
                });
            }
        }
        Ok(())
    }

    /// The device's own node, where the kernel has such nodes.
    pub(super) fn cdev(&self, roots: &Roots) -> Option<PathBuf> {
        let node = roots.cdev(self.vfio_name.as_ref()?);
        node.exists().then_some(node)
    }
}

/// All devices of a bus, sorted by name; none where the host has no such bus.
pub(super) fn list(roots: &Roots, bus: Bus) -> Vec<HostDevice> {
    let directory = roots.sys.join(match bus {
        Bus::Pci => "bus/pci/devices",
        Bus::Mdev => "bus/mdev/devices",
    });
    // A device that vanishes in between is no longer to be listed.
    entries(&directory)
        .iter()
        .filter_map(|path| HostDevice::read(path).ok())
        .collect()
}

/// Names of VFIO drivers differ (`vfio-pci`, `mlx5_vfio_pci`, …); from Linux 6.1 on, a device bound to one has a `vfio-dev`
/// directory. The mdev bus has only VFIO drivers.
fn is_vfio_driver(bus: Bus, driver: Option<&str>, has_vfio_dev: bool) -> bool {
    match (bus, driver) {
        (_, None) => false,
        (Bus::Mdev, Some(_)) => true,
        (Bus::Pci, Some(driver)) => has_vfio_dev || driver.contains("vfio"),
    }
}

fn read_identity(device: &Path) -> Option<Identity> {
    Some(Identity {
        vendor: u16::try_from(read_hex(&device.join("vendor"))?).ok()?,
        device: u16::try_from(read_hex(&device.join("device"))?).ok()?,
        class: read_hex(&device.join("class"))?,
    })
}

fn read_group(bus: Bus, device: &Path) -> Option<Group> {
    let directory = device.join("iommu_group");
    let id = link_target(&directory)?.parse().ok()?;
    let made_up =
        fs::read_to_string(directory.join("name")).is_ok_and(|name| name.trim() == NO_IOMMU_GROUP);
    if bus == Bus::Pci && made_up {
        return None;
    }
    let members = entries(&directory.join("devices"));
    Some(Group {
        id,
        members: members
            .iter()
            .filter_map(|path| read_member(path).ok())
            .collect(),
    })
}

fn read_member(path: &Path) -> io::Result<Member> {
    let resolved = fs::canonicalize(path)?;
    let driver = link_target(&resolved.join("driver"));
    let bus = match link_target(&resolved.join("subsystem")).as_deref() {
        Some("mdev") => Bus::Mdev,
        _ => Bus::Pci,
    };
    let vfio = is_vfio_driver(bus, driver.as_deref(), resolved.join("vfio-dev").is_dir());
    let blocks = driver
        .as_deref()
        .is_some_and(|driver| !vfio && !HARMLESS_DRIVERS.contains(&driver));
    Ok(Member {
        name: link_name(&resolved).unwrap_or_default(),
        driver,
        blocks,
    })
}

/// Last component of a path, where it is text.
fn link_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

/// Last component of what a link leads to.
fn link_target(link: &Path) -> Option<String> {
    link_name(&fs::read_link(link).ok()?)
}

fn read_hex(file: &Path) -> Option<u32> {
    let text = fs::read_to_string(file).ok()?;
    u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

/// Entries of a directory, sorted; none where it cannot be read.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(directory)
        .map(|entries| {
            entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .collect()
        })
        .unwrap_or_default();
    paths.sort();
    paths
}

fn only_entry(directory: &Path) -> Option<String> {
    match entries(directory).as_slice() {
        [entry] => link_name(entry),
        _ => None,
    }
}
