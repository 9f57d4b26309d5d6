//! Refuses by name what Cloud Hypervisor's config knows and Dormouse does not build.
//!
//! Such a setting is accepted at its default, at `null` or as an empty list, so that configs written for Cloud
//! Hypervisor work as long as they do not need it. Called once for every config that is read.

use std::path::Path;

use serde::de::{Deserialize, Deserializer};

use super::platform::DEFAULT_RNG_SOURCE;
use super::{
    ConfigError, ConsoleConfig, ConsoleMode, CoreScheduling, CpusConfig, DebugConsoleConfig,
    DeviceConfig, HotplugMethod, MemoryConfig, PayloadConfig, PlatformConfig, RngConfig, VmConfig,
};

/// A value that was given for something that is not built; its content is read as JSON and dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unbuilt;

impl<'de> Deserialize<'de> for Unbuilt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Not IgnoredAny: that would be reported as an unknown field.
        serde_json::Value::deserialize(deserializer).map(|_| Self)
    }
}

/// Clients may send anything for it, and get the refusal by name.
#[cfg(test)]
impl schemars::JsonSchema for Unbuilt {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Unbuilt".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::Schema::default()
    }
}

/// Fails with the first setting of `config` that asks for something that is not built.
pub(super) fn refuse_unbuilt(config: &VmConfig) -> Result<(), ConfigError> {
    refuse_device_kinds(config)?;
    refuse_machine_parts(config)?;
    refuse_in_cpus(&config.cpus)?;
    refuse_in_memory(&config.memory)?;
    if let Some(payload) = &config.payload {
        refuse_in_payload(payload)?;
    }
    refuse_in_rng(&config.rng)?;
    refuse_in_console(&config.console)?;
    refuse_in_debug_console(&config.debug_console)?;
    for (index, device) in config.devices.iter().enumerate() {
        refuse_in_device(&format!("devices[{index}]"), device)?;
    }
    config.platform.as_ref().map_or(Ok(()), refuse_in_platform)
}

fn refuse_device_kinds(config: &VmConfig) -> Result<(), ConfigError> {
    absent_or_empty(
        "rate_limit_groups",
        &config.rate_limit_groups,
        "rate limiting",
    )?;
    absent_or_empty("disks", &config.disks, "virtio-blk")?;
    absent_or_empty("net", &config.net, "virtio-net")?;
    absent("balloon", config.balloon, "virtio-balloon")?;
    absent_or_empty("fs", &config.fs, "virtio-fs")?;
    absent_or_empty(
        "generic_vhost_user",
        &config.generic_vhost_user,
        "vhost-user",
    )?;
    absent_or_empty("pmem", &config.pmem, "virtio-pmem")?;
    absent_or_empty("user_devices", &config.user_devices, "vfio-user")?;
    absent_or_empty("vdpa", &config.vdpa, "vDPA")?;
    absent("vsock", config.vsock, "virtio-vsock")
}

fn refuse_machine_parts(config: &VmConfig) -> Result<(), ConfigError> {
    allow("pvpanic", !config.pvpanic, "pvpanic")?;
    allow("iommu", !config.iommu, "a virtual IOMMU")?;
    allow("watchdog", !config.watchdog, "virtio-watchdog")?;
    allow("landlock_enable", !config.landlock_enable, "landlock")?;
    absent_or_empty("landlock_rules", &config.landlock_rules, "landlock")?;
    absent_or_empty("numa", &config.numa, "NUMA")?;
    absent_or_empty("pci_segments", &config.pci_segments, "a second PCI segment")?;
    absent("rtc", config.rtc, "a setting of the real-time clock")?;
    absent("tpm", config.tpm, "a TPM")
}

fn refuse_in_cpus(cpus: &CpusConfig) -> Result<(), ConfigError> {
    allow("cpus.kvm_hyperv", !cpus.kvm_hyperv, "the Hyper-V interface")?;
    allow("cpus.features.amx", !cpus.features.amx, "AMX")?;
    allow(
        "cpus.core_scheduling",
        cpus.core_scheduling == CoreScheduling::Vm,
        "another core scheduling",
    )
}

fn refuse_in_memory(memory: &MemoryConfig) -> Result<(), ConfigError> {
    allow("memory.mergeable", !memory.mergeable, "same-page merging")?;
    allow(
        "memory.hotplug_method",
        memory.hotplug_method == HotplugMethod::Acpi,
        "memory hotplug",
    )?;
    allow(
        "memory.hotplug_size",
        memory.hotplug_size.unwrap_or(0) == 0,
        "memory hotplug",
    )?;
    allow(
        "memory.hotplugged_size",
        memory.hotplugged_size.unwrap_or(0) == 0,
        "memory hotplug",
    )?;
    absent_or_empty("memory.zones", &memory.zones, "a memory zone")
}

fn refuse_in_payload(payload: &PayloadConfig) -> Result<(), ConfigError> {
    absent("payload.firmware", payload.firmware, "firmware")?;
    absent("payload.igvm", payload.igvm, "IGVM")?;
    absent(
        "payload.host_data",
        payload.host_data,
        "data for a confidential guest",
    )
}

fn refuse_in_rng(rng: &RngConfig) -> Result<(), ConfigError> {
    let feature = "virtio-rng";
    allow("rng.src", rng.src == Path::new(DEFAULT_RNG_SOURCE), feature)?;
    allow("rng.id", rng.id.is_none(), feature)?;
    allow("rng.iommu", !rng.iommu, feature)?;
    allow("rng.pci_segment", rng.pci_segment == 0, feature)?;
    allow("rng.pci_device_id", rng.pci_device_id.is_none(), feature)
}

fn refuse_in_console(console: &ConsoleConfig) -> Result<(), ConfigError> {
    let feature = "virtio-console";
    allow(
        "console.mode",
        matches!(
            console.mode,
            ConsoleMode::Off | ConsoleMode::Null | ConsoleMode::Tty
        ),
        feature,
    )?;
    allow("console.file", console.file.is_none(), feature)?;
    allow("console.socket", console.socket.is_none(), feature)?;
    allow("console.id", console.id.is_none(), feature)?;
    allow("console.iommu", !console.iommu, feature)?;
    allow("console.pci_segment", console.pci_segment == 0, feature)?;
    allow(
        "console.pci_device_id",
        console.pci_device_id.is_none(),
        feature,
    )
}

fn refuse_in_debug_console(debug_console: &DebugConsoleConfig) -> Result<(), ConfigError> {
    allow(
        "debug_console.mode",
        debug_console.mode == ConsoleMode::Off,
        "the debug console",
    )?;
    allow(
        "debug_console.file",
        debug_console.file.is_none(),
        "the debug console",
    )
}

fn refuse_in_device(path: &str, device: &DeviceConfig) -> Result<(), ConfigError> {
    allow(&format!("{path}.iommu"), !device.iommu, "a virtual IOMMU")?;
    allow(
        &format!("{path}.pci_segment"),
        device.pci_segment == 0,
        "a second PCI segment",
    )?;
    allow(
        &format!("{path}.fd"),
        no_fd(device.fd),
        "a descriptor in a config",
    )?;
    let clique = format!("{path}.x_nv_gpudirect_clique");
    allow(
        &clique,
        device.x_nv_gpudirect_clique.is_none(),
        "NVIDIA GPUDirect",
    )
}

fn refuse_in_platform(platform: &PlatformConfig) -> Result<(), ConfigError> {
    allow(
        "platform.num_pci_segments",
        platform.num_pci_segments == 1,
        "a second PCI segment",
    )?;
    let segments = platform.iommu_segments.as_deref().unwrap_or_default();
    allow(
        "platform.iommu_segments",
        segments.is_empty(),
        "a virtual IOMMU",
    )?;
    allow(
        "platform.iommu_address_width_bits",
        platform.iommu_address_width_bits == 64,
        "a virtual IOMMU",
    )?;
    let oem_strings = platform.oem_strings.as_deref().unwrap_or_default();
    allow("platform.oem_strings", oem_strings.is_empty(), "SMBIOS")?;
    for (path, text) in [
        (
            "platform.system_serial_number",
            &platform.system_serial_number,
        ),
        ("platform.system_uuid", &platform.system_uuid),
        (
            "platform.system_manufacturer",
            &platform.system_manufacturer,
        ),
        (
            "platform.system_product_name",
            &platform.system_product_name,
        ),
        ("platform.system_version", &platform.system_version),
        ("platform.system_family", &platform.system_family),
        ("platform.system_sku_number", &platform.system_sku_number),
        ("platform.chassis_asset_tag", &platform.chassis_asset_tag),
    ] {
        allow(path, text.is_none(), "SMBIOS")?;
    }
    allow(
        "platform.iommufd_fd",
        no_fd(platform.iommufd_fd),
        "a descriptor in a config",
    )?;
    allow("platform.tdx", !platform.tdx, "TDX")?;
    allow("platform.sev_snp", !platform.sev_snp, "SEV-SNP")
}

/// Cloud Hypervisor writes -1 for a descriptor that it holds.
fn no_fd(fd: Option<i64>) -> bool {
    matches!(fd, None | Some(-1))
}

fn allow(path: &str, allowed: bool, feature: &'static str) -> Result<(), ConfigError> {
    if allowed {
        Ok(())
    } else {
        Err(ConfigError::NotImplemented {
            path: path.to_owned(),
            feature,
        })
    }
}

fn absent(path: &str, value: Option<Unbuilt>, feature: &'static str) -> Result<(), ConfigError> {
    allow(path, value.is_none(), feature)
}

fn absent_or_empty(
    path: &str,
    list: &Option<Vec<Unbuilt>>,
    feature: &'static str,
) -> Result<(), ConfigError> {
    allow(
        &format!("{path}[0]"),
        list.as_ref().is_none_or(Vec::is_empty),
        feature,
    )
}
