//! The rules that a config has to keep to boot.

use serde_json::{Value, json};

use super::super::{ConfigError, Violation};
use super::{from_file, full_with};

fn violation(config: &Value) -> (String, Violation) {
    match from_file(config)
        .expect("the config can be read")
        .validate()
    {
        Err(ConfigError::Invalid { path, source }) => (path, source),
        other => panic!("no rule is broken: {other:?}"),
    }
}

#[test]
fn validation_names_the_broken_rule() {
    let out = |value, min, max| Violation::OutOfRange { value, min, max };
    let needs = |needed| Violation::Requires { needed };
    let first = |path: &str| Violation::Duplicate {
        first: path.to_owned(),
    };
    let max_memory = (1 << 40) - (1 << 30);
    for (pointer, value, path, expected) in [
        (
            "/cpus/boot_vcpus",
            json!(0),
            "cpus.boot_vcpus",
            out(0, 1, 4),
        ),
        (
            "/cpus/boot_vcpus",
            json!(5),
            "cpus.boot_vcpus",
            out(5, 1, 4),
        ),
        (
            "/cpus/max_vcpus",
            json!(255),
            "cpus.max_vcpus",
            out(255, 1, 254),
        ),
        (
            "/cpus/max_vcpus",
            json!(0),
            "cpus.max_vcpus",
            out(0, 1, 254),
        ),
        (
            "/cpus/max_phys_bits",
            json!(255),
            "cpus.max_phys_bits",
            out(255, 36, 52),
        ),
        (
            "/cpus/topology/packages",
            json!(65535),
            "cpus.topology",
            Violation::TopologyMismatch {
                product: 262_140,
                max_vcpus: 4,
            },
        ),
        (
            "/cpus/affinity/0",
            json!({"vcpu": 4, "host_cpus": [0]}),
            "cpus.affinity[0].vcpu",
            out(4, 0, 3),
        ),
        (
            "/cpus/affinity/0",
            json!({"vcpu": 0, "host_cpus": []}),
            "cpus.affinity[0].host_cpus",
            Violation::EmptyList,
        ),
        (
            "/memory/size",
            json!(0),
            "memory.size",
            out(0, 4 << 20, max_memory),
        ),
        (
            "/memory/size",
            json!(u64::MAX),
            "memory.size",
            out(u64::MAX, 4 << 20, max_memory),
        ),
        (
            "/memory/size",
            json!((4 << 20) + 4096),
            "memory.size",
            Violation::NotMultiple {
                value: 4_198_400,
                unit: 2 << 20,
            },
        ),
        (
            "/memory/hugepage_size",
            json!(4096),
            "memory.hugepage_size",
            Violation::HugePageSize { value: 4096 },
        ),
        (
            "/memory/hugepages",
            json!(false),
            "memory.hugepage_size",
            needs("memory.hugepages"),
        ),
        (
            "/payload",
            json!({"cmdline": "x"}),
            "payload",
            Violation::NoKernel,
        ),
        ("/payload", json!(null), "payload", Violation::NoKernel),
        (
            "/payload/kernel",
            json!(""),
            "payload.kernel",
            Violation::EmptyPath,
        ),
        (
            "/payload/cmdline",
            json!("a\0b"),
            "payload.cmdline",
            Violation::ContainsNul,
        ),
        (
            "/serial",
            json!({"mode": "File"}),
            "serial.mode",
            needs("serial.file"),
        ),
        (
            "/serial",
            json!({"mode": "Socket", "file": "/f"}),
            "serial.mode",
            needs("serial.socket"),
        ),
        (
            "/devices/1/id",
            json!("vfio0"),
            "devices[1].id",
            first("devices[0].id"),
        ),
        (
            "/devices/1/id",
            json!("../x"),
            "devices[1].id",
            Violation::BadName { max_length: 64 },
        ),
        (
            "/devices/1/id",
            json!(""),
            "devices[1].id",
            Violation::BadName { max_length: 64 },
        ),
        (
            "/devices/1/path",
            json!("/sys/bus//pci/./devices/0000:41:00.3"),
            "devices[1].path",
            first("devices[0].path"),
        ),
        (
            "/devices/1/path",
            json!("0000:41:00.4"),
            "devices[1].path",
            Violation::NotAbsolute,
        ),
        ("/devices/1", json!({}), "devices[1]", needs("path")),
        (
            "/devices/1/pci_device_id",
            json!(4),
            "devices[1].pci_device_id",
            first("devices[0].pci_device_id"),
        ),
        (
            "/devices/1/pci_device_id",
            json!(32),
            "devices[1].pci_device_id",
            out(32, 1, 31),
        ),
        (
            "/devices/1/x_exclude_mmap_bars",
            json!([6]),
            "devices[1].x_exclude_mmap_bars[0]",
            out(6, 0, 5),
        ),
    ] {
        assert_eq!(
            violation(&full_with(pointer, value)),
            (path.to_owned(), expected)
        );
    }
}

#[test]
fn smallest_and_odd_page_sizes_are_valid() {
    for size in [4 << 20, (4 << 20) + 4096, 6_u64 << 30] {
        let config = json!({"memory": {"size": size}, "payload": {"kernel": "/k"}});
        from_file(&config)
            .expect("it can be read")
            .validate()
            .expect("it is valid");
    }
}

#[test]
fn unnamed_devices_get_the_first_free_names() {
    let devices =
        json!({"devices": [{"path": "/a"}, {"path": "/b", "id": "_vfio0"}, {"path": "/c"}]});
    let mut config = from_file(&devices).expect("it can be read");
    config.assign_device_ids();
    let ids: Vec<_> = config
        .devices
        .iter()
        .filter_map(|device| device.id.as_deref())
        .collect();
    assert_eq!(ids, ["_vfio1", "_vfio0", "_vfio2"]);
}
