//! What is read, and with which defaults.

use serde_json::{Value, json};

use super::super::{ConsoleMode, SnapshotPolicy, VmConfig};
use super::{from_file, full};

#[test]
fn full_config_is_read_and_valid() {
    let config = from_file(&full()).expect("the config can be read");
    config.validate().expect("the config is valid");
    assert_eq!(config.cpus.boot_vcpus, 2);
    assert!(!config.cpus.nested);
    assert_eq!(config.cpus.affinity[0].host_cpus, [0, 3]);
    assert_eq!(config.memory.hugepage_size, Some(2 << 20));
    assert!(config.memory.thp);
    assert_eq!(config.serial.mode, ConsoleMode::File);
    assert_eq!(config.devices[0].snapshot, SnapshotPolicy::Migrate);
    assert_eq!(config.devices[1].snapshot, SnapshotPolicy::DiscardState);
    assert_eq!(config.platform_or_default().iommufd, Some(true));
}

#[test]
fn written_config_reads_back_the_same() {
    let config = from_file(&full()).expect("the config can be read");
    let written = serde_json::to_vec(&config).expect("a config can be written");
    assert_eq!(
        VmConfig::from_file_bytes(&written).expect("it reads back"),
        config
    );
}

#[test]
fn defaults_are_written_out() {
    let config = from_file(&json!({"payload": {"kernel": "/k"}})).expect("the config can be read");
    let expected = json!({
        "cpus": {
            "boot_vcpus": 1, "max_vcpus": 1, "kvm_hyperv": false, "max_phys_bits": 46, "features": {"amx": false},
            "nested": true, "core_scheduling": "Vm", "profile": "Host"
        },
        "memory": {
            "size": 536_870_912, "mergeable": false, "hotplug_method": "Acpi", "shared": false, "hugepages": false,
            "prefault": false, "reserve": false, "thp": true
        },
        "payload": {"kernel": "/k"},
        "rng": {"pci_segment": 0, "src": "/dev/urandom"},
        "serial": {"mode": "Null"},
        "console": {"mode": "Off", "pci_segment": 0},
        "debug_console": {"mode": "Off", "iobase": 233},
        "pvpanic": false, "iommu": false, "watchdog": false, "landlock_enable": false
    });
    assert_eq!(
        serde_json::to_value(&config).expect("a config can be written"),
        expected
    );
}

/// Every field that has a default, in every object, at once.
#[test]
fn null_is_the_default_everywhere() {
    let mut config = json!({
        "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
        "memory": {"size": 536_870_912},
        "payload": {},
        "rng": {"src": "/dev/urandom"},
        "serial": {"mode": "Null"},
        "console": {"mode": "Off"},
        "debug_console": {},
        "devices": [{}],
        "platform": {}
    });
    let without_null = from_file(&config).expect("the config can be read");
    for object in [
        "",
        "cpus",
        "memory",
        "payload",
        "rng",
        "serial",
        "console",
        "debug_console",
        "devices[]",
        "platform",
    ] {
        let target = match object {
            "" => &mut config,
            "devices[]" => &mut config["devices"][0],
            name => &mut config[name],
        };
        let known = match object {
            "" => super::super::fields::field_names::<VmConfig>(),
            name => super::super::unknown::known_names(name),
        };
        assert!(!known.is_empty());
        for field in known {
            // An alias is the same field again.
            if !matches!(*field, "serial_number" | "uuid") && target.get(field).is_none() {
                target[*field] = Value::Null;
            }
        }
    }
    assert!(config["cpus"]["nested"].is_null() && config["landlock_rules"].is_null());
    assert_eq!(from_file(&config).expect("null is accepted"), without_null);
    let whole = json!({"cpus": null, "memory": null, "payload": null, "rng": null, "serial": null, "devices": null});
    assert_eq!(
        from_file(&whole).expect("null is accepted"),
        VmConfig::default()
    );
}

#[test]
fn empty_lists_of_unbuilt_devices_are_accepted() {
    let config = json!({"disks": [], "net": [], "fs": [], "pmem": [], "numa": [], "memory": {"size": 1, "zones": []}});
    from_file(&config).expect("empty lists ask for nothing");
}

#[test]
fn cloud_hypervisors_default_console_is_none() {
    let console =
        json!({"mode": "Tty", "file": null, "socket": null, "iommu": false, "pci_segment": 0});
    let config = json!({"payload": {"kernel": "/k"}, "console": console});
    let config = from_file(&config).expect("the config can be read");
    config.validate().expect("the config is valid");
}

#[test]
fn device_ids_are_assigned_around_those_that_are_taken() {
    let devices = json!([
        {"path": "/a"}, {"id": "_vfio1", "path": "/b"}, {"path": "/c"}, {"id": "net0", "path": "/d"}
    ]);
    let config = json!({"payload": {"kernel": "/k"}, "devices": devices});
    let mut config = from_file(&config).expect("the config can be read");
    config.assign_device_ids();
    let ids = config.devices.iter().map(|device| device.id.as_deref());
    let expected = ["_vfio0", "_vfio1", "_vfio2", "net0"].map(Some);
    assert!(ids.eq(expected), "{config:?}");
}
