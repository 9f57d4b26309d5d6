//! Tests of reading and validating configs.

use std::error::Error;

use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};
use serde_json::{Value, json};

use super::{CONFIG_LIMIT_BYTES, ConfigError, ConsoleMode, SnapshotPolicy, Violation, VmConfig};

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
        for field in super::unknown::known_names(object) {
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
fn unbuilt_settings_are_refused_by_name() {
    for (pointer, value, expected) in [
        (
            "/net",
            json!([{"tap": "t"}]),
            "net[0]: virtio-net is not implemented by Dormouse; remove it",
        ),
        ("/disks", json!([{}, {}]), "disks[0]: virtio-blk"),
        ("/vsock", json!({"cid": 3}), "vsock: virtio-vsock"),
        ("/balloon", json!({"size": 1}), "balloon: virtio-balloon"),
        ("/pvpanic", json!(true), "pvpanic: pvpanic"),
        ("/landlock_enable", json!(true), "landlock_enable: landlock"),
        (
            "/cpus/kvm_hyperv",
            json!(true),
            "cpus.kvm_hyperv: the Hyper-V interface",
        ),
        (
            "/cpus/core_scheduling",
            json!("Off"),
            "cpus.core_scheduling: another",
        ),
        (
            "/memory/zones",
            json!([{"id": "z"}]),
            "memory.zones[0]: a memory zone",
        ),
        (
            "/memory/hotplug_size",
            json!(4096),
            "memory.hotplug_size: memory hotplug",
        ),
        (
            "/payload/firmware",
            json!("/f"),
            "payload.firmware: firmware",
        ),
        (
            "/console/mode",
            json!("Tty"),
            "console.mode: virtio-console",
        ),
        ("/rng", json!({"src": "/dev/random"}), "rng.src: virtio-rng"),
        (
            "/devices/1/iommu",
            json!(true),
            "devices[1].iommu: a virtual IOMMU",
        ),
        ("/devices/0/fd", json!(3), "devices[0].fd: a descriptor"),
        (
            "/platform/num_pci_segments",
            json!(2),
            "platform.num_pci_segments: a second PCI segment",
        ),
        ("/platform/uuid", json!("x"), "platform.system_uuid: SMBIOS"),
    ] {
        let text = full_with(pointer, value).to_string();
        assert!(
            read_error(&text).starts_with(expected),
            "{pointer}: {}",
            read_error(&text)
        );
        assert!(
            VmConfig::from_http_bytes(text.as_bytes()).is_err(),
            "{pointer} is refused over HTTP too"
        );
    }
}

#[test]
fn unknown_field_in_a_file_is_refused_with_the_nearest_name() {
    for (pointer, expected) in [
        (
            "/payload/kernell",
            "unknown field payload.kernell; did you mean kernel?",
        ),
        ("/memroy", "unknown field memroy; did you mean memory?"),
        (
            "/devices/1/pth",
            "unknown field devices[1].pth; did you mean path?",
        ),
        (
            "/cpus/topology/package",
            "unknown field cpus.topology.package; did you mean packages?",
        ),
        ("/cpus/zzz", "unknown field cpus.zzz"),
    ] {
        assert_eq!(
            read_error(&full_with(pointer, json!([[1]])).to_string()),
            expected
        );
    }
}

#[test]
fn unknown_fields_over_http_are_returned_and_bounded() {
    let mut config = full();
    config["memory"]["sise"] = json!(1);
    let (read, warnings) =
        VmConfig::from_http_bytes(config.to_string().as_bytes()).expect("it can be read");
    assert_eq!(read, from_file(&full()).expect("it can be read"));
    assert_eq!(warnings.len(), 1);
    assert_eq!(
        (warnings[0].path.as_str(), warnings[0].nearest),
        ("memory.sise", Some("size"))
    );

    let many: serde_json::Map<_, _> = (0..1000).map(|n| (format!("field{n}"), json!(n))).collect();
    let (_, warnings) = VmConfig::from_http_bytes(Value::from(many).to_string().as_bytes())
        .expect("it can be read");
    assert_eq!(warnings.len(), 32);
}

#[test]
fn wrong_json_is_refused_with_its_place() {
    let deep = "[".repeat(100_000);
    for (text, expected) in [
        ("", "the JSON text is empty"),
        (" \n\t ", "the JSON text is empty"),
        (
            "{\"cpus\": \n {",
            "the text is not valid JSON: EOF while parsing an object at line 2 column 2",
        ),
        (
            "{} x",
            "the text is not valid JSON: trailing characters at line 1 column 4",
        ),
        (
            "[]",
            "cannot read the JSON text: invalid type: sequence, expected an object at line 1 column 0",
        ),
        (
            "7",
            "cannot read the JSON text: invalid type: integer `7`, expected an object at line 1 column 1",
        ),
        (
            "{\"cpus\": [1, 1]}",
            "cannot read cpus: invalid type: sequence, expected an object",
        ),
        (
            "{\"cpus\": {\"boot_vcpus\": 1}}",
            "cannot read cpus: missing field `max_vcpus` at line 1",
        ),
        (
            "{\"memory\": {\"size\": -1}}",
            "cannot read memory.size: invalid value: integer `-1`, expected u64",
        ),
        (
            "{\"memory\": {\"size\": 1e400}}",
            "the text is not valid JSON: number out of range",
        ),
        (
            "{\"memory\": {\"size\": \"1G\"}}",
            "cannot read memory.size: invalid type: string \"1G\", expected u64",
        ),
        (
            "{\"serial\": {\"mode\": \"tty\"}}",
            "cannot read serial.mode: unknown variant `tty`, expected one of `Off`",
        ),
        (
            "{\"iommu\": false, \"iommu\": false}",
            "cannot read the JSON text: duplicate field `iommu`",
        ),
        (
            "{\"devices\": [{}, 3]}",
            "cannot read devices[1]: invalid type: integer `3`, expected an object",
        ),
        (
            &format!("{{\"net\": {deep}"),
            "the text is not valid JSON: recursion limit exceeded",
        ),
    ] {
        let error = read_error(text);
        assert!(error.starts_with(expected), "{text:.40}: {error}");
    }
}

#[test]
fn errors_do_not_repeat_a_huge_input() {
    let text = json!({"cpus": {"boot_vcpus": "x".repeat(1 << 20)}}).to_string();
    let error = read_error(&text);
    assert!(
        error.len() < 1000 && error.ends_with("at line 1 column 1048600"),
        "{error}"
    );
    let text =
        json!({"cpus": {"boot_vcpus": 1, "max_vcpus": 1, "y".repeat(1 << 20): 1}}).to_string();
    assert!(read_error(&text).len() < 1000);
    let text = format!("{{\"cpus\": {}null}}", " ".repeat(CONFIG_LIMIT_BYTES));
    assert!(read_error(&text).contains("more than the allowed 4194304"));
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

/// The full config's text with some bytes replaced, removed or doubled.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let edits = proptest::collection::vec(
        (any::<proptest::sample::Index>(), any::<u8>(), 0..4_u8),
        0..6,
    );
    edits.prop_map(|edits| {
        let mut text = full().to_string().into_bytes();
        for (at, byte, kind) in edits {
            let at = at.index(text.len());
            match kind {
                0 => text[at] = byte,
                1 => drop(text.remove(at)),
                2 => text.insert(at, text[at]),
                _ => text[at] = b"0123456789-,:{}[]\""[usize::from(byte) % 18],
            }
        }
        text
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let strict = VmConfig::from_file_bytes(&bytes).is_ok();
        prop_assert!(!strict || VmConfig::from_http_bytes(&bytes).is_ok());
    }

    #[test]
    fn mutated_config_is_refused_or_keeps_its_meaning(bytes in mutated()) {
        match VmConfig::from_file_bytes(&bytes) {
            Ok(config) => {
                let _ = config.validate();
                let written = serde_json::to_vec(&config).expect("a config can be written");
                prop_assert_eq!(VmConfig::from_file_bytes(&written).expect("it reads back"), config);
            }
            Err(error) => prop_assert!(!chain(&error).is_empty()),
        }
    }

    #[test]
    fn absurd_numbers_never_overflow(
        cpus in any::<[u32; 2]>(), topology in any::<[u16; 4]>(), size in any::<u64>(), bits in any::<u8>(),
        hugepage_size in any::<u64>(), slot in any::<u8>(),
    ) {
        let config = json!({
            "cpus": {
                "boot_vcpus": cpus[0], "max_vcpus": cpus[1], "max_phys_bits": bits,
                "topology": {
                    "threads_per_core": topology[0], "cores_per_die": topology[1],
                    "dies_per_package": topology[2], "packages": topology[3]
                }
            },
            "memory": {"size": size, "hugepages": true, "hugepage_size": hugepage_size},
            "payload": {"kernel": "/k"},
            "devices": [{"path": "/d", "pci_device_id": slot}]
        });
        let valid = from_file(&config).expect("it can be read").validate().is_ok();
        prop_assert!(!valid || cpus[1] <= 254);
    }
}
