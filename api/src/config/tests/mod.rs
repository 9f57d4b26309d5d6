//! Tests of reading and validating configs.

mod errors;
mod random;
mod read;
mod rules;

use std::error::Error;

use serde_json::{Value, json};

use super::{ConfigError, VmConfig};

/// A config that uses every object that Dormouse builds.
fn full() -> Value {
    json!({
        "cpus": {
            "boot_vcpus": 2, "max_vcpus": 4,
            "topology": {"threads_per_core": 2, "cores_per_die": 2, "dies_per_package": 1, "packages": 1},
            "affinity": [{"vcpu": 1, "host_cpus": [0, 3]}],
            "max_phys_bits": 40, "nested": false
        },
        "memory": {"size": 1_073_741_824_u64, "hugepages": true, "hugepage_size": 2_097_152, "shared": true},
        "payload": {"kernel": "/boot/vmlinuz", "cmdline": "console=ttyS0", "initramfs": "/boot/initrd"},
        "serial": {"mode": "File", "file": "/tmp/serial"},
        "console": {"mode": "Off"},
        "devices": [
            {"id": "vfio0", "path": "/sys/bus/pci/devices/0000:41:00.3/", "pci_device_id": 4},
            {"path": "/sys/bus/pci/devices/0000:41:00.4", "snapshot": "discard-state", "x_exclude_mmap_bars": [0, 5]}
        ],
        "platform": {"iommufd": true, "vfio_p2p_dma": false}
    })
}

fn from_file(value: &Value) -> Result<VmConfig, ConfigError> {
    VmConfig::from_file_bytes(value.to_string().as_bytes())
}

/// The full config with `value` at `pointer`, whose parent exists.
fn full_with(pointer: &str, value: Value) -> Value {
    let mut config = full();
    let (parent, name) = pointer
        .rsplit_once('/')
        .expect("a JSON pointer has a slash");
    let parent = config.pointer_mut(parent).expect("the parent exists");
    match parent {
        Value::Object(object) => drop(object.insert(name.to_owned(), value)),
        Value::Array(list) => list[name.parse::<usize>().expect("an index")] = value,
        _ => panic!("{pointer} has no parent that can hold it"),
    }
    config
}

fn chain(error: &ConfigError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn read_error(text: &str) -> String {
    chain(&VmConfig::from_file_bytes(text.as_bytes()).expect_err("the config is refused"))
}
