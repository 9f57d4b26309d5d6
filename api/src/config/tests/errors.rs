//! What is refused while it is read, and what the error says.

use serde_json::{Value, json};

use super::super::{CONFIG_LIMIT_BYTES, VmConfig};
use super::{chain, from_file, full, full_with, read_error};

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
            json!("Pty"),
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
fn errors_carry_no_control_characters_to_a_terminal() {
    for text in [
        r#"{"serial": {"mode": "\u001b[31m"}}"#,
        r#"{"\u001b[31m": 1}"#,
        r#"{"\u0007": {}, "cpus": 1}"#,
    ] {
        let error = read_error(text);
        assert!(!error.chars().any(char::is_control), "{error:?}");
    }
}

#[test]
fn more_devices_than_the_bus_has_slots_are_refused_as_they_are_read() {
    let list = |count: usize| {
        let devices = vec!["{\"path\":\"/d\"}"; count].join(",");
        format!(r#"{{"payload":{{"kernel":"/k"}},"devices":[{devices}]}}"#)
    };
    let config = VmConfig::from_http_bytes(list(31).as_bytes());
    assert_eq!(config.expect("they fit").0.devices.len(), 31);
    for count in [32, 200_000] {
        let error = VmConfig::from_http_bytes(list(count).as_bytes()).expect_err("too many");
        let text = chain(&error);
        // The place is where reading ended, however long the list is.
        assert!(
            text.starts_with(
                "cannot read devices: there are more than 31, for which a VM has no room at line 1 column 4"
            ),
            "{text}"
        );
    }
}
