//! What to do about what was found. A problem keeps VMs or passed-through devices from working; a note is worth knowing.
//!
//! Pure: facts in, advice out. Texts of obstacles come from the same errors that would refuse the device when a VM boots.

use dormouse_vmm::vfio::inspect::{Device, Features};
use serde::Serialize;

use super::classes;
use super::facts::{Facts, Kvm, Probe};

/// One thing to know or to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// `KVM`, `IOMMU`, `VFIO`, `memory`, or the name of a device.
    pub subject: String,
    /// What was found, in many cases with what to do.
    pub finding: String,
    /// What to do, where the finding does not say it.
    pub remedy: Option<String>,
}

impl Advice {
    fn new(subject: &str, finding: &str, remedy: Option<String>) -> Self {
        Self {
            subject: subject.to_owned(),
            finding: finding.to_owned(),
            remedy,
        }
    }
}

/// What needs action: with any of these the exit code is 1.
pub fn problems(facts: &Facts) -> Vec<Advice> {
    let host = &facts.host;
    let mut problems = Vec::new();
    if let Kvm::Unusable { reason } = &facts.kvm {
        problems.push(Advice::new("KVM", reason, None));
    }
    if host.iommu_groups == 0 {
        let remedy = match host.iommu_table {
            Some("DMAR") => {
                "the firmware has one (ACPI table DMAR): add intel_iommu=on to the kernel's command line and reboot"
            }
            Some(_) => {
                "the firmware has one (ACPI table IVRS): remove amd_iommu=off and iommu=off from the kernel's command line and reboot"
            }
            None => {
                "switch VT-d or AMD-Vi on in the firmware; a virtual machine needs an IOMMU from its own host"
            }
        };
        problems.push(Advice::new(
            "IOMMU",
            "off: no PCI function has an IOMMU group, so none can be passed through",
            Some(remedy.to_owned()),
        ));
    }
    if !host.groups && !host.iommufd {
        problems.push(Advice::new(
            "VFIO",
            "neither /dev/vfio/vfio nor /dev/iommu exists",
            Some("modprobe vfio-pci (the kernel needs CONFIG_VFIO_PCI)".to_owned()),
        ));
    }
    for device in bound(facts) {
        let failure = match facts.probes.get(&device.host.name) {
            Some(Probe::Failed { reason }) => Some(reason),
            _ => None,
        };
        if let Some(finding) = device.obstacle.as_ref().or(failure) {
            problems.push(Advice::new(&device.host.name, finding, None));
        }
    }
    problems
}

/// What is worth knowing and keeps nothing from working.
pub fn notes(facts: &Facts) -> Vec<Advice> {
    let mut notes = Vec::new();
    if let (Some(limit), false) = (facts.host.memlock_limit, facts.host.memlock_exempt) {
        notes.push(Advice::new(
            "memory",
            &format!(
                "this user may lock {} MiB, and all RAM of a VM with devices is locked: larger VMs are refused",
                limit >> 20
            ),
            Some("raise the limit (ulimit -l, or LimitMEMLOCK= of the service)".to_owned()),
        ));
    }
    for device in bound(facts) {
        if let Some(Probe::Answered(features)) = facts.probes.get(&device.host.name) {
            notes.extend(sleep(facts, device, features));
        }
    }
    if bound(facts).next().is_none()
        && let Some(example) = facts.host.functions.iter().find(|it| can_be_bound(it))
    {
        notes.push(Advice::new(
            "VFIO",
            "no device is bound to a VFIO driver, so there is none to pass through",
            Some(bind(facts, example)),
        ));
    }
    notes
}

/// Devices whose driver is one of VFIO.
pub fn bound(facts: &Facts) -> impl Iterator<Item = &Device> {
    let devices = facts.host.functions.iter().chain(&facts.host.mdevs);
    devices.filter(|device| device.host.vfio_driver)
}

/// A function in the host's hands that a VFIO driver could take.
pub fn can_be_bound(device: &Device) -> bool {
    let bridge = device
        .host
        .identity
        .is_some_and(|identity| classes::is_bridge(identity.class));
    !device.host.vfio_driver && device.host.group.is_some() && !bridge
}

/// Other members of the device's group that the host uses, with their drivers.
pub fn companions(device: &Device) -> Vec<String> {
    let members = device.host.group.iter().flat_map(|group| &group.members);
    members
        .filter(|member| member.blocks && member.name != device.host.name)
        .map(|member| {
            let driver = member.driver.as_deref().unwrap_or("no driver");
            format!("{} ({driver})", member.name)
        })
        .collect()
}

/// What keeps a device awake: a VM with it cannot be put to sleep with its state.
fn sleep(facts: &Facts, device: &Device, features: &Features) -> Option<Advice> {
    if features.migration.is_some() {
        return None;
    }
    let name = &device.host.name;
    let driver = device.host.driver.as_deref().unwrap_or_default();
    let remedy = match facts.variant_drivers.get(name) {
        Some(variant) if !same_driver(variant, driver) => {
            format!("this kernel has a driver made for it: {}", bind(facts, device))
        }
        Some(_) if same_driver(driver, "mlx5_vfio_pci") => {
            let parent = device.physical_function.as_deref().unwrap_or("PF");
            format!(
                "mark the virtual function migratable while no driver has it: devlink port function set pci/{parent}/PORT migratable enable (PORT: devlink port show)"
            )
        }
        _ => "a snapshot of a VM with it is refused, unless its config has \"snapshot\": \"discard-state\"".to_owned(),
    };
    Some(Advice::new(
        name,
        &format!("its state cannot be saved (driver {driver})"),
        Some(remedy),
    ))
}

/// Module names and driver names differ in `-` and `_`.
fn same_driver(one: &str, other: &str) -> bool {
    one.replace('-', "_") == other.replace('-', "_")
}

/// Commands that give a function to the VFIO driver that suits it best.
fn bind(facts: &Facts, device: &Device) -> String {
    let name = &device.host.name;
    let driver = facts
        .variant_drivers
        .get(name)
        .map_or("vfio-pci", String::as_str);
    let directory = format!("/sys/bus/pci/devices/{name}");
    let unbind = if device.host.driver.is_some() {
        format!("echo {name} > {directory}/driver/unbind; ")
    } else {
        String::new()
    };
    format!(
        "modprobe {driver}; echo {driver} > {directory}/driver_override; {unbind}echo {name} > /sys/bus/pci/drivers_probe"
    )
}
