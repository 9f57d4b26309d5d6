//! A config that cannot be used is refused at once, with its reason. Needs no KVM: the config is looked at first.

use std::path::Path;

use dormouse_tests::VmConfig;
use dormouse_tests::exit::{refused, refused_file, refused_text};
use serde_json::{Value, json};

/// Refuses each text; the reason names the config file and the nouns.
fn refuses_texts(table: &[(&str, &[&str])]) {
    for (text, nouns) in table {
        let exit = refused_text(text.as_bytes());
        eprintln!("{text:.60?}: {}", exit.stderr.trim_end());
        exit.assert_failure(nouns);
    }
}

/// Refuses a good config in which one field is replaced.
fn refuses_fields(table: &[(&str, Value, &[&str])]) {
    for (pointer, value, nouns) in table {
        let config = VmConfig::new(Path::new("/dev/null"), "").set(pointer, value.clone());
        let exit = refused(&config);
        eprintln!("{pointer}: {}", exit.stderr.trim_end());
        exit.assert_failure(nouns);
    }
}

#[test]
fn text_that_is_no_json_object() {
    refuses_texts(&[
        ("", &["config"]),
        ("   \n", &["config"]),
        ("not json", &["config"]),
        ("{", &["config"]),
        ("{\"memory\": {\"size\": 1", &["config"]),
        ("{\"memory\": {\"size\": 1048576}}}", &["config"]),
        ("[]", &["config"]),
        ("null", &["config"]),
        ("42", &["config"]),
        ("\"text\"", &["config"]),
        ("{\"cpus\": 1, \"cpus\": 2}", &["cpus"]),
        ("\u{feff}{}", &["config"]),
        ("{}", &["payload"]),
    ]);
}

#[test]
fn bytes_that_are_no_text() {
    refused_text(b"{\"payload\": {\"kernel\": \"\xff\xfe\"}}").assert_failure(&["config"]);
    refused_text(&[0; 4096]).assert_failure(&["config"]);
}

#[test]
fn deep_nesting() {
    for (open, depth) in [
        ("[", 100_000),
        ("{\"cpus\":", 100_000),
        ("{\"devices\":[", 20_000),
    ] {
        refused_text(open.repeat(depth).as_bytes()).assert_failure(&["config"]);
    }
    let ignored_depth = format!(
        "{{\"unknown\": {}1{}}}",
        "[".repeat(50_000),
        "]".repeat(50_000)
    );
    refused_text(ignored_depth.as_bytes()).assert_failure(&["config"]);
}

#[test]
fn huge_text() {
    let spaces = " ".repeat(64 << 20);
    refused_text(format!("{{{spaces}}}").as_bytes()).assert_failure(&["config"]);
    let cmdline = "x".repeat(32 << 20);
    let text = json!({ "payload": { "kernel": "/dev/null", "cmdline": cmdline } }).to_string();
    let exit = refused_text(text.as_bytes());
    exit.assert_failure(&["config"]);
    assert!(
        exit.stderr.len() < 4096,
        "the reason does not repeat the input"
    );
}

#[test]
fn files_that_cannot_be_read() {
    refused_file(Path::new("/nonexistent/vm.json")).assert_failure(&["/nonexistent/vm.json"]);
    refused_file(Path::new("/")).assert_failure(&["config"]);
    refused_file(Path::new("/dev/null")).assert_failure(&["config"]);
    refused_file(Path::new("/dev/zero")).assert_failure(&["config"]);
}

#[test]
fn wrong_types() {
    refuses_fields(&[
        ("/cpus", json!("two"), &["cpus"]),
        ("/cpus", json!([1]), &["cpus"]),
        ("/cpus/boot_vcpus", json!("2"), &["boot_vcpus"]),
        ("/cpus/boot_vcpus", json!(1.5), &["boot_vcpus"]),
        ("/cpus/boot_vcpus", json!(true), &["boot_vcpus"]),
        ("/cpus/boot_vcpus", json!({}), &["boot_vcpus"]),
        ("/memory", json!(512), &["memory"]),
        ("/memory/size", json!("512M"), &["size"]),
        ("/memory/size", json!(null), &["size"]),
        ("/memory/hugepages", json!("yes"), &["hugepages"]),
        ("/payload", json!("/vmlinux"), &["payload"]),
        ("/payload/kernel", json!(5), &["kernel"]),
        ("/payload/cmdline", json!(["a", "b"]), &["cmdline"]),
        ("/console/mode", json!("file"), &["mode"]),
        ("/devices", json!({}), &["devices"]),
        ("/devices", json!([5]), &["devices"]),
    ]);
}

#[test]
fn unknown_fields_with_the_nearest_known_name() {
    refuses_fields(&[
        ("/memoryy", json!({}), &["memoryy", "did you mean memory?"]),
        (
            "/cpus/boot_vcpu",
            json!(1),
            &["boot_vcpu", "did you mean boot_vcpus?"],
        ),
        (
            "/payload/kernal",
            json!("/k"),
            &["kernal", "did you mean kernel?"],
        ),
        (
            "/payload/initramf",
            json!("/i"),
            &["initramf", "did you mean initramfs?"],
        ),
        (
            "/memory/hugepage",
            json!(true),
            &["hugepage", "did you mean hugepages?"],
        ),
        ("/zzzzzzzzzzzz", json!(1), &["zzzzzzzzzzzz"]),
    ]);
}

#[test]
fn settings_that_are_not_built() {
    refuses_fields(&[
        ("/disks", json!([{ "path": "/disk" }]), &["disks"]),
        ("/net", json!([{}]), &["net"]),
        (
            "/memory/zones",
            json!([{ "id": "a", "size": 1 << 30 }]),
            &["zones"],
        ),
        ("/payload/firmware", json!("/firmware"), &["firmware"]),
        ("/watchdog", json!(true), &["watchdog"]),
    ]);
}

#[test]
fn absurd_cpu_counts() {
    for count in [
        json!(0),
        json!(-1),
        json!(100_000),
        json!(u32::MAX),
        json!(u64::MAX),
        json!(1e30),
    ] {
        refuses_fields(&[
            ("/cpus/boot_vcpus", count.clone(), &["vcpus"]),
            ("/cpus/max_vcpus", count.clone(), &["vcpus"]),
            (
                "/cpus",
                json!({ "boot_vcpus": count, "max_vcpus": count }),
                &["vcpus"],
            ),
        ]);
    }
    refuses_fields(&[
        (
            "/cpus",
            json!({ "boot_vcpus": 3, "max_vcpus": 2 }),
            &["vcpus"],
        ),
        ("/cpus", json!({ "boot_vcpus": 1 }), &["max_vcpus"]),
        (
            "/cpus/topology",
            json!({ "threads_per_core": 0, "cores_per_die": 0, "dies_per_package": 0, "packages": 0 }),
            &["topology"],
        ),
    ]);
}

#[test]
fn absurd_memory_sizes() {
    let odd = (128 << 20) + 1;
    let sizes = [
        json!(0),
        json!(1),
        json!(4095),
        json!(4096),
        json!((4 << 20) - 4096),
        json!(odd),
        json!(-1),
        json!(1_u64 << 62),
        json!(1_u64 << 63),
        json!(u64::MAX),
        json!(u64::MAX - 4095),
        json!(1e300),
    ];
    for size in sizes {
        refuses_fields(&[("/memory/size", size, &["memory", "size"])]);
    }
    let huge = json!({ "size": 3 << 20, "hugepages": true });
    refuses_fields(&[
        ("/memory", huge, &["memory"]),
        ("/memory/hugepage_size", json!(4096), &["hugepage"]),
        (
            "/memory",
            json!({ "size": 1 << 30, "hugepages": true, "hugepage_size": 3 }),
            &["hugepage"],
        ),
    ]);
}
