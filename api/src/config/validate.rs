//! Whether a config can boot: the checks that need nothing of the host. `vmm` runs them before it touches KVM.
//!
//! The rules are Cloud Hypervisor's for the settings that Dormouse builds, and checked at boot as there, so that a config
//! may be created in any order. What depends on the host (files, devices, free memory) is checked by who uses it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{
    ConfigError, ConsoleMode, CpusConfig, DeviceConfig, MAX_BAR_INDEX, MAX_DEVICES, MemoryConfig,
    PayloadConfig, SerialConfig, Violation, VmConfig,
};

/// Most vCPUs of a VM: their local APIC ids have to fit beside the I/O APIC's in 8 bits.
pub const MAX_VCPUS: u32 = 254;
/// Longest device id, in characters; it becomes part of a file name.
pub const MAX_ID_LEN: usize = 64;

const MIN_MEMORY_BYTES: u64 = 4 << 20;
const PAGE_BYTES: u64 = 4 << 10;
const HUGE_PAGE_2M_BYTES: u64 = 2 << 20;
const HUGE_PAGE_1G_BYTES: u64 = 1 << 30;
/// Widths between the first 64-bit processors' and the most that 4-level page tables can map.
const PHYS_BITS: std::ops::RangeInclusive<u64> = 36..=52;
/// The guest's RAM goes around this much of its address space below 4 GiB.
const MMIO_HOLE_BYTES: u64 = 1 << 30;
/// Size of the kernel's default CPU set.
const MAX_HOST_CPU: u64 = 1023;
/// Slot 0 of the PCI bus holds the host bridge.
const DEVICE_SLOTS: std::ops::RangeInclusive<u64> = 1..=MAX_DEVICES as u64;

impl VmConfig {
    /// Checks the rules that a config has to keep to boot, and names the first one that is broken.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check_cpus(&self.cpus)?;
        check_memory(&self.memory, self.cpus.max_phys_bits)?;
        check_payload(self.payload.as_ref())?;
        check_serial(&self.serial)?;
        check_devices(&self.devices)
    }
}

/// Whether `id` can name a device: 1 to [`MAX_ID_LEN`] ASCII letters, digits, `-`, `_` or `.`, and no leading `-` or `.`.
pub fn is_valid_id(id: &str) -> bool {
    id.len() <= MAX_ID_LEN
        && id.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

fn check_cpus(cpus: &CpusConfig) -> Result<(), ConfigError> {
    in_range(
        "cpus.max_vcpus",
        u64::from(cpus.max_vcpus),
        1..=u64::from(MAX_VCPUS),
    )?;
    in_range(
        "cpus.boot_vcpus",
        u64::from(cpus.boot_vcpus),
        1..=u64::from(cpus.max_vcpus),
    )?;
    in_range(
        "cpus.max_phys_bits",
        u64::from(cpus.max_phys_bits),
        PHYS_BITS,
    )?;
    if let Some(topology) = cpus.topology {
        // Four 16-bit numbers: the product fits in 64 bits.
        let product = [
            topology.threads_per_core,
            topology.cores_per_die,
            topology.dies_per_package,
            topology.packages,
        ]
        .into_iter()
        .map(u64::from)
        .product();
        if product != u64::from(cpus.max_vcpus) {
            let max_vcpus = cpus.max_vcpus;
            return Err(broken(
                "cpus.topology",
                Violation::TopologyMismatch { product, max_vcpus },
            ));
        }
    }
    let mut seen = FirstUse::default();
    for (index, affinity) in cpus.affinity.iter().enumerate() {
        let path = format!("cpus.affinity[{index}]");
        in_range(
            &format!("{path}.vcpu"),
            u64::from(affinity.vcpu),
            0..=u64::from(cpus.max_vcpus) - 1,
        )?;
        seen.claim(format!("{path}.vcpu"), affinity.vcpu)?;
        if affinity.host_cpus.is_empty() {
            return Err(broken(&format!("{path}.host_cpus"), Violation::EmptyList));
        }
        for (position, cpu) in affinity.host_cpus.iter().enumerate() {
            in_range(
                &format!("{path}.host_cpus[{position}]"),
                u64::from(*cpu),
                0..=MAX_HOST_CPU,
            )?;
        }
    }
    Ok(())
}

fn check_memory(memory: &MemoryConfig, max_phys_bits: u8) -> Result<(), ConfigError> {
    let unit = match (memory.hugepages, memory.hugepage_size) {
        (false, None) => PAGE_BYTES,
        (false, Some(_)) => {
            return Err(broken(
                "memory.hugepage_size",
                Violation::Requires {
                    needed: "memory.hugepages",
                },
            ));
        }
        (true, None) => HUGE_PAGE_2M_BYTES,
        (true, Some(size @ (HUGE_PAGE_2M_BYTES | HUGE_PAGE_1G_BYTES))) => size,
        (true, Some(value)) => {
            return Err(broken(
                "memory.hugepage_size",
                Violation::HugePageSize { value },
            ));
        }
    };
    let max = 1_u64
        .checked_shl(u32::from(max_phys_bits))
        .unwrap_or(u64::MAX)
        - MMIO_HOLE_BYTES;
    in_range("memory.size", memory.size, MIN_MEMORY_BYTES..=max)?;
    if !memory.size.is_multiple_of(unit) {
        return Err(broken(
            "memory.size",
            Violation::NotMultiple {
                value: memory.size,
                unit,
            },
        ));
    }
    Ok(())
}

fn check_payload(payload: Option<&PayloadConfig>) -> Result<(), ConfigError> {
    let Some(kernel) = payload.and_then(|payload| payload.kernel.as_deref()) else {
        return Err(broken("payload", Violation::NoKernel));
    };
    usable_path("payload.kernel", kernel)?;
    if let Some(initramfs) = payload.and_then(|payload| payload.initramfs.as_deref()) {
        usable_path("payload.initramfs", initramfs)?;
    }
    match payload.and_then(|payload| payload.cmdline.as_deref()) {
        Some(cmdline) if cmdline.contains('\0') => {
            Err(broken("payload.cmdline", Violation::ContainsNul))
        }
        _ => Ok(()),
    }
}

fn check_serial(serial: &SerialConfig) -> Result<(), ConfigError> {
    match serial.mode {
        ConsoleMode::File => required_path("serial.file", "serial.mode", serial.file.as_deref()),
        ConsoleMode::Socket => {
            required_path("serial.socket", "serial.mode", serial.socket.as_deref())
        }
        ConsoleMode::Off | ConsoleMode::Pty | ConsoleMode::Tty | ConsoleMode::Null => Ok(()),
    }
}

fn check_devices(devices: &[DeviceConfig]) -> Result<(), ConfigError> {
    let (mut ids, mut paths, mut slots) = (
        FirstUse::default(),
        FirstUse::default(),
        FirstUse::default(),
    );
    for (index, device) in devices.iter().enumerate() {
        let at = |field: &str| format!("devices[{index}].{field}");
        if let Some(id) = device.id.as_deref() {
            if !is_valid_id(id) {
                return Err(broken(
                    &at("id"),
                    Violation::BadName {
                        max_length: MAX_ID_LEN,
                    },
                ));
            }
            ids.claim(at("id"), id)?;
        }
        let Some(path) = device.path.as_deref() else {
            return Err(broken(&at(""), Violation::Requires { needed: "path" }));
        };
        usable_path(&at("path"), path)?;
        if !path.is_absolute() {
            return Err(broken(&at("path"), Violation::NotAbsolute));
        }
        paths.claim(at("path"), normal_form(path))?;
        if let Some(slot) = device.pci_device_id {
            in_range(&at("pci_device_id"), u64::from(slot), DEVICE_SLOTS)?;
            slots.claim(at("pci_device_id"), slot)?;
        }
        for (position, bar) in device.x_exclude_mmap_bars.iter().enumerate() {
            let path = at(&format!("x_exclude_mmap_bars[{position}]"));
            in_range(&path, u64::from(*bar), 0..=u64::from(MAX_BAR_INDEX))?;
        }
    }
    Ok(())
}

/// Where each value was used first.
struct FirstUse<T>(HashMap<T, String>);

impl<T> Default for FirstUse<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Eq + Hash> FirstUse<T> {
    fn claim(&mut self, path: String, value: T) -> Result<(), ConfigError> {
        match self.0.entry(value) {
            Entry::Vacant(vacant) => {
                vacant.insert(path);
                Ok(())
            }
            Entry::Occupied(first) => Err(broken(
                &path,
                Violation::Duplicate {
                    first: first.get().clone(),
                },
            )),
        }
    }
}

/// The path without doubled and trailing slashes and without `.` parts. Links are not followed.
fn normal_form(path: &Path) -> PathBuf {
    path.components().collect()
}

fn required_path(
    path: &'static str,
    asked_by: &str,
    value: Option<&Path>,
) -> Result<(), ConfigError> {
    match value {
        Some(value) => usable_path(path, value),
        None => Err(broken(asked_by, Violation::Requires { needed: path })),
    }
}

fn usable_path(path: &str, value: &Path) -> Result<(), ConfigError> {
    if value.as_os_str().is_empty() {
        return Err(broken(path, Violation::EmptyPath));
    }
    if value.as_os_str().as_bytes().contains(&0) {
        return Err(broken(path, Violation::ContainsNul));
    }
    Ok(())
}

fn in_range(
    path: &str,
    value: u64,
    range: std::ops::RangeInclusive<u64>,
) -> Result<(), ConfigError> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(broken(
        path,
        Violation::OutOfRange {
            value,
            min: *range.start(),
            max: *range.end(),
        },
    ))
}

fn broken(path: &str, source: Violation) -> ConfigError {
    ConfigError::Invalid {
        path: path.trim_end_matches('.').to_owned(),
        source,
    }
}
